import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold

from lejepa_med.probes.classification import ClassTask, choose_strength
from lejepa_med.probes.cross_validation import cross_validate, group_folds
from lejepa_med.probes.linear import GRID, MIDDLE, fit_path
from tests.lejepa_med.probes.test_linear import made


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
                models = fit_path(vectors[train], labels[train])
                predicted[inside] = models[c].probabilities(vectors[inside]).argmax(1)
            scores.append(score(labels[outside], predicted[outside]))
        best = int(np.argmax(scores))
        assert found.fold_strengths[i] == best
        model = fit_path(vectors[outside], labels[outside])[best]
        np.testing.assert_allclose(probabilities[~outside], model.probabilities(vectors[~outside]))
    assert GRID[found.strength] == choose_strength(vectors, labels, split)


def test_two_folds_take_the_middle_of_the_grid():
    vectors, labels, _ = made(40, 4, 2)
    split = group_folds(labels, np.arange(40), folds=2, seed=0)
    found = cross_validate(ClassTask(vectors, labels), split)
    assert [GRID[k] for k in found.fold_strengths] == [MIDDLE, MIDDLE]
    inside = split.fold == 0
    first = fit_path(vectors[~inside], labels[~inside])[GRID.index(MIDDLE)]
    np.testing.assert_allclose(softmax(found.nested, axis=1)[inside], first.probabilities(vectors[inside]))
