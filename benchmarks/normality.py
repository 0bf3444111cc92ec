"""Power, gradients and CPU time of the statistical tests that the objective can use.

    python -m benchmarks.normality --out benchmarks/results/normality.md

`harness/power.py` defines the power. Time is CPU time of one thread, the tests in turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.hardware import cpu_name, publish
from harness.power import ALTERNATIVES, Draw, N, rejection_rates
from lejepa_med.objective.normality import floor_for, known_tests, make_test

DIMS = (1, 2, 4, 8, 16, 32, 64)
IN_MANY_DIMENSIONS: dict[str, Draw] = {
    "N(m, I), length of m .5": lambda rng, shape: rng.normal(0.5 / shape[-1] ** 0.5, 1, shape),
    "N(0, 1.2^2 I)": lambda rng, shape: rng.normal(0, 1.2, shape),
    "two radii": lambda rng, shape: rng.normal(0, 1, shape) * rng.choice([0.8, 1.36**0.5], (*shape[:-1], 1)),
}
"""Alternatives (samples, n, dim) to N(0, I); the last has covariance I."""

VIEWS, DIM, SLICES = 4, 64, 256
PAGE = """# The statistical tests: power, gradients, time

{date}. {cpu}, 1 thread, torch {torch}.

## Power at N = {n}, in percent

Share rejected at the 5 % level, in one dimension and float64: {reps} samples of each alternative, critical values from
{null_reps} samples of N(0, 1). `floor` is the expected value under N(0, 1). All but the first two alternatives have
mean 0 and variance 1.

{power}

## By dimension, N = {n}

Power in percent, in float32 as in training: {dim_reps} samples of each alternative, critical values from {dim_null}
samples of N(0, I); epps_pulley with {dim_slices} directions. `gradient` is the gradient norm of one batch half as
wide as N(0, I), for power alone does not move an encoder.

{by_dim}

## Gradient norms, one view of {n} x {dim}, {slices} directions

At N(0, I) (sampling noise), at collapse to 0 and to a point at distance 1, near that point (standard deviation .01),
and for embeddings 10 and 1000 times too wide. `apart` is what is left of the gradient after its mean over samples is
taken away: only that changes distances between samples, so only that can end a collapse.

{gradients}

## CPU time of forward and backward, {views} x {n} x {dim}, {slices} directions

Median of {repeats} passes, in turns; the multivariate tests use no directions. Load average at the end: {load:.1f} on
{cores} cores, which inflates CPU time, too; the ratios say more than the milliseconds.

{times}

