"""One record of the contact sheet: pictures, facts and warnings.

The raw picture is read as a plain viewer shows it, without the adapter, so that the adapter's own doing can be seen. A
warning is "kind: what was measured; what to do": the kind has no numbers, so that equal ones can be counted.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from data_adapters.base import Adapter, BaseAdapter, Record, Spec, rejected
from data_adapters.errors import BadFileError, require
from data_adapters.manifest import Manifest
from data_adapters.raster import SUFFIXES as PICTURES
from data_adapters.raster import read_raster
from lejepa_med.display import Pixels, choose_channels, montage, outlined, picture, planes, stretched
from lejepa_med.inspection import record as findings

NIFTI = (".nii", ".nii.gz", ".mgh", ".mgz", ".img", ".hdr", ".mnc")
FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".tif", ".tiff", ".dcm", ".vms", ".svslide")
OVERVIEW = 512  # pixels; longest side of a slide's overview
MAX_TIFF = 4096  # pixels; a larger TIFF is shown by its overview


def raw_picture(record: Record, bands: Sequence[str] = ()) -> tuple[Pixels | None, str]:
    """The record's file as uint8 and how it was shown; None where no plain viewer knows the format.

    A volume is shown by its middle slice as stored (not turned to a canonical orientation), a slide by its smallest
    level (never its label), a series by its middle file, a table of images by the record's row.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that readers comment on are judged by the adapter, not here
            return _read(record, bands)
    except (
        Exception
    ):  # whatever a foreign reader says: the adapter's own reading is what counts, and is shown beside it
        return None, "no plain viewer reads this file"


