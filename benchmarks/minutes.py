"""Does --minutes keep its promise while other work comes and goes? Real runs of the command line.

    python -m benchmarks.minutes --out benchmarks/results/minutes-cpu.md

Each cell is one run of --minutes (2) on a made archive of pictures; beside it, busy loops start and stop at shares of
the promised time, counted from the first step. A finished cell is kept beside the page (OUT with .cells/ in its name),
so a repeated command runs only what is missing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.hardware import cpu_name, publish

IMAGES, SIDE = 600, 96
FLAGS = (
    "--modality images --train.accelerator cpu --train.log-every 5 --seed 0 --batch-size 32 "
    "--views.n-global 2 --monitor.sample 300"
)
LOOP = "while True: pass"
FINAL, PEAK = 1e-3, 2e-3  # last rate as a share of the peak, and the peak: the defaults of a CNN

PAGE = """# Does --minutes keep its promise?

{date}. {cpu}, {cores} cores. resnet18, 2 views of 64 px, batches of 32 from {images} pictures. The load is one
busy loop a core.
Again with: `python -m benchmarks.minutes --out benchmarks/results/minutes-cpu.md`; a row is one run.

Minutes are counted from the end of the scan to the end of the process, with evaluation, checkpoint and report. The
whole command also starts Python and scans. A schedule is complete when the learning rate never rose after its peak and
the last step had {final:g} of the peak. The load average is that of the minute before a run: other work on the machine.

| load | promised, min | took, min | ratio | whole command, min | planned first | steps | schedule | load average |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Cell:
    """A load: from when to when busy loops run, as shares of the minutes."""

    name: str
    busy: tuple[tuple[float, float], ...] = ()


CELLS = (
    Cell("quiet"),
    Cell("a load that goes away after the start", ((-1.0, 0.2),)),
    Cell("a load that comes after the start", ((0.2, 9.0),)),
    Cell("a load that comes and goes", ((0.1, 0.3), (0.5, 0.7), (0.85, 0.95))),
)


def make_archive(folder: Path) -> Path:
    """Pictures of smooth noise, drawn from a seed."""
    import cv2
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = rng.uniform(0, 255, (rng.integers(3, 12), rng.integers(3, 12), 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index:04d}.png"), cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    return folder


class Load:
    """Busy loops, one a core, that run while a cell's times say so; always running before the start where they do."""

    def __init__(self, cell: Cell, *, seconds: float) -> None:
        self.cell, self.seconds = cell, seconds
        self.loops: list[subprocess.Popen[bytes]] = []

    def set(self, since: float | None) -> None:
        """Start or stop the loops; `since`: seconds since the training began, None before."""
        share = -0.5 if since is None else since / self.seconds
        wanted = any(start <= share < end for start, end in self.cell.busy)
        if wanted and not self.loops:
            self.loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(os.cpu_count() or 1)]
        elif not wanted:
            self.stop()

    def stop(self) -> None:
        """End the loops."""
        for loop in self.loops:
            loop.kill()
            loop.wait()
        self.loops = []


def run_cell(cell: Cell, archive: Path, out: Path, *, minutes: float) -> dict[str, Any]:
    """Pretrain beside the cell's load, and read from log and metrics what became of it."""
    load, before = Load(cell, seconds=60 * minutes), os.getloadavg()[0]
    command = [sys.executable, "-m", "lejepa_med.cli", "pretrain", str(archive), "--out", str(out), *FLAGS.split()]
    log = out.with_suffix(".log")
    started, began = time.monotonic(), None
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--minutes", f"{minutes:g}"], stderr=stream, stdout=stream)
        try:
            while process.poll() is None:
                # the last file that is written before the model is built, which is when the minutes begin
                if began is None and (out / "config.yaml").is_file():
                    began = time.monotonic()
                load.set(None if began is None else time.monotonic() - began)
                time.sleep(0.2)
        finally:
            load.stop()
    text = log.read_text()
    if process.returncode or began is None:
        raise SystemExit(f"The run beside {cell.name} ended with status {process.returncode}:\n{text[-3000:]}")
    found = re.search(r"planned [\d.]+ minutes(?:: ([\d,]+) steps)?; took ([\d.]+) minutes: ([\d,]+) steps", text)
    assert found is not None, text[-3000:]
    rates = [json.loads(line)["lr"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    top = rates.index(max(rates))
    return {
        "promised": minutes,
        "took": (time.monotonic() - began) / 60,
        "said": float(found[2]),
        "whole": (time.monotonic() - started) / 60,
        "first_plan": found[1] or "",
        "steps": found[3],
        "falls": rates[top:] == sorted(rates[top:], reverse=True),
        "last_rate": rates[-1] / PEAK,
        "load_before": before,
    }


def page(results: dict[str, dict[str, Any]]) -> str:
    """The result page."""
    rows = [
        f"| {name} | {r['promised']:.2f} | {r['took']:.2f} | {r['took'] / r['promised']:.2f} | {r['whole']:.2f} "
        f"| {r['first_plan'] or 'none'} | {r['steps']} | {_ending(r)} | {r['load_before']:.1f} |"
        for name, r in results.items()
    ]
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=os.cpu_count(),
        images=IMAGES,
        final=FINAL,
        rows="\n".join(rows),
    )


def _ending(result: dict[str, Any]) -> str:
    return "complete" if result["falls"] and abs(result["last_rate"] / FINAL - 1) < 1e-9 else "NOT complete"


def main() -> None:
    """Run the cells that are missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/minutes-cpu.md"))
    given = parser.parse_args()
    cells = given.out.with_suffix(".cells")
    cells.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        archive = make_archive(Path(folder, "archive"))
        for index, cell in enumerate(CELLS):
            kept = cells / f"{index}-{given.minutes:g}.json"
            if not kept.is_file():
                result = run_cell(cell, archive, Path(folder, f"run-{index}"), minutes=given.minutes)
                kept.write_text(json.dumps(result, indent=1) + "\n")
            results[cell.name] = json.loads(kept.read_text())
            print(f"{cell.name}: promised {given.minutes:g}, took {results[cell.name]['took']:.2f} minutes", flush=True)
    publish(page(results), given.out)


if __name__ == "__main__":
    main()
