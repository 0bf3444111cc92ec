"""Several DICOM images -> one volume: a classic series, or an Enhanced multi-frame file.

Order and geometry come from position and orientation, never from InstanceNumber or file names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.mri.dicom import DicomHeader, decode, open_dataset, padding, quiet
from data_adapters.mri.geometry import LPS_TO_RAS, VoxelGrid, canonical_grid, to_ras
from data_adapters.mri.volume import Volume
from data_adapters.sentinels import darkened, marked

GEOMETRY_TOLERANCE = 1e-3  # of direction cosines and, relative, of the pixel spacing within a series
# How far slices may lie from even spacing: positions are rounded (to .1 mm) and jitter. One missing slice shifts the
# others by at least .22 of the spacing, so rounding counts up to .2 of it.
OFF_LATTICE, OFF_LATTICE_MM, MOST_OFF = 0.15, 0.08, 0.2
EVEN_FRAMES = 0.25  # relative deviation from the mean distance, for the frames of one file (highdicom's rule)
GAPS = (0.4, 1.6)  # of the median: what lies outside is another image, or a missing one
SAME_PLACE_MM, SAME_PLACE = 0.1, 0.2  # below both, the second in pixels, two images show one position
LEAN, LEAN_MM = 0.045, 0.15  # sideways shift of a slice: per mm from the first (2.6 degrees), and by rounding


@dataclass(frozen=True)
class SortedSeries:
    """DICOM files sorted into series.

    Attributes:
        groups: the files of each volume or single image.
        copies: files that repeat an image of another one.
        namesakes: how many images share a SOPInstanceUID with a different image, and are used all the same.
        mixed: how many series hold images of several patients, and are split.
    """

    groups: list[list[DicomHeader]]
    copies: list[DicomHeader]
    namesakes: int
    mixed: int


def suspects(headers: Sequence[DicomHeader]) -> list[Path]:
    """Files that may be copies: their pixels decide."""
    count = Counter(map(_name, headers))
    return [header.path for header in headers if count[_name(header)] > 1]


def _name(header: DicomHeader) -> tuple[object, ...]:
    """What copies have in common: the SOPInstanceUID or, without one, series and place."""
    if header.instance:
        return (header.instance,)
    return (header.person, header.series or str(header.path), header.position, header.orientation, header.echo_ms)


def group_series(headers: Sequence[DicomHeader], digests: Mapping[Path, str]) -> SortedSeries:
    """Files by patient, study and series, without copies.

    A copy has the name, the place and the pixels of another file; `digests` are those of the `suspects`. An Enhanced
    multi-frame file, and a file without SeriesInstanceUID, stands for itself. Magnitude and phase images of one series
    are two groups, and so are the echoes of a multi-echo series. Files of a series that lack patient or study belong
    to the only one that the others name.
    """
    by_number = {header.series for header in headers if header.patient}  # there, names are not asked

    def person(header: DicomHeader) -> str:
        return header.patient if header.series in by_number else header.person

    persons: dict[str, set[str]] = {}
    studies: dict[str, set[str]] = {}
    for header in headers:
        persons.setdefault(header.series, set()).update({person(header)} - {""})
        studies.setdefault(header.series, set()).update({header.facts.get("session", "")} - {""})
    groups: dict[tuple[object, ...], list[DicomHeader]] = {}
    seen: dict[tuple[object, ...], set[tuple[object, ...]]] = {}
    copies: list[DicomHeader] = []
    for header in headers:
        if header.path in digests:
            known = seen.setdefault(_name(header), set())
            image = (digests[header.path], header.position, header.orientation)
            if image in known:
                copies.append(header)
                continue
            known.add(image)
        alone = header.frames > 1 or not header.series
        key = (
            header.series,
            person(header) if len(persons[header.series]) > 1 else "",
            header.facts.get("session", "") if len(studies[header.series]) > 1 else "",
            str(header.path) if alone else "",
            "not_magnitude" in header.facts,
        )
        groups.setdefault(key, []).append(header)
    return SortedSeries(
        groups=[echo for members in groups.values() for echo in split_echoes(members)],
        copies=copies,
        namesakes=sum(len(images) for name, images in seen.items() if len(images) > 1 and len(name) == 1),
        mixed=sum(len(found) > 1 for series, found in persons.items() if series),
    )


def split_echoes(headers: list[DicomHeader]) -> list[list[DicomHeader]]:
    """The images of each echo time, shortest first, where a series has several images at one position."""
    echoes: dict[float, list[DicomHeader]] = {}
    for header in headers:
        if header.echo_ms is None or header.position is None:
            return [headers]
        echoes.setdefault(round(header.echo_ms, 3), []).append(header)
    if len(echoes) < 2 or not _repeated(headers):
        return [headers]
    return [echoes[time] for time in sorted(echoes)]


def _repeated(headers: Sequence[DicomHeader]) -> bool:
    """Whether two images show one position, up to rounding."""
    first = headers[0]
    positions = np.array([header.position for header in headers], float)
    if first.orientation is None:
        return len(np.unique(positions.round(3), axis=0)) < len(headers)
    places = np.sort(positions @ np.cross(first.orientation[:3], first.orientation[3:]))
    near = min(SAME_PLACE_MM, SAME_PLACE * min(first.pixel_mm or (1.0,)))
    return bool((np.diff(places) < near).any())


def series_grid(headers: Sequence[DicomHeader]) -> VoxelGrid:
    """Check that single-frame images form one regular volume, by their headers.

    Raises:
        BadFileError: geometry missing or mixed, repeated positions, or gaps.
    """
    first = headers[0]
    if any(h.position is None or h.orientation is None or h.pixel_mm is None for h in headers):
        raise BadFileError("series without positions", remedy="Convert it to NIfTI, or give single slices.")
    reference = _plane(first)
    if any((h.rows, h.columns) != (first.rows, first.columns) or not _close(_plane(h), reference) for h in headers):
        raise BadFileError(
            "mixed geometry in one series", remedy="Split the series by orientation and size (dcm2niix does it)."
        )
    if len({h.rescaled for h in headers}) > 1:
        raise BadFileError("rescale slope missing in a part of the series", remedy="Export the series again.")
    if _repeated(headers):
        raise BadFileError(
            "several images at one position (b-values, time points or unmarked echoes)",
            remedy="Convert the series with dcm2niix, which writes one file each.",
        )
    positions = np.array([h.position for h in headers], float)
    _, affine = stacked(positions, np.array(first.orientation), np.array(first.pixel_mm))
    return canonical_grid((first.columns, first.rows, len(headers)), LPS_TO_RAS @ affine)


def stacked(positions: np.ndarray, orientation: np.ndarray, pixel_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of slices along their normal, and the (4, 4) matrix from (column, row, slice) to LPS mm.

    Args:
        positions: (n, 3) ImagePositionPatient, n > 1.
        orientation: (6,) ImageOrientationPatient.
        pixel_mm: (2,) distance of rows and of columns.

    Raises:
        BadFileError: a slice is missing, spacing is uneven, or slices are shifted against each other.
    """
    across = np.cross(orientation[:3], orientation[3:])
    places = positions @ across
    order = np.argsort(places, kind="stable")
    places, number = places[order], np.arange(len(places))
    spacing, start = np.polyfit(number, places, 1)
    spacing = round(float(spacing), 6)  # the fit's last digits would decide about rounding further on
    gaps = np.diff(places)
    even = np.abs(places - (start + spacing * number)).max() <= max(
        OFF_LATTICE * spacing, min(OFF_LATTICE_MM, MOST_OFF * spacing)
    )
    low, high = np.array(GAPS) * np.median(gaps)
    if not (even and gaps.min() >= low and gaps.max() <= high):
        raise BadFileError("slices are missing or unevenly spaced", remedy="Copy the whole series again.")
    aside = positions[order] - positions[order[0]]
    aside -= np.outer(aside @ across, across)
    if (np.linalg.norm(aside, axis=1) > LEAN_MM + LEAN * (places - places[0])).any():
        raise BadFileError(
            "slices are shifted against each other (a tilted gantry)", remedy="Convert the series with dcm2niix."
        )
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * pixel_mm[1]
    affine[:3, 1] = orientation[3:] * pixel_mm[0]
    affine[:3, 2] = across * spacing
    affine[:3, 3] = positions[order[0]] + across * (start - places[0])
    return order, affine


