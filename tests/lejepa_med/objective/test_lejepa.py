"""The LeJEPA loss against Equations 5-7 written out in NumPy, and its refusals."""

import numpy as np
import pytest
import torch

from lejepa_med.objective import LeJEPA, SIGReg, directions
from tests.lejepa_med.objective.test_sigreg import reference


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_local", [0, 3])
def test_float64_loss_equals_the_written_out_equations(n_local: int) -> None:
    lamb, n, dim = 0.07, 20, 5
    global_z = embeddings(2, n, dim)
    local_z = embeddings(n_local, n, dim, seed=1) if n_local else None
    z = np.concatenate([global_z.numpy()] + ([] if local_z is None else [local_z.numpy()]))

    centre = z[:2].mean(0)
    invariance = np.mean([np.mean((centre - view) ** 2) for view in z])
    columns = directions(dim, 32, seed=4, step=6, dtype=torch.float64).numpy()
    regulariser = np.mean([reference(view[None], columns, t_max=3.0, knots=17) for view in z])

    result = LeJEPA(lamb, SIGReg(slices=32))(global_z, local_z, seed=4, step=6)
    assert result.invariance.item() == pytest.approx(invariance, rel=1e-12)
    assert result.regularizer.item() == pytest.approx(regulariser, rel=1e-12)
    assert result.loss.item() == pytest.approx((1 - lamb) * invariance + lamb * regulariser, rel=1e-12)


def test_gradient_flows_through_the_centre_and_all_views() -> None:
    objective = LeJEPA(0.1, SIGReg(slices=4, knots=5))
    global_z = embeddings(2, 4, 3).requires_grad_()
    local_z = embeddings(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda g, v: objective(g, v, seed=0, step=0).loss, (global_z, local_z))


def test_only_the_loss_carries_a_gradient() -> None:
    result = LeJEPA(0.1)(embeddings(2, 4, 3).requires_grad_(), seed=0, step=0)
    assert result.loss.requires_grad
    assert not result.invariance.requires_grad
    assert not result.regularizer.requires_grad


def test_equal_views_have_no_invariance_error() -> None:
    one = embeddings(1, 16, 4)
    result = LeJEPA(0.05)(one.expand(2, -1, -1), one.expand(3, -1, -1), seed=0, step=0)
    assert result.invariance.item() == pytest.approx(0, abs=1e-28)
    assert result.regularizer.item() > 0


def test_bfloat16_embeddings_give_a_float32_loss() -> None:
    z = embeddings(4, 32, 8)
    objective = LeJEPA(0.05, SIGReg(slices=64))
    low = objective(z.bfloat16(), seed=0, step=0)
    assert low.loss.dtype == torch.float32
    assert low.loss.item() == pytest.approx(objective(z, seed=0, step=0).loss.item(), rel=0.01)


@pytest.mark.parametrize("lamb", [0.0, 1.0, -0.1, float("nan")])
def test_lambda_outside_the_open_interval_is_refused(lamb: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        LeJEPA(lamb)


@pytest.mark.parametrize(
    ("global_shape", "local_shape"),
    [
        ((4, 8), None),  # views flattened into rows
        ((1, 4, 8), None),  # nothing to compare
        ((2, 0, 8), None),
        ((2, 4, 8), (2, 5, 8)),  # other samples
        ((2, 4, 8), (2, 4, 7)),
        ((2, 4, 8), (4, 8)),
        ((0, 4, 8), (2, 4, 8)),  # no centre
    ],
)
def test_wrong_shapes_are_refused(global_shape: tuple[int, ...], local_shape: tuple[int, ...] | None) -> None:
    local_z = None if local_shape is None else torch.zeros(local_shape)
    with pytest.raises(ValueError, match="views, batch, dim"):
        LeJEPA(0.05)(torch.zeros(global_shape), local_z, seed=0, step=0)
