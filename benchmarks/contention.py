"""How fast training, embedding or serving is beside other work on the machine: busy loops, another training.

    python -m benchmarks.contention training --out benchmarks/results/contention-cpu.md
    python -m benchmarks.contention embedding --out benchmarks/results/contention-embedding-cpu.md
    python -m benchmarks.contention serving --out benchmarks/results/contention-serving-cpu.md

Real runs take turns: as before ("fixed": all cores, the way of waiting that PyTorch has by itself), as now, and for
training as now from a program that has imported and used PyTorch before. Training is `pretrain` (resnet18, 4 views of
64 px, JPEG files, loader workers), embedding is what `embed` does with such files (resnet18, 224 px), and serving is
`serve` with that encoder and 16 clients that each send a picture and wait for its vector. Each run lives through the
whole benchmark and is stopped (SIGSTOP) while it is not its turn. A cell is one turn of one run beside one neighbour;
after `--warm` seconds its images are counted for `--seconds`. Each cell is a file below `--work`, and a repeated
command does only those that are missing.
"""

import argparse
import json
import os
import re
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
IMAGES, BATCH, VIEWS, EVERY = 256, 16, 4, 2  # EVERY: batches of a record
PIXELS, CLIENTS = 224, 16  # of the encoder that embeds and serves
MODEL = "--modality images --backbone resnet18 --views.n-local 0 --train.accelerator cpu --no-monitor.online"
FLAGS = (
    f"{MODEL} --views.n-global {VIEWS} --views.global-size 64 --batch-size {BATCH} --epochs 1000000 "
    f"--train.log-every {EVERY} --train.checkpoint-minutes 100000 --no-data.verify --overwrite"
)
SHORT = f"{MODEL} --views.n-global 2 --views.global-size {PIXELS} --batch-size 4 --epochs 1 --monitor.sample 16"
COMMAND = [sys.executable, "-m", "lejepa_med.cli"]
# A program of somebody who uses PyTorch and then calls the library.
PROGRAM = """
import sys, torch
torch.randn(512, 512) @ torch.randn(512, 512)
from lejepa_med.cli import main
main(sys.argv[1:])
"""
# What `embed` does with an archive, without end. Like training it notes its pace every few batches.
EMBEDDING = """
import json, sys, time
from data_adapters.manifest import Manifest
from lejepa_med.models.embed import embed_records
from lejepa_med.models.folder import load_encoder
from lejepa_med.cpu import Threads, loader_workers
encoder, manifest, out, batch, every, threads = sys.argv[1:]
manifest = Manifest.read(manifest)
records = [manifest.record(row) for row in range(len(manifest))] * 1000
batch, part, fixed = int(batch), int(batch) * int(every), int(threads) or None
with open(out, "w") as file, Threads(fixed) as pace:
    workers = loader_workers(2 if fixed else None)
    features = embed_records(load_encoder(encoder), records, batch_size=batch, workers=workers, threads=pace)
    since = time.perf_counter()
    for done, _ in enumerate(features, 1):
        if done % part == 0:
            since, before = time.perf_counter(), since
            record = {"images_per_second": part / (since - before), "threads": pace.count}
            print(json.dumps(record), file=file, flush=True)
"""
# Clients of a service, which note its pace every few answers.
ASKING = """
import asyncio, json, sys, time
from pathlib import Path
from benchmarks.serve_load import Load
url, picture, out, clients, part, dim, process = sys.argv[1:]
class Endless(Load):
    def _count(self, number, latency, now):
        self.answered.add(number)
        self.latencies.append(latency)
        if len(self.latencies) % int(part) == 0:
            self.opened, before = now, self.opened or now
            if self.opened > before:
                record = {"images_per_second": int(part) / (self.opened - before), "threads": 0}
                print(json.dumps(record), file=file, flush=True)
async def run():
    await asyncio.gather(*(load._client(number) for number in range(load.clients)))
with open(out, "w") as file:
    picture = Path(picture).read_bytes()
    load = Endless(url, picture, clients=int(clients), seconds=0, process=int(process), dim=int(dim))
    asyncio.run(run())
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
IMPORTED = "now, torch imported before"
SIDES = {"training": ("fixed", "now", IMPORTED), "embedding": ("fixed", "now"), "serving": ("fixed", "now")}
AIMS = {"none": 0.97, "one busy loop": 0.5, "two busy loops": 0.4, "another training": 0.45}
WORK = {
    "training": f"resnet18, {VIEWS} views of 64 px, batch {BATCH}, JPEG files",
    "embedding": f"resnet18, {PIXELS} px, batch {BATCH}, JPEG files",
    "serving": f"resnet18, {PIXELS} px, {CLIENTS} clients that send a JPEG file and wait for its vector",
}
FIXED = {
    "training": "2 loader workers, as training was before",
    "embedding": "2 workers that read, as `embed` was before",
    "serving": "as the service was before",
}
PAGE = """# {task} beside other work on the machine

