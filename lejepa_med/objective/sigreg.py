"""SIGReg: sketched isotropic Gaussian regularisation, Algorithm 1 of LeJEPA (arXiv 2511.08544).

Embeddings are projected on random unit directions; along each one the Epps-Pulley statistic measures how far the
empirical characteristic function (ECF) lies from that of N(0, 1):

    N * integral over [-t_max, t_max] of |ecf(t) - phi(t)|^2 * phi(t) dt,    phi(t) = exp(-t^2 / 2)

The integrand is even, so the trapezoid rule runs over [0, t_max] with doubled weights; at t = 0 both functions are 1
and that knot is dropped. N is the global batch: the ECF sums of all ranks are added before the modulus is taken.
"""

import math
import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lejepa_med.distributed import all_reduce_sum

FLOOR = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
"""Expected statistic of a perfect N(0, I) batch of any size, for t_max -> infinity: 1.0594.

The variance of the ECF of N normal samples is (1 - phi^2) / N, so E = integral of (1 - phi^2) phi. A SIGReg of about 1
is therefore convergence, and less than 1 is a batch more regular than chance.
"""

# Elements of the projections worked on at a time. On a CPU the block's two complex buffers (2 MiB each in fp32)
# should stay in cache; on a GPU the block only bounds the memory (512 MiB each), because many small kernels cost time.
_CPU_BLOCK = 2**18
_GPU_BLOCK = 2**26


