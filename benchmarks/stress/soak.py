"""A live service under mixed load for an hour: does anything grow, slow down, or fail?

    python -m benchmarks.stress.soak [--minutes 60] [--threads 1] [--samples FILE.csv] [--out FILE.md]

Ten clients on this machine's loopback embed, train, predict, search, list, upload and remove, cancel jobs, stall, and
try a wrong key. All stops by itself.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import httpx
import numpy as np

from app.api.keys import create
from benchmarks.hardware import cpu_name, publish
from benchmarks.stress.soak_clients import ROLES, Caller, Note, play
from benchmarks.stress.soak_material import Material
from benchmarks.stress.soak_watch import MIB, Watch, sizes, slope
from harness.encoders import make_runs
from harness.launcher import Launcher

ROWS = 128  # of the table that the clients search
WARM_UP = 0.25  # of the time: heaps find their size, and every kind of request has been there many times
QUIET = 15.0  # seconds between the end of the load and the last look
PAGE = """# The service under mixed load

{date}. {cpu}, {cores} cores, load average {before:.1f} before and {load:.1f} at the end: above {cores} before, the
machine had other work, and latencies say little. {length} with {clients} clients at once over loopback, one service
with {threads} thread(s) and SQLite, {answers} answers. {asked}

{verdict}

## What it holds

The first sample after warm-up (a quarter of the time), the last one, and the growth an hour of a straight line between,
with its 95 % interval (samples every {every:g} s, which count for fewer where neighbours are alike). An interval that
holds zero is no trend. Second half: the same line through the last half of the time alone; what only fills up grows
less there. After: {quiet:.0f} s after the load has ended.

| what | after warm-up | at the end | highest | growth an hour | verdict | second half | after |
|---|---:|---:|---:|---:|---|---:|---:|
{held}

{growth}

## Latency

Milliseconds, in the first and in the last tenth of the time. Ratio: of the medians, last over first.

| operation | answers | first: p50 | p95 | p99 | last: p50 | p95 | p99 | ratio |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
{latency}

## Answers other than success

| operation | outcome | how often | expected |
|---|---|---:|---|
{errors}

