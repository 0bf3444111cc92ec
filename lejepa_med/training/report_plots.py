"""Plots of the run report as inline SVG, and images as data: URIs."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lejepa_med.training.svg import COLOURS, Point, Series, plot

Scale = Literal["plain", "log", "zero"]
Keys = Mapping[str, str]  # key of a record: its name in the legend


def curve(history: Sequence[Mapping[str, Any]], key: str, *, scale: Scale = "plain") -> str:
    """SVG of one metric against the step; empty when no record holds it. NaN (null in the file) leaves a gap.

    `scale`: "log" (plain where a value is not positive), or "zero" for an axis that starts at 0.
    """
    return curves(history, {key: ""}, scale=scale)


def curves(
    history: Sequence[Mapping[str, Any]],
    keys: Keys,
    *,
    scale: Scale = "plain",
    against: str = "step",
    levels: Sequence[tuple[float, str]] = (),
) -> str:
    """SVG of several metrics against the step, or another key of the records; empty when no record holds any."""
    return plot(
        [
            Series(points=_points(history, against, key), label=label, colour=colour)
            for (key, label), colour in zip(keys.items(), COLOURS, strict=False)
        ],
        x_label=against,
        y_log=scale == "log" and _positive(history, keys),
        y_zero=scale == "zero",
        levels=levels,
    )


def compared(runs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, *, scale: Scale = "plain") -> str:
    """SVG of one metric of several runs against the step, by their names; empty when no record holds it."""
    return plot(
        [
            Series(points=_points(history, "step", key), label=name, colour=colour)
            for (name, history), colour in zip(runs.items(), COLOURS, strict=False)
        ],
        y_log=scale == "log" and all(_positive(history, {key: ""}) for history in runs.values()),
        y_zero=scale == "zero",
    )


def spectrum(eigenvalues: NDArray[Any], effective_rank: float, *, most: int | None = None) -> str:
    """SVG of the eigenvalues (largest first) on a logarithmic axis, with the effective rank marked.

    `most`: directions that the embeddings can show, where they are fewer than the dimensions.
    """
    largest = float(eigenvalues.max(initial=0.0))
    # below 1e-12 is rounding, as is all beyond the number of vectors; a collapsed embedding has nothing to show
    shares = eigenvalues / largest if largest > 0 else np.ones(1)
    return plot(
        [Series(points=[(k + 1.0, float(value)) for k, value in enumerate(shares) if value > 1e-12])],
        width=700,
        height=300,
        x_label="direction, most variance first",
        y_label="variance / largest",
        y_log=True,
        marks=[(effective_rank, f"effective rank {effective_rank:.1f} of {most or len(eigenvalues)}")],
    )


def spectra(online: Sequence[Mapping[str, Any]], part: str) -> str:
    """SVG of the thinned spectra of `part` ("backbone", "projector") at the first, middle and last evaluation."""
    rows = [row for row in online if row.get(f"{part}/spectrum")]
    chosen = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else []
    return plot(
        [
            Series(
                points=[(float(k), max(float(v), 1e-12)) for k, v in row[f"{part}/spectrum"]],
                label=f"epoch {row['epoch']:.3g}",
                colour=colour,
                dashed=row is not chosen[-1],
            )
            for row, colour in zip(chosen, (COLOURS[5], COLOURS[1], COLOURS[0])[3 - len(chosen) :], strict=True)
        ],
        x_label="direction, most variance first",
        y_label="share of variance",
        x_log=True,
        y_log=True,
    )


def plane(history: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the way through the plane of SIGReg and invariance, faint at the start and full at the end."""
    points = [(row["sigreg"], row["invariance"]) for row in history if _both(row)]
    if len(points) > 300:
        points = [points[i] for i in np.linspace(0, len(points) - 1, 300).round().astype(int)]
    positive = all(min(point) > 0 for point in points)
    return plot(
        [Series(points=points, dots=True, fade=True)],
        x_label="SIGReg",
        y_label="invariance",
        x_log=positive,
        y_log=positive,
        height=300,
    )


def _both(row: Mapping[str, Any]) -> bool:
    return row.get("sigreg") is not None and row.get("invariance") is not None


def _points(history: Sequence[Mapping[str, Any]], against: str, key: str) -> list[Point]:
    """Points of the records that hold the key; None is a gap."""
    return [
        (float(row[against]), float("nan") if row[key] is None else float(row[key])) for row in history if key in row
    ]


def _positive(history: Sequence[Mapping[str, Any]], keys: Keys) -> bool:
    return all(row[key] > 0 for row in history for key in keys if row.get(key) is not None and row[key] == row[key])


def data_uri(image: NDArray[np.uint8], *, longest: int = 160) -> str:
    """An image (height, width), or (height, width, 1 or 3), uint8, as a PNG data: URI, shrunk to `longest` pixels.

    Raises:
        ValueError: another shape or type.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        raise ValueError(f"need a uint8 image (h, w), (h, w, 1) or (h, w, 3), got {image.dtype} {image.shape}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
