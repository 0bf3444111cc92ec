"""One DICOM file: is it one, what is it, and may it be learnt from."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.identity import pseudonym
from data_adapters.mri.geometry import check_spacing
from data_adapters.mri.options import MRIOptions
from data_adapters.sentinels import Sentinel, darkened, marked

SUFFIXES = (".dcm", ".ima")
PACKED = ".dcm.gz"  # refused: no reader takes it
MAGIC_OFFSET, MAGIC = 128, b"DICM"
# MR, Enhanced MR, Enhanced MR Color and Legacy Converted Enhanced MR Image Storage
MR_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.4{kind}" for kind in ("", ".1", ".3", ".4"))
GZIP_MAGIC = b"\x1f\x8b"
# First elements of a data set without preamble: (0002,0000) or one of group 0008 below (0008,0070).
BARE = re.compile(rb"\x02\x00\x00\x00|\x08\x00[\x00-\x70]\x00|\x00\x08\x00[\x00-\x70]")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kin, .7.1 to .7.4
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR, beside the images of a disc
DEFLATED = "1.2.840.10008.1.2.1.99"
SCREENSHOT = ("secondary capture (a screenshot or scanned image)", "Give the original MR images.")
NUMBERS = {
    "MagneticFieldStrength": "tesla",
    "RepetitionTime": "repetition_ms",
    "EchoTime": "echo_ms",
    "InversionTime": "inversion_ms",
    "FlipAngle": "flip_deg",
}
GREY = ("MONOCHROME1", "MONOCHROME2")
LOCALIZER = re.compile(r"\b(localizer|localiser|scout|survey|3.?plane)\b", re.IGNORECASE)
CODE = re.compile(r"none|[A-Z]{2,8}")  # what a Modality looks like; a damaged header may hold any text there
NO_PATIENT = re.compile(r"(anon[a-z]*|unknown|none|0*)", re.IGNORECASE)  # what de-identifiers write for everybody
# ImageType values of images that a scanner or workstation has computed from others.
COMPUTED = frozenset(
    "ADC,EADC,FA,TRACEW,TENSOR,MPR,MIP,MINIP,PROJECTION IMAGE,CSA MPR,CSA RESAMPLED,SUBTRACTION,SUB,T1 MAP,T2 MAP,"
    "T2_STAR MAP,CBF,CBV,MTT,TTP,TMAX,RELCBF,RELCBV,RELMTT".split(",")
)
NOT_MAGNITUDE = frozenset(("P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY", "VELOCITY MAP"))
TAGS = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesDescription PatientID PatientName PatientBirthDate "
    "Modality ImageType BurnedInAnnotation "
    "Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored PhotometricInterpretation "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing Manufacturer ManufacturerModelName "
    "MagneticFieldStrength RepetitionTime EchoTime InversionTime FlipAngle RescaleSlope StudyInstanceUID"
).split()


@dataclass(frozen=True, slots=True)  # an archive has as many of them in memory as it has DICOM files
class DicomHeader:
    """The facts of one file that decide about series, geometry and group. Who it is never leaves the scan."""

    path: Path
    series: str
    instance: str
    patient: str = field(metadata={"group": True})
    person: str = field(metadata={"group": True})  # the patient or, without a PatientID, name and date of birth
    frames: int
    rows: int
    columns: int
    bits: int
    position: tuple[float, ...] | None  # ImagePositionPatient, mm
    orientation: tuple[float, ...] | None  # ImageOrientationPatient
    pixel_mm: tuple[float, float] | None  # (row, column) distance
    echo_ms: float | None
    rescaled: bool
    description: str  # SeriesDescription: matched with the option sequence_patterns, never stored
    facts: dict[str, Any]  # what may be stored: device, field strength, timing, kind of image, a pseudonym of the study


@dataclass(frozen=True)
class PixelDigest:
    """A hash of an image's decoded pixels, which tells copies from other images under one SOPInstanceUID."""

    path: Path
    digest: str