def directions(
    dim: int,
    slices: int,
    *,
    seed: int,
    step: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw random unit directions, uniform on the sphere.

    The generator is NumPy's PCG64, seeded by the hash of `SeedSequence(seed, spawn_key=(step,))`, and the draw is done
    in float64 on the CPU. So the result depends on (seed, step) only: equal on all ranks and devices without a
    broadcast, and in float32 the rounding of the float64 draw. A new step gives new directions, which the paper's
    Figure 7 finds far better than many fixed ones.

    Args:
        dim: length K of a direction.
        slices: number M of directions.
        seed: the run's seed, >= 0.
        step: the optimiser step, >= 0.
        device: where the result lies.
        dtype: floating-point type of the result.

    Returns:
        (K, M), every column of unit length.

    Raises:
        ValueError: a negative `seed` or `step`.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    drawn = rng.standard_normal((dim, slices))
    drawn /= np.linalg.norm(drawn, axis=0)
    columns = torch.from_numpy(drawn).to(dtype)
    if torch.device(device).type == "cuda":
        columns = columns.pin_memory()  # else the copy would wait for the device at every step
    return columns.to(device, non_blocking=True)


def floor(*, t_max: float = 3.0, knots: int = 17) -> float:
    """Expected statistic of a perfect N(0, I) batch under the quadrature in use; tends to `FLOOR`.

    Args:
        t_max: end of the integration interval.
        knots: number of knots on [0, t_max], both ends included.
    """
    t, weight = _quadrature(t_max, knots)
    return float((weight * -torch.expm1(-t.square())).sum())


class SIGReg(nn.Module):
    """Distance of a batch of embeddings from N(0, I), per view.

    It holds no parameters and no buffers, so it adds nothing to a checkpoint and follows no dtype conversion.

    Args:
        slices: number M of random directions (the paper's 1024; the standard deviation of the statistic falls with
            1/sqrt(M): about .055 at 256 and .032 at 1024).
        knots: number of knots on [0, t_max] (the paper's 17).
        t_max: end of the integration interval (the paper's code uses 3).

    Raises:
        ValueError: slices < 1, knots < 2, or t_max that is not positive and finite.
    """

    def __init__(self, slices: int = 1024, knots: int = 17, t_max: float = 3.0) -> None:
        super().__init__()
        if slices < 1:
            raise ValueError(f"SIGReg needs at least one slice, got slices={slices}.")
        if knots < 2:
            raise ValueError(f"SIGReg needs at least two knots (both ends of [0, t_max]), got knots={knots}.")
        if not 0 < t_max < math.inf:
            raise ValueError(f"SIGReg integrates over [-t_max, t_max]; t_max must be positive and finite, got {t_max}.")
        self.slices = slices
        self.knots = knots
        self.t_max = t_max

    @property
    def floor(self) -> float:
        """Expected value for perfect N(0, I); subtract it before comparing or plotting on a log scale."""
        return floor(t_max=self.t_max, knots=self.knots)

    def extra_repr(self) -> str:
        """Show the settings in print(model)."""
        return f"slices={self.slices}, knots={self.knots}, t_max={self.t_max}"

    def forward(self, z: Tensor, *, seed: int, step: int) -> Tensor:
        """Average the statistic over views and directions.

        Each view is tested by itself; pooling the views would multiply the statistic, and the gradient, by V.

        Args:
            z: (views, batch, dim), this rank's share of the batch; any floating-point type. float64 is computed in
                float64, all else in float32, whatever autocast says: lower precision would quantise the logged loss.
            seed: the run's seed, equal on all ranks.
            step: the optimiser step, equal on all ranks.

        Returns:
            A scalar, equal on all ranks, in float64 or float32.

        Raises:
            ValueError: z is not three-dimensional or is empty.
        """
        if z.ndim != 3 or z.numel() == 0:
            raise ValueError(f"SIGReg expects a non-empty z of shape (views, batch, dim), got {tuple(z.shape)}.")
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        with torch.autocast(z.device.type, enabled=False):
            columns = directions(z.shape[2], self.slices, seed=seed, step=step, device=z.device, dtype=dtype)
            sums = ecf_sums(z.to(dtype) @ columns, spacing=self.t_max / (self.knots - 1), count=self.knots - 1)
            # One collective for everything; the sample count rides along, so ranks may hold unequal shares.
            joined = all_reduce_sum(torch.cat([sums.flatten(), sums.new_full((1,), z.shape[1])]))
            n = joined[-1]
            ecf = joined[:-1].view_as(sums) / n
            t, weight = _quadrature(self.t_max, self.knots, device=z.device, dtype=dtype)
            error = (ecf[..., 0] - torch.exp(-t.square() / 2)[:, None]).square() + ecf[..., 1].square()
            return n * torch.einsum("vtm,t->vm", error, weight).mean()


def ecf_sums(x: Tensor, *, spacing: float, count: int) -> Tensor:
    """Sum exp(i t x) over the samples at the uniform knots t = spacing, 2 spacing, ..., count spacing.

    cos and sin are evaluated once; the other knots are powers of that one complex number, by repeated multiplication
    (error 2e-6 in float32 after 16 knots). Autograd keeps `x` alone and repeats this in the backward pass, in place of
    the `count` tensors of the size of `x`, several times over, that the plain formula keeps.

    Args:
        x: (views, batch, slices), the projections.
        spacing: distance of two knots.
        count: number of knots.

    Returns:
        (views, count, slices, 2): the sums of cos(t x) and of sin(t x). Differentiable once.
    """
    sums: Tensor = _EcfSums.apply(x, spacing, count)
    return sums


class _EcfSums(torch.autograd.Function):
    """`ecf_sums`; d cos(t x) = -t sin(t x) dx and d sin(t x) = t cos(t x) dx."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spacing: float, count: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.spacing = spacing
        if (kernels := _kernels(x)) is not None:
            summed: Tensor = kernels.forward(x, spacing, count)
            return summed
        sums = x.new_zeros(x.shape[0], count, x.shape[2], dtype=x.dtype.to_complex())
        for views, rows in _blocks(x):
            base = _unit(x[views, rows], spacing)
            power = base.clone()
            for knot in range(count):
                sums[views, knot] += power.sum(1)
                if knot + 1 < count:
                    power *= base
        return torch.view_as_real(sums)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if (kernels := _kernels(x)) is not None:
            return kernels.backward(x, grad, ctx.spacing), None, None
        count = grad.shape[1]
        t = ctx.spacing * torch.arange(1, count + 1, dtype=x.dtype, device=x.device)[:, None]
        # dx = sum of t (g_sin cos - g_cos sin) = real part of a polynomial in exp(i spacing x), by Horner's rule.
        coefficients = torch.complex(t * grad[..., 1], t * grad[..., 0])
        grad_x = torch.empty_like(x)
        for views, rows in _blocks(x):
            base = _unit(x[views, rows], ctx.spacing)
            total = base * coefficients[views, -1, None]
            for knot in range(count - 2, -1, -1):
                total = total.add_(coefficients[views, knot, None]).mul_(base)
            grad_x[views, rows] = total.real
        return grad_x, None, None


def _kernels(x: Tensor) -> Any:
    """The module of Triton kernels where they serve: float32 on a CUDA device on which they passed their check."""
    return _checked_kernels(x.device) if x.is_cuda and x.dtype == torch.float32 else None


@lru_cache
def _checked_kernels(device: torch.device) -> Any:
    """Compile the kernels for `device` and compare them with the formula there; None, with a warning, if they fail."""
    try:
        kernels = import_module("lejepa_med.objective.ecf_triton")
        x = torch.randn(2, 300, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        plain = x.clone().requires_grad_()
        sums = ecf_sums(plain, spacing=0.1875, count=16)
        weights = torch.randn(sums.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (grad,) = torch.autograd.grad(sums, plain, weights)
        there = x.float().to(device)
        pairs = (
            (kernels.forward(there, 0.1875, 16), sums.detach()),
            (kernels.backward(there, weights.float().to(device), 0.1875), grad),
        )
        for got, expected in pairs:
            torch.testing.assert_close(got.double().cpu(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    except Exception as error:  # a driver, a compiler or Triton itself: whatever it is, the formula still works
        warnings.warn(f"SIGReg runs without its GPU kernels ({type(error).__name__}: {error}).", stacklevel=2)
        return None
    return kernels


def _unit(x: Tensor, spacing: float) -> Tensor:
    """Return exp(i spacing x)."""
    angle = x * spacing
    return torch.complex(angle.cos(), angle.sin())


def _blocks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (views, batch, slices) into (view range, row range) blocks of about the block size at most."""
    views, rows, slices = x.shape
    limit = _CPU_BLOCK if x.device.type == "cpu" else _GPU_BLOCK
    row_step = min(rows, max(1, limit // slices))
    view_step = max(1, limit // (slices * rows))
    for view in range(0, views, view_step):
        for row in range(0, rows, row_step):
            yield slice(view, view + view_step), slice(row, row + row_step)


def _quadrature(
    t_max: float, knots: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return the knots t > 0 and their weights: trapezoid on [-t_max, t_max] folded on [0, t_max], times phi(t)."""
    spacing = t_max / (knots - 1)
    t = spacing * torch.arange(1, knots, dtype=dtype, device=device)
    weight = 2 * spacing * torch.exp(-t.square() / 2)
    weight[-1] /= 2
    return t, weight