def _read(record: Record, bands: Sequence[str]) -> tuple[Pixels | None, str]:
    files = [str(name) for name in record.meta.get("files", ())] or [record.uri]
    path, name = Path(record.uri), Path(record.uri).name.lower()
    if name.endswith(NIFTI):
        return _volume(np.asanyarray(require("nibabel", extra="mri").load(path).dataobj))
    if name.endswith(FITS):
        return _fits(path, bands)
    if name.endswith((".h5", ".hdf5")):
        with require("h5py", extra="galaxy").File(path, "r") as file:
            row = np.asarray(file["images" if "images" in file else "x"][int(record.item)])
        return _slices(row, "row of the table")
    if name.endswith(".npy"):
        return _slices(np.load(path, mmap_mode="r", allow_pickle=False), "")
    if name.endswith(SLIDES) and (slide := _slide(path)) is not None:
        return slide, "overview of the slide"
    if name.endswith(PICTURES):
        return stretched(read_raster(path))
    return _dicom(Path(files[len(files) // 2]))


def _slices(array: NDArray[Any], what: str, bands: Sequence[str] = ()) -> tuple[Pixels, str]:
    """(H, W), (H, W, C) or (C, H, W): the shortest of the outer axes holds the channels."""
    if array.ndim == 3 and array.shape[0] < min(array.shape[1:]):
        array = np.moveaxis(array, 0, -1)
    pixels, how = stretched(array, bands)
    shown = choose_channels(array.shape[2], bands).words if array.ndim == 3 else ""
    return pixels, ", ".join(part for part in (what, how, shown) if part)


def _volume(array: NDArray[Any]) -> tuple[Pixels, str]:
    array = np.squeeze(array)
    while array.ndim > 3:
        array = array[..., 0]
    if array.ndim < 3:
        return stretched(np.rot90(array))
    middle = array.shape[2] // 2
    pixels, how = stretched(np.rot90(np.asarray(array[:, :, middle])))
    return pixels, f"slice {middle + 1} of {array.shape[2]} along the third axis as stored, {how}"


def _fits(path: Path, bands: Sequence[str]) -> tuple[Pixels, str]:
    with require("astropy.io.fits", extra="galaxy").open(path, memmap=False) as hdus:
        data = next(np.squeeze(hdu.data) for hdu in hdus if hdu.is_image and hdu.data is not None)
    pixels, how = _slices(data, "first image of the file", bands)
    # the first row on top, as in the prepared pixels beside it; astronomers' viewers show it lowest
    return pixels, f"{how}, first row on top"


def _slide(path: Path) -> Pixels | None:
    """The overview, made from the pyramid alone; None for a picture that is no slide."""
    openslide = require("openslide", extra="histology")
    if openslide.OpenSlide.detect_format(str(path)) is None:
        return None
    with openslide.OpenSlide(str(path)) as slide:
        if path.suffix.lower() in (".tif", ".tiff") and max(slide.dimensions) <= MAX_TIFF and slide.level_count == 1:
            return None
        return np.asarray(slide.get_thumbnail((OVERVIEW, OVERVIEW)).convert("RGB"))


def _dicom(path: Path) -> tuple[Pixels, str]:
    """The middle frame with the file's own window, where it has one."""
    pydicom = require("pydicom", extra="mri")
    pixel = require("pydicom.pixels", extra="mri")
    data = pydicom.dcmread(path)
    frames = data.pixel_array
    several = int(data.get("NumberOfFrames", 1) or 1) > 1
    image = frames[len(frames) // 2] if several else frames
    what = f"frame {len(frames) // 2 + 1} of {len(frames)}" if several else "one DICOM image"
    if image.ndim == 3:
        return stretched(image)
    image = np.asarray(pixel.apply_rescale(image, data), np.float64)
    if "WindowCenter" in data:
        windowed = pixel.apply_voi_lut(image, data)
        low, high = float(windowed.min()), float(windowed.max())
        shown = np.rint((windowed - low) / (high - low or 1) * 255).astype(np.uint8)
        how = "with the window of its header"
    else:
        shown, how = stretched(image)
    inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
    return (255 - shown if inverted else shown), f"{what}, {how}"


BLACK, WHITE = 0.5 / 255, 254.5 / 255  # what rounds to 0 or 255
TAILS = (0.5, 99.5)  # percentiles between which the values in use lie
MOSTLY_BLACK = 0.9
CUT_OFF = 0.05  # of the pixels at an end of the range
NARROW = 0.1  # of the range [0, 1]
EMPTY = 0.15  # of the prepared image's own range: a view below shows background only
ALIKE = 0.99  # correlation of two views
ROUNDING = 1e-5  # of float32 arithmetic at the ends of [0, 1]
ENLARGED = 2.0  # prepared pixels per stored pixel
GRID = 24  # views are compared at this size, which shape fills and noise does not


@dataclass(frozen=True)
class Values:
    """The values of one image in units of [0, 1]: what lies between the tails, and shares at both ends."""

    low: float
    high: float
    black: float
    saturated: float

    @classmethod
    def of(cls, images: Sequence[NDArray[np.float32]]) -> "Values":
        """Over all channels and items; NaN counts as neither."""
        flat = np.concatenate([image.ravel() for image in images])
        finite = flat[np.isfinite(flat)]
        low, high = np.percentile(finite, TAILS) if finite.size else (0.0, 0.0)
        return cls(float(low), float(high), float((flat <= BLACK).mean()), float((flat >= WHITE).mean()))


def contract(prepared: Tensor, views: Sequence[Tensor], spec: Spec) -> list[str]:
    """How `prepare` and `views` break what Spec promises; of use to who writes an adapter."""
    said = []
    if prepared.ndim < 4 or prepared.shape[1] != spec.channels or set(prepared.shape[2:]) != {spec.embed_size}:
        side = spec.embed_size
        said.append(
            f"broken contract: prepare gives {tuple(prepared.shape)}, not (n, {spec.channels}, {side}, {side})."
        )
    if len(views) != spec.n_views:
        said.append(f"broken contract: {len(views)} views, where {spec.n_views} are promised.")
    for name, tensors in (("prepare", [prepared]), ("a view", views)):
        if any(not bool(t.isfinite().all()) for t in tensors):
            said.append(f"broken contract: NaN or infinite values in {name}.")
        elif any(t.is_floating_point() and float((t - 0.5).abs().max()) > 0.5 + ROUNDING for t in tensors):
            said.append(f"broken contract: values outside [0, 1] in {name}.")
    return said


def of_prepared(values: Values, *, raw: Values | None, size: Sequence[float], side: int) -> list[str]:
    """Warnings about the prepared image.

    Args:
        values: of the prepared image.
        raw: of the file as a plain viewer shows it, or None.
        size: stored pixels (or voxels) of the record; empty if unknown.
        side: of the prepared image, pixels.
    """
    said = []
    if values.high - values.low < 1e-6:
        return ["one value only: nothing of the file is left in the prepared image."]
    if values.black > MOSTLY_BLACK:
        said.append(f"almost all black: {values.black:.0%} of pixels are black; check the window, or crop the object.")
    if values.high - values.low < NARROW:
        said.append(
            f"low contrast: values use only {values.low:.2f} to {values.high:.2f} of 0 to 1; the window is too wide."
        )
    cut = values.saturated - (raw.saturated if raw else 0.0)
    if cut > CUT_OFF:
        of_file = f", in the file {raw.saturated:.0%}" if raw else ""
        said.append(f"saturated: {values.saturated:.0%} of pixels are at the top{of_file}; the window ends too low.")
    if size and side > ENLARGED * max(size[:2]):
        said.append(
            f"enlarged: {max(size[:2]):.0f} stored pixels become {side}; a global_size near the stored size costs less "
            "and shows the same."
        )
    return said


def empty_views(prepared: Values, views: Sequence[Values]) -> list[int]:
    """Indices of the views that show background only: their values span little of what the prepared image spans."""
    span = prepared.high - prepared.low
    return [k for k, view in enumerate(views) if view.high - view.low < EMPTY * span]


def of_views(views: Sequence[Tensor], empty: Sequence[int], n_global: int) -> list[str]:
    """Warnings about the views of one record."""
    said = []
    if len(empty) * 2 > len(views):
        said.append(f"views miss the foreground: {len(empty)} of {len(views)} show background only; enlarge the crops.")
    shown = [view for k, view in enumerate(views) if k not in empty]
    least = min(
        (_alike(a, b) for k, a in enumerate(shown) for b in shown[k + 1 :]),
        default=0.0,
    )
    if len(shown) > 1 and least > ALIKE:
        said.append(
            f"all views almost equal: any two correlate by {least:.3f} or more, so the encoder learns nothing from "
            "them; smaller crops or a stronger recipe make them differ."
        )
    if n_global and set(range(n_global)) <= set(empty):
        said.append("no global view shows the foreground: the target of every local view is background.")
    return said


def _alike(one: Tensor, other: Tensor) -> float:
    """Correlation of two views, each averaged to a small grid; of equal constant views, 1."""
    a, b = (adaptive_avg_pool2d(torch.from_numpy(planes(view)), GRID).double() for view in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float((a * b).sum()) / norm if norm > 0 else 1.0


BINS = 40
MOST_ITEMS = 16  # slices or tiles of one record that are shown


@dataclass(frozen=True, kw_only=True)
class View:
    """One training view: its picture, and whether it shows background only."""

    image: Pixels
    kind: str
    empty: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the sheet shows of a record; pictures are missing where reading failed.

    Attributes:
        id: the record's pseudonym; `name` is its path, and empty unless names were asked for.
        facts: heading and text.
        warnings: sentences; the first is the gravest.
        raw: the file as a plain viewer shows it.
        prepared: the pixels for embedding; several slices or tiles as a grid.
        histogram: share of the prepared values in each of 40 bins of [0, 1].
    """

    id: str
    name: str = ""
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    raw: Pixels | None = None
    raw_how: str = ""
    prepared: Pixels | None = None
    prepared_how: str = ""
    views: Sequence[View] = ()
    histogram: Sequence[float] = field(default_factory=tuple)


def look_at(adapter: Adapter, manifest: Manifest, row: int, *, seed: int, names: bool = False) -> Look:
    """Read, prepare and augment row `row` of the manifest as training does in its first epoch with this seed."""
    record, spec = manifest.record(row), adapter.spec
    ident = str(manifest.column("id")[row])
    name = f"{manifest.column('path')[row]} {record.item}".strip() if names else ""
    raw, raw_how = raw_picture(record, _bands(record.meta))
    facts = _facts(record)
    mask = adapter.outline(record) if isinstance(adapter, BaseAdapter) else None
    marked = raw
    if raw is not None and mask is not None:
        marked, raw_how = outlined(raw, mask), f"{raw_how}, tissue mask outlined ({mask.mean():.0%} of the slide)"
    try:
        prepared = adapter.prepare(record)
        rng = np.random.default_rng((seed, 0, row, 0, 0))  # the key of the first epoch's first sample
        views = adapter.views(adapter.read(record, rng), rng)
    except (BadFileError, OSError, ValueError, EOFError, RuntimeError) as error:  # as the trainer treats them
        refusal = rejected(record.uri, error)
        said = refusal.reason if not isinstance(error, BadFileError) else f"{refusal.reason}. {refusal.remedy}"
        return Look(id=ident, name=name, facts=facts, warnings=[f"refused: {said}"], raw=marked, raw_how=raw_how)
    items = [planes(item) for item in prepared]
    values, view_values = Values.of(items), [Values.of([planes(view)]) for view in views]
    empty = findings.empty_views(values, view_values)
    size = [float(n) for n in record.meta.get("size", ())] if isinstance(record.meta.get("size"), Sequence) else []
    warnings = [
        *findings.contract(prepared, views, spec),
        *findings.of_prepared(values, raw=_raw_values(raw), size=size, side=spec.embed_size),
        *findings.of_views(views, empty, spec.n_global),
    ]
    shown = choose_channels(items[0].shape[0], _bands(record.meta))
    cut = f", {MOST_ITEMS} of them shown" if len(items) > MOST_ITEMS else ""
    several = f"{len(items)} slices or tiles{cut}, " if len(items) > 1 else ""
    facts += [
        ("prepared", f"{' x '.join(map(str, prepared.shape))} {str(prepared.dtype).removeprefix('torch.')}"),
        ("values", f"{values.low:.3f} to {values.high:.3f} (percentiles .5 and 99.5)"),
        ("black / saturated", f"{values.black:.1%} / {values.saturated:.1%}"),
        ("background only", _which(empty, spec.n_global)),
    ]
    return Look(
        id=ident,
        name=name,
        facts=facts,
        warnings=warnings,
        raw=marked,
        raw_how=raw_how,
        prepared=montage([picture(item, shown) for item in items[:MOST_ITEMS]]),
        prepared_how=several + shown.words,
        views=[
            View(image=picture(planes(view), shown), kind=_kind(k, spec.n_global), empty=k in empty)
            for k, view in enumerate(views)
        ],
        histogram=_histogram(items),
    )


def _kind(index: int, n_global: int) -> str:
    return f"global {index + 1}" if index < n_global else f"local {index - n_global + 1}"


def _which(empty: Sequence[int], n_global: int) -> str:
    return ", ".join(_kind(k, n_global) for k in empty) or "no view"


def _raw_values(raw: Pixels | None) -> Values | None:
    return None if raw is None else Values.of([np.asarray(raw / 255, np.float32)])


def _histogram(items: Sequence[NDArray[np.float32]]) -> list[float]:
    counts = sum(np.histogram(item, bins=BINS, range=(0, 1))[0] for item in items)
    return [float(share) for share in np.asarray(counts) / max(1, np.sum(counts))]


def _bands(meta: Mapping[str, Any]) -> list[str]:
    bands = meta.get("bands", ())
    return [name.strip() for name in bands.split(",")] if isinstance(bands, str) else [str(name) for name in bands]


def _facts(record: Record) -> list[tuple[str, str]]:
    """What scan found; no name, path or free text of a header."""
    meta, facts = record.meta, []
    for key, heading, unit in (
        ("size", "size", ""),
        ("bits", "bit depth", " bits"),
        ("spacing", "spacing", " mm"),
        ("mpp", "resolution", " um/px"),
        ("pixel_scale", "pixel scale", " arcsec/px"),
        ("bands", "bands", ""),
        ("unit", "unit", ""),
    ):
        if key in meta:
            facts.append((heading, _text(meta[key]) + unit))
    if len(meta.get("files", ())) > 1:
        facts.append(("files", str(len(meta["files"]))))
    if record.samples > 1:
        facts.append(("samples an epoch", str(record.samples)))
    if record.label is not None:
        facts.append(("label", record.label))
    return facts


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " x ".join(_text(part) for part in value)
    return str(value)
