import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lejepa_med.evaluation.classification import ClassTask, choose_strength
from lejepa_med.evaluation.cross_validation import cross_validate, group_folds
from lejepa_med.evaluation.linear import GRID, MIDDLE, fit_heads, fit_path, shared_rotation


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


def test_the_shared_basis_changes_the_speed_and_not_the_answer():
    vectors, labels, _ = made(200, 20, 3)
    part = np.arange(200) % 5 > 0
    rotation = shared_rotation(vectors)
    assert rotation is not None
    with_rotation, without = (
        fit_path(vectors[part], labels[part], strengths=[0.1], rotation=t)[0] for t in (rotation, None)
    )
    np.testing.assert_allclose(with_rotation.probabilities(vectors), without.probabilities(vectors), atol=0.01)


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


@pytest.mark.parametrize("seed", range(4))
def test_folds_keep_groups_whole_and_classes_even(seed):
    rng = np.random.default_rng(seed)
    groups = np.unique(rng.integers(0, 60, 600), return_inverse=True)[1]
    labels = rng.choice(3, 600, p=[0.7, 0.25, 0.05])
    split = group_folds(labels, groups, folds=5, seed=seed)
    assert split.count == 5
    assert all(len(np.unique(split.fold[groups == g])) == 1 for g in range(groups.max() + 1))

    def unevenness(fold):
        table = np.zeros((5, 3))
        np.add.at(table, (fold, labels), 1)
        return (table / table.sum(0)).std()

    theirs = np.zeros(600, int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for k, (_, inside) in enumerate(splitter.split(labels, labels, groups)):
        theirs[inside] = k
    assert unevenness(split.fold) < unevenness(theirs) + 0.02


def test_folds_depend_on_the_seed_and_on_nothing_else():
    _, labels, groups = made(200, 3, 3)
    groups = np.unique(groups, return_inverse=True)[1]
    names = [f"p{g}" for g in range(groups.max() + 1)]
    receipts = [group_folds(labels, groups, folds=5, seed=s).receipt(names)["sha256"] for s in (0, 0, 1)]
    assert receipts[0] == receipts[1] != receipts[2]


def test_a_class_in_one_group_gives_no_folds():
    assert group_folds(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 2]), folds=5, seed=0) is None


def test_folds_shrink_to_the_rarest_class():
    labels = np.array([0] * 20 + [1] * 6)
    groups = np.concatenate([np.arange(20), 20 + np.repeat(np.arange(3), 2)])
    split = group_folds(labels, groups, folds=5, seed=0)
    assert split.count == 3
    assert sorted(np.unique(split.fold[labels == 1]).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 3])
def test_cross_validation_equals_a_nested_one_written_out(classes):
    vectors, labels, groups = made(180, 12, classes, signal=2.0)
    groups = np.unique(groups, return_inverse=True)[1]
    split = group_folds(labels, groups, folds=4, seed=0)
    found = cross_validate(ClassTask(vectors, labels), split)
    rotation = shared_rotation(vectors)
    probabilities = softmax(found.nested, axis=1)

    def score(truth, predicted):
        return round(balanced_accuracy_score(truth, predicted), 12)

    for i in range(4):
        outside = split.fold != i
        scores = []
        for c in range(len(GRID)):
            predicted = np.zeros(180, int)
            for j in {0, 1, 2, 3} - {i}:
                train, inside = outside & (split.fold != j), split.fold == j
                models = fit_path(vectors[train], labels[train], rotation=rotation)
                predicted[inside] = models[c].probabilities(vectors[inside]).argmax(1)
            scores.append(score(labels[outside], predicted[outside]))
        best = int(np.argmax(scores))
        assert found.fold_strengths[i] == best
        model = fit_path(vectors[outside], labels[outside], rotation=rotation)[best]
        np.testing.assert_allclose(probabilities[~outside], model.probabilities(vectors[~outside]))
    assert GRID[found.strength] == choose_strength(vectors, labels, split)


def test_two_folds_take_the_middle_of_the_grid():
    vectors, labels, _ = made(40, 4, 2)
    split = group_folds(labels, np.arange(40), folds=2, seed=0)
    found = cross_validate(ClassTask(vectors, labels), split)
    assert [GRID[k] for k in found.fold_strengths] == [MIDDLE, MIDDLE]
    inside = split.fold == 0
    first = fit_path(vectors[~inside], labels[~inside], rotation=shared_rotation(vectors))[GRID.index(MIDDLE)]
    np.testing.assert_allclose(softmax(found.nested, axis=1)[inside], first.probabilities(vectors[inside]))
