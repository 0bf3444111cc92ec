"""stability.csv and stability.html of a grid, with heat maps as SVG."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from data_adapters.atomic import write_text
from lejepa_med.page import render_page
from lejepa_med.plot import FONT, INK, svg
from lejepa_med.research.stability.cells import Axes

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


RANK, STD = "projector/effective_rank", "projector/std"
FIGURES = {RANK: "Effective rank of the projector", STD: "Standard deviation of the projector (aim: 1)"}
Results = Mapping[str, Mapping[str, Any]]


def write_pages(root: Path, axes: Axes, results: Results) -> None:
    """Write both files, also of a grid that is not finished."""
    columns = list(dict.fromkeys(name for result in results.values() for name in result))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=["cell", *columns])
    writer.writeheader()
    writer.writerows({"cell": name, **result} for name, result in results.items())
    write_text(root / "stability.csv", stream.getvalue())
    cells = axes.cells()
    mine = [results[cell.name] for cell in cells if cell.name in results]
    done = [result for result in mine if result["state"] in ("finished", "failed")]
    sections = []
    for backbone in axes.backbones:
        for views in axes.n_views:
            maps = [
                (title, _map(axes, results, backbone, views, key, low=0.0, high=1.0)) for key, title in FIGURES.items()
            ]
            for key, title in (("knn", "k-NN accuracy"), ("linear", "Linear probe accuracy")):
                found = [r[key] for r in mine if r.get(key) is not None]
                if found:
                    chance = min(r["chance"] for r in mine if r.get("chance") is not None)
                    picture = _map(axes, results, backbone, views, key, low=chance, high=max(found))
                    maps.append((f"{title} (balanced, chance {chance:.3f})", picture))
            sections.append((f"{backbone}, {views} views", maps))
    alarming = [r for r in done if r.get("verdict") in ("collapsing", "diverging")]
    failed = [(name, result["reason"]) for name, result in results.items() if result["state"] == "failed"]
    write_text(
        root / "stability.html",
        render_page(
            "lejepa_med.research.stability",
            "stability.html.j2",
            title=f"Stability: {len(done)} of {len(cells)} cells",
            collapsed=sum(r["verdict"] == "collapsing" for r in alarming),
            diverged=sum(r["verdict"] == "diverging" for r in alarming),
            failed=failed,
            finished=sum(r["state"] == "finished" for r in mine),
            sections=sections,
        ),
    )


def _map(axes: Axes, results: Results, backbone: str, views: int, key: str, *, low: float, high: float) -> str:
    cells = {}
    for cell in axes.cells():
        if (cell.backbone, cell.n_views) == (backbone, views) and cell.name in results:
            cells[f"{cell.lamb:g}", str(cell.batch)] = _heat_cell(results[cell.name], key)
    return heat_map(
        cells,
        rows=[f"{value:g}" for value in axes.lambdas],
        columns=[str(value) for value in axes.batches],
        row_label="lambda",
        column_label="batch",
        low=low,
        high=high,
    )


def _heat_cell(result: Mapping[str, Any], key: str) -> HeatCell:
    if result["state"] == "failed":
        return HeatCell(None, "failed", "see below", alarm=True, title=str(result["reason"]))
    if result["state"] != "finished":
        return HeatCell(None, str(result["state"]))
    verdict = str(result["verdict"])
    alarm = verdict in ("collapsing", "diverging")
    word = {"collapsing": "collapsed", "diverging": "diverged"}.get(verdict, "")
    value = _rank_share(result) if key == RANK else result.get(key)
    if value is None or not math.isfinite(value):
        return HeatCell(None, "–", word, alarm=alarm, title=str(result["text"]))
    rank = f"{result[RANK]:.1f} of {result['projector/dim']:.0f}" if key == RANK else ""
    text = rank or f"{value:.3f}"
    return HeatCell(float(value), text, word, alarm=alarm, title=str(result["text"]))


def _rank_share(result: Mapping[str, Any]) -> float | None:
    rank = result.get(RANK)
    return None if rank is None else rank / max(1, min(result["projector/dim"], result["projector/rows"] - 1))
