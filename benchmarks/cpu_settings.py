"""What three settings of training on a CPU are worth: memory that the C library keeps, channels-last, a fused AdamW.

    python -m benchmarks.cpu_settings --out benchmarks/results/cpu-settings.md

Each setting is a process of its own, all in turns, `--rounds` times; times are those of `--steps` steps of encoder,
projector, loss and optimiser on views that lie ready in memory. The row "default"
has all three, as training has.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
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
PAGE = """# Settings of training on a CPU

{date}. {cpu}, {threads} thread(s), torch {torch}, {backbone}, {batch} samples of 4 views of {size} px, float32. Median
of {rounds} rounds of {steps} steps, all rows in turns, each in a process of its own. Load average at the end
{load:.1f} on {cores} cores.

| setting | CPU ms a step | wall ms a step | page faults a step | time over default |
|---|---:|---:|---:|---:|
{rows}

Again with: `python -m benchmarks.cpu_settings {arguments}`
"""


def measure(
    args: argparse.Namespace, *, keep: bool = True, channels_last: bool = True, fused: bool = True
) -> dict[str, float]:
    """Milliseconds and faults a step."""
    import data_adapters
    from lejepa_med.methods.lejepa.method import LeJEPAMethod
    from lejepa_med.models.encoder import create_encoder
    from lejepa_med.models.projector import Projector
    from lejepa_med.objective import LeJEPA, SIGReg
    from lejepa_med.training.device import keep_freed_memory

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
    cpu = wall = faults = 0.0
    for step in range(args.steps + 2):
        if step == 2:  # the first steps pay for the memory itself
            cpu, wall = time.process_time(), time.perf_counter()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        method(views, None, seed=0, step=step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    taken = (time.process_time() - cpu, time.perf_counter() - wall)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"cpu": 1000 * taken[0] / args.steps, "wall": 1000 * taken[1] / args.steps, "faults": faults / args.steps}


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="What three settings of training on a CPU are worth.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args, **SIDES[args.side])))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    given = [f"--{name}={getattr(args, name)}" for name in ("backbone", "size", "batch", "steps", "threads")]
    for _ in range(args.rounds):
        for side, values in found.items():
            command = [sys.executable, "-m", "benchmarks.cpu_settings", f"--side={side}", *given]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values.append(json.loads(done.stdout.splitlines()[-1]))
            print(side, values[-1], flush=True)
    rows = []
    for side, values in found.items():
        cpu, wall, faults = (statistics.median(v[key] for v in values) for key in ("cpu", "wall", "faults"))
        ratio = statistics.median(a["cpu"] / b["cpu"] for a, b in zip(values, found["default"], strict=True))
        rows.append(f"| {side} | {cpu:.0f} | {wall:.0f} | {faults:,.0f} | {ratio:.2f} |")
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
        rows="\n".join(rows),
        arguments=" ".join(given),
    )
    publish(page, args.out)


if __name__ == "__main__":
    main()
