"""What settings on a CPU are worth: memory that the C library keeps, channels-last, in training a fused AdamW.

    python -m benchmarks.cpu_settings --out benchmarks/results/cpu-settings.md

Each setting is a process of its own, all in turns, `--rounds` times; times are those of `--steps` steps of encoder,
projector, loss and optimiser on views that lie ready in memory, and of as many batches embedded with eight views in a
thread, as the service does. The row "default" has all settings, as training and `load_encoder` have.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import torch

from benchmarks.hardware import cpu_name, publish

SIDES = {
    "default": {},
    "freed memory returned": {"keep": False},
    "contiguous weights": {"channels_last": False},
    "AdamW not fused": {"fused": False},
}
EMBEDDING = {side: SIDES[side] for side in ("default", "freed memory returned", "contiguous weights")}
EMBEDDING["freed memory returned, contiguous weights"] = {"keep": False, "channels_last": False}
PAGE = """# Settings on a CPU

{date}. {cpu}, {threads} thread(s), torch {torch}, {backbone}, float32, images of {size} px. Median of
{rounds} rounds of {steps} steps or batches, all rows in turns, each in a process of its own. Load average at the end
{load:.1f} on {cores} cores.

Training, {batch} samples of 4 views a step:

| setting | CPU ms a step | wall ms a step | page faults a step | time over default |
|---|---:|---:|---:|---:|
{training}

Embedding, 64 images of 8 views a batch, 64 of them in a pass:

| setting | CPU ms a batch | wall ms a batch | page faults a batch | time over default |
|---|---:|---:|---:|---:|
{embedding}

Again with: `python -m benchmarks.cpu_settings {arguments}`
"""


def measure(
    args: argparse.Namespace, *, keep: bool = True, channels_last: bool = True, fused: bool = True
) -> dict[str, float]:
    """Milliseconds and faults a step."""
    import data_adapters
    from lejepa_med.cpu import keep_freed_memory
    from lejepa_med.methods.base import Projector
    from lejepa_med.methods.lejepa.method import LeJEPAMethod
    from lejepa_med.models.encoder import create_encoder
    from lejepa_med.objective import LeJEPA, SIGReg

    torch.set_num_threads(args.threads)
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    spec = data_adapters.create("images", n_global=4, n_local=0, global_size=args.size).spec
    encoder = create_encoder(args.backbone, spec)
    if channels_last:
        encoder.backbone.to(memory_format=torch.channels_last)
    method = LeJEPAMethod(encoder, Projector(encoder.dim), LeJEPA(0.02, SIGReg(slices=256))).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=fused)
    views = torch.randint(0, 256, (4, args.batch, 3, args.size, args.size), dtype=torch.uint8)

    def step(number: int) -> None:
        method(views, None, seed=0, step=number).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, args.steps)


def timed(work: Callable[[int], object], times: int) -> dict[str, float]:
    """Milliseconds and faults of one call of `work`; the first two calls pay for the memory itself and do not count."""
    cpu = wall = 0.0
    faults = 0
    for number in range(times + 2):
        if number == 2:
            cpu, wall = time.process_time(), time.perf_counter()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work(number)
    taken = (time.process_time() - cpu, time.perf_counter() - wall)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"cpu": 1000 * taken[0] / times, "wall": 1000 * taken[1] / times, "faults": faults / times}


@torch.inference_mode()
def measure_embedding(args: argparse.Namespace, *, keep: bool = True, channels_last: bool = True) -> dict[str, float]:
    """Milliseconds and faults a batch."""
    import data_adapters
    from lejepa_med.cpu import keep_freed_memory
    from lejepa_med.models.encoder import create_encoder
    from lejepa_med.models.formation import Formation

    torch.set_num_threads(args.threads)
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    spec = data_adapters.create("images", n_global=4, n_local=0, global_size=args.size).spec
    encoder = create_encoder(args.backbone, spec, formation=Formation(size=args.size, views=8)).eval()
    if channels_last:
        encoder.backbone.to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (64, 3, args.size, args.size), dtype=torch.uint8)

    def batch(_: int) -> None:
        with torch.inference_mode():
            encoder.form(pixels, batch_size=64)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(timed, batch, args.steps).result()


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="What settings on a CPU are worth.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        task, side = args.side.split(": ")
        print(
            json.dumps(
                measure(args, **SIDES[side]) if task == "training" else measure_embedding(args, **EMBEDDING[side])
            )
        )
        return
    sides = [*(f"training: {side}" for side in SIDES), *(f"embedding: {side}" for side in EMBEDDING)]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    given = [f"--{name}={getattr(args, name)}" for name in ("backbone", "size", "batch", "steps", "threads")]
    for _ in range(args.rounds):
        for side, values in found.items():
            command = [sys.executable, "-m", "benchmarks.cpu_settings", f"--side={side}", *given]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values.append(json.loads(done.stdout.splitlines()[-1]))
            print(side, values[-1], flush=True)
    page = PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        threads=args.threads,
        torch=torch.__version__,
        backbone=args.backbone,
        batch=args.batch,
        size=args.size,
        rounds=args.rounds,
        steps=args.steps,
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        training=rows(found, "training"),
        embedding=rows(found, "embedding"),
        arguments=" ".join(given),
    )
    publish(page, args.out)


def rows(found: dict[str, list[dict[str, float]]], task: str) -> str:
    """The rows of one table."""
    lines = []
    for title, values in found.items():
        of, _, side = title.partition(": ")
        if of == task:
            cpu, wall, faults = (statistics.median(v[key] for v in values) for key in ("cpu", "wall", "faults"))
            usual = found[f"{task}: default"]
            ratio = statistics.median(a["cpu"] / b["cpu"] for a, b in zip(values, usual, strict=True))
            lines.append(f"| {side} | {cpu:.0f} | {wall:.0f} | {faults:,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
