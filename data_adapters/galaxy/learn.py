"""What the adapter learns from an archive before training: its kind, its bands, the scale of each band, the pixels."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from data_adapters.base import Record, mixed
from data_adapters.errors import BadFileError, UserError
from data_adapters.galaxy.cutout import source_fraction
from data_adapters.galaxy.options import GalaxyOptions

SAMPLE = 256  # records that are read to measure the scales and the field
LEAST_FIELD = 0.1  # as the option's bound
PERCENTILE = 99.5
# Factors on nanomaggies of the Legacy Surveys viewer, for pixels of .262 arcsec.
VIEWER_SCALES = {"g": 6.0, "r": 3.4, "i": 3.0, "z": 2.2}
VIEWER_PIXEL = 0.262  # arcsec
UNIFORM = {
    "kind": "Set the option kind to flux or picture, or split the archive.",
    "bands": "Set the option bands to one of these lists, or split the archive by bands.",
}
NANOMAGGIES = ("nanomaggy", "nanomaggies", "nanomaggie", "nmgy")


def learn(options: GalaxyOptions, records: Sequence[Record], read: Callable[[Record], np.ndarray]) -> dict[str, Any]:
    """Values for the options `kind`, `bands`, `scales`, `pixel_scale` and `field`.

    Scales: those of the Legacy Surveys viewer where every record is in nanomaggies of known bands (scaled to the area
    of the pixel), else 1 / the median over up to 256 evenly spaced records of each band's 99.5 % quantile.
    Field: the median over such records of `cutout.source_fraction`, but no smaller than the part that has as many
    pixels as a global view: with more pixels than the archive gives there is nothing to win (measured for 64 px views
    of 224 px pictures: benchmarks/results/galaxies-field.md).

    Raises:
        UserError: the archive mixes kinds or bands, or is empty, or no sampled record has a signal.
    """
    if not records:
        raise UserError("There are no galaxies to learn from.", remedy="Scan a folder with FITS, HDF5 or pictures.")
    found = _kind_and_scales(options, records, read)
    if options.field is not None:
        return found
    return {**found, "field": _field(records, read, options.global_size)}


def _kind_and_scales(
    options: GalaxyOptions, records: Sequence[Record], read: Callable[[Record], np.ndarray]
) -> dict[str, Any]:
    counts = {key: Counter(str(record.meta[key]) for record in records) for key in UNIFORM}
    if (refusal := mixed(UNIFORM, counts)) is not None:
        raise refusal
    kind, bands = (next(iter(counts[key])) for key in ("kind", "bands"))
    known = [record.meta["pixel_scale"] for record in records if "pixel_scale" in record.meta]
    pixel_scale = options.pixel_scale or (float(f"{median(known):.4g}") if known else None)
    found = {"kind": kind, "bands": bands, "pixel_scale": pixel_scale}
    if kind == "picture":
        return found
    names = bands.split(",")
    if options.scales is not None:
        if len(options.scales) != len(names):
            raise UserError(
                f"The option scales has {len(options.scales)} values, but the bands are {bands}.",
                remedy="Give one scale for each band, in the same order.",
            )
        return {**found, "scales": options.scales}
    calibrated = all(record.meta.get("unit") in NANOMAGGIES for record in records)
    if calibrated and all(name in VIEWER_SCALES for name in names):
        area = (VIEWER_PIXEL / (pixel_scale or VIEWER_PIXEL)) ** 2  # a larger pixel collects more flux
        return {**found, "scales": tuple(float(f"{VIEWER_SCALES[name] * area:.4g}") for name in names)}
    return {**found, "scales": _measure(records, read, names)}


def _field(records: Sequence[Record], read: Callable[[Record], np.ndarray], size: int) -> float:
    fractions: list[float] = []
    sides: list[int] = []
    for image in _sample(records, read):
        fraction = source_fraction(image)
        if fraction is not None:
            fractions.append(fraction)
            sides.append(min(image.shape[:2]))
    if not fractions:
        return 1.0
    least = min(1.0, size / median(sides))
    return float(f"{max(median(fractions), least, LEAST_FIELD):.2g}")


def _sample(records: Sequence[Record], read: Callable[[Record], np.ndarray]) -> Iterator[np.ndarray]:
    # names, not records: a large archive makes its records when they are asked for
    ordered = [index for _, index in sorted(((r.uri, r.item), index) for index, r in enumerate(records))]
    for index in np.unique(np.linspace(0, len(ordered) - 1, min(SAMPLE, len(ordered))).round().astype(int)):
        try:
            yield read(records[ordered[index]])
        except BadFileError:  # the trainer counts and reports unreadable records
            continue


def _measure(
    records: Sequence[Record], read: Callable[[Record], np.ndarray], names: Sequence[str]
) -> tuple[float, ...]:
    images = _sample(records, read)
    peaks = [np.percentile(flux.reshape(-1, flux.shape[2]), PERCENTILE, axis=0) for flux in images]
    typical = np.median(peaks, axis=0) if peaks else np.zeros(len(names))
    if not (typical > 0).all():
        raise UserError(
            "The brightness of the bands cannot be measured: the archive shows no signal above the background.",
            remedy="Check the images, or set the option scales, one factor for each band.",
        )
    return tuple(float(f"{1 / value:.4g}") for value in typical)
