"""Views, prepare and the cache under them."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from data_adapters import create, from_description
from data_adapters.base import Record
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.recipe import draw_slab
from data_adapters.mri.volume import Stack, Volume, square_slice, stack_volume, usable
from tests.data.mri import SHAPE, phantom, write_nifti, write_series


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LEJEPA_CACHE", str(folder))
    return folder


@pytest.fixture
def record(tmp_path) -> Record:
    write_nifti(tmp_path / "a.nii.gz", phantom(shape=(48, 60, 40)))
    (found,) = MRIAdapter().scan(tmp_path)
    return found


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_promised_form(record, channels):
    adapter = MRIAdapter(channels=channels, n_global=2, n_local=3, global_size=48, local_size=24)
    for seed in range(8):
        views = adapter.views(adapter.read(record, rng(seed)), rng(seed))
        assert [tuple(view.shape) for view in views] == [(channels, 48, 48)] * 2 + [(channels, 24, 24)] * 3
        for view in views:
            assert view.dtype == torch.float32
            assert 0 <= view.min() and view.max() <= 1 and view.isfinite().all()
    assert adapter.spec.channels == channels == len(adapter.spec.mean)


def test_views_are_a_function_of_the_generator(record):
    def views(seed):
        adapter = MRIAdapter(global_size=32, local_size=16)
        return adapter.views(adapter.read(record, rng(seed)), rng(seed + 1))

    for a, b in zip(views(5), views(5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(views(5)[0], views(6)[0])


def test_views_differ_from_each_other(record):
    adapter = MRIAdapter(n_global=4, n_local=0, global_size=32)
    views = adapter.views(adapter.read(record, rng(1)), rng(2))
    for i in range(4):
        for j in range(i):
            assert (views[i] - views[j]).abs().mean() > 0.01


def test_views_of_one_slab_show_different_slices():
    numbered = np.broadcast_to(np.linspace(0, 1, 20, dtype=np.float16)[:, None, None], (20, 16, 16))
    stack = Stack(slices=numbered, area=np.ones(20, np.float32), step=2.0, mirror=True)
    slab = draw_slab(stack, rng=rng(), slab_mm=6, channels=1, mirror=True)
    seen = {float(slab.draw(rng(seed)).max()) for seed in range(60)}
    assert 4 <= len(seen) <= 7  # 6 mm to both sides at 2 mm a slice, fewer at the edge of what is usable
    narrow = draw_slab(stack, rng=rng(), slab_mm=0, channels=3, mirror=True)
    channels = narrow.draw(rng())[8, 8]
    assert len(narrow.centres) == 1 and np.all(np.diff(channels) > 0)  # neighbours in order


def test_flip_only_where_left_and_right_lie_along_the_columns(record):
    sagittal = MRIAdapter(plane="sagittal")
    assert not sagittal.read(record, rng()).mirror
    assert MRIAdapter().read(record, rng()).mirror
    assert not MRIAdapter(flip=False).read(record, rng()).mirror


def test_flip_happens_in_half_of_the_views():
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float16), (1, 32, 32))
    stack = Stack(slices=ramp, area=np.ones(1, np.float32), step=1.0, mirror=True)

    def mirrored(flip):
        slab = draw_slab(stack, rng=rng(), slab_mm=0, channels=1, mirror=flip)
        adapter = MRIAdapter(n_global=60, n_local=0, global_size=16)
        return sum(bool(view[0, :, :4].mean() > view[0, :, -4:].mean()) for view in adapter.views(slab, rng()))

    assert mirrored(False) == 0
    assert 18 <= mirrored(True) <= 42


def test_usable_slices_are_central_and_filled():
    area = np.array([0, 0, 0.01, 0.2, 0.3, 0.4, 0.01, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert usable(area).tolist() == [5, 7, 8, 9]


def test_square_slice_pads_with_black_and_repeats_the_edge():
    stack = np.stack([np.full((4, 6), v, np.float16) for v in (0.25, 0.5)])
    image = square_slice(stack, 0, channels=3)
    assert image.shape == (6, 6, 3)
    assert image[3, 3].tolist() == [0.25, 0.25, 0.5]
    assert image[0].max() == 0 and image[5].max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare(record, channels):
    adapter = MRIAdapter(global_size=32, slices=5, channels=channels)
    prepared = adapter.prepare(record)
    assert prepared.shape == (5, channels, 32, 32)
    assert prepared.dtype == torch.float32 and 0 <= prepared.min() and prepared.max() <= 1
    assert torch.equal(prepared, MRIAdapter(global_size=32, slices=5, channels=channels).prepare(record))
    assert len({float(item.sum()) for item in prepared}) == 5


def test_prepare_gives_no_slice_twice(tmp_path):
    write_nifti(tmp_path / "thin.nii", phantom(shape=(24, 30, 6)))
    adapter = MRIAdapter(slices=9, global_size=32)
    (record,) = adapter.scan(tmp_path)
    prepared = adapter.prepare(record)
    assert 1 < len(prepared) < 9
    assert len({float(item.sum()) for item in prepared}) == len(prepared)


def test_one_slice_is_one_item(tmp_path):
    Image.fromarray((phantom()[:, :, 10] / 6).astype(np.uint8)).save(tmp_path / "a.png")
    adapter = MRIAdapter(channels=3, global_size=32, local_size=16)
    (record,) = adapter.scan(tmp_path)
    assert record.samples == 1
    assert adapter.prepare(record).shape == (1, 3, 32, 32)
    assert len(adapter.views(adapter.read(record, rng()), rng())) == 8


@pytest.mark.parametrize("kind", ["nifti", "series"])
def test_warm_and_cold_cache_give_equal_numbers(tmp_path, cache, kind):
    if kind == "nifti":
        write_nifti(tmp_path / "a.nii.gz", phantom())
    else:
        write_series(tmp_path, phantom())
    adapter = MRIAdapter(global_size=32, local_size=16)
    (record,) = adapter.scan(tmp_path)
    cold = adapter.prepare(record)
    adapter.verify(record)
    assert not list(cache.rglob("*.safetensors"))  # an uploaded image leaves no trace
    first = adapter.read(record, rng(3))
    assert len(list(cache.rglob("*.safetensors"))) == 1
    second = adapter.read(record, rng(3))
    np.testing.assert_array_equal(first.slices, second.slices)
    np.testing.assert_array_equal(first.centres, second.centres)
    assert first.mirror == second.mirror
    assert torch.equal(cold, adapter.prepare(record))


def test_changed_file_is_decoded_anew(tmp_path, cache):
    path = write_nifti(tmp_path / "a.nii", phantom(seed=0))
    adapter = MRIAdapter(global_size=32)
    (record,) = adapter.scan(tmp_path)
    adapter.read(record, rng())
    before = adapter.prepare(record)
    write_nifti(path, phantom(seed=1))
    assert not torch.equal(before, adapter.prepare(record))
    adapter.read(record, rng())
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_options_that_matter_have_their_own_entry(record, cache):
    axial, coronal = MRIAdapter(), MRIAdapter(plane="coronal")
    a, b = axial.read(record, rng()), coronal.read(record, rng())
    assert a.slices.shape[1:] != b.slices.shape[1:]
    MRIAdapter(channels=3, n_local=0).read(record, rng())  # the same canonical volume
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_samples_follow_the_number_of_slices(tmp_path):
    for n in (4, 40, 200):
        write_nifti(tmp_path / f"n{n:03d}.nii", phantom(shape=(10, 10, n)))
    assert [record.samples for record in MRIAdapter().scan(tmp_path)] == [1, 5, 16]


def test_adapter_crosses_process_borders_and_its_description(record):
    adapter = create("mri", channels=3, volume="mean", global_size=32, slices=3)
    adapter.views(adapter.read(record, rng()), rng())
    wanted = adapter.prepare(record)
    assert torch.equal(pickle.loads(pickle.dumps(adapter)).prepare(record), wanted)
    again = from_description(adapter.describe())
    assert again.options == adapter.options
    assert torch.equal(again.prepare(record), wanted)


def test_canonical_volume_is_float16_in_the_unit_interval():
    stack = stack_volume(Volume(array=phantom(), spacing=(1, 1, 1)), plane="axial")
    assert stack.slices.dtype == np.float16 and stack.slices.shape == (SHAPE[2], SHAPE[1], SHAPE[0])
    assert stack.slices.min() == 0 and stack.slices.max() == 1
    assert stack.area.argmax() in range(5, 15)
