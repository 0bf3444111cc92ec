"""SIGReg against formulas written independently in NumPy and SciPy, and against its known constants."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from lejepa_med.objective import FLOOR, SIGReg, directions, floor
from lejepa_med.objective.sigreg import ecf_sums


def reference(z: np.ndarray, columns: np.ndarray, *, t_max: float, knots: int) -> float:
    """Algorithm 1 on the full symmetric interval, with complex exponentials and NumPy's trapezoid rule."""
    t = np.linspace(-t_max, t_max, 2 * knots - 1)
    phi = np.exp(-(t**2) / 2)
    values = []
    for view in z:
        for column in columns.T:
            ecf = np.exp(1j * np.outer(t, view @ column)).mean(1)
            values.append(len(view) * np.trapezoid(np.abs(ecf - phi) ** 2 * phi, t))
    return float(np.mean(values))


@pytest.mark.parametrize(("t_max", "knots"), [(3.0, 17), (5.0, 9), (1.0, 2)])
def test_float64_value_equals_the_independent_formula(t_max: float, knots: int) -> None:
    z = torch.randn(3, 40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.7 + 0.4
    columns = directions(6, 12, seed=5, step=9, dtype=torch.float64)
    value = SIGReg(slices=12, knots=knots, t_max=t_max)(z, seed=5, step=9)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(reference(z.numpy(), columns.numpy(), t_max=t_max, knots=knots), rel=1e-12)


def test_17_knots_integrate_to_the_exact_integral() -> None:
    x = np.random.default_rng(1).normal(0.3, 1.4, 50)

    def integrand(t: float) -> float:
        error = np.exp(1j * t * x).mean() - math.exp(-(t**2) / 2)
        return float(abs(error) ** 2) * math.exp(-(t**2) / 2)

    exact = len(x) * quad(integrand, -3, 3)[0]
    # In one dimension every direction is +1 or -1, and the statistic is even in x.
    value = SIGReg(slices=4)(torch.from_numpy(x)[None, :, None], seed=0, step=0)
    assert value.item() == pytest.approx(exact, rel=1e-2)


def test_float32_agrees_with_float64_even_for_wide_embeddings() -> None:
    z = torch.randn(2, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    sigreg = SIGReg(slices=64)
    assert sigreg(z.float(), seed=0, step=0).item() == pytest.approx(sigreg(z, seed=0, step=0).item(), rel=1e-4)


def test_gradient_equals_autograd_of_the_plain_formula() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: ecf_sums(a, spacing=0.3, count=4), (x,))

    z = x.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: SIGReg(slices=7, knots=5)(a, seed=1, step=2), (z,))


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    weights = torch.randn(3, 5, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def run() -> tuple[Tensor, Tensor]:
        sums = ecf_sums(x, spacing=0.2, count=5)
        return sums, torch.autograd.grad((sums * weights).sum(), x)[0]

    whole = run()
    for limit in (1, 12, 4 * 10 * 2):  # single rows; three rows of one view, leaving a short block; two views of three
        monkeypatch.setattr("lejepa_med.objective.sigreg._CPU_BLOCK", limit)
        for expected, got in zip(whole, run(), strict=True):
            torch.testing.assert_close(got, expected)


def test_autograd_keeps_the_projections_not_the_knots() -> None:
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    z = torch.randn(2, 512, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SIGReg(slices=64)(z, seed=0, step=0)
    projections, sums = 2 * 512 * 64, 2 * 2 * 16 * 64
    assert sum(saved) < projections + 6 * sums + 2 * z.numel()


def test_standard_normal_gives_the_floor() -> None:
    sigreg = SIGReg(slices=256)
    for n in (16, 512):
        z = torch.randn(20, n, 64, generator=torch.Generator().manual_seed(n))
        assert sigreg(z, seed=0, step=0).item() == pytest.approx(1.059, abs=0.05)


def test_floor_is_the_integral_and_the_property_follows_the_settings() -> None:
    def integrand(t: float) -> float:
        return math.exp(-(t**2) / 2) - math.exp(-1.5 * t**2)

    assert pytest.approx(1.0594, abs=1e-4) == FLOOR
    assert pytest.approx(quad(integrand, -math.inf, math.inf)[0]) == FLOOR
    for t_max in (1.0, 3.0, 5.0):
        assert floor(t_max=t_max, knots=400) == pytest.approx(quad(integrand, -t_max, t_max)[0], rel=1e-4)
    assert SIGReg(t_max=1.0, knots=9).floor == floor(t_max=1.0, knots=9)


def test_collapse_is_seen_but_has_no_gradient() -> None:
    """A collapse at 0 is a stationary point: the statistic reports it, and something else must move the batch away."""
    z = torch.zeros(1, 256, 16, requires_grad=True)
    value = SIGReg(slices=64)(z, seed=0, step=0)
    value.backward()
    assert value.item() == pytest.approx(0.409 * 256, rel=0.03)
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_statistic_is_per_view_not_pooled() -> None:
    """Two views, each collapsed to one side: pooled they have variance 1, alone they have none."""
    half = torch.ones(1, 64, 1)
    apart = torch.cat([half, -half])
    sigreg = SIGReg(slices=8)
    per_view = sigreg(apart, seed=0, step=0)
    pooled = sigreg(apart.reshape(1, 128, 1), seed=0, step=0)
    alone = sigreg(half, seed=0, step=0)
    assert per_view.item() == pytest.approx(alone.item(), rel=1e-5)
    assert abs(per_view.item() - pooled.item()) > 1


def test_order_of_samples_and_views_does_not_matter() -> None:
    z = torch.randn(3, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shuffled = z[torch.tensor([2, 0, 1])][:, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    sigreg = SIGReg(slices=16)
    torch.testing.assert_close(sigreg(shuffled, seed=0, step=0), sigreg(z, seed=0, step=0))


def test_directions_are_unit_and_follow_seed_and_step_alone() -> None:
    torch.manual_seed(0)
    first = directions(24, 300, seed=3, step=11, dtype=torch.float64)
    torch.manual_seed(1)
    assert torch.equal(first, directions(24, 300, seed=3, step=11, dtype=torch.float64))
    assert torch.equal(first.float(), directions(24, 300, seed=3, step=11))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(300, dtype=torch.float64))
    assert first.mean(1).abs().max() < 5 * (1 / 24 / 300) ** 0.5
    for seed, step in ((3, 12), (4, 11), (11, 3)):
        assert not torch.equal(first, directions(24, 300, seed=seed, step=step, dtype=torch.float64))


def test_autocast_and_half_precision_inputs_compute_in_float32() -> None:
    z = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    sigreg = SIGReg(slices=32)
    plain = sigreg(z, seed=0, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sigreg(z, seed=0, step=0), plain)
    rounded = sigreg(z.bfloat16(), seed=0, step=0)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, sigreg(z.bfloat16().float(), seed=0, step=0))


def test_sigreg_adds_nothing_to_a_checkpoint() -> None:
    assert not SIGReg().state_dict()


@pytest.mark.parametrize("shape", [(8, 4), (2, 0, 4), (1, 2, 3, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="views, batch, dim"):
        SIGReg()(torch.zeros(shape), seed=0, step=0)


@pytest.mark.parametrize("settings", [{"slices": 0}, {"knots": 1}, {"t_max": 0.0}, {"t_max": math.inf}])
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="SIGReg"):
        SIGReg(**settings)  # type: ignore[arg-type]


def test_free_embeddings_converge_to_a_standard_normal() -> None:
    """The gate: with nothing else in the way, minimising SIGReg alone must give N(0, I) from a bad start."""
    generator = torch.Generator().manual_seed(0)
    dim, n, steps = 8, 256, 300
    z = 2 * torch.rand(1, n, dim, generator=generator) ** 2  # shifted, skewed, wrong scale
    z[..., 1] = z[..., 0] + 0.1 * z[..., 1]  # and correlated
    z.requires_grad_()
    sigreg = SIGReg(slices=64)
    assert sigreg(z, seed=1, step=0).item() > 20 * FLOOR
    optimiser = torch.optim.Adam([z], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        sigreg(z, seed=0, step=step).backward()
        optimiser.step()
        schedule.step()
    x = z.detach()[0]
    assert sigreg(x[None], seed=1, step=0).item() < 0.5 * FLOOR  # more regular than chance, on unseen directions
    assert x.mean(0).abs().max() < 0.05
    assert (torch.cov(x.T) - torch.eye(dim)).abs().max() < 0.15


INTERPRETED = """
import torch
from lejepa_med.objective import ecf_triton
from lejepa_med.objective.sigreg import ecf_sums
for shape in ((2, 300, 70), (1, 5, 3)):  # tiles that are cut in both directions, and one tile that is nearly empty
    x = (2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    sums = ecf_sums(x, spacing=0.1875, count=16)
    weights = torch.randn(sums.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(sums, x, weights)
    plain = x.detach().float()
    for got, expected in (
        (ecf_triton.forward(plain, 0.1875, 16), sums.detach()),
        (ecf_triton.backward(plain, weights.float(), 0.1875), grad),
    ):
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * scale)
print("equal")
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from lejepa_med.objective import ecf_triton
integers = {"rows": "i32", "columns": "i32", "spacing": "fp32", "count": "i32"}
integers |= {"ROWS": "constexpr", "COLUMNS": "constexpr"}
for kernel, names in ((ecf_triton._forward, ("x", "sums")), (ecf_triton._backward, ("x", "grad", "out"))):
    signature = {**{name: "*fp32" for name in names}, **integers}
    constants = {"ROWS": ecf_triton.ROWS, "COLUMNS": ecf_triton.COLUMNS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8}).asm["ptx"]
print("compiled")
"""


@pytest.mark.parametrize(("code", "word", "interpret"), [(INTERPRETED, "equal", "1"), (COMPILED, "compiled", "0")])
def test_gpu_kernels_without_a_gpu(code: str, word: str, interpret: str) -> None:
    """Triton's interpreter runs them on the CPU; its compiler makes PTX of them for a GPU that is not here."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0 and word in done.stdout, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_give_equal_results() -> None:
    z = torch.randn(4, 300, 64, generator=torch.Generator().manual_seed(0)) * 1.3
    results = []
    for device in ("cpu", "cuda"):
        there = z.to(device).requires_grad_()
        value = SIGReg(slices=100)(there, seed=0, step=3)
        (grad,) = torch.autograd.grad(value, there)
        results.append((value.detach().cpu(), grad.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0, atol=1e-5 * float(results[0][1].abs().max()))