{date}. {cpu}, {cores} usable cores, torch {torch}, {precision}. {work}.
{rounds} rounds, all cells in turns, {seconds:g} s each after {warm:g} s. Median, with the smallest and the
largest round in brackets. Other programs used {others:.2f} cores on average during the cells, at most {most:.2f}; with
more than about 0.2 the table is no proof.

"fixed": {cores} threads, PyTorch's own way of waiting, {fixed}. The other training is
plain PyTorch with {cores} threads.

Images/s:

| beside | {heads} |
|---|{lines}|
{rates}

Divided by "fixed" on the idle machine in the same round{most_threads}:

| beside | {heads} | aim |{threads_head}
|---|{lines}|---:|{threads_line}
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


class Run:
    """One side of the comparison. Lines of `notes` are written by the run itself (a service's by its clients)."""

    def __init__(self, task: str, side: str, work: Path) -> None:
        name = f"{task}-{side}".replace(", ", "-").replace(" ", "-")
        self.notes = work / f"run-{name}" / "metrics.jsonl"
        self.log = work / f"run-{name}.log"
        self.children: list[Child] = []
        getattr(self, f"_{task}")(side, work)

    def _training(self, side: str, work: Path) -> None:
        command = [sys.executable, "-c", PROGRAM] if side == IMPORTED else COMMAND
        flags = FLAGS.split()
        if side == "fixed":
            flags += ["--train.threads", str(usable_cores()), "--data.workers", "2"]
        self._start([*command, "pretrain", str(work / "archive"), "--out", str(self.notes.parent), *flags])

    def _embedding(self, side: str, work: Path) -> None:
        self.notes.parent.mkdir(exist_ok=True)
        threads = usable_cores() if side == "fixed" else 0
        encoder = work / "encoders" / "resnet18"
        arguments = [encoder, encoder / "manifest.parquet", self.notes, BATCH, EVERY, threads]
        self._start([sys.executable, "-c", EMBEDDING, *map(str, arguments)])

    def _serving(self, side: str, work: Path) -> None:
        self.notes.parent.mkdir(exist_ok=True)
        flags = ["--port", "0", "--auth", "off", "--data-dir", str(self.notes.parent / "data")]
        if side == "fixed":
            flags += ["--threads", str(usable_cores())]
        self._start([*COMMAND, "serve", str(work / "encoders"), *flags])
        url = self._found(r"http://127\.0\.0\.1:\d+") + "/v1/embeddings"
        picture = next((work / "archive").glob("*.jpg"))
        arguments = [url, picture, self.notes, CLIENTS, BATCH * EVERY, 512, self.children[0].process.pid]
        self._start([sys.executable, "-c", ASKING, *map(str, arguments)])

    def _start(self, command: list[str]) -> None:
        self.children.append(Child(command, log=self.log))

    def _found(self, pattern: str) -> str:
        """What matches in the log, as soon as it is there."""
        end = time.monotonic() + 300
        while (found := re.search(pattern, self.log.read_text())) is None:
            self._check(end)
        return found.group()

    def _check(self, end: float) -> None:
        if any(child.process.poll() is not None for child in self.children) or time.monotonic() > end:
            raise SystemExit(f"the run did not start:\n{self.log.read_text()}")
        time.sleep(0.2)

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        for child in self.children:
            child.send(number)

    def records(self) -> list[dict[str, float]]:
        """All records that are written whole."""
        text = self.notes.read_text() if self.notes.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait(self, *, records: int, seconds: float = 600) -> None:
        """Wait until so many records are there."""
        end = time.monotonic() + seconds
        while len(self.records()) < records:
            self._check(end)


