"""How fast training is beside other work on the machine: an idle machine, busy loops, another training.

    python -m benchmarks.contention --out benchmarks/results/contention-cpu.md

Real runs of `pretrain` (resnet18, 4 views of 64 px, JPEG files, loader workers) take turns: as before ("fixed": all
cores, the way of waiting that PyTorch has by itself, two loader workers), as now, and as now from a program that has
imported and used PyTorch before. Each run lives through the whole benchmark and is stopped (SIGSTOP) while it is not
its turn. A cell is one turn of one run beside one neighbour; after `--warm` seconds its images are counted for
`--seconds`. Each cell is a file below `--work`, and a repeated command does only those that are missing.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.hardware import cpu_name, publish
from data_adapters.machine import Machine, usable_cores

ROOT = Path(__file__).parents[1]
IMAGES, BATCH, VIEWS, EVERY = 256, 16, 4, 2  # EVERY: steps of a record
FLAGS = (
    "--modality images --model.backbone resnet18 --views.n-global 4 --views.n-local 0 --views.global-size 64 "
    f"--train.batch-size {BATCH} --train.epochs 1000000 --train.log-every {EVERY} --train.checkpoint-minutes 100000 "
    "--train.accelerator cpu --no-data.verify --no-monitor.online --overwrite"
)
COMMAND = [sys.executable, "-m", "lejepa_med.cli"]
# A program of somebody who uses PyTorch and then calls the library.
PROGRAM = """
import sys, torch
torch.randn(512, 512) @ torch.randn(512, 512)
from lejepa_med.cli import main
main(sys.argv[1:])
"""
# Neighbours end with the benchmark, however it ends.
LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
TRAINING = """
import os, sys, timm, torch
parent = os.getppid()
torch.set_num_threads(int(sys.argv[1]))
model = timm.create_model("resnet18").to(memory_format=torch.channels_last)
views = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
print("ready", flush=True)
while os.getppid() == parent:
    model(views).square().mean().backward()
"""
NEIGHBOURS = ("none", "one busy loop", "two busy loops", "another training")
SIDES = ("fixed", "now", "now, torch imported before")
AIMS = {"none": 0.97, "one busy loop": 0.5, "two busy loops": 0.4, "another training": 0.45}
PAGE = """# Training beside other work on the machine

{date}. {cpu}, {cores} usable cores, torch {torch}. resnet18, {views} views of 64 px, batch {batch}, {precision},
JPEG files. {rounds} rounds, all cells in turns, {seconds:g} s each after {warm:g} s. Median, with the smallest and the
largest round in brackets. Other programs used {others:.2f} cores on average during the cells, at most {most:.2f}; with
more than about 0.2 the table is no proof.

"fixed": {cores} threads, PyTorch's own way of waiting, 2 loader workers, as training was before. The other training is
plain PyTorch with {cores} threads.

Images/s:

| beside | {heads} |
|---|{lines}|
{rates}

Divided by "fixed" on the idle machine in the same round; "threads" is what most records of the cells say:

| beside | {heads} | aim | threads now |
|---|{lines}|---:|---:|
{ratios}

Again with: `python -m benchmarks.contention {arguments}`
"""


class Child:
    """A process, with its children, that is stopped whenever it is not its turn."""

    def __init__(self, command: list[str], *, log: Path | None = None) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
        with log.open("w") if log is not None else open(os.devnull, "w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, "PYTHONPATH": str(ROOT), "LEJEPA_CACHE": "off"},
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
            )

    def send(self, number: int) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Kill all of it."""
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()


class Run(Child):
    """A training of the product; `records` are the lines of its metrics.jsonl."""

    def __init__(self, side: str, archive: Path, work: Path) -> None:
        name = side.replace(", ", "-").replace(" ", "-")
        self.metrics = work / f"run-{name}" / "metrics.jsonl"
        command = [sys.executable, "-c", PROGRAM] if side == SIDES[2] else COMMAND
        flags = FLAGS.split()
        if side == "fixed":
            flags += ["--train.threads", str(usable_cores()), "--data.workers", "2"]
        self.log = work / f"run-{name}.log"
        super().__init__([*command, "pretrain", str(archive), "--out", str(self.metrics.parent), *flags], log=self.log)

    def records(self) -> list[dict[str, float]]:
        """All records that are written whole."""
        text = self.metrics.read_text() if self.metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait(self, *, records: int, seconds: float = 600) -> None:
        """Wait until so many records are there."""
        end = time.monotonic() + seconds
        while len(self.records()) < records:
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the training did not start:\n{self.log.read_text()}")
            time.sleep(0.2)


