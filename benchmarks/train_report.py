"""The page of `benchmarks.train`: a table of all sides, and what it says about ours."""

import os
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.hardware import cpu_name
from benchmarks.train_window import Settings

Windows = list[dict[str, Any]]
ALONE = ("bare-encoder", "bare", "views")  # parts of a run
ANCHOR = (
    "Public anchor for this model and these views on an H200: 871 images per second, batch 256, views made on the GPU "
    "(stable-pretraining, benchmarks/imagenet10/RESULTS.md)."
)
PAGE = """# Pretraining: images per second

{date}. {machine}, {precision}. {backbone}, views of one image: {views}; batch {batch},
{workers} loader workers, projector {hidden}-{hidden}-{dim}, SIGReg with {slices} directions. Data: {data}.

{steps} steps a window after {warmup} of warm-up; {rounds} rounds, all sides in turns, each in a fresh process. Images
per second counts files, not views: the median of the rounds, lowest and highest in brackets. CPU time: main process and
loader workers together. Data-wait: share of the window in which training waited for its loader. Ratios compare windows
of one round: images per second of ours over those of this side, and CPU time of this side over that of ours. Load
average while measuring up to {load:.1f} on {cores} cores; where it exceeds what a side uses, CPU time says more than
images per second.

{table}

{findings}

Versions: {versions}.

Again with: `python -m benchmarks.train --help`
"""


def page(settings: Settings, windows: Windows, *, archive: Path | None, made: tuple[int, int], rounds: int) -> str:
    """The Markdown page of all windows."""
    by_side = grouped(windows)
    s = settings
    views = [f"{count} x {size} px" for count, size in ((s.n_global, s.size), (s.n_local, s.local_size)) if count]
    versions = {name: text for window in windows for name, text in window.get("versions", {}).items()}
    return PAGE.format(
        date=date.today().isoformat(),
        machine=machine(settings),
        views=" and ".join(views),
        rounds=rounds,
        data=f"the archive {archive.name}" if archive else f"{made[0]} made JPEG files of {made[1]} x {made[1]} px",
        load=max((window.get("load", 0.0) for window in windows), default=0.0),
        cores=os.cpu_count(),
        table="\n".join(table(by_side, cuda=s.accelerator == "cuda")),
        findings="\n".join(f"- {line}" for line in findings(by_side) + anchor(s)),
        versions=", ".join(f"{name} {text}" for name, text in sorted(versions.items())) or "none",
        **{name: getattr(s, name) for name in PAGE_SETTINGS},
    )


PAGE_SETTINGS = ("precision", "backbone", "batch", "workers", "hidden", "dim", "slices", "steps", "warmup")


def machine(settings: Settings) -> str:
    """The processor, and the GPU where it is used."""
    name = f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {name}" if settings.accelerator == "cuda" else name


def grouped(windows: Windows) -> dict[str, Windows]:
    """Windows of each side in order of the rounds."""
    sides: dict[str, Windows] = {}
    for window in windows:
        sides.setdefault(window["side"], []).append(window)
    return sides


def good(by_side: dict[str, Windows], side: str) -> dict[int, dict[str, Any]]:
    """Round -> window, of a side's windows that were measured."""
    return {w["round"]: w for w in by_side.get(side, []) if "images_per_second" in w}


def faster(by_side: dict[str, Windows], side: str) -> float | None:
    """Images per second of ours over those of `side`, median over the rounds."""
    ours, theirs = good(by_side, "ours"), good(by_side, side)
    both = [ours[k]["images_per_second"] / theirs[k]["images_per_second"] for k in ours if k in theirs]
    return statistics.median(both) if both else None


def cheaper(by_side: dict[str, Windows], side: str) -> float | None:
    """CPU time per image of `side` over that of ours, median over the rounds."""
    ours, theirs = good(by_side, "ours"), good(by_side, side)
    both = [theirs[k]["cpu_ms_per_image"] / ours[k]["cpu_ms_per_image"] for k in ours if k in theirs]
    return statistics.median(both) if both else None


