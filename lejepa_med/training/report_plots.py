"""Plots of the run report as inline SVG, and images as data: URIs."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

# Written into the SVG as a colour and replaced by `currentColor`, so that lines and text follow light and dark mode.
INK = "#010203"
Scale = Literal["plain", "log", "zero"]
ACCENT = "#2f7fd1"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "lejepa-med",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def curve(history: Sequence[Mapping[str, Any]], key: str, *, scale: Scale = "plain") -> str:
    """SVG of one metric against the step; empty when no record holds it. NaN leaves a gap.

    `scale`: "log" (plain where a value is not positive), or "zero" for an axis that starts at 0.
    """
    points = [(row["step"], float(row[key])) for row in history if row.get(key) is not None]
    if not any(np.isfinite(value) for _, value in points):
        return ""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2, 2.4)
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=ACCENT, linewidth=1.5, marker="o" if len(points) == 1 else None)
        finite = [value for value in values if np.isfinite(value)]
        if scale == "zero":
            axes.set_ylim(0, 1.1 * max(finite) or 1)
        elif scale == "log" and min(finite) > 0:
            _logarithmic(axes, label_between=max(finite) < 20 * min(finite))
        axes.set_xlabel("step")
        return _svg(figure)


def spectrum(eigenvalues: NDArray[Any], effective_rank: float) -> str:
    """SVG of the eigenvalues (largest first) on a logarithmic axis, with the effective rank marked."""
    largest = float(eigenvalues.max(initial=0.0))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(7.0, 3.2)
        if largest > 0:
            kept = np.maximum(eigenvalues / largest, 1e-12)  # below is rounding; the axis needs a floor
            axes.plot(np.arange(1, len(kept) + 1), kept, color=ACCENT, linewidth=1.8)
            _logarithmic(axes)
        axes.axvline(effective_rank, color=INK, linewidth=1, linestyle="--")
        steep = effective_rank < 0.5 * len(eigenvalues)  # which corner the curve leaves free
        axes.annotate(
            f"effective rank {effective_rank:.1f} of {len(eigenvalues)}",
            (effective_rank, 1.0 if steep else 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(6, -4) if steep else (-6, 6),
            textcoords="offset points",
            ha="left" if steep else "right",
            va="top" if steep else "bottom",
        )
        axes.set_xlim(0, len(eigenvalues) + 1)
        axes.set_xlabel("direction, most variance first")
        axes.set_ylabel("variance / largest")
        return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: no display and no global state
    axes = figure.add_subplot()
    axes.grid(alpha=0.2, color=INK)
    return figure, axes


def _logarithmic(axes: Axes, *, label_between: bool = False) -> None:
    """A logarithmic axis with plain numbers (0.01, not a power), between decades too if asked."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if label_between else "")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


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
