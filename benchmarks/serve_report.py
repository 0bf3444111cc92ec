"""The page of `benchmarks.serve`."""

import os
import statistics
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import torch

from benchmarks.hardware import cpu_name

Row = dict[str, Any]
SIDES = ("ours", "LitServe", "plain FastAPI")
PAGE = """# Serving: requests per second

{date}. {cpu}, {cores} cores, {threads} torch thread(s) on every side, torch {torch}, float32. One JPEG a
request, closed loop: a client sends again when it has its vector. Load generator in a process of its own on the same
machine. {rounds} rounds of windows of at least {seconds:g} s, sides in turns, the others stopped meanwhile; median,
lowest and highest in brackets. Ratios compare windows of one round. CPU is the server's time for a request, children
included, and shows what other work on the machine hides. Load average while measuring up to {load:.1f}: above {cores},
the machine had other work, and rates and times say little.

{tables}

## Targets

{targets}

Again with: `python -m benchmarks.serve --python PYTHON_WITH_LITSERVE`
"""


def page(rows: list[Row], sizes: Mapping[str, int], *, threads: int, seconds: float, rounds: int) -> str:
    """The Markdown page of all windows."""
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=os.cpu_count(),
        threads=threads,
        torch=torch.__version__,
        seconds=seconds,
        rounds=rounds,
        load=max((row[side].get("load", 0) for row in rows for side in SIDES if side in row), default=0),
        tables="\n\n".join(_table(name, sizes[name], [r for r in rows if r["backbone"] == name]) for name in backbones),
        targets="\n".join(line for name in backbones for line in _targets([r for r in rows if r["backbone"] == name])),
    )


def _table(backbone: str, size: int, rows: list[Row]) -> str:
    lines = [
        f"## {backbone}, {size} px",
        "",
        "| clients | side | answers/s | p50 ms | p95 ms | CPU ms | answers/s of ours over this |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for clients in dict.fromkeys(row["clients"] for row in rows):
        mine = [row for row in rows if row["clients"] == clients]
        for side in [*SIDES, *(key for key in mine[0] if key.startswith("bare"))]:
            if side not in mine[0]:
                continue
            name = f"bare encoder, batch {side.split()[1]}" if side.startswith("bare") else side
            good = [row[side] for row in mine if "rate" in row[side]]
            if not good:
                lines.append(f"| {clients} | {name} | no window ended | | | | |")
                continue
            figures = [spread([x[key] * scale for x in good if key in x]) for key, scale in FIGURES]
            ratio = "" if side == "ours" else spread(ratios(mine, "rate", "ours", side))
            lines.append(f"| {clients} | {name} | {' | '.join(figures)} | {ratio} |")
    return "\n".join(lines)


FIGURES = (("rate", 1.0), ("p50", 1e3), ("p95", 1e3), ("cpu", 1e3))


def _targets(rows: list[Row]) -> list[str]:
    """The three targets, where the clients that they speak of were measured."""
    checks: list[tuple[int, str, str, str, str, float, Callable[[float, float], bool]]] = [
        (32, "rate", "ours", "bare 32", "answers/s over the bare encoder's at batch 32", 0.85, float.__ge__),
        (32, "rate", "ours", "LitServe", "answers/s over LitServe's", 1.2, float.__ge__),
        (1, "p50", "ours", "bare 1", "p50 over a bare forward's", 1.3, float.__le__),
    ]
    lines = []
    for clients, key, one, other, text, target, holds in checks:
        found = ratios([row for row in rows if row["clients"] == clients and other in row], key, one, other)
        if found:
            sign = ">=" if holds is float.__ge__ else "<="
            verdict = "met" if holds(float(statistics.median(found)), target) else "missed"
            backbone = rows[0]["backbone"]
            lines.append(
                f"- {backbone}, {clients} client(s): {text} {spread(found)}, target {sign} {target}: {verdict}"
            )
    return lines


def ratios(rows: list[Row], key: str, one: str, other: str) -> list[float]:
    """One side's figure over the other's, for each round in which both have it."""
    return [row[one][key] / row[other][key] for row in rows if key in row[one] and key in row[other]]


def spread(values: list[float]) -> str:
    """Median (lowest - highest), in three digits."""
    if not values:
        return ""
    middle, low, high = (
        f"{v:.3g}" if v < 1000 else f"{v:.0f}" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} - {high})"
