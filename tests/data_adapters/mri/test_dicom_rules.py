"""DICOM that is no MR image, and series that are no volume, are refused with a reason; what may be read is flagged."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data_adapters.base import Record, Rejected
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.dicom import load_slice
from data_adapters.mri.series import load_multiframe, load_series
from data_adapters.scan import scan_archive
from tests.data.mri import (
    SHAPE,
    SPACING,
    dataset,
    phantom,
    save_dicom,
    slice_geometry,
    slice_images,
    write_enhanced,
    write_series,
)
from tests.data_adapters.refusals import reasons, reasons_of_readable


def dataset_of(path: Path) -> Dataset:
    return pydicom.dcmread(path)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SeriesDescription": "3-plane scout"}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "Siemens mosaic (many slices in one picture)"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
            "secondary capture (a screenshot or scanned image)",
        ),
        ({"Modality": "CT"}, "DICOM modality CT, not MR"),
        ({"Modality": "RTDOSE"}, "DICOM modality RTDOSE, not MR"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour DICOM image"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour DICOM image"),
        ({"PixelData": None}, "DICOM object without pixels"),
        ({"Rows": 900}, "truncated or damaged data"),
        ({"PixelSpacing": [0, 0]}, "pixel spacing is zero"),
    ],
)
def test_dicom_that_is_no_mr_image(tmp_path, tags, reason):
    save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10], **tags))
    assert reasons(tmp_path) == {reason}


@pytest.mark.parametrize(
    ("tags", "reason", "option", "flag"),
    [
        ({"BurnedInAnnotation": "YES"}, "text is burned into the image", "burned_in", "burned_in"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
            "secondary capture (a screenshot or scanned image)",
            "secondary_captures",
            "secondary_capture",
        ),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]},
            "derived series (parameter map, projection or reformat)",
            "derived",
            "computed",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "phase, real or imaginary image", "derived", "not_magnitude"),
    ],
)
def test_kinds_that_only_an_option_lets_in_are_flagged(tmp_path, tags, reason, option, flag):
    save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10], **tags))
    assert reasons(tmp_path) == {reason}
    (record,) = MRIAdapter(**{option: True}).scan(tmp_path)
    assert record.meta[flag] is True
    assert MRIAdapter(**{option: True}).prepare(record).shape[0] == 1


def test_filtered_images_that_are_called_derived_are_read(tmp_path):
    save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10], ImageType=["DERIVED", "PRIMARY", "M", "NORM"]))
    (record,) = MRIAdapter().scan(tmp_path)
    assert record.meta["derived"] is True


def test_magnitude_is_read_though_phase_lies_in_its_series(tmp_path):
    write_series(tmp_path / "m", phantom(seed=0))
    for index, path in enumerate(write_series(tmp_path / "p", phantom(seed=1), ImageType=["ORIGINAL", "PRIMARY", "P"])):
        data = dataset_of(path)
        data.SOPInstanceUID = f"1.2.3.{index}"
        data.save_as(path)
    found = list(MRIAdapter().scan(tmp_path))
    (record,) = [item for item in found if isinstance(item, Record)]
    assert len(record.meta["files"]) == 20 and {Path(name).parent.name for name in record.meta["files"]} == {"m"}
    assert {item.reason for item in found if isinstance(item, Rejected)} == {"phase, real or imaginary image"}


def test_rescale_slope_in_a_part_of_a_series(tmp_path):
    data = dataset_of(path := write_series(tmp_path, phantom())[4])
    data.RescaleSlope, data.RescaleIntercept = 2, 0
    data.save_as(path)
    assert reasons(tmp_path) == {"rescale slope missing in a part of the series"}


def test_echoes_of_one_series_are_items_of_their_own(tmp_path):
    arrays = {12.5: phantom(seed=0), 98.0: phantom(seed=1)}
    for echo, (time, array) in enumerate(arrays.items()):
        for index, path in enumerate(write_series(tmp_path / "mixed", array, seed=echo + 5, EchoTime=str(time))):
            data = dataset_of(path)
            data.SOPInstanceUID = f"1.2.{echo}.{index}"
            path.unlink()
            data.save_as(path.with_name(f"{echo}-{path.name}"))
    records = list(MRIAdapter().scan(tmp_path))
    assert [record.meta["echo_ms"] for record in records] == list(arrays)
    for record, array in zip(records, arrays.values(), strict=True):
        np.testing.assert_array_equal(load_series(record.meta["files"]).array, array)


def test_echo_times_that_follow_the_slices_do_not_split_a_series(tmp_path):
    for index, path in enumerate(write_series(tmp_path, phantom())):
        data = dataset_of(path)
        data.EchoTime = 10 + index / 100
        data.save_as(path)
    (record,) = MRIAdapter().scan(tmp_path)
    assert len(record.meta["files"]) == 20


def test_other_modalities_on_request(tmp_path):
    save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10], Modality="CT"))
    assert reasons_of_readable(tmp_path, modalities=("MR", "CT")) == []


def test_series_with_a_gap(tmp_path):
    write_series(tmp_path, phantom())[5].unlink()
    assert reasons(tmp_path) == {"slices are missing or unevenly spaced"}
    assert len(list(MRIAdapter().scan(tmp_path))) == 19  # every file is accounted for


def test_series_of_mixed_geometry(tmp_path):
    write_series(tmp_path / "a", phantom(), plane="axial")
    path = tmp_path / "b.dcm"
    save_dicom(path, dataset(phantom()[:, 3, :], instance=99, ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
                             ImagePositionPatient=[0, 0, 0], PixelSpacing=[1, 1]))  # fmt: skip
    assert reasons(tmp_path) == {"mixed geometry in one series"}


def test_series_with_unmarked_echoes(tmp_path):
    write_series(tmp_path / "a", phantom(seed=0))
    for index, path in enumerate(write_series(tmp_path / "b", phantom(seed=1))):
        data = dataset_of(path)
        data.SOPInstanceUID = f"1.2.3.{index}"
        data.save_as(path)
    assert reasons(tmp_path) == {"several images at one position (b-values, time points or unmarked echoes)"}


def test_series_without_positions(tmp_path):
    write_series(tmp_path, phantom(), ImagePositionPatient=[])
    assert reasons(tmp_path) == {"series without positions"}


def test_localizer_does_not_spoil_its_series(tmp_path):
    write_series(tmp_path, phantom())
    save_dicom(tmp_path / "loc.dcm", dataset(phantom()[:, :, 1], instance=99, ImageType=["ORIGINAL", "LOCALIZER"]))
    records = [item for item in MRIAdapter().scan(tmp_path) if isinstance(item, Record)]
    assert [len(record.meta["files"]) for record in records] == [20]
    assert reasons_of_readable(tmp_path) == ["localizer"]


def test_copies_of_one_image_are_used_once(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10]))
    shutil.copy(path, tmp_path / "b.dcm")
    assert reasons_of_readable(tmp_path) == ["copy of another DICOM image"]


def test_images_that_share_an_instance_uid_are_all_used(tmp_path, caplog):
    write_series(tmp_path, phantom(), SOPInstanceUID="1.2.3")
    shutil.copy(next(tmp_path.glob("*.dcm")), tmp_path / "copy.dcm")
    (record, copy) = MRIAdapter().scan(tmp_path)
    assert len(record.meta["files"]) == 20 and copy.reason == "copy of another DICOM image"
    np.testing.assert_array_equal(load_series(record.meta["files"]).array, phantom())
    assert [message for message in caplog.messages if message.startswith("20 DICOM images share a SOPInstanceUID")]
    assert len(scan_archive(MRIAdapter(), tmp_path, workers=2).manifest) == 1


def test_equal_pixels_at_two_places_are_no_copies(tmp_path):
    array = phantom()
    array[:, :, :2] = 0  # two black slices at the end
    write_series(tmp_path, array, SOPInstanceUID="1.2.3")
    (record,) = MRIAdapter().scan(tmp_path)
    assert len(record.meta["files"]) == 20


def test_a_copy_in_another_encoding_is_a_copy(tmp_path):
    write_series(tmp_path / "a", phantom())
    write_series(tmp_path / "b", phantom(), compress=True)
    images = slice_images(phantom(), "axial")
    for index, path in enumerate(write_series(tmp_path / "c", phantom())):
        geometry = slice_geometry(index, "axial", spacing=SPACING, shape=SHAPE)
        data = dataset(images[index], instance=dataset_of(path).InstanceNumber, **geometry)
        data.PixelData = images[index].astype(">u2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        data.save_as(path, implicit_vr=False, little_endian=False)
    found = list(MRIAdapter().scan(tmp_path))
    assert [len(item.meta["files"]) for item in found if isinstance(item, Record)] == [20]
    assert [item.reason for item in found if isinstance(item, Rejected)] == ["copy of another DICOM image"] * 40


def test_copies_without_an_instance_uid(tmp_path):
    for path in write_series(tmp_path, phantom()):
        data = dataset_of(path)
        data.SOPInstanceUID = ""
        data.save_as(path)
    shutil.copy(next(tmp_path.glob("*.dcm")), tmp_path / "copy.dcm")
    assert reasons_of_readable(tmp_path) == ["copy of another DICOM image"]


@pytest.mark.parametrize(
    ("patients", "tags"),
    [
        (("P1", "P2"), {}),
        (("P1", "P2"), {"StudyInstanceUID": "1.2.4"}),
        (("", ""), {"PatientName": "Roe^Jane"}),
        (("ANON", "ANON"), {"PatientBirthDate": "19700101"}),
    ],
)
def test_patients_who_share_a_series_uid_are_split(tmp_path, caplog, patients, tags):
    write_series(tmp_path / "a", phantom(seed=0), patient=patients[0])
    for index, path in enumerate(write_series(tmp_path / "b", phantom(seed=1), patient=patients[1], **tags)):
        data = dataset_of(path)
        data.SOPInstanceUID = f"1.2.3.{index}"
        data.save_as(path)
    records = list(MRIAdapter().scan(tmp_path))
    assert [record.group for record in records] == (["P1", "P2"] if patients[0] == "P1" else ["a", "b"])
    for seed, record in enumerate(records):
        np.testing.assert_array_equal(load_series(record.meta["files"]).array, phantom(seed=seed))
    assert [message for message in caplog.messages if "images of several patients" in message]
    assert len(scan_archive(MRIAdapter(), tmp_path).manifest) == 2


def test_a_patient_that_some_headers_lack_does_not_split_a_series(tmp_path, caplog):
    for path in write_series(tmp_path, phantom())[:7]:
        data = dataset_of(path)
        data.PatientID = data.StudyInstanceUID = ""
        data.save_as(path)
    (record,) = MRIAdapter().scan(tmp_path)
    assert len(record.meta["files"]) == 20 and not caplog.messages


def moved(folder: Path, move, **options) -> list[Path]:
    """A series whose positions have gone through `move`, an array (n, 3) in the order of the slices."""
    paths = write_series(folder, phantom(), **options)
    data = [dataset_of(path) for path in paths]
    for one, place, path in zip(
        data, move(np.array([d.ImagePositionPatient for d in data], float)), paths, strict=True
    ):
        one.ImagePositionPatient = [float(f"{value:.6g}") for value in place]
        one.save_as(path)
    return paths


MOVES = {
    "tenths": lambda places: places.round(1),
    "hundredths": lambda places: places.round(2),
    "jitter": lambda places: places + np.random.default_rng(0).uniform(-0.02, 0.02, places.shape),
    "shift": lambda places: places + 0.04,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("step", "plane"), [(0.35, "axial"), (0.5, "sagittal"), (1.13, "sagittal"), (3.3, "axial")])
def test_positions_that_were_rounded_or_jitter(tmp_path, move, step, plane):
    spacing = (1.0, 1.0, step) if plane == "axial" else (step, 1.0, 1.0)
    paths = moved(tmp_path, MOVES[move], plane=plane, spacing=spacing)
    (record,) = MRIAdapter(thick="resample").scan(tmp_path)
    assert sorted(record.meta["files"]) == sorted(map(str, paths))
    assert record.meta["spacing"] == pytest.approx(spacing, abs=0.01)
    volume = load_series(record.meta["files"])
    np.testing.assert_array_equal(volume.array, phantom())
    assert volume.spacing == pytest.approx(spacing, abs=0.01)


@pytest.mark.parametrize("move", ["tenths", "jitter"])
@pytest.mark.parametrize("gone", [(1,), (18,), (5, 6), (3, 12)])
def test_missing_slices_are_found_among_rounded_positions(tmp_path, move, gone):
    paths = moved(tmp_path, MOVES[move], spacing=(1.0, 1.0, 0.5))
    for index in gone:
        paths[index].unlink()
    assert reasons(tmp_path) == {"slices are missing or unevenly spaced"}


def test_one_of_four_slices_is_missing(tmp_path):
    for index, path in enumerate(write_series(tmp_path, phantom())):
        if index not in (3, 4, 6):
            path.unlink()
    assert reasons(tmp_path) == {"slices are missing or unevenly spaced"}


@pytest.mark.parametrize(
    ("move", "reason"),
    [
        (lambda places: places * [1, 1, 1] + np.outer(np.arange(20) > 9, [0, 0, 0.8]),
         "slices are missing or unevenly spaced"),
        (lambda places: places + np.outer(np.arange(20), [0, 0.3, 0]),
         "slices are shifted against each other (a tilted gantry)"),
        (lambda places: places[np.arange(20) // 2 * 2] + np.random.default_rng(0).uniform(-0.02, 0.02, (20, 3)),
         "several images at one position (b-values, time points or unmarked echoes)"),
    ],
)  # fmt: skip
def test_positions_that_are_no_rounding(tmp_path, move, reason):
    moved(tmp_path, move)
    assert reasons(tmp_path) == {reason}


def test_rounded_positions_of_frames(tmp_path):
    data = dataset_of(write_enhanced(tmp_path / "e.dcm", phantom(), spacing=(1.0, 1.0, 1.13)))
    for frame in data.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [round(float(value), 1) for value in place.ImagePositionPatient]
    data.save_as(tmp_path / "e.dcm")
    (record,) = MRIAdapter().scan(tmp_path)
    np.testing.assert_array_equal(load_multiframe(tmp_path / "e.dcm").array, phantom())
    assert record.meta["spacing"] == pytest.approx((1, 1, 1.13), abs=0.01)


@pytest.mark.parametrize(
    "tags",
    [
        {"SOPClassUID": None},  # Modality and pixels say enough
        {"SOPClassUID": None, "meta": "1.2.840.10008.5.1.4.1.1.4"},
        {"SOPClassUID": None, "Modality": None, "meta": "1.2.840.10008.5.1.4.1.1.4"},
        {"Modality": None},
        {"SOPClassUID": None, "SOPInstanceUID": None},
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_data_sets_without_their_class(tmp_path, tags, plain):
    plain = plain and "meta" not in tags  # without a preamble there is no file meta
    data = dataset(phantom()[:, :, 10], **{name: value for name, value in tags.items() if name != "meta"})
    if plain:
        data.save_as(tmp_path / "IM1.mr", implicit_vr=True, little_endian=True)
    else:
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if "meta" in tags:
            data.file_meta.MediaStorageSOPClassUID = tags["meta"]
        data.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    (record,) = MRIAdapter().scan(tmp_path)
    np.testing.assert_array_equal(load_slice(Path(record.uri)), phantom()[:, :, 10])


def test_a_class_of_another_kind_is_still_refused(tmp_path):
    data = dataset(phantom()[:, :, 10], SOPClassUID=None, Modality=None)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.save_as(tmp_path / "a.dcm")
    assert reasons(tmp_path) == {"DICOM modality none, not MR"}
    (tmp_path / "a.dcm").write_bytes(gzip.compress((tmp_path / "a.dcm").read_bytes()))
    assert reasons(tmp_path) == {"compressed DICOM file (.dcm.gz)"}


def test_a_dicomdir_is_no_image(tmp_path):
    data = Dataset()
    data.FileSetID, data.preamble = "DISC", bytes(128)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    data.save_as(tmp_path / "DICOMDIR")
    assert reasons(tmp_path) == {"a directory of DICOM files (DICOMDIR), no image"}


def test_frames_without_preamble_and_class(tmp_path):
    data = dataset_of(write_enhanced(tmp_path / "e.dcm", phantom()))
    del data.SOPClassUID
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    data.save_as(tmp_path / "e.dcm")
    (record,) = MRIAdapter().scan(tmp_path)
    np.testing.assert_array_equal(load_multiframe(Path(record.uri)).array, phantom())


PADDING = [  # PixelRepresentation, stored, PixelPaddingValue, its limit
    (0, 65535, 65535, None),
    (0, 0, 0, None),
    (1, -2000, -2000, None),
    (1, -2000, 63536, None),  # as an unsigned number
    (0, 60000, 59000, 65535),
    (1, -3000, -2000, -3024),
]


def padded(array: np.ndarray, kind: int, stored: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices (20, H, W) of values from 1 with padding in a corner of some, and where."""
    images = slice_images(np.maximum(array, 1), "axial").astype(np.int64)
    mask = np.zeros(images.shape, bool)
    mask[3:12, :6, :9] = True
    images[mask] = stored
    return images.astype("<i2" if kind else "<u2"), mask


