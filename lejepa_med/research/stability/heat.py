"""Heat maps as SVG: a number and a colour for each cell, a frame and a word where something is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lejepa_med.training.svg import FONT, INK, svg

ALARM = "#cf3f4f"
WIDTH, HEIGHT, LEFT, TOP = 96.0, 52.0, 92.0, 46.0


@dataclass(frozen=True)
class HeatCell:
    """One cell: its number (None: not run, or undefined), a word below it, and whether that is an alarm."""

    value: float | None
    text: str
    word: str = ""
    alarm: bool = False
    title: str = ""


def heat_map(
    cells: Mapping[tuple[str, str], HeatCell],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_label: str,
    column_label: str,
    low: float,
    high: float,
) -> str:
    """SVG of `cells[row, column]`; values from `low` (clear) to `high` (full colour) of one scale, so maps compare."""
    width, height = LEFT + WIDTH * len(columns) + 8, TOP + HEIGHT * len(rows) + 8
    parts = [_text(LEFT + WIDTH * len(columns) / 2, 16, column_label), _text(LEFT - 10, 36, row_label, anchor="end")]
    parts += [_text(LEFT + WIDTH * (k + 0.5), 36, name) for k, name in enumerate(columns)]
    for i, row in enumerate(rows):
        top = TOP + HEIGHT * i
        parts.append(_text(LEFT - 10, top + HEIGHT / 2 + 0.35 * FONT, row, anchor="end"))
        for k, column in enumerate(columns):
            parts.append(_cell(cells.get((row, column)), LEFT + WIDTH * k, top, low=low, high=high))
    return svg(parts, width=width, height=height)


def _cell(cell: HeatCell | None, x: float, y: float, *, low: float, high: float) -> str:
    share = 0.0
    if cell is not None and cell.value is not None and high > low:
        share = min(1.0, max(0.0, (cell.value - low) / (high - low)))
    alarm = cell is not None and cell.alarm
    frame = f'stroke="{ALARM}" stroke-width="3"' if alarm else f'stroke="{INK}" stroke-opacity=".2"'
    # at most .75, so that the text stays readable in light and in dark mode
    box = (
        f'<rect x="{x + 3:.1f}" y="{y + 3:.1f}" width="{WIDTH - 6:g}" height="{HEIGHT - 6:g}" rx="4" fill="#2f7fd1" '
        f'fill-opacity="{0.75 * share:.2f}" {frame}>'
    )
    middle = x + WIDTH / 2
    if cell is None:
        return f"{box}</rect>" + _text(middle, y + HEIGHT / 2 + 0.35 * FONT, "–")
    title = f"<title>{escape(cell.title)}</title>" if cell.title else ""
    texts = _text(middle, y + (HEIGHT / 2 - 2 if cell.word else HEIGHT / 2 + 0.35 * FONT), cell.text)
    if cell.word:
        texts += _text(middle, y + HEIGHT / 2 + 14, cell.word)
    return f"{box}{title}</rect>{texts}"


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'
