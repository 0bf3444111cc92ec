"""The tests by name."""

from lejepa_med.objective.sigreg import SIGReg
from lejepa_med.research.normality.base import NormalityTest, SlicedTest
from lejepa_med.research.normality.distribution import AndersonDarling, CramerVonMises, Watson
from lejepa_med.research.normality.likelihood import NLL, Entropy
from lejepa_med.research.normality.moments import JarqueBera, Moments, VCReg
from lejepa_med.research.normality.multivariate import BHEP, HenzeZirkler
from lejepa_med.research.normality.shapiro import ShapiroWilk

TESTS: dict[str, str] = {
    "epps_pulley": "SIGReg: characteristic function along random directions (the paper's choice)",
    "cramer_von_mises": "distribution function, squared distance; blind far from 0",
    "anderson_darling": "distribution function, tails weighted; pulls from any distance",
    "watson": "distribution function without its common shift; weak against a shifted mean",
    "shapiro_wilk": "straightness of the quantile plot, plus mean and variance",
    "jarque_bera": "mean, variance, skewness and kurtosis",
    "moments": "first four Hermite moments (Neyman's smooth test); explodes far from N(0, I)",
    "vcreg": "mean and covariance only, as VICReg; blind to the shape",
    "entropy": "Kullback-Leibler divergence with the entropy of spacings",
    "nll": "likelihood of the sorted batch",
    "bhep": "characteristic function in all directions at once; up to about 16 dimensions",
    "henze_zirkler": "the same with the bandwidth of Henze and Zirkler; up to about 16 dimensions",
}
"""Name and one line on each test."""

_SLICED: dict[str, type[SlicedTest]] = {
    "cramer_von_mises": CramerVonMises,
    "anderson_darling": AndersonDarling,
    "watson": Watson,
    "shapiro_wilk": ShapiroWilk,
    "jarque_bera": JarqueBera,
    "moments": Moments,
    "vcreg": VCReg,
    "entropy": Entropy,
    "nll": NLL,
}
_MULTIVARIATE: dict[str, type[BHEP]] = {"bhep": BHEP, "henze_zirkler": HenzeZirkler}


def make_test(name: str, *, slices: int = 1024, knots: int = 17, t_max: float = 3.0) -> SIGReg | NormalityTest:
    """Build the regulariser of this name.

    Args:
        name: a key of `TESTS`.
        slices: number of random directions; the multivariate tests have none.
        knots: quadrature of epps_pulley; the others have none.
        t_max: end of the integration interval of epps_pulley; the others have none.

    Raises:
        ValueError: an unknown name, or settings that the test refuses.
    """
    if name == "epps_pulley":
        return SIGReg(slices=slices, knots=knots, t_max=t_max)
    if name in _SLICED:
        return _SLICED[name](slices)
    if name in _MULTIVARIATE:
        return _MULTIVARIATE[name]()
    raise ValueError(f"There is no test named {name!r}; choose one of {', '.join(TESTS)}.")


def floor_for(test: SIGReg | NormalityTest, *, n: int, dim: int) -> float:
    """Expected value of `test` for `n` perfect draws (over all ranks) from N(0, I) in `dim` dimensions.

    Exact, but for shapiro_wilk and entropy, which are simulated with a fixed seed; their standard errors are .03 and
    .07 at n = 256, .06 and .5 at n = 4096.

    Raises:
        ValueError: fewer than two samples, or no dimension.
    """
    return test.floor if isinstance(test, SIGReg) else test.floor_for(n=n, dim=dim)
