"""One volume in every format, orientation and order reads back to the same RAS array."""

import gzip
import struct
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_adapters.base import Record, Rejected
from data_adapters.mri import dicom, nifti, series
from data_adapters.mri import formats as exported
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.volume import Volume, normalise, slicing_plane, stack_volume
from tests.data.mri import (
    SHAPE,
    SPACING,
    dataset,
    phantom,
    save_dicom,
    slice_images,
    write_enhanced,
    write_nifti,
    write_series,
)
from tests.data.mri import nifti as nifti_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path_factory.mktemp("cache")))


def scan(path: Path, **options) -> list[Record]:
    found = list(MRIAdapter(**options).scan(path))
    assert not [item for item in found if isinstance(item, Rejected)]
    return found


def expect(volume: Volume, array: np.ndarray) -> None:
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))
    assert volume.spacing == pytest.approx(SPACING, rel=1e-5)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SLA", "ASR"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.nii", nib.Nifti1Image),
        ("a.nii.gz", nib.Nifti1Image),
        ("b.nii.gz", nib.Nifti2Image),
        ("c.hdr", nib.Nifti1Pair),
        ("d.mgh", nib.MGHImage),
        ("d.mgz", nib.MGHImage),
    ],
)
def test_nibabel_formats(tmp_path, name, kind, axes):
    array = phantom()
    write_nifti(tmp_path / name, array, axes=axes, kind=kind)
    (record,) = scan(tmp_path)
    assert record.meta["size"] == list(SHAPE)
    assert record.meta["spacing"] == pytest.approx(SPACING, rel=1e-4)
    assert len(record.meta["files"]) == (2 if name == "c.hdr" else 1)
    expect(nifti.load(Path(record.uri), volume=None), array)


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1), ("um", 0.001), ("m", 1000), (None, 1)])
def test_units_of_minc(tmp_path, unit, mm):
    array = phantom()
    with h5py.File(tmp_path / "a.mnc", "w") as file:
        image = file.create_dataset("minc-2.0/image/0/image", data=array.transpose(2, 1, 0))
        image.attrs["dimorder"] = np.bytes_("zspace,yspace,xspace")
        image.attrs["valid_range"] = np.array([-32768.0, 32767.0])
        file["minc-2.0/image/0/image-min"], file["minc-2.0/image/0/image-max"] = -32768.0, 32767.0
        for name, side in zip("xyz", SPACING, strict=True):
            dimension = file.create_dataset(f"minc-2.0/dimensions/{name}space", data=0)
            dimension.attrs.update({"start": 0.0, "step": side / mm, "length": array.shape["xyz".index(name)]})
            dimension.attrs["direction_cosines"] = np.eye(3)["xyz".index(name)]
            if unit is not None:
                dimension.attrs["units"] = np.bytes_(unit)
    (record,) = scan(tmp_path)
    assert record.meta["spacing"] == pytest.approx(SPACING)
    expect(nifti.load(Path(record.uri), volume=None), array)


def test_data_file_of_a_pair_leads_to_its_header(tmp_path):
    write_nifti(tmp_path / "c.hdr", phantom(), kind=nib.Nifti1Pair)
    (record,) = scan(tmp_path / "c.img")
    assert Path(record.uri).name == "c.hdr"


def test_scaled_integers(tmp_path):
    image = nib.Nifti1Image(phantom(), np.diag([*SPACING, 1.0]))
    image.header.set_slope_inter(0.5, -3)
    # set_slope_inter on an int image: nibabel stores the raw integers and the scaling.
    nib.save(image, tmp_path / "a.nii")
    stored = np.asarray(nib.load(tmp_path / "a.nii").dataobj, np.float32)
    np.testing.assert_array_equal(nifti.load(tmp_path / "a.nii", volume=None).array, stored)


