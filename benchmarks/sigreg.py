"""Time and memory of SIGReg, forward and backward, against the plain formula and two other libraries.

    python -m benchmarks.sigreg --out benchmarks/results/sigreg-cpu.md
    python -m benchmarks.sigreg --device cuda --out benchmarks/results/sigreg-gpu.md

`plain` is the formula of the public reference as one writes it down. `lightly` and `stable-pretraining` take part where
they are installed (pip install lightly stable-pretraining); all draw their directions inside the pass. All sides of a
shape run in turns in one process, so that a busy moment of the machine hits each; speed-ups are medians of the paired
ratios. On a CPU the plain formula asks the system for much memory at every pass, so its time depends on the allocator:
`kept` is the same with glibc told to keep what was freed, which leaves the arithmetic. Memory on a CPU is the growth of
the peak resident size in a fresh process for each side; on a GPU the peak that PyTorch allocated. A side that would
need more than half of the free memory is left out.

On a GPU the floor is the time to write and read the projections twice (projection, statistic, gradient, gradient of the
embeddings), at the speed at which this GPU copies a tensor of that size.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.hardware import cpu_name, publish
from lejepa_med.objective import SIGReg, directions

os.environ.setdefault("LIGHTLY_DID_VERSION_CHECK", "True")  # lightly asks the network otherwise

T = TypeVar("T")
Shape = tuple[int, int]
Times = dict[str, list[float]]

DIM, KNOTS = 64, 17
SHAPES = ((256, 256), (512, 1024), (2048, 1024), (8192, 1024), (512, 4096), (8192, 4096), (32768, 4096))
LARGE = 2**21  # elements; beyond, three passes, and the plain formula is not run a second time with memory kept
SIDES = ("plain", "lightly", "stable-pretraining", "ours")
COPIES = 6  # tensors of all angles that the plain formula holds at its peak, by measurement 5 to 6
KEEP_MEMORY = {  # bytes; glibc then reuses freed blocks of any size
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
PAGE = """# SIGReg, forward and backward, {where}

{date}. {machine}, {threads} thread(s), torch {torch}, float32, one view, dim {dim}, {knots} knots. Medians of {repeats}
passes (3 above two million elements), all sides in turns in one process; load average at the end {load:.1f} on {cores}
cores.
Values and gradients of `plain` and ours agree on every shape on which both ran. "-": not run, see the notes.

{head}
{rows}

{notes}

Again with: `python -m benchmarks.sigreg {arguments}`
"""

NOTES = f"""Nanoseconds per element (batch x slices) that stay the same are linear growth in each axis. The other sides
are left out where {COPIES} tensors of all angles need more than half of the free memory, or where they are not
installed."""


def plain(z: Tensor, columns: Tensor, *, t_max: float = 3.0) -> Tensor:
    """The formula as one writes it down: all angles (views, batch, slices, knots) at once."""
    t = torch.linspace(0, t_max, KNOTS, device=z.device)
    phi = torch.exp(-t.square() / 2)
    weight = torch.full((KNOTS,), 2 * t_max / (KNOTS - 1), device=z.device)
    weight[[0, -1]] /= 2
    angles = (z @ columns).unsqueeze(-1) * t
    error = (angles.cos().mean(1) - phi).square() + angles.sin().mean(1).square()
    return (error @ (weight * phi)).mean() * z.shape[1]


def step_of(side: str, batch: int, slices: int, device: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """One forward and backward pass of a side. Raises ImportError where it is not installed."""
    z = torch.randn(1, batch, DIM, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    if side == "lightly":
        from lightly.loss.lejepa_loss import SIGReg as Theirs

        module = Theirs(num_vectors=slices, knots=KNOTS).to(device)
        loss = lambda: module(z)  # noqa: E731
    elif side == "stable-pretraining":
        from stable_pretraining.methods.lejepa import SlicedEppsPulley

        sliced = SlicedEppsPulley(num_slices=slices, n_points=KNOTS).to(device)
        loss = lambda: sliced(z[0])  # noqa: E731
    elif side == "ours":
        sigreg = SIGReg(slices=slices, knots=KNOTS)
        loss = lambda: sigreg(z, seed=0, step=0)  # noqa: E731
    else:
        loss = lambda: plain(z, directions(DIM, slices, seed=0, step=0, device=device))  # noqa: E731

    def step() -> tuple[Tensor, Tensor]:
        value = loss()
        return value.detach(), torch.autograd.grad(value, z)[0]

    return step


def sides_for(shape: Shape, device: str) -> list[str]:
    """The sides that are installed and fit into memory."""
    chosen = []
    for side in SIDES:
        if side != "ours" and 4 * shape[0] * shape[1] * KNOTS * COPIES > free_memory(device) / 2:
            continue
        try:
            step_of(side, 4, 4, device)()
        except ImportError:
            continue
        chosen.append(side)
    return chosen


def free_memory(device: str) -> int:
    """Bytes."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024