def multiframe_grid(path: Path) -> VoxelGrid:
    """Check that the frames of an Enhanced image form one regular volume.

    Raises:
        BadFileError: they do not.
    """
    with quiet():
        geometry = _enhanced(path).get_volume_geometry(rtol=EVEN_FRAMES)
        if geometry is None:
            raise _no_volume(path)
    return canonical_grid(geometry.spatial_shape, LPS_TO_RAS @ geometry.affine)


def load_series(files: Sequence[str]) -> Volume:
    """Decode a classic series to RAS order and float32, each slice with its own rescale slope, padding as background.

    Raises:
        BadFileError: a file is damaged, or the images form no regular volume.
    """
    slices, masks, positions = [], [], []
    with quiet():
        for path in map(Path, files):
            data = open_dataset(path)
            array, mask = decode(data, path)
            slices.append(array)
            masks.append(np.zeros(array.shape, bool) if mask is None else mask)
            positions.append([float(v) for v in data.ImagePositionPatient])
        orientation = np.array([float(v) for v in data.ImageOrientationPatient])
        pixel_mm = np.array([float(v) for v in data.PixelSpacing])
    order, affine = stacked(np.array(positions), orientation, pixel_mm)
    if len({array.shape for array in slices}) > 1:
        raise BadFileError("images form no regular volume", remedy=_CONVERT, path=files[0])
    volume = np.stack([slices[index] for index in order])
    volume = darkened(volume, np.stack([masks[index] for index in order]) if any(m.any() for m in masks) else None)
    return to_ras(volume.transpose(2, 1, 0), LPS_TO_RAS @ affine)