def is_dicom(path: Path, *, others: tuple[str, ...] = ()) -> bool:
    """By content where the preamble is present; by suffix, or by its first element where a header follows without one.

    `others`: suffixes of other formats, whose files may begin with any bytes.
    """
    with path.open("rb") as stream:
        head = stream.read(MAGIC_OFFSET + len(MAGIC))
    if head[MAGIC_OFFSET:] == MAGIC:
        return True
    name = path.name.lower()
    if name.endswith(SUFFIXES):
        return True
    return not name.endswith(others) and BARE.match(head) is not None and len(head) > MAGIC_OFFSET


@contextmanager
def quiet() -> Iterator[None]:
    """Pydicom's warnings quote header values, which may be a patient's; they are not for the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path, *, modalities: tuple[str, ...]) -> DicomHeader:
    """Read and judge one file's header; pixels are not decoded.

    Raises:
        BadFileError: not an MR image with pixels, or a kind of image that must not be learnt from.
    """
    pydicom = require("pydicom", extra="mri")
    with quiet(), path.open("rb") as stream:
        try:
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS, force=True)
            known = bool(_sop_class(data)) or "Modality" in data  # a file without either may be anything
        except Exception as error:  # pydicom raises many types on damage
            raise BadFileError("not a readable DICOM file", remedy="Export it again.", path=path) from error
        if not known:
            stream.seek(0)
            if stream.read(2) == GZIP_MAGIC:
                raise BadFileError("compressed DICOM file (.dcm.gz)", remedy="Unpack it with gunzip.", path=path)
            raise BadFileError("not a readable DICOM file", remedy="Export it again.", path=path)
        try:
            _judge(data, modalities)
            _check_pixels(data, stream)
            return _header(data, path)
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # a value that its type does not allow
            raise BadFileError("damaged DICOM header", remedy="Export it again.", path=path) from error


def permit(headers: Sequence[DicomHeader], options: MRIOptions) -> None:
    """Refuse kinds of images that only an option lets in; the kinds stand in `facts` in either case.

    Raises:
        BadFileError: secondary captures, burned-in text, computed images or phase, without their option.
    """
    for fact, allowed, cause, remedy in (
        ("secondary_capture", options.secondary_captures, *SCREENSHOT),
        ("burned_in", options.burned_in, "text is burned into the image", "Give the images without annotations."),
        (
            "computed",
            options.derived,
            "derived series (parameter map, projection or reformat)",
            "Give the acquired images, or set the option derived.",
        ),
        (
            "not_magnitude",
            options.derived,
            "phase, real or imaginary image",
            "Give the magnitude images, or set the option derived.",
        ),
    ):
        if not allowed and any(header.facts.get(fact) for header in headers):
            raise BadFileError(cause, remedy=remedy)


def _judge(data: Any, modalities: tuple[str, ...]) -> None:
    if _sop_class(data) == DIRECTORY:
        raise BadFileError("a directory of DICOM files (DICOMDIR), no image", remedy="Give the images that it lists.")
    modality = str(data.get("Modality", "") or ("MR" if _sop_class(data) in MR_CLASSES else "none"))
    secondary = _is_secondary(data)
    if modality not in modalities and not secondary:  # `permit` decides about those
        raise BadFileError(
            f"DICOM modality {modality if CODE.fullmatch(modality) else '(no code)'}, not {' or '.join(modalities)}",
            remedy="Keep other objects outside the archive, or set the option modalities.",
        )
    photometric = str(data.get("PhotometricInterpretation", "") or "")
    if int(data.get("SamplesPerPixel", 1) or 1) != 1 or (photometric and photometric not in GREY):
        cause, remedy = SCREENSHOT if secondary else ("colour DICOM image", "Give the grey-value MR images.")
        raise BadFileError(cause, remedy=remedy)
    kinds = [str(kind).upper() for kind in _listed(data.get("ImageType"))]
    if "LOCALIZER" in kinds or LOCALIZER.search(str(data.get("SeriesDescription", "") or "")):
        raise BadFileError("localizer", remedy="Skipped, no error: planning scans are not used for training.")
    if "MOSAIC" in kinds:
        raise BadFileError("Siemens mosaic (many slices in one picture)", remedy="Convert the series with dcm2niix.")


def _check_pixels(data: Any, stream: BinaryIO) -> None:
    """Pixel data must be there and, where it is not compressed, be as long as the header says."""
    syntax = str(getattr(data, "file_meta", {}).get("TransferSyntaxUID", ""))
    if syntax != DEFLATED:  # a deflated file has been read to its end by now
        start = stream.tell()
        length = stream.seek(0, 2) - start
        if length < 8 or not data.get("Rows") or not data.get("Columns"):
            raise BadFileError("DICOM object without pixels", remedy="Keep only images in the archive.")
        compressed = bool(syntax) and _encapsulated(syntax)
        frames = int(data.get("NumberOfFrames", 1) or 1)
        expected = int(data.Rows) * int(data.Columns) * frames * int(data.BitsAllocated) // 8
        if not compressed and length < expected:
            raise BadFileError("truncated or damaged data", remedy="Copy the file again.")


def _encapsulated(syntax: str) -> bool:
    uid = require("pydicom.uid", extra="mri").UID(syntax)
    return uid.is_transfer_syntax and bool(uid.is_compressed) if not uid.is_private else True


def _header(data: Any, path: Path) -> DicomHeader:
    spacing = _floats(data.get("PixelSpacing"), 2)
    if spacing is not None and min(spacing) <= 0:
        raise BadFileError("pixel spacing is zero", remedy="Correct the header, or export the series again.")
    check_spacing(spacing or ())
    patient = str(data.get("PatientID", "") or "").strip()
    patient = "" if NO_PATIENT.fullmatch(patient) else patient
    name = str(data.get("PatientName", "") or "").strip(" ^")
    name = "" if NO_PATIENT.fullmatch(name) else name
    facts = _facts(data)
    return DicomHeader(
        path=path,
        series=str(data.get("SeriesInstanceUID", "") or ""),
        instance=str(data.get("SOPInstanceUID", "") or ""),
        patient=patient,
        person=patient or (name and f"{name} {data.get('PatientBirthDate', '') or ''}"),
        frames=int(data.get("NumberOfFrames", 1) or 1),
        rows=int(data.Rows),
        columns=int(data.Columns),
        bits=int(data.get("BitsStored") or data.BitsAllocated),
        position=_floats(data.get("ImagePositionPatient"), 3),
        orientation=_floats(data.get("ImageOrientationPatient"), 6),
        pixel_mm=(spacing[0], spacing[1]) if spacing is not None else None,
        echo_ms=facts.get("echo_ms"),
        rescaled=facts["rescaled"],
        description=str(data.get("SeriesDescription", "") or ""),
        facts=facts,
    )


def _is_secondary(data: Any) -> bool:
    return _sop_class(data).startswith(SECONDARY_CAPTURE)


def _sop_class(data: Any) -> str:
    """The kind of object, from the data set or else from its file meta; empty where neither says."""
    meta = getattr(data, "file_meta", None) or {}
    return str(data.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")


def _facts(data: Any) -> dict[str, Any]:
    """What may be stored of a header; no name, number or date of a patient is among it."""
    kinds = {str(kind).upper().strip() for kind in _listed(data.get("ImageType"))}
    facts: dict[str, Any] = {"derived": "DERIVED" in kinds, "rescaled": "RescaleSlope" in data}
    flags = {
        "computed": bool(kinds & COMPUTED),
        "not_magnitude": bool(kinds & NOT_MAGNITUDE),
        "secondary_capture": _is_secondary(data),
        "burned_in": str(data.get("BurnedInAnnotation", "") or "").upper() == "YES",
    }
    facts |= {name: True for name, is_so in flags.items() if is_so}
    for keyword, key in (("Manufacturer", "manufacturer"), ("ManufacturerModelName", "model")):
        if data.get(keyword):
            facts[key] = str(data.get(keyword)).strip()
    for keyword, key in NUMBERS.items():
        try:
            value = float(data.get(keyword) or 0)
        except (TypeError, ValueError):  # no pixel depends on it
            continue
        if value > 0:
            facts[key] = value
    if data.get("StudyInstanceUID"):
        facts["session"] = pseudonym("session", str(data.StudyInstanceUID))
    return facts


def _listed(value: Any) -> list[Any]:
    """A DICOM value of any multiplicity as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _floats(value: Any, n: int) -> tuple[float, ...] | None:
    listed = [float(v) for v in _listed(value)]
    return tuple(listed) if len(listed) == n and bool(np.isfinite(listed).all()) else None


