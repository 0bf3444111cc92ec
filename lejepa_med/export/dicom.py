"""A prediction on a DICOM series as a structured report or a secondary capture, and DICOMweb in and out.

The report is a Comprehensive SR by template TID 1500 (DICOM PS3.16) with the series as its evidence; the capture is an
RGB picture of what the encoder saw with the answer beside it. Both are new series of the same study and patient, and
both say that they are unverified research results.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_adapters.atomic import new_file
from data_adapters.base import Record
from data_adapters.errors import require
from data_adapters.record import files_of
from data_adapters.scan import scan_archive
from lejepa_med import __version__
from lejepa_med.display import Pixels, choose_channels, montage, picture, planes
from lejepa_med.errors import UserError
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.probes.probe import Prediction, Probe

SCHEME = "99LEJEPA"  # private coding scheme (PS3.16, 8.2): a lab's own class names have no public codes
SERIES_NUMBERS = {"sr": 9801, "sc": 9802}
UNVERIFIED = "Research result of lejepa-med, not verified"
TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
TOKEN = "LEJEPA_DICOMWEB_TOKEN"
SHOWN = 9  # slices in a capture
SIDE = 192  # pixels of each


@dataclass(frozen=True)
class Answer:
    """What a probe says of one DICOM series; `headers` are those of its images, without pixels."""

    headers: list[Any]
    prediction: Prediction
    probe: Probe
    encoder: LoadedEncoder
    slices: list[Pixels]


def answer_series(encoder: LoadedEncoder, probe: Probe, series: Path) -> Answer:
    """Predict one series.

    Args:
        encoder: of the probe.
        probe: on its vectors.
        series: a folder that holds one DICOM series, or one DICOM file.

    Raises:
        UserError: no or several series there, other files than DICOM, or a probe of another encoder.
    """
    if probe.encoder != encoder.fingerprint:
        raise UserError(
            "The probe was trained on the vectors of another encoder, or of this one with another formation.",
            remedy="Give the run whose encoder the probe was trained on.",
        )
    if not series.exists():
        raise UserError(f"{series} does not exist.", remedy="Give the folder of one DICOM series.")
    found = scan_archive(encoder.adapter, series)
    if len(found) != 1:
        reasons = "; ".join(f"{reason} ({number:,})" for reason, number in found.reasons()[:3])
        raise UserError(
            f"{series} holds {len(found)} series that the encoder takes, and a report is of one."
            + (f" Refused: {reasons}." if reasons else ""),
            remedy="Give the folder of one DICOM series of the encoder's modality.",
        )
    record = found.manifest.record(0)
    headers = list(_headers(record))
    pixels = encoder.adapter.prepare(record)
    prediction = probe.predict(encoder.embed([pixels]))[0]
    parts = pixels[:, :, pixels.shape[2] // 2] if pixels.ndim == 5 else pixels
    places = np.unique(np.linspace(0, len(parts) - 1, min(SHOWN, len(parts))).round().astype(int))
    shown = choose_channels(parts.shape[1])
    slices = [picture(planes(parts[int(place)]), shown) for place in places]
    return Answer(headers, prediction, probe, encoder, slices)


def _headers(record: Record) -> Iterator[Any]:
    pydicom = require("pydicom", extra="mri")
    for file in files_of(record):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError as error:
            raise UserError(
                f"{Path(file).name} is no DICOM file, and a DICOM report must name the DICOM images that it is about.",
                remedy="Give the DICOM series that the volume was made from; for NIfTI use lejepa-med predict.",
            ) from error
        for keyword in TYPE_2:  # may be empty but not absent; anonymisers remove them
            if keyword not in header:
                setattr(header, keyword, None)
        yield header


def lines_of(answer: Answer) -> list[str]:
    """The answer in short lines, for people."""
    given = answer.prediction
    lines = [] if given.label is None else [f"class: {given.label}"]
    lines += [] if given.labels is None else [f"labels: {', '.join(given.labels) or 'none'}"]
    if given.value is not None:
        between = "" if given.interval is None else f" ({given.interval[0]:.4g} to {given.interval[1]:.4g})"
        lines.append(f"value: {given.value:.4g}{between}")
    lines += [f"probability {name}: {chance:.3f}" for name, chance in (given.probabilities or {}).items()]
    return [*lines, f"novelty: {given.novelty:.2f}", *([given.note] if given.note else [])]


def _code(meaning: str, *, kind: str) -> Any:
    """A private code for a text: of equal kind and text the same everywhere. Code values have at most 16 characters."""
    from highdicom.sr import CodedConcept

    value = hashlib.sha256(f"{kind}\0{meaning}".encode()).hexdigest()[:16].upper()
    return CodedConcept(value=value, scheme_designator=SCHEME, meaning=meaning[:64])


def structured_report(answer: Answer) -> Any:
    """A Comprehensive SR (TID 1500): the class as a qualitative evaluation, numbers as measurements."""
    hd = require("highdicom", extra="mri")
    from highdicom import sr
    from pydicom.sr.codedict import codes

    given, fingerprint = answer.prediction, answer.encoder.fingerprint
    algorithm = sr.AlgorithmIdentification(
        name=f"lejepa-med {answer.encoder.name}"[:64], version=__version__, parameters=[f"encoder {fingerprint[:32]}"]
    )
    numbers = {f"Probability of {name}": chance for name, chance in (given.probabilities or {}).items()}
    if given.value is not None:
        numbers["Predicted value"] = given.value
        if given.interval is not None:
            low, high = given.interval
            numbers |= {"Lower end of 90 % interval": low, "Upper end of 90 % interval": high}
    numbers["Novelty, 0 to 1"] = given.novelty
    found = [given.label] if given.label is not None else list(given.labels or ())
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier="Prediction of lejepa-med"),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(name=_code(name, kind="number"), value=float(value), unit=codes.UCUM.NoUnits)
            for name, value in numbers.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=_code("Predicted class", kind="evaluation"), value=_code(name, kind="class"))
            for name in found
        ]
        or None,
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=header.SOPClassUID, referenced_sop_instance_uid=header.SOPInstanceUID
            )
            for header in answer.headers
        ],
    )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(), name="lejepa-med", manufacturer_name="lejepa-med", model_name=answer.encoder.name[:64]
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("113091000", "SCT", "Magnetic resonance imaging"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=answer.headers,
    )
    return sr.ComprehensiveSR(
        evidence=answer.headers,
        content=report,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["sr"],
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="lejepa-med",
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=UNVERIFIED,
    )


def secondary_capture(answer: Answer) -> Any:
    """An RGB Secondary Capture: slices as the encoder saw them, the answer in words, and that it is unverified."""
    hd = require("highdicom", extra="mri")
    small = [np.asarray(Image.fromarray(one).convert("RGB").resize((SIDE, SIDE))) for one in answer.slices]
    slices = montage(small)
    lines = [UNVERIFIED, *lines_of(answer)]
    font: Any = ImageFont.load_default(size=16)
    width = max(slices.shape[1], round(max(font.getlength(line) for line in lines)) + 24)
    sheet = Image.new("RGB", (width, slices.shape[0] + 22 * len(lines) + 16))
    sheet.paste(Image.fromarray(slices).convert("RGB"), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((12, slices.shape[0] + 8 + 22 * number), line, fill="white", font=font)
    made = hd.sc.SCImage.from_ref_dataset(
        answer.headers[0],
        pixel_array=np.asarray(sheet),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBERS["sc"],
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="lejepa-med",
        patient_orientation=("L", "P"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=UNVERIFIED,
    )
    made.PatientOrientation = []  # type 2C: several slices side by side have none
    made.BurnedInAnnotation = "YES"  # the answer, no name
    return made


def write_dicom(file: Path, made: Any) -> None:
    """Write a data set as a DICOM file, whole or not at all."""
    with new_file(file) as draft:
        made.save_as(draft, enforce_file_format=True)


def web_client(url: str) -> Any:
    """A DICOMweb client; the environment's LEJEPA_DICOMWEB_TOKEN is sent as a bearer token.

    Raises:
        UserError: no http address, or the token would travel unencrypted to another machine.
    """
    api = require("dicomweb_client.api", extra="dicomweb")
    if not re.match(r"https?://", url):
        raise UserError(f"{url} is no address.", remedy="Give one such as http://localhost:8042/dicom-web")
    token = os.environ.get(TOKEN)
    if token and not re.match(r"https://|http://(localhost|127\.0\.0\.1)(:|/|$)", url):
        raise UserError(
            f"{TOKEN} would be sent unencrypted to {url}.", remedy=f"Give an https address, or unset {TOKEN}."
        )
    return api.DICOMwebClient(url, headers={"Authorization": f"Bearer {token}"} if token else None)


def _asked(url: str, ask: Any) -> Any:
    import requests

    try:
        return ask()
    except requests.RequestException as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
        raise UserError(
            f"The DICOMweb server {url} {said}.",
            remedy=f"Check the address, the UIDs, and that the server takes this request; a token goes into {TOKEN}.",
        ) from error


def find_series(url: str, *, study: str | None = None, modality: str | None = None) -> list[dict[str, str]]:
    """QIDO-RS: study, series, modality, description and number of images of the server's series, at most 1,000."""
    client, filters = web_client(url), {"Modality": modality} if modality else {}
    fields = ["SeriesDescription", "NumberOfSeriesRelatedInstances", "Modality"]
    found = _asked(
        url,
        lambda: client.search_for_series(
            study_instance_uid=study, limit=1000, fields=fields, search_filters=filters or None
        ),
    )
    names = {
        "study": "0020000D",
        "series": "0020000E",
        "modality": "00080060",
        "description": "0008103E",
        "images": "00201209",
    }
    return [{name: _first(one, tag) for name, tag in names.items()} for one in found]


def _first(data: dict[str, Any], tag: str) -> str:
    values = data.get(tag, {}).get("Value") or [""]
    return str(values[0])


def fetch_series(url: str, *, study: str, series: str, out: Path) -> int:
    """WADO-RS: write the images of a series into a folder, one file each; returns how many.

    Repeated after an interruption it keeps what is there.

    Raises:
        UserError: the server does not answer, or has no such series.
    """
    client = web_client(url)
    images: Sequence[Any] = _asked(url, lambda: client.retrieve_series(study, series))
    if not images:
        raise UserError(f"{url} has no images of this series.", remedy="List what it has: lejepa-med fetch URL")
    out.mkdir(parents=True, exist_ok=True)
    for image in images:
        file = out / f"{image.SOPInstanceUID}.dcm"
        if not file.is_file():
            write_dicom(file, image)
    return len(images)


def store(url: str, made: Any) -> None:
    """STOW-RS: send one data set.

    Raises:
        UserError: the server does not answer, or refuses it.
    """
    client = web_client(url)
    answer = _asked(url, lambda: client.store_instances([made]))
    if getattr(answer, "FailedSOPSequence", None):
        raise UserError(
            f"The DICOMweb server {url} refused the object.", remedy="See the server's log for what it does not take."
        )