def make_archive(folder: Path) -> None:
    """Write smooth JPEG pictures of 256 x 256 pixels."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg", quality=90)


def measure(run: Run, neighbours: list[Child], everybody: list[Child], *, warm: float, seconds: float) -> dict:
    """One cell: images/s, threads of most records, and cores that strangers used."""
    machine = Machine()
    began = time.monotonic()
    for child in (*neighbours, run):
        child.send(signal.SIGCONT)
    try:
        time.sleep(warm)
        first, before, mine = len(run.records()), machine.read(), cpu_seconds(everybody)
        time.sleep(seconds)
        found, after, used = counted(run, first, began), machine.read(), cpu_seconds(everybody) - mine
        while len(found) < 2:  # a very slow cell: longer than planned
            time.sleep(1.0)
            found = counted(run, first, began)
    finally:
        for child in (*neighbours, run):
            child.send(signal.SIGSTOP)
    free = machine.free(before, after)
    return {
        "images_per_second": len(found) / sum(1 / record["images_per_second"] for record in found),
        "threads": statistics.mode(record["threads"] for record in found),
        "strangers": max(0.0, machine.cores - free - used / seconds) if free is not None else float("nan"),
    }


def counted(run: Run, first: int, began: float) -> list[dict[str, float]]:
    """Records from `first` on, without one that the run was stopped in: it tells the pace since the one before it."""
    elapsed = time.monotonic() - began
    return [record for record in run.records()[first:] if EVERY * BATCH / record["images_per_second"] < elapsed]


def cpu_seconds(everybody: list[Child]) -> float:
    """CPU time of the processes and their children, by process group."""
    groups, total = {str(child.process.pid) for child in everybody}, 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if fields[2] in groups:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def measure_all(args: argparse.Namespace) -> None:
    """Start runs and neighbours, and do all cells that are missing."""
    plan = [
        (number, beside, side)
        for number in range(args.rounds)
        for beside in NEIGHBOURS
        # who comes first changes from round to round
        for side in (*SIDES[number % 3 :], *SIDES[: number % 3])
    ]
    todo = [cell for cell in plan if not cell_file(args.work, *cell).exists()]
    if not todo:
        return
    archive = args.work / "archive"
    make_archive(archive)
    children: list[Child] = []
    try:
        loops = [Child([sys.executable, "-c", LOOP]) for _ in range(2)]
        children += loops
        training = Child([sys.executable, "-c", TRAINING, str(usable_cores())])
        children.append(training)
        assert training.process.stdout is not None
        training.process.stdout.readline()
        for child in children:
            child.send(signal.SIGSTOP)
        runs = {}
        for side in SIDES:
            runs[side] = Run(side, archive, args.work)
            children.append(runs[side])
            runs[side].wait(records=3)
            runs[side].send(signal.SIGSTOP)
        beside = dict(zip(NEIGHBOURS, ([], loops[:1], loops, [training]), strict=True))
        for number, name, side in todo:
            found = measure(runs[side], beside[name], children, warm=args.warm, seconds=args.seconds)
            draft = args.work / "cell.draft"
            draft.write_text(json.dumps(found) + "\n")
            draft.replace(cell_file(args.work, number, name, side))
            print(f"round {number + 1}, beside {name}, {side}: {found}", flush=True)
    finally:
        for child in children:
            child.end()


def cell_file(work: Path, number: int, beside: str, side: str) -> Path:
    """Where a cell's result lies."""
    return work / f"cell-{number}-{beside}-{side}.json".replace(", ", "-").replace(" ", "-")


def page(args: argparse.Namespace, arguments: list[str]) -> str:
    """The result page, from the cells' files."""
    import torch
    import yaml

    cells = {
        (beside, side): [json.loads(cell_file(args.work, n, beside, side).read_text()) for n in range(args.rounds)]
        for beside in NEIGHBOURS
        for side in SIDES
    }
    rates, ratios = [], []
    for beside in NEIGHBOURS:
        row, relative = [], []
        for side in SIDES:
            values = [cell["images_per_second"] for cell in cells[beside, side]]
            quiet = [cell["images_per_second"] for cell in cells["none", "fixed"]]
            row.append(spread(values, "{:.1f}"))
            relative.append(spread([a / b for a, b in zip(values, quiet, strict=True)], "{:.2f}"))
        threads = statistics.mode(cell["threads"] for cell in cells[beside, "now"])
        rates.append(f"| {beside} | {' | '.join(row)} |")
        ratios.append(f"| {beside} | {' | '.join(relative)} | {AIMS[beside]:.2f} | {threads} |")
    strangers = [cell["strangers"] for found in cells.values() for cell in found]
    saved = yaml.safe_load((args.work / "run-now" / "config.yaml").read_text())
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=usable_cores(),
        torch=torch.__version__,
        views=VIEWS,
        batch=BATCH,
        precision=saved["train"]["precision"],
        rounds=args.rounds,
        seconds=args.seconds,
        warm=args.warm,
        others=statistics.mean(strangers),
        most=max(strangers),
        heads=" | ".join(SIDES),
        lines="---:|---:|---:",
        rates="\n".join(rates),
        ratios="\n".join(ratios),
        arguments=" ".join(arguments),
    )


def spread(values: list[float], form: str) -> str:
    """Median, with the smallest and the largest in brackets."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown page to write")
    parser.add_argument("--work", type=Path, default=Path("contention-runs"), help="folder of cells and runs")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--warm", type=float, default=8.5, help="seconds of a cell that are not counted")
    parser.add_argument("--seconds", type=float, default=7.0, help="seconds of a cell that are counted")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.work = args.work.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no neighbour is left behind
    measure_all(args)
    publish(page(args, sys.argv[1:]), args.out)


if __name__ == "__main__":
    main()
