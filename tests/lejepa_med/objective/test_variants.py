"""Targets, pooling, weights and the other regularisers, each against its formula in NumPy; the default is untouched."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from lejepa_med.objective import LeJEPA, SIGReg, SpectralEntropy, VISReg, directions, variance_hinge


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_global", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_is_bit_identical_to_algorithm_2_as_first_released(n_global: int, dtype: torch.dtype) -> None:
    """The loss and its gradient, operation by operation as before there were any options."""
    values = (embeddings(5, 16, 6) * 1.3 + 0.2).to(dtype)
    grads = []
    for default in (True, False):
        z = values.clone().requires_grad_()
        if default:
            loss = LeJEPA(0.07, SIGReg(slices=8))(z[:n_global], z[n_global:] if n_global < 5 else None, seed=1, step=3)[
                0
            ]
        else:
            squares = (z[:n_global].mean(0) - z).square().sum()
            total = torch.stack([squares, squares.new_full((), z.numel())])
            loss = (1 - 0.07) * (total[0] / total[1]) + 0.07 * SIGReg(slices=8)(z, seed=1, step=3)
        grads.append((loss.detach(), *torch.autograd.grad(loss, z)))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("target", ["global_mean", "all_mean", "pairwise"])
def test_targets(target: str) -> None:
    z = embeddings(5, 7, 3)
    array = z.numpy()
    expected = {
        "global_mean": np.mean((array[:2].mean(0) - array) ** 2),
        "all_mean": np.mean((array.mean(0) - array) ** 2),
        "pairwise": np.mean([(array[g] - array[v]) ** 2 for g in range(2) for v in range(5)]),
    }[target]
    result = LeJEPA(0.1, SIGReg(slices=4), target=target)(z[:2], z[2:], seed=0, step=0)
    assert result.invariance.item() == pytest.approx(expected, rel=1e-12)
    z.requires_grad_()
    objective = LeJEPA(0.1, SIGReg(slices=2, knots=3), target=target)
    assert torch.autograd.gradcheck(lambda a: objective(a[:2, :4], a[2:, :4], seed=0, step=0).loss, (z,))


def test_pooling_regularises_one_sample_of_all_views() -> None:
    z = embeddings(4, 9, 3)
    result = LeJEPA(0.1, SIGReg(slices=8), pool="pooled")(z, seed=2, step=5)
    expected = SIGReg(slices=8)(z.reshape(1, 36, 3), seed=2, step=5)
    assert result.regularizer.item() == pytest.approx(expected.item(), rel=1e-12)
    same = z[:1].expand(4, -1, -1)  # equal views: the statistic is V times that of one view
    one = LeJEPA(0.1, SIGReg(slices=8))(same, seed=2, step=5).regularizer
    four = LeJEPA(0.1, SIGReg(slices=8), pool="pooled")(same, seed=2, step=5).regularizer
    assert four.item() == pytest.approx(4 * one.item(), rel=1e-12)


def test_additive_weights_leave_the_invariance_whole() -> None:
    z = embeddings(3, 8, 3)
    result = LeJEPA(2.5, SIGReg(slices=8), weighting="additive")(z, seed=0, step=0)
    assert result.loss.item() == pytest.approx((result.invariance + 2.5 * result.regularizer).item(), rel=1e-12)


@pytest.mark.parametrize("wrong", [{"target": "mean"}, {"pool": "all"}, {"weighting": "sum"}])
def test_unknown_choices_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        LeJEPA(0.1, SIGReg(slices=2), **wrong)(embeddings(2, 4, 2), seed=0, step=0)


def test_visreg_equals_its_equations() -> None:
    z = embeddings(2, 11, 4) * 0.7 + 0.3
    columns = directions(4, 6, seed=3, step=1, dtype=torch.float64).numpy()
    quantiles = norm.ppf(np.arange(1, 12) / 12)
    values = []
    for view in z.numpy():
        mean, std = view.mean(0), view.std(0)
        projected = np.sort((view - mean) / (std + 1e-4) @ columns, axis=0)
        shape = np.mean((projected - quantiles[:, None]) ** 2)
        values.append(np.mean(mean**2) + np.mean((1 - std) ** 2) + shape)
    assert VISReg(slices=6)(z, seed=3, step=1).item() == pytest.approx(np.mean(values), rel=1e-10)


def test_visreg_holds_the_scale_constant_inside_the_shape_term() -> None:
    """The slope along z, a change of scale: without the stop-gradient the shape term would have no share in it."""
    z = (embeddings(1, 50, 3) * 0.5).requires_grad_()
    (grad,) = torch.autograd.grad(VISReg(slices=16)(z, seed=0, step=0), z)
    view = z.detach().numpy()[0]
    mean, std = view.mean(0), view.std(0)
    columns = directions(3, 16, seed=0, step=0, dtype=torch.float64).numpy()
    projected = np.sort((view - mean) / (std + 1e-4) @ columns, axis=0)
    shape = np.mean(2 * projected * (projected - norm.ppf(np.arange(1, 51) / 51)[:, None]))
    expected = np.mean(2 * mean**2) + np.mean(2 * (std - 1) * std) + shape
    assert abs(shape) > 0.01
    assert (grad * z).sum().item() == pytest.approx(expected, rel=1e-6)


def test_spectral_entropy_equals_the_singular_values_formula() -> None:
    z = embeddings(2, 40, 5)
    values = []
    for view in z.numpy():
        rest = view - view.mean(0)
        singular = np.linalg.svd(rest, compute_uv=False)
        p = singular / singular.sum()
        values.append(np.log(5) + (p * np.log(p)).sum() + np.mean((1 - view.std(0)) ** 2))
    assert SpectralEntropy()(z, seed=0, step=0).item() == pytest.approx(np.mean(values), rel=1e-4)


def test_spectral_entropy_without_its_scale_term_would_not_see_a_shrinking_batch() -> None:
    z = embeddings(1, 64, 4)
    whole, shrunk = (SpectralEntropy()(z * scale, seed=0, step=0).item() for scale in (1.0, 0.1))
    assert shrunk - whole == pytest.approx(0.9**2 - (1 - z.std(1, correction=0)).square().mean().item(), abs=0.1)


def test_spectral_entropy_warns_once_where_the_batch_cannot_fill_the_dimensions() -> None:
    regularizer = SpectralEntropy()
    with pytest.warns(UserWarning, match=r"8 samples cannot fill 16 dimensions.*above 0\.83.*projector-dim"):
        value = regularizer(embeddings(1, 8, 16), seed=0, step=0)
    assert value > 0.83
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regularizer(embeddings(1, 8, 16), seed=0, step=1)
        SpectralEntropy()(embeddings(1, 17, 16), seed=0, step=0)


def test_variance_hinge_equals_its_equation() -> None:
    z = embeddings(3, 12, 4) * torch.tensor([0.2, 0.9, 1.5, 3.0], dtype=torch.float64)
    expected = np.mean(np.maximum(0, 1 - z.numpy().std(1, ddof=1)))
    assert variance_hinge(z).item() == pytest.approx(expected, rel=1e-12)
    assert variance_hinge(z.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("regularizer", [VISReg(slices=4), SpectralEntropy()])
def test_gradients_of_the_regularisers(regularizer: torch.nn.Module) -> None:
    z = embeddings(2, 7, 3).requires_grad_()
    if isinstance(regularizer, VISReg):  # its gradient is not that of its value: the scale inside is held constant
        (grad,) = torch.autograd.grad(regularizer(z, seed=0, step=0), z)
        assert grad.isfinite().all() and grad.abs().sum() > 0
    else:
        assert torch.autograd.gradcheck(lambda a: regularizer(a, seed=0, step=0), (z,))
    assert torch.autograd.gradcheck(variance_hinge, (z * 0.3,))


def spread_gradient(loss: object, scale: float) -> float:
    """Size of the gradient that separates samples (its mean over the batch taken out), at a spread of `scale`."""
    z = (embeddings(1, 64, 8) * scale).requires_grad_()
    (grad,) = torch.autograd.grad(loss(z), z)  # type: ignore[operator]
    return float((grad - grad.mean(1, keepdim=True)).norm())


def test_at_a_collapsed_batch_sigreg_goes_flat_and_hinge_and_visreg_do_not() -> None:
    """Why the hinge and VISReg are offered: SIGReg guards a batch from collapsing, but cannot lift a collapsed one."""

    def sigreg(z: Tensor) -> Tensor:
        return SIGReg(slices=64)(z, seed=0, step=0)

    def visreg(z: Tensor) -> Tensor:
        return VISReg(slices=64)(z, seed=0, step=0)

    assert spread_gradient(sigreg, 1e-4) < 1e-3 * spread_gradient(sigreg, 0.5)
    for pulls in (variance_hinge, visreg):
        assert spread_gradient(pulls, 1e-4) > 0.5 * spread_gradient(pulls, 0.5), pulls


@pytest.mark.parametrize("loss", [SIGReg(slices=4), VISReg(slices=4), SpectralEntropy()])
def test_samples_that_are_exactly_equal_give_finite_gradients(loss: torch.nn.Module) -> None:
    """No statistic of the batch can tell equal samples apart; none may answer with NaN either."""
    z = torch.full((2, 16, 3), 0.7, requires_grad=True)
    total = loss(z, seed=0, step=0) + variance_hinge(z)
    total.backward()
    assert total.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()
