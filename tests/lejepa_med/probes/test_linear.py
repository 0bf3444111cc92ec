import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lejepa_med.probes.linear import (
    GRID,
    PENALTIES,
    Leverage,
    fit_heads,
    fit_path,
    fit_ridge,
)
from tests.lejepa_med.probes.test_regression import measured


def made(n, dim, classes, seed=0, signal=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    vectors = rng.normal(size=(n, dim)) * np.geomspace(3, 0.1, dim) + 4
    vectors[:, :classes] += np.eye(classes)[labels] * signal
    return vectors.astype(np.float32), labels, rng.integers(0, n // 3, n)


def reference(strength, tol=1e-8):
    solver = LogisticRegression(C=strength, class_weight="balanced", tol=tol, max_iter=20000)
    return make_pipeline(StandardScaler(), solver)


@pytest.mark.parametrize(("n", "dim", "classes"), [(150, 20, 2), (150, 20, 4), (24, 60, 2), (24, 60, 3)])
def test_same_coefficients_as_scikit_learn(n, dim, classes):
    vectors, labels, _ = made(n, dim, classes)
    labels[: n // 4] = 0  # unequal classes
    for strength in (0.01, 1.0):
        ours = fit_path(vectors, labels, strengths=[strength], final=True)[0]
        theirs = reference(strength).fit(vectors.astype(np.float64), labels)
        expected = theirs[-1].coef_
        np.testing.assert_allclose(ours.coef, expected, atol=2e-4 * np.abs(expected).max())
        np.testing.assert_allclose(
            ours.probabilities(vectors), theirs.predict_proba(vectors.astype(np.float64)), atol=2e-4
        )


@pytest.mark.parametrize("balanced", [True, False])
def test_independent_heads_equal_one_scikit_learn_model_each(balanced):
    vectors, labels, _ = made(150, 20, 3)
    marks = np.stack([labels == 0, labels != 1, np.arange(150) % 10 == 0], axis=1)
    ours = fit_heads(vectors, marks, strengths=[0.1], final=True, balanced=balanced)[0]
    for j in range(3):
        solver = LogisticRegression(C=0.1, class_weight="balanced" if balanced else None, tol=1e-8, max_iter=20000)
        theirs = make_pipeline(StandardScaler(), solver).fit(vectors.astype(np.float64), marks[:, j])[-1]
        np.testing.assert_allclose(ours.coef[j], theirs.coef_[0], atol=2e-4 * np.abs(theirs.coef_).max())
        assert ours.intercept[j] == pytest.approx(theirs.intercept_[0], abs=2e-4)


def test_unweighted_classes_equal_scikit_learn_too():
    vectors, labels, _ = made(150, 20, 3)
    labels[:100] = 0
    ours = fit_path(vectors, labels, strengths=[0.1], final=True, balanced=False)[0]
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=20000))
    expected = theirs.fit(vectors.astype(np.float64), labels)[-1].coef_
    np.testing.assert_allclose(ours.coef, expected, atol=2e-4 * np.abs(expected).max())


def test_the_search_finds_the_same_answers_as_exact_fits():
    vectors, labels, _ = made(300, 30, 3)
    for coarse, strength in zip(fit_path(vectors, labels), GRID, strict=True):
        exact = reference(strength).fit(vectors.astype(np.float64), labels)
        assert (coarse.probabilities(vectors).argmax(1) == exact.predict(vectors)).mean() > 0.985


def test_a_constant_feature_changes_nothing():
    vectors, labels, _ = made(60, 5, 2)
    plain = fit_path(vectors, labels, strengths=[1.0], final=True)[0].probabilities(vectors)
    rounded = np.float32(0.1) + np.float32(1e-8) * np.random.default_rng(0).integers(-1, 2, (60, 1), dtype=np.int64)
    assert rounded.std(dtype=np.float64) > 0
    for constant in (np.full((60, 1), 0.1), rounded):
        wider = np.concatenate([vectors, constant.astype(np.float32)], axis=1)
        padded = fit_path(wider, labels, strengths=[1.0], final=True)[0]
        np.testing.assert_allclose(padded.probabilities(wider), plain, atol=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(120, 10), (20, 50)])
def test_every_penalty_of_the_path_is_a_ridge_regression_of_its_own(n, dim):
    vectors, values, _ = measured(n, dim)
    wide = vectors.astype(np.float64)
    models = fit_ridge(vectors, np.array(values))
    assert len(models) == len(PENALTIES)
    for penalty, model in zip(PENALTIES, models, strict=True):
        theirs = make_pipeline(StandardScaler(), Ridge(penalty * n)).fit(wide, values)
        np.testing.assert_allclose(model.logits(vectors)[:, 0], theirs.predict(wide), rtol=1e-6)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (12, 30)])
def test_leverage_is_the_closed_form(n, dim):
    vectors, _, _ = measured(n, dim)
    fresh = measured(5, dim, seed=1)[0]
    scaler = StandardScaler().fit(vectors.astype(np.float64))
    design, new = scaler.transform(vectors.astype(np.float64)), scaler.transform(fresh.astype(np.float64))
    inverse = np.linalg.inv(design.T @ design + 0.1 * n * np.eye(dim))
    expected = np.einsum("ij,jk,ik->i", new, inverse, new) + 1 / n
    np.testing.assert_allclose(Leverage(vectors, 0.1).of(fresh), expected, rtol=1e-6)
