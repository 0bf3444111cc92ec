"""Line and scatter plots as inline SVG: axes, ticks, a legend. Text stays text, lines follow light and dark mode."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

INK = "currentColor"
COLOURS = ("#2f7fd1", "#d9822b", "#2a9d5c", "#8e5bd0", "#cf3f4f", "#7d8590")
ACCENT = COLOURS[0]
FONT = 12.0
CHARACTER = 0.56 * FONT  # mean width of a character, to place text that cannot be measured here
MOST_POINTS = 600  # of one line; of more, the smallest and largest of each stretch are drawn

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line (a gap where y is not finite), or dots.

    Attributes:
        points: (x, y).
        label: in the legend; empty: none.
        colour: of the stroke.
        dots: draw dots and no line.
        titles: a tooltip for each dot.
        fade: dots grow from faint to full colour along the sequence.
        dashed: a dashed line.
        band: (x, low, high), drawn as an area behind the line.
    """

    points: Sequence[Point]
    label: str = ""
    colour: str = ACCENT
    dots: bool = False
    titles: Sequence[str] = field(default=())
    fade: bool = False
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = field(default=())


@dataclass(frozen=True)
class Axis:
    """Values to pixels: (low, high) to (start, end), evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value."""
        a, b, v = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (v - a) / (b - a) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside the axis, about `most` at the most."""
        return _log_ticks(self.low, self.high, most) if self.log else _even_ticks(self.low, self.high, most)


def make_axis(values: Sequence[float], *, start: float, end: float, log: bool = False, zero: bool = False) -> Axis:
    """An axis that holds all finite `values` with a margin; `zero` starts it at 0. `log` needs positive values."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log and low > 0:
        room = max((high / low) ** 0.05, 1.02)
        return Axis(low / room, high * room, start, end, log=True)
    if zero and low >= 0:
        return Axis(0.0, 1.1 * high if high > 0 else 1.0, start, end)
    room = 0.06 * (high - low) if high > low else 0.05 * abs(high) or 0.5
    return Axis(low - room, high + room, start, end)


def plot(
    series: Sequence[Series],
    *,
    width: float = 420,
    height: float = 240,
    x_label: str = "step",
    y_label: str = "",
    x_log: bool = False,
    y_log: bool = False,
    y_zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    levels: Sequence[tuple[float, str]] = (),
) -> str:
    """SVG of the series; empty where no point is finite.

    Args:
        series: what to draw; those without a finite point are left out.
        width: in pixels of the view box.
        height: likewise.
        x_label: under the horizontal axis.
        y_label: beside the vertical axis.
        x_log: logarithmic where all x are positive.
        y_log: likewise of y.
        y_zero: start at 0.
        marks: x and text of dashed vertical lines.
        levels: y and text of dashed horizontal lines.
    """
    drawn = [s for s in series if any(_finite(point) for point in s.points)]
    if not drawn:
        return ""
    inside = [point for s in drawn for point in s.points if _finite(point)]
    inside += [(at, edge) for s in drawn for at, *edges in s.band for edge in edges]
    legend = _lines([s for s in drawn if s.label], width - 60)
    top = 10.0 + 20.0 * len(legend)
    bottom = height - 40.0
    y = make_axis([p[1] for p in inside] + [v for v, _ in levels], start=bottom, end=top, log=y_log, zero=y_zero)
    y_texts = [(v, number(v)) for v in y.ticks(5)]
    left = 12.0 + CHARACTER * max((len(text) for _, text in y_texts), default=1) + (18.0 if y_label else 0.0)
    x = make_axis([p[0] for p in inside] + [v for v, _ in marks], start=left, end=width - 14, log=x_log)
    parts = _frame(x, y, y_texts, left=left, bottom=bottom, top=top, width=width)
    parts += [_text((left + width - 14) / 2, height - 6, x_label, anchor="middle")]
    if y_label:
        middle = (top + bottom) / 2
        parts.append(_text(12, middle, y_label, anchor="middle", more=f' transform="rotate(-90 12 {middle:.1f})"'))
    for value, text in marks:
        at, right = x.at(value), x.at(value) < (left + width) / 2
        parts.append(f'<path d="M{at:.1f} {top:.1f}V{bottom:.1f}" {_stroke(INK, 1, dashed=True)}/>')
        parts.append(_text(at + (5 if right else -5), top + 12, text, anchor="start" if right else "end"))
    for value, text in levels:
        parts.append(f'<path d="M{left:.1f} {y.at(value):.1f}H{width - 14:.1f}" {_stroke(INK, 1, dashed=True)}/>')
        parts.append(_text(width - 16, y.at(value) - 4, text, anchor="end"))
    parts += [_area(one, x, y) for one in drawn if one.band]
    for one in drawn:
        parts += _dots(one, x, y) if one.dots else [_line(one, x, y)]
    parts += _legend(legend, left)
    return svg(parts, width=width, height=height)


