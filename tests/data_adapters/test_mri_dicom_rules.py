"""DICOM that is no MR image, and series that are no volume, are refused with a reason; what may be read is flagged."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from data_adapters.base import Record, Rejected
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.series import load_series
from tests.data.mri import dataset, phantom, save_dicom, write_enhanced, write_series
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


def test_enhanced_with_missing_frames(tmp_path):
    data = dataset_of(write_enhanced(tmp_path / "e.dcm", phantom()))
    data.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1000]
    data.save_as(tmp_path / "e.dcm")
    assert reasons(tmp_path) == {"frames form no single regular volume"}


def test_damaged_compressed_slice_in_a_series(tmp_path):
    path = write_series(tmp_path, phantom(), compress=True)[7]
    path.write_bytes(path.read_bytes()[:-400])
    assert len(reasons(tmp_path)) == 1
