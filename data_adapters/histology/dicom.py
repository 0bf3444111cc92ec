"""Which DICOM files are slides, and which of them belong together."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from data_adapters.errors import BadFileError, require

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage


@dataclass(frozen=True, kw_only=True)
class SlideInstance:
    """The series of one DICOM file and its case (patient, else study; empty where the header tells neither)."""

    path: Path
    series: str
    case: str = field(metadata={"group": True})


def slide_instance(path: Path) -> SlideInstance:
    """Identifiers of one DICOM file, from its header.

    Raises:
        BadFileError: no DICOM, or not whole-slide microscopy, or no series.
    """
    pydicom = require("pydicom", extra="histology")
    tags = ["SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values, which may be a patient's
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
            series = str(header.get("SeriesInstanceUID", "") or "")
            case = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    except Exception as error:  # damaged headers raise what they like: KeyError, OSError, struct.error
        raise BadFileError(
            "not readable as DICOM", remedy="Export the slide again from the archive.", path=path
        ) from error
    if sop_class != WHOLE_SLIDE:
        raise BadFileError(
            "DICOM of another kind than whole-slide microscopy",
            remedy="Give slides (SOP class VL Whole Slide Microscopy) or image tiles; annotations are not images.",
            path=path,
        )
    if not series:
        raise BadFileError(
            "DICOM slide without a series number", remedy="Export it again with SeriesInstanceUID.", path=path
        )
    return SlideInstance(path=path, series=series, case=case)