Again with: `python -m benchmarks.stress.soak --minutes {minutes:g} --threads {threads}`
"""


def percentiles(seconds: Sequence[float]) -> str:
    """p50, p95 and p99 in milliseconds as cells of a table."""
    if not seconds:
        return " | | "
    return " | ".join(f"{1000 * value:.0f}" for value in np.percentile(seconds, (50, 95, 99)))


def latency_rows(notes: Sequence[Note], length: float) -> list[str]:
    """A row an operation, in alphabetical order."""
    rows = []
    for name in sorted({note.operation for note in notes}):
        mine = [note for note in notes if note.operation == name and note.is_expected]
        first = [note.seconds for note in mine if note.at < length / 10]
        last = [note.seconds for note in mine if note.at >= length * 0.9]
        ratio = f"{np.median(last) / np.median(first):.2f}" if first and last else ""
        rows.append(f"| {name} | {len(mine)} | {percentiles(first)} | {percentiles(last)} | {ratio} |")
    return rows


def error_rows(notes: Sequence[Note]) -> list[str]:
    """A row for each outcome that is no success, the unexpected ones first."""
    found = Counter((n.is_expected, n.operation, n.outcome) for n in notes if not re.match("2..$|succ", n.outcome))
    return [
        f"| {operation} | {outcome} | {count} | {'yes' if is_expected else '**no**'} |"
        for (is_expected, operation, outcome), count in sorted(found.items())
    ]


def held_rows(watch: Watch, after: dict[str, float], length: float) -> tuple[list[str], list[str]]:
    """Rows of what the service holds, and the names of what grows."""
    rows, growing = [], []
    chosen = [number for number, at in enumerate(watch.at) if length * WARM_UP <= at <= length]
    at = [watch.at[number] for number in chosen]
    for name in after:
        values = [watch.samples[number][name] for number in chosen]
        found = slope(at, values)
        if found.verdict == "grows":
            growing.append(name)
        half = [place for place, when in enumerate(at) if when >= length / 2]
        late = slope([at[place] for place in half], [values[place] for place in half])
        cells = (f"{values[0]:.1f}", f"{values[-1]:.1f}", f"{max(values):.1f}", str(found), found.verdict, str(late))
        rows.append(f"| {name} | {' | '.join(cells)} | {after[name]:.1f} |")
    return rows, growing


def soak(launcher: Launcher, place: Path, args: argparse.Namespace) -> str:
    """Run the load; the page."""
    load_before = os.getloadavg()[0]
    runs, data, logs = make_runs(place, ["images", "mri"], rows=ROWS), place / "data", place / "logs"
    logs.mkdir()
    key, _ = create(name="soak", scopes=("admin",), data_dir=data)
    # As an operator has it, but for clients without a limit of requests and a stall that is noticed sooner.
    launcher.use(runs, data, logs, threads=args.threads, requests_per_minute=0, upload_idle_seconds=5)
    service = launcher.service()
    made = Material(key)
    with httpx.Client(base_url=service.address, timeout=120, headers={"Authorization": f"Bearer {key}"}) as client:
        while not client.get("/readyz").is_success:
            time.sleep(0.2)
        made.ids = [item["id"] for item in client.get("/v1/archives/table/ids").json()["items"]]
        sent = client.post("/v1/embeddings", files=made.files(range(len(made.pictures))), data={"encoder": "images"})
        made.vectors = [item["vector"] for item in sent.raise_for_status().json()["items"]]
    notes: list[Note] = []
    end, length = threading.Event(), args.minutes * 60
    before = sizes(data)
    with Watch(service.pid, service.address, key, data, every=args.every) as watch:
        callers = [Caller(service.address, key, notes, end, seed=args.seed + n) for n in range(len(ROLES))]
        clients = [
            threading.Thread(target=play, args=(role, pause, caller, made), daemon=True)
            for (role, pause), caller in zip(ROLES, callers, strict=True)
        ]
        for client_thread in clients:
            client_thread.start()
        end.wait(length)
        end.set()
        for client_thread in clients:
            client_thread.join(90)
    if args.samples:
        watch.write(args.samples)
    load, jobs = os.getloadavg()[0], sum(note.operation.startswith("send a probe") for note in notes)
    time.sleep(QUIET)
    after = watch.look()
    held, growing = held_rows(watch, after, length)
    grown = {name: (size - before.get(name, 0)) / MIB for name, size in sizes(data).items()}
    left = sum(1 for name in ("tmp", "jobs") for _ in (data / name).glob("*")) if after["jobs"] == 0 else -1
    status = service.end(signal.SIGTERM)
    faults = [line for line in service.log.open() if re.search(r'"level": ?"error"|Traceback', line)]
    print("".join(faults), file=sys.stderr)  # of the log, to find their cause
    unexpected = sum(not note.is_expected for note in notes)
    asked = f"An hour was not run: a growth an hour is {60 / args.minutes:.1f} times what such a time would show."
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        cores=os.cpu_count(),
        load=load,
        length=f"{args.minutes:g} minutes",
        clients=len(ROLES),
        threads=args.threads,
        answers=len(notes),
        before=load_before,
        asked=asked if args.minutes < 60 else "",
        verdict="\n".join(
            (
                f"- Unexpected answers: {unexpected}. Samples without an answer: {watch.missed}.",
                f"- Errors in the log: {len(faults)}. Exit status after SIGTERM: {status}.",
                f"- Folders of requests and jobs left over: {left if left >= 0 else 'not counted, jobs still ran'}.",
                f"- What grows: {', '.join(growing) or 'nothing'}.",
            )
        ),
        every=args.every,
        quiet=QUIET,
        held="\n".join(held),
        growth=f"Growth of the data directory, MiB, with {jobs} probes sent: "
        + ", ".join(f"{name} {size:+.2f}" for name, size in sorted(grown.items()) if abs(size) >= 0.005)
        + ".",
        latency="\n".join(latency_rows(notes, length)),
        errors="\n".join(error_rows(notes)),
        minutes=args.minutes,
    )


def main() -> None:
    """Load, print the page, and write it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of the service: torch's, and processes of readers")
    parser.add_argument("--every", type=float, default=3, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="CSV of all samples, to look closer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Launcher() as launcher:
        publish(soak(launcher, Path(folder), args), args.out)


if __name__ == "__main__":
    main()
