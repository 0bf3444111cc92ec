"""Every test of normality against SciPy where SciPy has the statistic, else against the formula written naively."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite_e
from scipy import special, stats
from torch import Tensor

from lejepa_med.objective import SIGReg
from lejepa_med.objective.normality import SlicedTest, floor_for, known_tests, log_ndtr, make_test
from lejepa_med.research.normality import BHEP, Entropy, HenzeZirkler, Moments, ShapiroWilk

SLICED = [name for name in known_tests() if isinstance(make_test(name), SlicedTest)]


def sample(n: int, seed: int = 0) -> np.ndarray:
    """Off in location, scale and shape."""
    return np.random.default_rng(seed).gamma(3, 0.8, n) - 1.5


def statistic(name: str, x: np.ndarray) -> float:
    """The statistic of one sample (n,)."""
    test = make_test(name)
    assert isinstance(test, SlicedTest)
    return float(test.statistic(torch.from_numpy(x)))


def location_and_scale(x: np.ndarray) -> float:
    return float(len(x) * (x.mean() ** 2 + (x.var() - 1) ** 2 / 2))


@pytest.mark.parametrize("n", [2, 5, 60])
def test_cramer_von_mises_and_watson(n: int) -> None:
    x = sample(n)
    expected = stats.cramervonmises(x, "norm").statistic
    assert statistic("cramer_von_mises", x) == pytest.approx(expected, rel=1e-12)
    shift = stats.norm.cdf(x).mean() - 0.5
    assert statistic("watson", x) == pytest.approx(expected - n * shift**2, rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 60])
def test_anderson_darling_with_known_parameters(n: int) -> None:
    x = np.sort(sample(n))
    fitted = stats.goodness_of_fit(
        stats.norm, x, known_params={"loc": 0, "scale": 1}, statistic="ad", n_mc_samples=1, rng=np.random.default_rng(0)
    )
    assert statistic("anderson_darling", x) == pytest.approx(fitted.statistic, rel=1e-10)
    i = np.arange(1, n + 1)
    plain = -n - np.mean((2 * i - 1) * stats.norm.logcdf(x) + (2 * n + 1 - 2 * i) * stats.norm.logsf(x))
    assert statistic("anderson_darling", x) == pytest.approx(plain, rel=1e-10)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 60, 501])
def test_shapiro_wilk(n: int) -> None:
    x = sample(n)
    shape = n * (1 - stats.shapiro(x).statistic)
    assert statistic("shapiro_wilk", x) == pytest.approx(shape + location_and_scale(x), rel=1e-6)
    # The shape alone has neither location nor scale.
    y = torch.from_numpy((x - x.mean()) / x.std())
    assert ShapiroWilk.shape(y).item() == pytest.approx(shape, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("n", [3, 60])
def test_jarque_bera_and_vcreg(n: int) -> None:
    x = sample(n)
    assert statistic("vcreg", x) == pytest.approx(location_and_scale(x), rel=1e-12)
    expected = stats.jarque_bera(x).statistic + location_and_scale(x)
    assert statistic("jarque_bera", x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_moments_are_hermite_moments(order: int) -> None:
    x = sample(30)
    means = [hermite_e.hermeval(x, np.eye(order + 1)[k]).mean() for k in range(1, order + 1)]
    expected = len(x) * sum(mean**2 / math.factorial(k) for k, mean in enumerate(means, start=1))
    assert Moments(order=order).statistic(torch.from_numpy(x)).item() == pytest.approx(expected, rel=1e-12)


def test_nll_is_the_likelihood_of_the_order_statistics() -> None:
    n = 12
    k = np.arange(1, n + 1)

    def plain(x: np.ndarray) -> float:
        x = np.sort(x)
        density = stats.beta.logpdf(stats.norm.cdf(x), k, n + 1 - k) + stats.norm.logpdf(x)
        return float(-density.mean())

    x, y = sample(n, 1), sample(n, 2)
    assert statistic("nll", x) - statistic("nll", y) == pytest.approx(plain(x) - plain(y), rel=1e-10)
    best = stats.norm.ppf((k - 1) / (n - 1)).clip(-40, 40)  # the divergences vanish, the squares remain
    assert statistic("nll", best) == pytest.approx((best**2).mean() / 2, rel=1e-2)


@pytest.mark.parametrize(("n", "window"), [(7, 3), (60, 3), (60, 5)])
def test_entropy_is_vasiceks_estimate_less_its_bias_for_uniform_samples(n: int, window: int) -> None:
    x = sample(n)
    vasicek = stats.differential_entropy(x, window_length=window, method="vasicek")
    i = np.arange(1, window + 1)
    bias = (  # Wieczorkowski and Grzegorzewski (1999), equation for Vasicek's estimate
        math.log(n)
        - math.log(2 * window)
        + (1 - 2 * window / n) * special.digamma(2 * window)
        - special.digamma(n + 1)
        + 2 / n * special.digamma(i + window - 1).sum()
    )
    entropy = Entropy(window=window).entropy(torch.from_numpy(x)).item()
    assert entropy == pytest.approx(vasicek - bias, rel=1e-10)
    expected = n * (-stats.norm.logpdf(x).mean() - entropy)
    assert Entropy(window=window).statistic(torch.from_numpy(x)).item() == pytest.approx(expected, rel=1e-10)


def bhep(z: np.ndarray, beta: float) -> float:
    """The closed form, pair by pair."""
    n, dim = z.shape
    pairs = sum(math.exp(-(beta**2) / 2 * float(((a - b) ** 2).sum())) for a in z for b in z)
    points = sum(math.exp(-(beta**2) * float((a**2).sum()) / (2 * (1 + beta**2))) for a in z)
    return pairs / n - 2 * (1 + beta**2) ** (-dim / 2) * points + n * (1 + 2 * beta**2) ** (-dim / 2)


def test_bhep_and_henze_zirkler_equal_the_closed_form_pair_by_pair() -> None:
    z = torch.from_numpy(np.stack([sample(33, seed).reshape(11, 3) for seed in (0, 1)]))
    for test, beta in ((BHEP(), 1.0), (BHEP(0.6), 0.6), (HenzeZirkler(), (7 * 11 / 4) ** (1 / 7) / math.sqrt(2))):
        expected = [bhep(view, beta) for view in z.numpy()]
        assert test.statistic(z).tolist() == pytest.approx(expected, rel=1e-12)
        assert test(z, seed=0, step=0).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_bhep_in_one_dimension_is_sigreg_over_the_whole_line() -> None:
    z = torch.from_numpy(sample(40))[None, :, None]
    sigreg = SIGReg(slices=1, knots=400, t_max=12.0)(z, seed=0, step=0)
    assert math.sqrt(2 * math.pi) * BHEP()(z, seed=0, step=0).item() == pytest.approx(sigreg.item(), rel=1e-9)


@pytest.mark.parametrize("name", SLICED)
def test_sliced_tests_average_over_views_and_directions(name: str) -> None:
    """In one dimension all directions are +1 or -1, and every statistic is even."""
    views = [sample(20, seed) for seed in (0, 1, 2)]
    z = torch.from_numpy(np.stack(views))[..., None]
    expected = np.mean([statistic(name, view) for view in views])
    assert make_test(name, slices=6)(z, seed=0, step=0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", known_tests())
def test_gradient_is_right_in_float64(name: str) -> None:
    z = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 1.3 + 0.4
    test = make_test(name, slices=5, knots=5)
    assert torch.autograd.gradcheck(lambda a: test(a, seed=0, step=1), (z.requires_grad_(),))


@pytest.mark.parametrize("name", known_tests())
def test_float32_agrees_with_float64(name: str) -> None:
    z = torch.randn(1, 400, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    test = make_test(name, slices=8)

    def run(a: Tensor) -> tuple[Tensor, Tensor]:
        a = a.clone().requires_grad_()
        value = test(a, seed=0, step=0)
        return value.detach().double(), torch.autograd.grad(value, a)[0].double()

    (value, grad), (value32, grad32) = run(z), run(z.float())
    assert value32.item() == pytest.approx(value.item(), rel=1e-4)
    assert (grad32 - grad).norm() < 1e-3 * grad.norm()


def test_log_ndtr_has_the_right_gradient_in_the_tail_in_float32() -> None:
    x = torch.tensor([-1e4, -300.0, -10.0, 0.0, 1e4], requires_grad=True)
    value = log_ndtr(x)
    value.sum().backward()
    assert value.tolist() == pytest.approx(stats.norm.logcdf(x.detach().numpy().astype(float)), rel=1e-5)
    expected = [1e4, 300 + 1 / 300, 10.0981, math.sqrt(2 / math.pi), 0.0]
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [3, 100])
@pytest.mark.parametrize("name", known_tests())
def test_floor_is_the_mean_over_perfect_batches(name: str, n: int) -> None:
    dim = 3
    rng = np.random.default_rng(11)
    test = make_test(name, slices=1)
    reps = 2000 if isinstance(test, SlicedTest) else 200
    if isinstance(test, SlicedTest):
        values = test.statistic(torch.from_numpy(rng.standard_normal((reps, n))))
    else:
        z = torch.from_numpy(rng.standard_normal((reps, n, dim)))
        values = torch.stack([test(view[None], seed=0, step=0) for view in z])
    error = float(values.std()) / math.sqrt(reps)
    assert float(values.mean()) == pytest.approx(floor_for(test, n=n, dim=dim), abs=5 * error)
    assert error < 0.1 * max(1.0, abs(floor_for(test, n=n, dim=dim)))


@pytest.mark.parametrize("name", known_tests())
def test_floor_is_a_property_where_it_depends_on_nothing(name: str) -> None:
    test = make_test(name, slices=1)
    floors = {floor_for(test, n=n, dim=dim) for n in (4, 50) for dim in (1, 9)}
    assert (len(floors) == 1) == (test.floor is not None)
    if test.floor is not None:
        assert floors == {test.floor}


def test_floor_needs_two_samples() -> None:
    for name in ("vcreg", "cramer_von_mises", "bhep"):
        with pytest.raises(ValueError, match="n=1"):
            floor_for(make_test(name), n=1, dim=4)
