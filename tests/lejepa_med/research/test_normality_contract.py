"""What every test owes to the objective: finite everywhere, per view, no state, the right names and refusals."""

import pytest
import torch
from torch import Tensor

from lejepa_med.objective import SIGReg
from lejepa_med.objective.normality import known_tests, make_test
from lejepa_med.research.normality import BHEP, Entropy, Moments

REPULSIVE = ("cramer_von_mises", "anderson_darling", "watson", "entropy", "nll")
"""The tests that pull an exactly collapsed batch apart."""


def gradient(name: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gradient; z: (views, batch, dim)."""
    z = z.clone().requires_grad_()
    value = make_test(name, slices=16)(z, seed=0, step=0)
    return value.detach(), torch.autograd.grad(value, z)[0]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", known_tests())
def test_value_and_gradient_are_finite_everywhere(name: str) -> None:
    for n in (1, 2, 3, 4, 6, 64):
        cases = {
            "collapsed at 0": torch.zeros(2, n, 8),
            "collapsed off 0": torch.full((2, n, 8), 0.7),
            "collapsed far off": torch.full((2, n, 8), 1e4),
            "nearly collapsed": 0.7 + 1e-6 * normal(2, n, 8),
            "far": 1e4 * normal(2, n, 8),
            "one outlier": torch.cat([normal(2, n - 1, 8), torch.full((2, 1, 8), 1e4)], 1),
        }
        for case, z in cases.items():
            value, grad = gradient(name, z)
            assert torch.isfinite(value), (n, case)
            assert torch.isfinite(grad).all(), (n, case)


@pytest.mark.parametrize("name", known_tests())
def test_collapse_is_seen_and_who_can_end_it(name: str) -> None:
    value, grad = gradient(name, torch.full((1, 64, 4), 0.3))
    regular, _ = gradient(name, normal(1, 64, 4))
    assert value > 10 * regular
    apart = (grad - grad.mean(1, keepdim=True)).norm()
    assert (apart > 0.05) == (name in REPULSIVE)


@pytest.mark.parametrize("name", known_tests())
def test_location_and_scale_are_penalised(name: str) -> None:
    z = normal(1, 256, 2)
    z = (z - z.mean(1)) / z.std(1)
    value, _ = gradient(name, z)
    for wrong in (z + 0.7, z * 0.5, z * 2):
        assert gradient(name, wrong)[0] > value + 1.5


@pytest.mark.parametrize("name", known_tests())
def test_statistic_is_per_view_and_ignores_order(name: str) -> None:
    z = normal(3, 30, 5, dtype=torch.float64) * torch.tensor([0.5, 1, 2], dtype=torch.float64)[:, None, None]
    test = make_test(name, slices=16)
    value = test(z, seed=0, step=0)
    torch.testing.assert_close(torch.stack([test(view[None], seed=0, step=0) for view in z]).mean(), value)
    shuffled = z[torch.tensor([2, 0, 1])][:, torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(test(shuffled, seed=0, step=0), value)


@pytest.mark.parametrize("name", known_tests())
def test_autocast_and_half_precision_inputs_compute_in_float32(name: str) -> None:
    z = normal(2, 64, 8)
    test = make_test(name, slices=8)
    plain = test(z, seed=0, step=0)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(test(z, seed=0, step=0), plain)
    assert torch.equal(test(z.bfloat16(), seed=0, step=0), test(z.bfloat16().float(), seed=0, step=0))
    assert test(z.double(), seed=0, step=0).dtype == torch.float64


@pytest.mark.parametrize("name", known_tests())
def test_directions_follow_seed_and_step_where_there_are_any(name: str) -> None:
    z = normal(1, 32, 8)
    test = make_test(name, slices=4)
    values = {test(z, seed=seed, step=step).item() for seed, step in ((0, 0), (0, 1), (1, 0))}
    assert len(values) == (1 if isinstance(test, BHEP) else 3)
    assert not test.state_dict()


@pytest.mark.parametrize("name", known_tests())
@pytest.mark.parametrize("shape", [(8, 4), (2, 0, 4), (1, 2, 3, 4)])
def test_wrong_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="views, batch, dim"):
        make_test(name, slices=2)(torch.zeros(shape), seed=0, step=0)


def test_epps_pulley_is_sigreg_with_its_settings() -> None:
    test = make_test("epps_pulley", slices=7, knots=9, t_max=2.0)
    assert isinstance(test, SIGReg)
    assert (test.slices, test.knots, test.t_max) == (7, 9, 2.0)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'epps-pulley'.*henze_zirkler"):
        make_test("epps-pulley")
    with pytest.raises(ValueError, match="slices=0"):
        make_test("watson", slices=0)
    for order in (1, 5):
        with pytest.raises(ValueError, match="order"):
            Moments(order=order)
    with pytest.raises(ValueError, match="window"):
        Entropy(window=0)
    for beta in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="beta"):
            BHEP(beta)


def test_blocks_of_the_pair_sums_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(2, 23, 4, dtype=torch.float64)
    whole = gradient("bhep", z)
    for block in (1, 5 * 23):  # single rows; five rows, leaving a short block
        monkeypatch.setattr("lejepa_med.research.normality._BLOCK", block)
        for expected, got in zip(whole, gradient("bhep", z), strict=True):
            torch.testing.assert_close(got, expected)


def test_pair_distances_keep_neighbours_apart_far_from_the_origin() -> None:
    """|a|^2 + |b|^2 - 2ab would lose distances of 1 between points at 10^4 in float32."""
    near = normal(1, 16, 3)
    clusters = torch.cat([near + 8192, near - 8192], 1)  # a power of two: the shift itself rounds little
    expected = BHEP().statistic(clusters.double())
    assert BHEP().statistic(clusters).item() == pytest.approx(expected.item(), rel=1e-4)