def load_multiframe(path: Path) -> Volume:
    """Decode an Enhanced multi-frame image to RAS order and float32, padding as background.

    Raises:
        BadFileError: a damaged file, or frames that form no regular volume.
    """
    with quiet():
        image = _enhanced(path)
        if image.get_volume_geometry(rtol=EVEN_FRAMES) is None:
            raise _no_volume(path)
        plain = {"apply_real_world_transform": False, "rtol": EVEN_FRAMES}
        try:
            volume = image.get_volume(dtype=np.float32, **plain)
            array, mask = np.asarray(volume.array, np.float32), None
            if "PixelPaddingValue" in image:
                whole = np.dtype(f"{'iu'[image.PixelRepresentation == 0]}{image.BitsAllocated // 8}")
                off = {"apply_modality_transform": False, "apply_presentation_lut": False}
                stored = image.get_volume(dtype=whole, **plain, **off).array
                mask = marked(stored, padding(image, whole))
        except Exception as error:
            raise BadFileError("pixels cannot be decoded", remedy="Copy the file again.", path=path) from error
        canonical = volume.with_array(darkened(array, mask)).to_patient_orientation("RAS")
    a, b, c = (float(mm) for mm in canonical.spacing)
    return Volume(array=np.asarray(canonical.array, np.float32), spacing=(a, b, c))


def _enhanced(path: Path) -> Any:
    highdicom = require("highdicom", extra="mri")
    try:
        data = open_dataset(path)
        data.SOPClassUID = data.get("SOPClassUID") or data.file_meta.MediaStorageSOPClassUID
        return highdicom.Image.from_dataset(data, copy=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise BadFileError("multi-frame image without frame geometry", remedy=_CONVERT, path=path) from error


_CONVERT = "Convert it with dcm2niix."


def _no_volume(path: Path) -> BadFileError:
    return BadFileError("frames form no single regular volume", remedy=_CONVERT, path=path)


def _plane(header: DicomHeader) -> np.ndarray:
    return np.array([*(header.orientation or ()), *np.log(header.pixel_mm or ())])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=GEOMETRY_TOLERANCE))