def table(by_side: dict[str, Windows], *, cuda: bool) -> list[str]:
    """One row a side."""
    gpu = " GPU busy | GPU GiB |" if cuda else ""
    rows = [
        f"| side | images/s | CPU ms per image | data-wait |{gpu} ours faster by | ours cheaper by | differs |",
        f"|---|---:|---:|---:|{'---:|---:|' if cuda else ''}---:|---:|---|",
    ]
    for side, windows in by_side.items():
        measured = list(good(by_side, side).values())
        if not measured:
            blank = " |" * (7 if cuda else 5)
            rows.append(f"| {side} |{blank} {missing(windows)} |")
            continue

        def median(key: str, measured: Windows = measured) -> float:
            return float(statistics.median(window[key] for window in measured))

        speeds = [window["images_per_second"] for window in measured]
        wait = f"{median('data_wait'):.1%}" if side not in ALONE else ""
        cells = [f"{median('images_per_second'):.1f} ({min(speeds):.1f} to {max(speeds):.1f})"]
        cells += [f"{median('cpu_ms_per_image'):.1f}", wait]
        if cuda:
            busy = [window["utilisation"] for window in measured if window["utilisation"] is not None]
            cells += [f"{statistics.median(busy):.0%}" if busy else "", f"{median('peak_gib'):.1f}"]
        cells += [""] * 2 if side == "views" else [shown(faster(by_side, side)), shown(cheaper(by_side, side))]
        failed = [missing([window]) for window in windows if "failed" in window]
        rows.append(f"| {side} | {' | '.join([*cells, '; '.join([*measured[0].get('differs', []), *failed])])} |")
    return rows


def missing(windows: Windows) -> str:
    """Why a side has no figures."""
    last = windows[-1]
    return "not installed" if "missing" in last else f"failed: {last['failed']}".replace("|", "/")


def shown(value: float | None) -> str:
    """A ratio."""
    return "" if value is None else f"{value:.2f}x"


def findings(by_side: dict[str, Windows]) -> list[str]:
    """What the table says, beside the targets."""
    lines = []
    whole = good(by_side, "ours")
    for side, text in (("bare-encoder", "the bare encoder"), ("bare", "encoder and projector")):
        value = faster(by_side, side)
        if value is not None:
            target = " (target: at least 0.90)" if side == "bare-encoder" else ""
            lines.append(f"A whole run reaches {value:.2f} of the images per second of {text}{target}.")
    if whole:
        wait = statistics.median(window["data_wait"] for window in whole.values())
        lines.append(f"A whole run waits for data {wait:.1%} of the time (target: at most 5 %).")
    lines += stages(by_side)
    ratios = {side: faster(by_side, side) for side in by_side if side not in (*ALONE, "ours")}
    peers = {side: value for side, value in ratios.items() if value is not None}
    if peers:
        best = min(peers, key=lambda side: peers[side])
        lines.append(f"Fastest other library: {best}; ours is {peers[best]:.2f}x as fast (target: at least 1.5x).")
    return lines


def anchor(settings: Settings) -> list[str]:
    """A published figure for the same model and views, where there is one."""
    same = settings.backbone == "vit_small_patch16_224" and [size for size, _ in settings.sizes] == [224, 224]
    return [ANCHOR] if same and settings.accelerator == "cuda" else []


def stages(by_side: dict[str, Windows]) -> list[str]:
    """The limiting stage, and where the CPU time of a run goes."""
    if not (good(by_side, "views") and good(by_side, "bare")):
        return []

    def median(side: str, key: str) -> float:
        return float(statistics.median(window[key] for window in good(by_side, side).values()))

    views, bare = (median(side, "images_per_second") for side in ("views", "bare"))
    stage = "data" if views < bare else "compute"
    lines = [f"Limiting stage: {stage}. Alone, views reach {views:.0f} and the bare step {bare:.0f} images per second."]
    if good(by_side, "ours"):
        run, step, loader = (median(side, "cpu_ms_per_image") for side in ("ours", "bare", "views"))
        lines.append(
            f"CPU time of a run, ms per image: {run:.1f}, of which encoder and projector {step:.1f}, views "
            f"{loader:.1f}, objective, optimiser, logs and all else {run - step - loader:.1f}."
        )
    return lines