def svg(parts: Sequence[str], *, width: float, height: float) -> str:
    """The parts in one picture; it scales to the width of its container."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'font-size="{FONT:g}">{"".join(parts)}</svg>'
    )


def number(value: float) -> str:
    """A tick's text: 0.01, 2.5, 1200, 3e-05, 2e+06."""
    return "0" if value == 0 else f"{value:.4g}"


def _frame(
    x: Axis, y: Axis, y_texts: Sequence[tuple[float, str]], *, left: float, bottom: float, top: float, width: float
) -> list[str]:
    parts = [f'<path d="M{left:.1f} {top:.1f}V{bottom:.1f}H{width - 14:.1f}" {_stroke(INK, 1)} opacity=".6"/>']
    for value, text in y_texts:
        at = y.at(value)
        parts.append(f'<path d="M{left:.1f} {at:.1f}H{width - 14:.1f}" {_stroke(INK, 1)} opacity=".13"/>')
        parts.append(_text(left - 5, at + 0.35 * FONT, text, anchor="end"))
    for value in x.ticks(max(2, int((width - left) / 70))):
        at = x.at(value)
        parts.append(f'<path d="M{at:.1f} {top:.1f}V{bottom:.1f}" {_stroke(INK, 1)} opacity=".13"/>')
        parts.append(_text(at, bottom + 16, number(value), anchor="middle"))
    return parts


def _line(one: Series, x: Axis, y: Axis) -> str:
    path, down = [], False
    points = thin(one.points)
    for point in points:
        if _finite(point) and not (y.log and point[1] <= 0):
            path.append(f"{'L' if down else 'M'}{x.at(point[0]):.1f} {y.at(point[1]):.1f}")
            down = True
        else:
            down = False
    if len(path) == 1:  # a line of one point is no ink
        only = next(point for point in points if _finite(point))
        return f'<circle cx="{x.at(only[0]):.1f}" cy="{y.at(only[1]):.1f}" r="3" fill="{one.colour}"/>'
    return f'<path d="{"".join(path)}" {_stroke(one.colour, 1.8, dashed=one.dashed)} stroke-linejoin="round"/>'


def _area(one: Series, x: Axis, y: Axis) -> str:
    upper = [f"{x.at(at):.1f} {y.at(high):.1f}" for at, _, high in one.band]
    lower = [f"{x.at(at):.1f} {y.at(low):.1f}" for at, low, _ in reversed(one.band)]
    return f'<path d="M{"L".join(upper + lower)}Z" fill="{one.colour}" fill-opacity=".13"/>'


def _dots(one: Series, x: Axis, y: Axis) -> list[str]:
    parts = []
    for index, point in enumerate(one.points):
        if not _finite(point):
            continue
        strength = 0.15 + 0.85 * index / max(1, len(one.points) - 1) if one.fade else 0.85
        title = f"<title>{escape(one.titles[index])}</title>" if index < len(one.titles) else ""
        parts.append(
            f'<circle cx="{x.at(point[0]):.1f}" cy="{y.at(point[1]):.1f}" r="{3 if one.fade else 4.5:g}" '
            f'fill="{one.colour}" fill-opacity="{strength:.2f}">{title}</circle>'
        )
    return parts


def _lines(series: Sequence[Series], room: float) -> list[list[Series]]:
    """The entries of the legend in as many lines as they need."""
    lines: list[list[Series]] = []
    left = 0.0
    for one in series:
        if _entry(one) > left:
            lines.append([])
            left = room
        lines[-1].append(one)
        left -= _entry(one)
    return lines


def _entry(one: Series) -> float:
    """Pixels of an entry of the legend."""
    return 40 + CHARACTER * len(one.label)


def _legend(lines: Sequence[Sequence[Series]], left: float) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        at, down = left, 20 * number
        for one in line:
            parts.append(f'<path d="M{at:.1f} {14 + down}H{at + 18:.1f}" {_stroke(one.colour, 3, dashed=one.dashed)}/>')
            parts.append(_text(at + 23, 18 + down, one.label))
            at += _entry(one)
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}"{where}{more}>{escape(text)}</text>'


def _stroke(colour: str, width: float, *, dashed: bool = False) -> str:
    return f'fill="none" stroke="{colour}" stroke-width="{width:g}"' + (' stroke-dasharray="5 4"' if dashed else "")


def thin(points: Sequence[Point]) -> list[Point]:
    """At most about 600 points: of each stretch of a longer line the smallest and the largest, so that spikes stay."""
    if len(points) <= MOST_POINTS:
        return list(points)
    kept: list[Point] = []
    count = MOST_POINTS // 2
    for k in range(count):
        part = points[k * len(points) // count : (k + 1) * len(points) // count]
        finite = [i for i, point in enumerate(part) if _finite(point)]
        chosen = {min(finite, key=lambda i: part[i][1]), max(finite, key=lambda i: part[i][1])} if finite else {0}
        kept += [part[i] for i in sorted(chosen)]
    return kept


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(found) <= most + 1:
            break
    if len(found) < 2:  # less than a factor of 2 in all: even steps say more
        return [v for v in _even_ticks(low, high, most) if v > 0]
    return found[:: math.ceil(len(found) / (most + 1))]


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


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