Again with: `python -m benchmarks.normality --out benchmarks/results/normality.md`
"""


def gradients(test: nn.Module, z: Tensor) -> tuple[float, float]:
    """Return the norm of the gradient, and of what is left of it after its mean over samples; z: (views, n, dim)."""
    z = z.clone().requires_grad_()
    grad = torch.autograd.grad(test(z, seed=0, step=0), z)[0].double()
    return float(grad.norm()), float((grad - grad.mean(1, keepdim=True)).norm())


def gradient_cases() -> dict[str, Tensor]:
    """Return batches (1, N, DIM) near to and far from N(0, I)."""
    z = torch.randn(1, N, DIM, generator=torch.Generator().manual_seed(0))
    at_one = torch.full_like(z, 1 / DIM**0.5)
    return {
        "N(0, I)": z,
        "at 0": torch.zeros_like(z),
        "at 1": at_one,
        "near 1": at_one + 0.01 * z,
        "x 10": 10 * z,
        "x 1000": 1000 * z,
    }


def milliseconds(tests: Mapping[str, nn.Module], repeats: int) -> dict[str, list[float]]:
    """Return the CPU times of forward and backward passes of each test, taken in turns, after one to warm up."""
    z = torch.randn(VIEWS, N, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    taken: dict[str, list[float]] = {name: [] for name in tests}
    for step in range(repeats + 1):
        for name, test in tests.items():
            start = time.process_time()
            torch.autograd.grad(test(z, seed=0, step=step), z)
            taken[name].append(1000 * (time.process_time() - start))
    return {name: times[1:] for name, times in taken.items()}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    numeric = [cell[:1].isdigit() or cell[:1] == "-" for cell in rows[0]]
    lines = [head, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def power_table(null_reps: int, reps: int) -> str:
    """Measure the power in one dimension."""
    rows = []
    for name in known_tests():
        test = make_test(name, slices=1)
        rates = rejection_rates(test, ALTERNATIVES, null_reps=null_reps, reps=reps)
        rows.append([name, f"{floor_for(test, n=N, dim=1):.3g}", *(f"{100 * rate:.0f}" for rate in rates.values())])
    return table(["test", "floor", *ALTERNATIVES], rows)


def dimension_table(null_reps: int, reps: int, slices: int) -> str:
    """Measure the power of the multivariate tests and of SIGReg by dimension."""
    rows = []
    for name in ("bhep", "henze_zirkler", "epps_pulley"):
        test = make_test(name, slices=slices)
        settings = {"null_reps": null_reps, "reps": reps, "dtype": torch.float32}
        by_dim = [rejection_rates(test, IN_MANY_DIMENSIONS, dim=d, **settings) for d in DIMS]
        for alternative in IN_MANY_DIMENSIONS:
            rows.append([name, alternative, *(f"{100 * rates[alternative]:.0f}" for rates in by_dim)])
        halves = [0.5 * torch.randn(1, N, d, generator=torch.Generator().manual_seed(d)) for d in DIMS]
        rows.append([name, "gradient", *(f"{gradients(test, z)[0]:.1g}" for z in halves)])
    return table(["test", "alternative", *(f"K = {d}" for d in DIMS)], rows)


def gradient_table() -> str:
    """Measure the gradient norms."""
    cases = gradient_cases()
    rows = []
    for name in known_tests():
        test = make_test(name, slices=SLICES)
        norms = {case: gradients(test, z) for case, z in cases.items()}
        cells = [norms[case][0] for case in cases]
        cells[3:3] = [norms["at 1"][1]]
        cells[5:5] = [norms["near 1"][1]]
        rows.append([name, *(f"{norm:.2g}" for norm in cells)])
    return table(["test", "N(0, I)", "at 0", "at 1", "apart", "near 1", "apart", "x 10", "x 1000"], rows)


def time_table(repeats: int) -> str:
    """Measure the CPU time."""
    taken = milliseconds({name: make_test(name, slices=SLICES) for name in known_tests()}, repeats)
    default = statistics.median(taken["epps_pulley"])
    rows = []
    for name, times in taken.items():
        low, mid, high = statistics.quantiles(times, n=4)
        rows.append([name, f"{mid:.1f}", f"{low:.1f} to {high:.1f}", f"{mid / default:.2g}"])
    return table(["test", "ms", "quartiles", "to epps_pulley"], rows)


def main() -> None:
    """Read the arguments, measure, print and save."""
    parser = argparse.ArgumentParser(description="Power, gradients and CPU time of the statistical tests.")
    parser.add_argument("--reps", type=int, default=1000, help="samples of each alternative in one dimension")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes, at least 2")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    null_reps, dim_null, dim_reps, dim_slices = 4 * args.reps, 1000, 200, 64
    page = PAGE.format(
        date=date.today().isoformat(),
        cpu=cpu_name(),
        torch=torch.__version__,
        n=N,
        dim=DIM,
        views=VIEWS,
        slices=SLICES,
        reps=args.reps,
        null_reps=null_reps,
        dim_reps=dim_reps,
        dim_null=dim_null,
        dim_slices=dim_slices,
        repeats=args.repeats,
        cores=os.cpu_count(),
        power=power_table(null_reps, args.reps),
        by_dim=dimension_table(dim_null, dim_reps, dim_slices),
        gradients=gradient_table(),
        times=time_table(args.repeats),
        load=os.getloadavg()[0],
    )
    publish(page, args.out)


if __name__ == "__main__":
    main()
