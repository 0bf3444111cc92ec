"""The 3-D MRI adapter on miniature NIfTI and DICOM archives."""

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from data_adapters import create, from_description
from data_adapters.base import Record
from data_adapters.errors import BadFileError, UserError
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.cube_adapter import MRI3DAdapter
from data_adapters.scan import scan_archive
from tests.data.mri import nifti, phantom, write_nifti, write_series

SMALL = {"global_size": 24, "local_size": 16, "n_local": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LEJEPA_CACHE", str(folder))
    return folder


@pytest.fixture
def record(tmp_path) -> Record:
    write_nifti(tmp_path / "a" / "a.nii.gz", phantom(shape=(36, 40, 24)), spacing=(1.0, 1.0, 1.5))
    (found,) = MRI3DAdapter().scan(tmp_path / "a")
    return found


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_views_have_the_promised_form(record):
    adapter = MRI3DAdapter(**SMALL)
    for seed in range(12):
        views = adapter.views(adapter.read(record, rng(seed)), rng(seed))
        assert [tuple(view.shape) for view in views] == [(1, 24, 24, 24)] * 2 + [(1, 16, 16, 16)] * 3
        for view in views:
            assert view.dtype == torch.float32 and view.is_contiguous() and view.isfinite().all()
            assert 0 <= view.min() and view.max() <= 1
    spec = adapter.spec
    assert (spec.dims, spec.channels, spec.mean, spec.std) == (3, 1, (0.5,), (0.5,))
    assert MRIAdapter().spec.dims == 2


def test_defaults_are_those_of_3dino():
    spec = MRI3DAdapter().spec
    assert (spec.n_global, spec.global_size, spec.n_local, spec.local_size) == (2, 96, 6, 48)


def test_views_are_a_function_of_the_generator_and_differ(record):
    def views(seed):
        adapter = MRI3DAdapter(**SMALL)
        return adapter.views(adapter.read(record, rng(seed)), rng(seed))

    for a, b in zip(views(5), views(5), strict=True):
        assert torch.equal(a, b)
    one, other = views(5), views(6)
    assert not torch.equal(one[0], other[0])
    assert (one[0] - one[1]).abs().mean() > 0.01 and (one[2] - one[3]).abs().mean() > 0.01


def test_prepare_sees_the_whole_head_once(record):
    prepared = MRI3DAdapter(**SMALL).prepare(record)
    assert prepared.shape == (1, 1, 24, 24, 24) and prepared.dtype == torch.float32
    assert 0 <= prepared.min() and 0.9 < prepared.max() <= 1
    assert torch.equal(prepared, MRI3DAdapter(**SMALL).prepare(record))


def test_an_elongated_volume_is_covered_by_several_cubes(tmp_path):
    write_nifti(tmp_path / "spine.nii", phantom(shape=(20, 20, 60)), spacing=(1.0, 1.0, 1.0))
    adapter = MRI3DAdapter(**SMALL)
    (record,) = adapter.scan(tmp_path)
    assert record.samples == 3
    prepared = adapter.prepare(record)
    assert prepared.shape == (3, 1, 24, 24, 24)
    assert len({float(item.sum()) for item in prepared}) == 3
    source = adapter.read(record, rng())
    assert source.voxels.shape == (20, 20, 20)


@pytest.mark.parametrize("kind", ["nifti", "series"])
def test_warm_and_cold_cache_give_equal_numbers(tmp_path, cache, kind):
    if kind == "nifti":
        write_nifti(tmp_path / "in" / "a.nii.gz", phantom())
    else:
        write_series(tmp_path / "in", phantom())
    adapter = MRI3DAdapter(**SMALL)
    (record,) = adapter.scan(tmp_path / "in")
    cold = adapter.prepare(record)
    adapter.verify(record)
    assert not list(cache.rglob("*.safetensors"))  # an uploaded volume leaves no trace
    first = adapter.read(record, rng(3))
    assert len(list(cache.rglob("*.safetensors"))) == 1
    np.testing.assert_array_equal(first.voxels, adapter.read(record, rng(3)).voxels)
    assert torch.equal(cold, adapter.prepare(record))
    MRI3DAdapter(spacing_mm=2.0).read(record, rng())
    MRIAdapter().read(record, rng())
    assert len(list(cache.rglob("*.safetensors"))) == 3  # another grid, and 2.5-D, have entries of their own


def test_dicom_and_nifti_of_one_head_agree(tmp_path):
    write_nifti(tmp_path / "n" / "a.nii", phantom())
    write_series(tmp_path / "d", phantom())
    adapter = MRI3DAdapter(**SMALL)
    a, b = (adapter.prepare(next(iter(adapter.scan(tmp_path / name)))) for name in "nd")
    torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_flip_is_off_where_the_side_matters(record):
    assert MRI3DAdapter().read(record, rng()).mirror
    assert not MRI3DAdapter(flip=False).read(record, rng()).mirror


def test_microscopy_is_cut_at_its_own_scale(tmp_path):
    image = nifti(phantom(), spacing=(40.0, 50.0, 80.0))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    (coarse,) = MRI3DAdapter().scan(tmp_path)
    assert coarse.reason == "fewer than 8 voxels along an axis at 1 mm" and "spacing_mm" in coarse.remedy
    write_nifti(tmp_path / "b.nii", phantom())
    fine, plain = MRI3DAdapter(spacing_mm=0.04), MRI3DAdapter()
    (small,) = fine.scan(tmp_path / "a.nii")
    (usual,) = plain.scan(tmp_path / "b.nii")
    assert small.meta["spacing"] == pytest.approx([0.04, 0.05, 0.08])
    assert fine.prepare(small).shape == plain.prepare(usual).shape


def test_what_is_no_volume_is_refused_with_the_way_out(tmp_path):
    write_nifti(tmp_path / "thick.nii", phantom(), spacing=(1.0, 1.0, 6.0))
    write_nifti(tmp_path / "slab.nii", phantom(shape=(40, 40, 8)), spacing=(1.0, 1.0, 2.0))
    Image.fromarray((phantom()[:, :, 10] / 6).astype(np.uint8)).save(tmp_path / "slice.png")
    found = scan_archive(MRI3DAdapter(), tmp_path)
    reasons = {item.uri.rsplit("/")[-1]: (item.reason, item.remedy) for item in found.refused}
    assert reasons["thick.nii"][0] == "thick slices (above 4 mm)" and "max_slice_mm" in reasons["thick.nii"][1]
    assert reasons["slab.nii"][0].startswith("fewer than 16") and reasons["slice.png"][0].startswith("a single slice")
    assert all("modality mri" in remedy for _, remedy in reasons.values())
    assert len(found.manifest) == 0
    assert len(scan_archive(MRI3DAdapter(max_slice_mm=6), tmp_path).manifest) == 1


def test_bad_pixels_are_found_by_the_scan(tmp_path):
    bad = phantom().astype(np.float32)
    bad[3, 3, 3] = np.nan
    write_nifti(tmp_path / "nan.nii", bad)
    write_nifti(tmp_path / "mask.nii", (phantom() > 400).astype(np.int16))
    whole = write_nifti(tmp_path / "cut.nii.gz", phantom())
    whole.write_bytes(whole.read_bytes()[:-2000])
    write_nifti(tmp_path / "good.nii", phantom())
    found = scan_archive(MRI3DAdapter(), tmp_path)
    assert found.manifest.column("path") == ["good.nii"]
    assert sorted(item.reason.split()[0] for item in found.refused) == ["a", "contains", "truncated"]


def test_options_of_slices_are_refused_and_not_ignored():
    with pytest.raises(UserError, match="plane"):
        create("mri3d", plane="coronal")
    with pytest.raises(UserError, match="slices"):
        create("mri3d", slices=9)
    assert not {"plane", "channels", "slab_mm", "slices"} & set(create("mri3d").describe()["options"])


def test_adapter_crosses_process_borders_and_its_description(record):
    adapter = create("mri3d", **SMALL, spacing_mm=1.5, volume="mean", flip=False)
    adapter.views(adapter.read(record, rng()), rng())
    wanted = adapter.prepare(record)
    assert torch.equal(pickle.loads(pickle.dumps(adapter)).prepare(record), wanted)
    again = from_description(adapter.describe())
    assert again.options == adapter.options and again.spec == adapter.spec
    assert torch.equal(again.prepare(record), wanted)


def test_a_vanished_file_is_a_bad_file(record, cache):
    from pathlib import Path

    Path(record.uri).unlink()
    for use in (lambda: MRI3DAdapter().read(record, rng()), lambda: MRI3DAdapter().prepare(record)):
        with pytest.raises(BadFileError, match="missing"):
            use()


@pytest.mark.real
def test_real_volumes(real_data, cache):
    found = scan_archive(create("mri3d", **SMALL), real_data / "brain_volumes", verify=False)
    assert len(found.manifest) == 20 and not found.refused
    adapter = create("mri3d", global_size=48)
    record = found.manifest.record(0)
    middle = adapter.prepare(record)[0, 0, 24]
    assert (middle[:3] < 0.1).float().mean() > 0.8  # air before the face, and the head in the middle
    assert middle[16:32, 16:32].mean() > 0.3