def patched(path: Path, offset: int, layout: str, *values: float) -> Path:
    """The file with fields of its NIfTI-1 header overwritten as they lie in the file."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(layout, raw, offset, *values)
    path.write_bytes(bytes(raw))
    return path


SCALING, QFAC, QUATERNION, SFORM, UNITS, INTENT, LIMITS = 112, 76, 256, 280, 123, 68, 124  # offsets in the header


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_units_of_nifti(tmp_path, unit, mm, kind):
    image = nifti_image(phantom(), axes="LPI", spacing=[side / mm for side in SPACING], kind=kind)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii.gz")
    (record,) = scan(tmp_path)
    assert record.meta["spacing"] == pytest.approx(SPACING)
    assert np.diag(np.reshape(record.meta["affine"], (3, 4))[:, :3]) == pytest.approx(SPACING)
    expect(nifti.load(Path(record.uri), volume=None), phantom())


@pytest.mark.parametrize(
    ("offset", "values"),
    [
        (SCALING, (np.nan, np.nan)),  # no scaling, as nibabel reads them
        (SCALING, (0, 0)),
        (SCALING, (0, np.nan)),
        (SCALING, (np.inf, 0)),
        (LIMITS, (10, -5)),  # cal_max and cal_min are a display window
        (LIMITS, (np.nan, np.inf)),
    ],
)
def test_headers_that_change_no_value(tmp_path, offset, values):
    write_nifti(tmp_path / "a.nii", phantom())
    path = patched(tmp_path / "a.nii", offset, "<2f", *values)
    expect(nifti.load(path, volume=None), phantom())
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), phantom())


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint8, np.float64, ">i2"])
def test_types_of_nifti(tmp_path, dtype):
    array = (phantom() // 8).astype(dtype)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0]), dtype=dtype), tmp_path / "a.nii")
    expect(nifti.load(tmp_path / "a.nii", volume=None), phantom() // 8)


def test_suffix_and_compression_disagree(tmp_path):
    write_nifti(tmp_path / "packed.nii.gz", phantom()).rename(tmp_path / "packed.nii")
    write_nifti(tmp_path / "plain.nii", phantom()).rename(tmp_path / "plain.nii.gz")
    write_nifti(tmp_path / "m.mgh", phantom(), kind=nib.MGHImage).rename(tmp_path / "m.mgz")
    write_nifti(tmp_path / "n.mgz", phantom(), kind=nib.MGHImage).rename(tmp_path / "n.mgh")
    write_nifti(tmp_path / "c.hdr", phantom(), kind=nib.Nifti1Pair)
    (tmp_path / "c.img").write_bytes(gzip.compress((tmp_path / "c.img").read_bytes()))
    records = scan(tmp_path)
    assert len(records) == 5
    for record in records:
        MRIAdapter().verify(record)
        expect(nifti.load(Path(record.uri), volume=None), phantom())


def both_forms(path: Path, *, sform: bool = True) -> Path:
    image = nifti_image(phantom(), axes="LPS")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine if sform else None, code=2 if sform else 0)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("length", [1.0000005, 1.0001, 1.001])
@pytest.mark.parametrize("sform", [True, False])
def test_a_quaternion_that_rounding_made_too_long(tmp_path, length, sform):
    path = patched(both_forms(tmp_path / "a.nii", sform=sform), QUATERNION, "<3f", 0, 0, length)
    (record,) = scan(tmp_path)  # half a turn about z: (0, 0, 1) gives LPS
    assert record.meta["spacing"] == pytest.approx(SPACING, rel=1e-4)
    expect(nifti.load(path, volume=None), phantom())


def test_the_other_form_counts_where_one_is_unusable(tmp_path):
    patched(both_forms(tmp_path / "quaternion.nii"), QUATERNION, "<3f", 0, 1.01, 0)
    patched(both_forms(tmp_path / "nan.nii"), QUATERNION, "<3f", 0, np.nan, 0)
    patched(both_forms(tmp_path / "sform.nii"), SFORM, "<f", np.nan)
    patched(both_forms(tmp_path / "zero.nii"), SFORM, "<12f", *[0.0] * 12)
    patched(both_forms(tmp_path / "qfac.nii"), QFAC, "<f", 0)
    records = scan(tmp_path)
    assert len(records) == 5
    for record in records:
        expect(nifti.load(Path(record.uri), volume=None), phantom())


def test_a_data_offset_inside_the_header_means_behind_it(tmp_path):
    write_nifti(tmp_path / "a.nii", phantom())
    expect(nifti.load(patched(tmp_path / "a.nii", 108, "<f", 0), volume=None), phantom())


def test_pixdim_of_zero_is_no_voxel_size(tmp_path):
    path = patched(both_forms(tmp_path / "a.nii"), 80, "<3f", 0, 0, 0)
    expect(nifti.load(path, volume=None), phantom())  # the sform has the size
    patched(both_forms(tmp_path / "a.nii", sform=False), 80, "<f", 0)
    (found,) = MRIAdapter().scan(tmp_path)
    assert found.reason == "unusable affine (voxel size or direction missing)"


def test_qfac_of_zero_means_one(tmp_path):
    path = patched(both_forms(tmp_path / "a.nii", sform=False), QFAC, "<f", 0)
    expect(nifti.load(path, volume=None), phantom())


@pytest.mark.parametrize(("choice", "expected"), [("first", 0), (1, 1), ("mean", None)])
def test_four_dimensions(tmp_path, choice, expected):
    parts = [phantom(seed=0), phantom(seed=1)]
    write_nifti(tmp_path / "a.nii.gz", np.stack(parts, axis=3))
    (record,) = scan(tmp_path, volume=choice)
    wanted = np.mean(parts, axis=0) if expected is None else parts[expected]
    expect(nifti.load(Path(record.uri), volume=choice), wanted)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_dicom_series(tmp_path, plane, compress):
    array = phantom()
    paths = write_series(tmp_path, array, plane=plane, compress=compress)
    (record,) = scan(tmp_path)
    assert record.meta["size"] == list(SHAPE)
    assert record.meta["spacing"] == pytest.approx(SPACING)
    assert sorted(record.meta["files"]) == sorted(map(str, paths))
    expect(series.load_series(record.meta["files"]), array)


def test_dicom_is_found_by_content_and_split_by_series(tmp_path):
    write_series(tmp_path, phantom(seed=1), series=1, suffix="")
    write_series(tmp_path, phantom(seed=2), series=2, suffix=".img")
    records = scan(tmp_path)
    assert [len(record.meta["files"]) for record in records] == [SHAPE[2], SHAPE[2]]
    expect(series.load_series(records[0].meta["files"]), phantom(seed=1))
    expect(series.load_series(records[1].meta["files"]), phantom(seed=2))


def test_dicom_without_preamble(tmp_path):
    data = dataset(phantom()[:, :, 10])
    data.save_as(tmp_path / "a.ima", implicit_vr=True, little_endian=True)
    (record,) = scan(tmp_path)
    np.testing.assert_array_equal(dicom.load_slice(Path(record.uri)), phantom()[:, :, 10])


def test_rescale_slope_of_each_slice(tmp_path):
    array = phantom()
    for index, path in enumerate(write_series(tmp_path, array)):
        data = dicom.open_dataset(path)
        data.RescaleSlope, data.RescaleIntercept = 1 + index / 4, -5
        data.save_as(path)
    (record,) = scan(tmp_path)
    expected = array.astype(np.float32) * (1 + np.arange(SHAPE[2]) / 4) - 5
    np.testing.assert_allclose(series.load_series(record.meta["files"]).array, expected, rtol=1e-6)


def test_enhanced_multiframe(tmp_path):
    array = phantom()
    write_enhanced(tmp_path / "e.dcm", array)
    (record,) = scan(tmp_path)
    assert (record.meta["reader"], record.meta["size"]) == ("multiframe", list(SHAPE))
    assert record.meta["spacing"] == pytest.approx(SPACING)
    expect(series.load_multiframe(Path(record.uri)), array)


def test_nifti_and_dicom_give_equal_pixels(tmp_path):
    array = phantom()
    write_nifti(tmp_path / "n" / "a.nii.gz", array, axes="LPI")
    write_series(tmp_path / "d", array, plane="sagittal")
    write_enhanced(tmp_path / "e" / "e.dcm", array)
    adapter = MRIAdapter(global_size=32, slices=4)
    prepared = [adapter.prepare(record) for record in scan(tmp_path)]
    assert len(prepared) == 3
    for other in prepared[1:]:
        np.testing.assert_array_equal(prepared[0], other)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_displayed_as_scanners_show_them(plane):
    array = phantom()
    stack = stack_volume(Volume(array=array, spacing=(1, 1, 1)), plane=plane)
    np.testing.assert_array_equal(stack.slices, slice_images(normalise(array), plane).astype(np.float16))


def test_lesion_is_seen_left_and_up_in_an_axial_slice():
    stack = stack_volume(Volume(array=phantom(), spacing=(1, 1, 1)), plane="axial")
    rows, columns = np.nonzero(stack.slices[13] == stack.slices[13].max())
    assert rows.mean() < stack.slices.shape[1] / 2  # anterior is at the top
    assert columns.mean() < stack.slices.shape[2] / 2  # the patient's right is on the left-hand side


def test_anisotropic_pixels_become_square():
    stack = stack_volume(Volume(array=phantom(), spacing=SPACING), plane="coronal")
    assert stack.slices.shape == (SHAPE[1], SHAPE[2] * 2, SHAPE[0])
    assert stack.step == SPACING[1]


@pytest.mark.parametrize(
    ("shape", "spacing", "plane", "expected"),
    [
        ((9, 9, 9), (1, 1, 5), "acquired", "axial"),
        ((9, 9, 9), (5, 1, 1), "acquired", "sagittal"),
        ((9, 9, 9), (1, 1, 1), "acquired", "axial"),
        ((9, 9, 9), (5, 1, 1), "axial", "axial"),
        ((9, 1, 9), (1, 1, 1), "axial", "coronal"),
    ],
)
def test_slicing_plane(shape, spacing, plane, expected):
    assert slicing_plane(shape=shape, spacing=spacing, plane=plane) == expected


@pytest.mark.parametrize(
    ("name", "mode", "scale"),
    [("a.png", "L", 1), ("a.png", "I;16", 200), ("a.tif", "I;16", 200), ("a.png", "RGB", 1), ("a.png", "P", 1)],
)
def test_exported_slices(tmp_path, name, mode, scale):
    pixels = (phantom()[:, :, 10] / 6).astype(np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * scale) if mode == "I;16" else Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / name)
    (record,) = scan(tmp_path)
    assert record.meta["bits"] == (16 if mode == "I;16" else 8)
    np.testing.assert_array_equal(exported.load(Path(record.uri)), pixels.astype(np.float32) * scale)


def test_intensity_does_not_depend_on_dtype_or_scale(tmp_path):
    array = phantom()
    kinds = [array, array.astype(np.float32) * 0.001, array.astype(np.float64) * 40 + 1000]
    given = [normalise(kind) for kind in kinds]
    np.testing.assert_allclose(given[1], given[0], atol=1e-5)
    np.testing.assert_allclose(given[2], given[0], atol=1e-5)
    assert given[0].min() == 0 and given[0].max() == 1


def test_monochrome1_is_inverted(tmp_path):
    image = phantom()[:, :, 10]
    path = save_dicom(tmp_path / "a.dcm", dataset(image, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(dicom.load_slice(path), -image.astype(np.float32))