def open_dataset(path: Path) -> Any:
    """The whole data set; a missing transfer syntax is taken from how the header was encoded.

    Raises:
        BadFileError: the file is damaged.
    """
    pydicom = require("pydicom", extra="mri")
    try:
        data = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in data.file_meta:
            implicit, little = data.original_encoding
            uid = require("pydicom.uid", extra="mri")
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    except FileNotFoundError:
        raise
    except Exception as error:
        raise BadFileError("truncated or damaged data", remedy="Copy the file again.", path=path) from error
    return data


def padding(data: Any, dtype: np.dtype[Any]) -> list[Sentinel]:
    """PixelPaddingValue, with PixelPaddingRangeLimit the ends of a range, as stored values of `dtype`.

    Scanners write the value of signed pixels as an unsigned number, too (63536 for -2000); its bits are what counts.
    """
    bits = 8 * dtype.itemsize
    unsigned = np.dtype(f"u{dtype.itemsize}")
    values = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = data.get(keyword)
        if value is not None and value != "" and dtype.kind in "iu":
            number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)
            values.append(int(np.array(number % 2**bits, unsigned).view(dtype)))
    return [(values[0], values[1])] if len(values) == 2 else [*values]


def decode(data: Any, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) float32 of a single image, with rescale slope and intercept, bright is high; and where padding is stored.

    Raises:
        BadFileError: pixels that cannot be decoded.
    """
    pixels = require("pydicom.pixels", extra="mri")
    try:
        stored = data.pixel_array
        mask = marked(stored, padding(data, stored.dtype))
        array = pixels.apply_rescale(stored, data).astype(np.float32)
    except Exception as error:  # decoders raise what they like
        raise BadFileError(
            "pixels cannot be decoded", remedy="Export it uncompressed, or copy the file again.", path=path
        ) from error
    if array.ndim != 2:
        raise BadFileError("several frames without geometry", remedy="Export single frames or NIfTI.", path=path)
    return -array if data.get("PhotometricInterpretation") == "MONOCHROME1" else array, mask


def load_slice(path: Path) -> np.ndarray:
    """(H, W) float32 of a single image, with rescale slope and intercept, bright is high, padding as background.

    Raises:
        BadFileError: pixels that cannot be decoded.
    """
    with quiet():
        return darkened(*decode(open_dataset(path), path))


def pixels_of(path: Path) -> PixelDigest:
    """The hash of the decoded pixels; of the file's content where they cannot be decoded."""
    with quiet():
        try:
            array = open_dataset(path).pixel_array
            little = array.astype(array.dtype.newbyteorder("<"))  # a copy may be encoded in the other order
            content = repr(little.shape).encode() + little.tobytes()
        except Exception:  # whoever reads the pixels says what is wrong with them
            content = path.read_bytes()
    return PixelDigest(path=path, digest=hashlib.blake2b(content, digest_size=16).hexdigest())