@pytest.mark.parametrize(
    ("kind", "stored", "value", "limit", "implicit"), [(*case, bool(index % 2)) for index, case in enumerate(PADDING)]
)
def test_padding_of_a_series_is_background(tmp_path, kind, stored, value, limit, implicit):
    images, mask = padded(phantom(), kind, stored)
    for image, path in zip(images, write_series(tmp_path, phantom()), strict=True):
        data = dataset_of(path)
        data.PixelData, data.PixelRepresentation = image.tobytes(), kind
        data.RescaleSlope, data.RescaleIntercept = 2, -500
        data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", "SS" if limit < 0 else "US", limit)
        if implicit:
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        data.save_as(path, implicit_vr=implicit, little_endian=True)
    (record,) = MRIAdapter().scan(tmp_path)
    values = np.where(mask, images[~mask].min(), images) * 2.0 - 500
    expected = values[:, ::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(load_series(record.meta["files"]).array, expected)
    place = Path(record.meta["files"][0])
    one = dataset_of(place).pixel_array
    assert load_slice(place).min() == 2.0 * one[one != stored].min() - 500


@pytest.mark.parametrize(("kind", "stored", "value", "limit"), PADDING)
def test_padding_of_frames_is_background(tmp_path, kind, stored, value, limit):
    images, mask = padded(phantom(), kind, stored)
    data = dataset_of(write_enhanced(tmp_path / "e.dcm", phantom()))
    order = [frame.FrameContentSequence[0].InStackPositionNumber - 1 for frame in data.PerFrameFunctionalGroupsSequence]
    data.PixelData, data.PixelRepresentation = images[order].tobytes(), kind
    data.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    if limit is not None:
        data.add_new("PixelPaddingRangeLimit", "SS" if limit < 0 else "US", limit)
    data.save_as(tmp_path / "e.dcm")
    (record,) = MRIAdapter().scan(tmp_path)
    expected = np.where(mask, images[~mask].min(), images)[:, ::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(load_multiframe(Path(record.uri)).array, expected)


def test_padding_of_monochrome1_is_dark(tmp_path):
    image = phantom()[:, :, 10].copy()
    image[:5, :5] = 0  # white, where 0 is white
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
    path = save_dicom(tmp_path / "a.dcm", dataset(image, **tags))
    assert (load_slice(path)[:5, :5] == -image.max()).all()


def test_pixel_spacing_that_no_scanner_makes(tmp_path):
    save_dicom(tmp_path / "a.dcm", dataset(phantom()[:, :, 10], PixelSpacing=[0.0005, 0.0005]))
    assert reasons(tmp_path) == {"implausible voxel size (below 0.005 or above 30 mm)"}


def test_enhanced_with_missing_frames(tmp_path):
    data = dataset_of(write_enhanced(tmp_path / "e.dcm", phantom()))
    data.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1000]
    data.save_as(tmp_path / "e.dcm")
    assert reasons(tmp_path) == {"frames form no single regular volume"}


def test_damaged_compressed_slice_in_a_series(tmp_path):
    path = write_series(tmp_path, phantom(), compress=True)[7]
    path.write_bytes(path.read_bytes()[:-400])
    assert len(reasons(tmp_path)) == 1