def resident(field: str) -> float:
    """Read VmRSS or VmHWM (the peak) of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This benchmark reads /proc/self/status and needs Linux.")


def peak_memory(side: str, shape: Shape, device: str) -> float:
    """Peak growth of one pass, in MiB; to be called in a process of its own."""
    step_of(side, 8, 8, device)()
    step = step_of(side, *shape, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # set the peak back to the present size
    resting = resident("VmRSS")
    step()
    return resident("VmHWM") - resting


def milliseconds(step: Callable[[], object], device: str) -> float:
    """Wall time of one pass."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def times(shape: Shape, sides: list[str], repeats: int, threads: int, device: str) -> Times:
    """Milliseconds of each pass, all sides in turns; plain and ours are compared first."""
    torch.set_num_threads(threads)
    steps = {side: step_of(side, *shape, device) for side in sides}
    first = {side: step() for side, step in steps.items()}  # warm-up, too
    if "plain" in first:
        torch.testing.assert_close(first["ours"][0], first["plain"][0], rtol=1e-4, atol=0)
        scale = first["plain"][1].abs().max().item()
        torch.testing.assert_close(first["ours"][1], first["plain"][1], rtol=1e-3, atol=1e-4 * scale)
    del first
    taken: Times = {side: [] for side in sides}
    for _ in range(repeats if shape[0] * shape[1] <= LARGE else 3):
        for side, step in steps.items():
            taken[side].append(milliseconds(step, device))
    if device == "cuda":
        x = torch.empty(shape, device=device)
        y = torch.empty_like(x)
        copies = sorted(milliseconds(lambda: y.copy_(x), device) for _ in range(20))
        taken["floor"] = [2 * copies[10]]  # a copy reads and writes once
    return taken


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


def cell(values: list[float] | None) -> str:
    """The median, or a dash."""
    return "-" if not values else f"{statistics.median(values):.4g}"


def ratio(taken: Times, side: str) -> str:
    """Median and quartiles of the paired ratios of a side over ours."""
    if side not in taken:
        return "-"
    ratios = [a / b for a, b in zip(taken[side], taken["ours"], strict=True)]
    if len(ratios) < 4:
        return f"{statistics.median(ratios):.1f}"
    low, mid, high = statistics.quantiles(ratios, n=4)
    return f"{mid:.1f} ({low:.1f} to {high:.1f})"


def machine(device: str) -> str:
    """The processor's or GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def row_of(shape: Shape, repeats: int, threads: int, device: str) -> list[str]:
    """Measure one shape: the cells of its row."""
    sides = fresh(sides_for, shape, device)
    taken = fresh(times, shape, sides, repeats, threads, device)
    memory = {side: fresh(peak_memory, side, shape, device) for side in sides if side in ("plain", "ours")}
    others = [side for side in SIDES if side != "ours"]
    cells = [
        f"{shape[0]} x {shape[1]}",
        cell(taken["ours"]),
        f"{1e6 * statistics.median(taken['ours']) / (shape[0] * shape[1]):.1f}",
    ]
    for side in others:
        cells += [cell(taken.get(side)), ratio(taken, side)]
    if device == "cuda":
        cells.append(f"{statistics.median(taken['ours']) / taken['floor'][0]:.2f}")
    else:
        again = "plain" in sides and shape[0] * shape[1] <= LARGE
        kept = fresh(times, shape, sides, repeats, threads, device, environment=KEEP_MEMORY) if again else {}
        cells.append(ratio(kept, "plain") if kept else "-")
    plain_mib = memory.get("plain")
    cells += ["-" if plain_mib is None else f"{plain_mib:.0f}", f"{memory['ours']:.0f}"]
    return [*cells, "-" if plain_mib is None else f"{plain_mib / memory['ours']:.1f}"]


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Time and memory of SIGReg against the plain formula.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each side and shape, at least 4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    last = "ours / floor" if args.device == "cuda" else "plain / ours, kept"
    names = ["batch x slices", "ours ms", "ours ns per element"]
    for side in SIDES[:-1]:
        names += [f"{side} ms", f"{side} / ours"]
    names += [last, "plain MiB", "ours MiB", "memory ratio"]
    head = "| " + " | ".join(names) + " |\n|" + "---:|" * len(names)
    rows = []
    for shape in SHAPES:
        rows.append("| " + " | ".join(row_of(shape, args.repeats, args.threads, args.device)) + " |")
        print(rows[-1], flush=True)
    page = PAGE.format(
        where="on the GPU" if args.device == "cuda" else "on the CPU",
        date=date.today().isoformat(),
        machine=machine(args.device),
        threads=args.threads,
        torch=torch.__version__,
        dim=DIM,
        knots=KNOTS,
        repeats=args.repeats,
        load=os.getloadavg()[0],
        cores=os.cpu_count(),
        head=head,
        rows="\n".join(rows),
        notes=NOTES,
        arguments=f"--device {args.device} --threads {args.threads} --repeats {args.repeats}",
    )
    publish(page, args.out)


if __name__ == "__main__":
    main()
