"""Power at N = 256 and 5 %: who sees which departure from N(0, 1), and who, as theory says, cannot."""

from functools import cache

import pytest

from harness.power import ALTERNATIVES, rejection_rates
from lejepa_med.objective.normality import known_tests, make_test

NULL, REPS = 400, 100
OMNIBUS = [name for name in known_tests() if name != "vcreg"]


@cache
def rates(name: str) -> dict[str, float]:
    cases = {**ALTERNATIVES, "null": lambda rng, shape: rng.normal(0, 1, shape)}
    return rejection_rates(make_test(name, slices=1), cases, null_reps=NULL, reps=REPS)


@pytest.mark.parametrize("name", known_tests())
def test_level_is_kept(name: str) -> None:
    assert 0.005 <= rates(name)["null"] <= 0.12


@pytest.mark.parametrize("name", known_tests())
def test_location_and_scale_are_found(name: str) -> None:
    assert rates(name)["N(0, 1.5^2)"] >= 0.99
    # Watson takes the common shift out, and the variance of spacings hides it from the entropy.
    assert rates(name)["N(.3, 1)"] >= (0.6 if name in ("watson", "entropy") else 0.9)


@pytest.mark.parametrize("name", OMNIBUS)
def test_shapes_of_unit_variance_are_found(name: str) -> None:
    assert rates(name)["exponential - 1"] >= 0.99
    # D'Agostino and Stephens (1986): with known parameters the plain distribution-function test is the weaker kind.
    assert rates(name)["uniform"] >= (0.5 if name == "cramer_von_mises" else 0.75)
    assert rates(name)["Laplace"] >= 0.6
    assert rates(name)["bimodal"] >= 0.15


def test_shapiro_wilk_moments_and_spacings_lead_for_short_tails() -> None:
    for name in ("shapiro_wilk", "jarque_bera", "entropy"):
        assert rates(name)["uniform"] >= 0.97


def test_watson_leads_cramer_von_mises_where_mean_and_variance_are_right() -> None:
    for alternative in ("uniform", "Laplace", "bimodal"):
        assert rates("watson")[alternative] >= rates("cramer_von_mises")[alternative] + 0.1


def test_vcreg_is_blind_to_shapes_which_is_why_it_is_not_the_default() -> None:
    for alternative in ("uniform", "bimodal"):  # light tails: the variance is even steadier than under N(0, 1)
        assert rates("vcreg")[alternative] <= 0.08
        assert rates("epps_pulley")[alternative] >= rates("vcreg")[alternative] + 0.2
    # Heavy tails make the sample variance noisy; that is no power, for it does not grow with N.
    heavy = {name: ALTERNATIVES[name] for name in ("Laplace", "exponential - 1")}
    many = rejection_rates(make_test("vcreg", slices=1), heavy, n=4096, null_reps=NULL, reps=REPS)
    for alternative in heavy:
        assert rates("vcreg")[alternative] <= 0.4
        assert many[alternative] <= rates("vcreg")[alternative] + 0.1


def test_multivariate_power_fades_with_the_dimension() -> None:
    shift = {"shift": lambda rng, shape: rng.normal(0.5 / shape[-1] ** 0.5, 1, shape)}
    for name in ("bhep", "henze_zirkler"):
        test = make_test(name)
        low = rejection_rates(test, shift, dim=4, null_reps=100, reps=30)["shift"]
        high = rejection_rates(test, shift, dim=64, null_reps=100, reps=30)["shift"]
        assert low >= 0.9
        assert high <= 0.3
