"""The baselines' losses against their papers' formulas, written out sample by sample."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lejepa_med.research.contrast.method import BarlowTwins, SimCLR, VICReg, view_pairs
from lejepa_med.research.teachers.method import DINOLoss, byol_loss, teacher_pairs


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pairs_hold_a_global_view_and_two_views_give_the_papers_pair() -> None:
    assert view_pairs(2, 2) == [(0, 1)]
    assert view_pairs(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    assert view_pairs(4, 4) == list(itertools.combinations(range(4), 2))
    assert teacher_pairs(2, 2) == [(0, 1), (1, 0)]
    assert teacher_pairs(3, 1) == [(0, 1), (0, 2)]


def vicreg(a: np.ndarray, b: np.ndarray) -> float:
    """Algorithm 1 of arXiv 2105.04906, as pseudocode."""
    d = a.shape[1]
    loss = 25 * np.mean((a - b) ** 2)
    for z in (a, b):
        loss += 25 * np.mean(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)))
        covariance = np.cov(z.T)
        loss += (covariance[~np.eye(d, dtype=bool)] ** 2).sum() / d
    return float(loss)


def barlow(a: np.ndarray, b: np.ndarray) -> float:
    """Equations 1 and 2 of arXiv 2103.03230, entry by entry."""
    a, b = a - a.mean(0), b - b.mean(0)
    loss = 0.0
    for i, j in np.ndindex(a.shape[1], b.shape[1]):
        c = (a[:, i] * b[:, j]).sum() / np.sqrt((a[:, i] ** 2).sum() * (b[:, j] ** 2).sum())
        loss += (1 - c) ** 2 if i == j else 5e-3 * c**2
    return float(loss)


def simclr(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 1 of arXiv 2002.05709, averaged over all 2N positives (Algorithm 1)."""
    z = np.concatenate([a, b])
    s = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in z] for x in z]) / 0.1
    n = len(a)
    losses = [
        -np.log(np.exp(s[i, j]) / sum(np.exp(s[i, k]) for k in range(2 * n) if k != i))
        for i, j in [(k, k + n) for k in range(n)] + [(k + n, k) for k in range(n)]
    ]
    return float(np.mean(losses))


@pytest.mark.parametrize(("loss", "naive"), [(VICReg(), vicreg), (BarlowTwins(), barlow), (SimCLR(0.1), simclr)])
def test_two_views_give_the_papers_value(loss: torch.nn.Module, naive: object) -> None:
    z = embeddings(2, 9, 5) * 0.8 + 0.1
    result = loss(z, n_global=2)
    assert result.loss.item() == pytest.approx(naive(*z.numpy()), rel=1e-10)  # type: ignore[operator]
    assert not any(term.requires_grad for term in result.terms.values())


@pytest.mark.parametrize("loss", [VICReg(), BarlowTwins(), SimCLR(0.5)])
def test_more_views_average_the_pairs(loss: torch.nn.Module) -> None:
    z = embeddings(4, 7, 3)
    whole = loss(z, n_global=2).loss
    pairs = torch.stack([loss(z[[a, b]], n_global=2).loss for a, b in view_pairs(4, 2)])
    if isinstance(loss, VICReg):  # terms of single views are averaged over views, not over pairs
        each = [loss(z[[v, v]], n_global=2).loss for v in range(4)]
        paired = torch.stack([25 * (z[a] - z[b]).square().mean() for a, b in view_pairs(4, 2)]).mean()
        assert whole.item() == pytest.approx((paired + torch.stack(each).mean()).item(), rel=1e-10)
    else:
        assert whole.item() == pytest.approx(pairs.mean().item(), rel=1e-10)
    assert torch.autograd.gradcheck(lambda a: loss(a, n_global=2).loss, (z.requires_grad_(),))


@pytest.mark.parametrize("loss", [VICReg(), BarlowTwins(), SimCLR()])
@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 1, 3), (8, 3)])
def test_wrong_shapes_are_refused(loss: torch.nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="views, batch, dim"):
        loss(torch.zeros(shape), n_global=1)


def test_byol_is_the_symmetric_squared_distance_of_unit_vectors() -> None:
    predicted, target = embeddings(2, 6, 4), embeddings(2, 6, 4, seed=1)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (predicted.numpy(), target.numpy())]
    expected = sum(np.mean(((unit[0][s] - unit[1][1 - s]) ** 2).sum(-1)) for s in range(2))
    assert byol_loss(predicted, target).loss.item() == pytest.approx(expected, rel=1e-10)
    local = torch.cat([predicted, predicted[:1]])  # a third, local view doubles the pairs, each at the same weight
    pairs = [np.mean(((unit[0][s % 2] - unit[1][t]) ** 2).sum(-1)) for t, s in teacher_pairs(3, 2)]
    assert byol_loss(local, target).loss.item() == pytest.approx(2 * np.mean(pairs), rel=1e-10)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_dino_equals_algorithm_1_and_moves_its_centre() -> None:
    loss = DINOLoss(5).double()
    centre = np.zeros(5)
    for step in range(3):
        student, teacher = embeddings(4, 6, 5, seed=step), embeddings(2, 6, 5, seed=step + 10)
        loss.progress.fill_(step / 4)
        temperature = 0.04 + 0.03 * min(1.0, step / 4 / 0.3)
        sharp = softmax((teacher.numpy() - centre) / temperature)
        log_p = np.log(softmax(student.numpy() / 0.1))
        expected = np.mean([-(sharp[t] * log_p[s]).sum(-1) for t in range(2) for s in range(4) if s != t])
        result = loss(student, teacher)
        assert result.loss.item() == pytest.approx(expected, rel=1e-6)
        assert result.terms["teacher_entropy"].item() == pytest.approx(
            -(sharp * np.log(sharp)).sum(-1).mean(), rel=1e-6
        )
        centre = 0.9 * centre + 0.1 * teacher.numpy().reshape(-1, 5).mean(0)
        np.testing.assert_allclose(loss.centre.numpy(), centre, rtol=1e-6)
    loss.eval()
    loss(student, teacher)
    np.testing.assert_allclose(loss.centre.numpy(), centre, rtol=1e-6)
