"""One volume in every container, all 48 orientations and any file order reads back to the same RAS array."""

import itertools
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_adapters.mri import series
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.formats import FORMATS, load_file
from data_adapters.mri.volume import Volume
from tests.data.mri import phantom, write_enhanced, write_metaimage, write_nifti, write_nrrd, write_series_along

SHAPE, SPACING = (9, 11, 10), (1.0, 1.25, 2.0)
CODES = [
    "".join(pair[sign] for pair, sign in zip(pairs, signs, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]
WRITERS = {
    "nifti1": lambda d, a, **o: write_nifti(d / "a.nii", a, **o),
    "nifti1.gz": lambda d, a, **o: write_nifti(d / "a.nii.gz", a, **o),
    "nifti2": lambda d, a, **o: write_nifti(d / "a.nii", a, kind=nib.Nifti2Image, **o),
    "pair": lambda d, a, **o: write_nifti(d / "a.hdr", a, kind=nib.Nifti1Pair, **o),
    "mgh": lambda d, a, **o: write_nifti(d / "a.mgz", a, kind=nib.MGHImage, **o),
    "nrrd": lambda d, a, **o: write_nrrd(d / "a.nrrd", a, **o),
    "nhdr": lambda d, a, **o: write_nrrd(d / "a.nhdr", a, encoding="bzip2", space="RAS", **o),
    "mha": lambda d, a, **o: write_metaimage(d / "a.mha", a, compress=True, **o),
    "mhd": lambda d, a, **o: write_metaimage(d / "a.mhd", a, big=True, **o),
    "dicom": lambda d, a, **o: write_series_along(d, a, **o),
}


def load(folder: Path) -> tuple[Volume, dict]:
    (record,) = MRIAdapter().scan(folder)
    assert not hasattr(record, "reason"), record
    match record.meta["reader"]:
        case "series":
            return series.load_series(record.meta["files"]), dict(record.meta)
        case "multiframe":
            return series.load_multiframe(Path(record.uri)), dict(record.meta)
    return load_file(Path(record.uri), FORMATS, volume=None), dict(record.meta)


def check(folder: Path, array: np.ndarray) -> None:
    volume, meta = load(folder)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.spacing == pytest.approx(SPACING, rel=1e-4)
    assert meta["size"] == list(SHAPE) and meta["spacing"] == pytest.approx(SPACING, rel=1e-4)
    # the origin is that of the RAS array, whatever corner the file began with
    expected = [[SPACING[0], 0, 0, 0], [0, SPACING[1], 0, 0], [0, 0, SPACING[2], 0]]
    np.testing.assert_allclose(np.reshape(meta["affine"], (3, 4)), expected, atol=1e-3)


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
def test_every_orientation(tmp_path, code):
    """Containers in turn, so that each of the 48 codes and each container is met; hypothesis mixes the rest."""
    array = phantom(shape=SHAPE)
    names = list(WRITERS)
    for offset in range(0, len(names), 5):
        name = names[(CODES.index(code) + offset) % len(names)]
        WRITERS[name](tmp_path / name, array, axes=code, spacing=SPACING)
        check(tmp_path / name, array)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), code=st.sampled_from(CODES), name=st.sampled_from([*WRITERS, "enhanced"]))
def test_any_volume_in_any_container(seed, code, name):
    array = phantom(seed=seed, shape=SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        if name == "enhanced":
            write_enhanced(Path(folder, "e.dcm"), array, spacing=SPACING, seed=seed)
        else:
            options = {"seed": seed} if name == "dicom" else {}
            WRITERS[name](Path(folder), array, axes=code, spacing=SPACING, **options)
        check(Path(folder), array)