def make_archive(folder: Path) -> None:
    """Write smooth JPEG pictures of 256 x 256 pixels."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg", quality=90)


def make_encoder(archive: Path, folder: Path) -> None:
    """Train an encoder for one epoch, which is enough to measure its speed."""
    if not (folder / "encoder").exists():
        command = [*COMMAND, "pretrain", str(archive), "--out", str(folder), "--overwrite", *SHORT.split()]
        subprocess.run(command, cwd=ROOT, check=True)


def measure(
    run: Run, neighbours: list[Child], everybody: list[Child], *, warm: float, seconds: float
) -> dict[str, float]:
    """One cell: images/s, threads of most records, and cores that strangers used."""
    machine = Machine()
    began = time.monotonic()
    taking: list[Child | Run] = [*neighbours, run]
    for child in taking:
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
        for child in taking:
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
    sides = SIDES[args.task]
    plan = [
        (number, beside, side)
        for number in range(args.rounds)
        for beside in NEIGHBOURS
        # who comes first changes from round to round
        for side in (*sides[number % len(sides) :], *sides[: number % len(sides)])
    ]
    todo = [cell for cell in plan if not cell_file(args, *cell).exists()]
    if not todo:
        return
    make_archive(args.work / "archive")
    if args.task != "training":
        make_encoder(args.work / "archive", args.work / "encoders" / "resnet18")
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
        for side in sides:
            runs[side] = Run(args.task, side, args.work)
            children += runs[side].children
            runs[side].wait(records=3)
            runs[side].send(signal.SIGSTOP)
        beside = dict(zip(NEIGHBOURS, ([], loops[:1], loops, [training]), strict=True))
        for number, name, side in todo:
            found = measure(runs[side], beside[name], children, warm=args.warm, seconds=args.seconds)
            draft = args.work / "cell.draft"
            draft.write_text(json.dumps(found) + "\n")
            draft.replace(cell_file(args, number, name, side))
            print(f"round {number + 1}, beside {name}, {side}: {found}", flush=True)
    finally:
        for child in children:
            child.end()


def cell_file(args: argparse.Namespace, number: int, beside: str, side: str) -> Path:
    """Where a cell's result lies."""
    name = f"{args.task}-{number}-{beside}-{side}.json".replace(", ", "-").replace(" ", "-")
    return Path(args.work) / name


def page(args: argparse.Namespace, arguments: list[str]) -> str:
    """The result page, from the cells' files."""
    import torch
    import yaml

    sides, told = SIDES[args.task], args.task != "serving"  # a service does not tell its threads
    cells = {
        (beside, side): [json.loads(cell_file(args, n, beside, side).read_text()) for n in range(args.rounds)]
        for beside in NEIGHBOURS
        for side in sides
    }
    rates, ratios = [], []
    for beside in NEIGHBOURS:
        row, relative = [], []
        for side in sides:
            values = [cell["images_per_second"] for cell in cells[beside, side]]
            quiet = [cell["images_per_second"] for cell in cells["none", "fixed"]]
            row.append(spread(values, "{:.1f}"))
            relative.append(spread([a / b for a, b in zip(values, quiet, strict=True)], "{:.2f}"))
        threads = statistics.mode(cell["threads"] for cell in cells[beside, "now"])
        rates.append(f"| {beside} | {' | '.join(row)} |")
        last = f" {threads} |" if told else ""
        ratios.append(f"| {beside} | {' | '.join(relative)} | {AIMS[beside]:.2f} |{last}")
    strangers = [cell["strangers"] for found in cells.values() for cell in found]
    saved = args.work / "run-training-now" / "config.yaml"
    precision = yaml.safe_load(saved.read_text())["train"]["precision"] if args.task == "training" else "float32"
    return PAGE.format(
        precision=precision,
        task=args.task.capitalize(),
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=usable_cores(),
        torch=torch.__version__,
        work=WORK[args.task],
        fixed=FIXED[args.task],
        rounds=args.rounds,
        seconds=args.seconds,
        warm=args.warm,
        others=statistics.mean(strangers),
        most=max(strangers),
        heads=" | ".join(sides),
        lines="|".join(["---:"] * len(sides)),
        rates="\n".join(rates),
        ratios="\n".join(ratios),
        most_threads='; "threads" is what most records of the cells say' if told else "",
        threads_head=" threads now |" if told else "",
        threads_line="---:|" if told else "",
        arguments=" ".join(arguments),
    )


def spread(values: list[float], form: str) -> str:
    """Median, with the smallest and the largest in brackets."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SIDES, help="what runs beside the others")
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
