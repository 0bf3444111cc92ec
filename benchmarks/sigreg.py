"""Time and memory of SIGReg, forward and backward, against the plain formula, on this machine's CPU.

    python -m benchmarks.sigreg --out benchmarks/results/sigreg-cpu.md

Both sides run in one process, in turns, so that a busy moment of the machine hits both; the table gives medians and the
quartiles of the paired ratios. The plain formula asks the system for much memory, so its time depends on the allocator:
`kept` times again with glibc told to keep what was freed, which leaves the arithmetic. Memory is the growth of the peak
resident size in a fresh process for each side, after a warm-up on a tiny batch: all that the step allocates, and
nothing of the imports.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lejepa_med.objective import SIGReg, directions

T = TypeVar("T")
Shape = tuple[int, int, int]
Times = tuple[list[float], list[float]]

DIM = 64
SHAPES = ((2, 256, 256), (4, 256, 256), (8, 256, 1024), (8, 512, 1024))  # views, batch, slices
KEEP_MEMORY = {  # bytes; glibc then reuses freed blocks of any size
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
PAGE = """# SIGReg, forward and backward, on the CPU

{date}. {cpu}, {threads} thread(s), torch {torch}, float32, dim {dim}, 17 knots. Median of {repeats} passes, both sides
in turns in one process; speed-ups are medians of the paired ratios, with quartiles. Load average at the end: {load:.1f}
on {cores} cores; where that is more than the threads used, other work shared the machine, and the ratios say more than
the milliseconds.

`plain` is the formula with all angles at once; values and gradients of both sides agree. Its memory comes from the
system again at every pass, which can cost more than the arithmetic; `kept` is the same with the C library told to keep
freed memory. MiB is the growth of the peak resident size during one pass in a fresh process.

| views | batch | slices | plain ms | ours ms | speed-up | plain ms, kept | ours ms, kept | speed-up, kept | plain MiB \
| ours MiB | memory ratio |
|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

Again with: `python -m benchmarks.sigreg --out benchmarks/results/sigreg-cpu.md`
"""


def plain(z: Tensor, columns: Tensor, *, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """The formula as one writes it down: all angles (views, batch, slices, knots) at once."""
    t = torch.linspace(0, t_max, knots)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full((knots,), 2 * t_max / (knots - 1))
    weight[[0, -1]] /= 2
    angles = (z @ columns).unsqueeze(-1) * t
    error = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
    return (error @ (weight * phi)).mean() * z.shape[1]


def step_of(side: str, views: int, batch: int, slices: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return one forward and backward pass; both sides draw the directions inside it."""
    z = torch.randn(views, batch, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sigreg = SIGReg(slices=slices)

    def step() -> tuple[Tensor, Tensor]:
        if side == "ours":
            value = sigreg(z, seed=0, step=0)
        else:
            value = plain(z, directions(DIM, slices, seed=0, step=0))
        return value.detach(), torch.autograd.grad(value, z)[0]

    return step


def resident(field: str) -> float:
    """Read VmRSS or VmHWM (the peak) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This benchmark reads /proc/self/status and needs Linux.")


def peak_memory(side: str, shape: Shape) -> float:
    """Return the peak growth of one pass, in MiB; to be called in a process of its own."""
    step_of(side, 1, 8, 8)()
    step = step_of(side, *shape)
    Path("/proc/self/clear_refs").write_text("5")  # set the peak back to the present size
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def times(shape: Shape, repeats: int, threads: int) -> Times:
    """Return the milliseconds of each pass, plain and ours, taken in turns; check first that both agree."""
    torch.set_num_threads(threads)
    sides = {side: step_of(side, *shape) for side in ("plain", "ours")}
    (value, grad), (our_value, our_grad) = sides["plain"](), sides["ours"]()  # warm-up, too
    torch.testing.assert_close(our_value, value, rtol=1e-4, atol=0)
    torch.testing.assert_close(our_grad, grad, rtol=1e-3, atol=1e-4 * grad.abs().max().item())
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, step in sides.items():
            start = time.perf_counter()
            step()
            taken[side].append(1000 * (time.perf_counter() - start))
    return taken["plain"], taken["ours"]


def fresh(function: Callable[..., T], *args: object, environment: dict[str, str] | None = None) -> T:
    """Call a function in a new process, whose allocator reads `environment` at its start."""
    os.environ.update(environment or {})
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *args).result()
    finally:
        for name in environment or {}:
            del os.environ[name]


def speed_up(taken: Times) -> str:
    """Return the median of the paired ratios, and their quartiles."""
    low, mid, high = statistics.quantiles([a / b for a, b in zip(*taken, strict=True)], n=4)
    return f"{mid:.1f} ({low:.1f} to {high:.1f})"


def cpu_name() -> str:
    """Return the processor's model name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(repeats: int, threads: int) -> str:
    """Measure all shapes and return the Markdown page."""
    rows = []
    for shape in SHAPES:
        taken = fresh(times, shape, repeats, threads)
        kept = fresh(times, shape, repeats, threads, environment=KEEP_MEMORY)
        plain_mib, our_mib = (fresh(peak_memory, side, shape) for side in ("plain", "ours"))
        cells = [
            *map(str, shape),
            *(f"{statistics.median(side):.1f}" for side in taken),
            speed_up(taken),
            *(f"{statistics.median(side):.1f}" for side in kept),
            speed_up(kept),
            f"{plain_mib:.0f}",
            f"{our_mib:.0f}",
            f"{plain_mib / our_mib:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    return PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        threads=threads,
        torch=torch.__version__,
        dim=DIM,
        repeats=repeats,
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        rows="\n".join(rows),
    )


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Time and memory of SIGReg against the plain formula.")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each side and shape, at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    page = report(args.repeats, args.threads)
    print(page)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page)


if __name__ == "__main__":
    main()
