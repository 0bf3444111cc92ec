"""Several DICOM images -> one volume: a classic series, or an Enhanced multi-frame file.

Order and geometry come from position and orientation (highdicom), never from InstanceNumber or file names.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.mri.dicom import Header, load_slice, open_dataset, quiet
from data_adapters.mri.geometry import LPS_TO_RAS, Grid, canonical_grid
from data_adapters.mri.volume import Volume

GEOMETRY_TOLERANCE = 1e-3  # of direction cosines and, relative, of the pixel spacing within a series


def group_series(headers: Iterable[Header]) -> tuple[list[list[Header]], list[Header]]:
    """Files by series, and the files that repeat an image already seen (same SOPInstanceUID).

    An Enhanced multi-frame file, and a file without SeriesInstanceUID, stands for itself. Magnitude and phase images
    of one series are two groups, and so are the echoes of a multi-echo series.
    """
    groups: dict[tuple[str, str, bool], list[Header]] = {}
    seen: set[str] = set()
    copies: list[Header] = []
    for header in headers:
        if header.instance and header.instance in seen:
            copies.append(header)
            continue
        seen.add(header.instance)
        alone = header.frames > 1 or not header.series
        key = (header.series, str(header.path) if alone else "", "not_magnitude" in header.facts)
        groups.setdefault(key, []).append(header)
    return [echo for members in groups.values() for echo in split_echoes(members)], copies


def split_echoes(headers: list[Header]) -> list[list[Header]]:
    """The images of each echo time, shortest first, where a series has several images at one position."""
    echoes: dict[float, list[Header]] = {}
    for header in headers:
        if header.echo_ms is None or header.position is None:
            return [headers]
        echoes.setdefault(round(header.echo_ms, 3), []).append(header)
    positions = {tuple(np.round(header.position or (), 3)) for header in headers}
    if len(echoes) < 2 or len(positions) == len(headers):
        return [headers]
    return [echoes[time] for time in sorted(echoes)]


def series_grid(headers: Sequence[Header]) -> Grid:
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
    positions = [h.position for h in headers]
    if len({tuple(np.round(p, 3)) for p in positions if p is not None}) < len(headers):
        raise BadFileError(
            "several images at one position (b-values, time points or unmarked echoes)",
            remedy="Convert the series with dcm2niix, which writes one file each.",
        )
    spatial = require("highdicom.spatial", extra="mri")
    spacing, _ = spatial.get_volume_positions(positions, first.orientation)
    if spacing is None:
        raise BadFileError("slices are missing or unevenly spaced", remedy="Copy the whole series again.")
    assert first.orientation is not None and first.pixel_mm is not None  # checked above
    across = np.cross(first.orientation[:3], first.orientation[3:])
    start = min((h.position for h in headers if h.position is not None), key=lambda p: float(across @ p))
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.pixel_mm[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.pixel_mm[0]
    affine[:3, 2] = across * float(spacing)
    affine[:3, 3] = start
    return canonical_grid((first.columns, first.rows, len(headers)), LPS_TO_RAS @ affine)


def multiframe_grid(path: Path) -> Grid:
    """Check that the frames of an Enhanced image form one regular volume.

    Raises:
        BadFileError: they do not.
    """
    with quiet():
        geometry = _enhanced(path).get_volume_geometry()
        if geometry is None:
            raise _no_volume(path)
    return canonical_grid(geometry.spatial_shape, LPS_TO_RAS @ geometry.affine)


def load_series(files: Sequence[str]) -> Volume:
    """Decode a classic series to RAS order and float32, each slice with its own rescale slope.

    Raises:
        BadFileError: a file is damaged, or the images form no regular volume.
    """
    highdicom = require("highdicom", extra="mri")
    with quiet():
        data = [open_dataset(Path(name)) for name in files]
        try:
            volume = highdicom.get_volume_from_series(data, dtype=np.float32, apply_real_world_transform=False)
        except Exception as error:
            raise _undecodable(error, [Path(name) for name in files]) from error
        return _ras(volume)


def load_multiframe(path: Path) -> Volume:
    """Decode an Enhanced multi-frame image to RAS order and float32.

    Raises:
        BadFileError: a damaged file, or frames that form no regular volume.
    """
    with quiet():
        image = _enhanced(path)
        if image.get_volume_geometry() is None:
            raise _no_volume(path)
        try:
            volume = image.get_volume(dtype=np.float32, apply_real_world_transform=False)
        except Exception as error:
            raise BadFileError("pixels cannot be decoded", remedy="Copy the file again.", path=path) from error
        return _ras(volume)


def _enhanced(path: Path) -> Any:
    highdicom = require("highdicom", extra="mri")
    try:
        return highdicom.imread(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise BadFileError("multi-frame image without frame geometry", remedy=_CONVERT, path=path) from error


_CONVERT = "Convert it with dcm2niix."


def _no_volume(path: Path) -> BadFileError:
    return BadFileError("frames form no single regular volume", remedy=_CONVERT, path=path)


def _undecodable(error: Exception, files: Sequence[Path]) -> BadFileError:
    """Name the file at fault: pixels first, geometry otherwise."""
    for file in files:
        try:
            load_slice(file)
        except BadFileError as found:
            return found
    return BadFileError(f"images form no regular volume ({type(error).__name__})", remedy=_CONVERT, path=files[0])


def _ras(volume: Any) -> Volume:
    canonical = volume.to_patient_orientation("RAS")
    a, b, c = (float(mm) for mm in canonical.spacing)
    return Volume(array=np.asarray(canonical.array, np.float32), spacing=(a, b, c))


def _plane(header: Header) -> np.ndarray:
    return np.array([*(header.orientation or ()), *np.log(header.pixel_mm or ())])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=GEOMETRY_TOLERANCE))
