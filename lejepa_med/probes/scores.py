"""Scores of classes, of ranks and of numbers, with intervals that respect groups."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score, roc_auc_score

from data_adapters.errors import UserError

BOOTSTRAP_DRAWS = 2000
CELLS = 20_000_000  # of drawn weights (draws x examples): beyond it, fewer draws
BLOCK = 2_000_000  # of them held at once: 16 MB
LEAST_DRAWS = 200
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights of the examples (draws, n) -> (draws,)."""
ByDraw = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights of the examples (replicates, n) -> (replicates, draws), a score for each draw of labels."""


def _balanced_accuracies(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Mean recall over the classes that occur, for confusion matrices (draws, classes, classes) -> (draws,)."""
    total = confusion.sum(-1)
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    recall = np.divide(hits, total, out=np.zeros(total.shape), where=total > 0)
    return np.asarray(recall.sum(-1) / np.maximum((total > 0).sum(-1), 1))


def auroc(truth: NDArray[np.int64], probabilities: NDArray[Any]) -> float | None:
    """Return the area under the ROC curve: of class 1 for two classes, else the mean over classes of one-versus-rest.

    None when a class does not occur in `truth`, where the area is undefined.
    """
    classes = probabilities.shape[1]
    if len(np.unique(truth)) < classes:
        return None
    return float(roc_auc_score(truth, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr"))


def group_interval(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the balanced accuracy, resampling whole groups.

    Images of one patient are alike, so drawing images would give an interval that is too narrow (cluster bootstrap:
    Davison & Hinkley 1997, section 3.8). Groups with equal confusion counts are exchangeable: drawing how often each
    distinct pattern of counts occurs is the same bootstrap, and its cost does not grow with the number of groups.
    """
    cells = classes * classes
    count = int(groups.max()) + 1
    flat = np.bincount(groups * cells + truth * classes + predicted, minlength=count * cells).reshape(count, cells)
    patterns, times = np.unique(flat[flat.sum(1) > 0], axis=0, return_counts=True)
    rng = np.random.default_rng([seed, 95])
    drawn = rng.multinomial(times.sum(), times / times.sum(), size=draws)
    scores = _balanced_accuracies((drawn @ patterns).reshape(draws, classes, classes))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def summary(
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[Any],
    groups: NDArray[np.int64],
    *,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Return every score of out-of-fold predictions as JSON. truth, predicted, groups: (n,). probabilities: (n, k).

    `confusion_matrix` has the true class in rows and the predicted one in columns, both in the order of `names`.
    """
    recall = recall_score(truth, predicted, average=None, labels=range(len(names)))
    return {
        "balanced_accuracy": float(recall.mean()),
        "balanced_accuracy_interval": list(group_interval(truth, predicted, groups, classes=len(names), seed=seed)),
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "auroc": auroc(truth, probabilities),
        "confusion_matrix": confusion_matrix(truth, predicted, labels=range(len(names))).tolist(),
        "recall": dict(zip(names, recall.tolist(), strict=True)),
    }


def cluster_interval(
    statistic: Statistic, groups: NDArray[np.int64], *, seed: int, parts: int = 1
) -> list[float] | None:
    """Return a 95 % percentile bootstrap interval, resampling whole groups (Davison & Hinkley 1997, section 3.8).

    groups: (n,) codes. `parts`: statistics in one; more of them, fewer draws. None with a single group, or where the
    statistic is undefined in most of the draws.

    A statistic gets the weights of many draws at once. Calling the metrics of scikit-learn for each draw takes 16 to 75
    times as long, 1 to 5 s for 2,000 draws of 1,000 examples (benchmarks/results/probes-cpu.md).
    """
    if groups.max() == groups.min():
        return None
    drawn = np.concatenate([statistic(weights) for weights in _draws(groups, seed, parts)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < LEAST_DRAWS // 2:
        return None
    return [float(edge) for edge in np.quantile(drawn, [0.025, 0.975])]


def draws_interval(
    by_draw: ByDraw, draws: int, groups: NDArray[np.int64], *, seed: int, parts: int = 1
) -> list[float] | None:
    """Return the 95 % interval of the mean over draws, resampling both things that are chance.

    These are which labels were drawn (`draws` of them) and which groups (patients, slides, fields) are scored. The rest
    as in `cluster_interval`.
    """
    rng = np.random.default_rng([seed, 96])

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        values = by_draw(weights)
        times = rng.multinomial(draws, np.full(draws, 1 / draws), size=len(values))
        return np.asarray((times * values).mean(1))

    return cluster_interval(statistic, groups, seed=seed, parts=parts * draws if parts > 1 else 1)


def balanced_accuracies(truth: NDArray[np.int64], hits: NDArray[Any]) -> ByDraw:
    """Mean recall over classes, of hits (draws, n) on classes (n,); NaN where a replicate lacks a class.

    Hits may be differences of hits: the result is then the difference of the accuracies.
    """
    members = [np.flatnonzero(truth == k) for k in np.unique(truth)]

    def by_draw(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = []
        for rows in members:
            total = weights[:, rows].sum(1, keepdims=True)
            found.append(weights[:, rows] @ hits[:, rows].T.astype(np.float64) / np.where(total > 0, total, np.nan))
        return np.asarray(np.mean(found, axis=0))

    return by_draw


def each_draw(of: Callable[[NDArray[Any]], Statistic]) -> Callable[[NDArray[Any]], ByDraw]:
    """Turn a statistic of one draw's answers (n, ...) into one of all draws' answers (draws, n, ...)."""

    def of_draws(answers: NDArray[Any]) -> ByDraw:
        statistics = [of(one) for one in answers]
        return lambda weights: np.stack([statistic(weights) for statistic in statistics], axis=1)

    return of_draws


def _draws(groups: NDArray[np.int64], seed: int, parts: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng([seed, 95])
    count = int(groups.max()) + 1
    left = int(np.clip(min(CELLS // len(groups), BOOTSTRAP_DRAWS) // parts, LEAST_DRAWS, BOOTSTRAP_DRAWS))
    while left > 0:
        block = min(left, max(1, BLOCK // max(len(groups), count)))
        yield rng.multinomial(count, np.full(count, 1 / count), size=block)[:, groups].astype(np.float64)
        left -= block


class Ranker:
    """Weighted mid-ranks of fixed values (n,): what a bootstrap needs many times."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self._starts = np.flatnonzero(new)
        self._level = np.empty(len(values), dtype=np.int64)
        self._level[self._order] = np.cumsum(new) - 1

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weight below each value plus half of the weight at it; weights and result (draws, n)."""
        at = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return np.asarray((np.cumsum(at, axis=1) - at / 2)[:, self._level])


def spearman(truth: NDArray[Any], given: NDArray[Any], strata: NDArray[Any] | None = None) -> Statistic:
    """Rank correlation of two columns (n,), ties at their mid-rank; NaN where one of them is constant.

    With strata (n,) only comparisons within a stratum count: ranks are taken there, as shares of its weight.
    """
    names = np.zeros(len(truth)) if strata is None else strata
    parts = [np.flatnonzero(names == name) for name in np.unique(names)]
    rankers = [(rows, Ranker(truth[rows]), Ranker(given[rows])) for rows in parts]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        both = first = second = np.zeros(len(weights))
        for rows, *sides in rankers:
            own = weights[:, rows]
            total = own.sum(1, keepdims=True)
            a, b = (
                (ranks - (own * ranks).sum(1, keepdims=True) / total) / total for ranks in (s.ranks(own) for s in sides)
            )
            both, first, second = (
                both + (own * a * b).sum(1),
                first + (own * a * a).sum(1),
                second + (own * b * b).sum(1),
            )
        spread = np.sqrt(first * second)
        return np.asarray(both / np.where(spread > 0, spread, np.nan))

    return statistic


def r2(truth: NDArray[np.float64], given: NDArray[np.float64]) -> Statistic:
    """1 - squared error / variance; NaN where the truth is constant."""
    error, centred = (truth - given) ** 2, truth - truth.mean()
    least = 1e-12 * float(centred @ centred)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(1)
        return np.asarray(1 - weights @ error / np.where(spread > least, spread, np.nan))

    return statistic


def mean_error(truth: NDArray[np.float64], given: NDArray[np.float64]) -> Statistic:
    """Mean absolute error."""
    error = np.abs(truth - given)
    return lambda weights: np.asarray(weights @ error / weights.sum(1))


def roc_area(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> Statistic:
    """Area under the ROC curve; NaN where only one side was drawn."""
    ranker = Ranker(scores)

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        present, absent = weights * truth, weights * ~truth
        pairs = present.sum(1) * absent.sum(1)
        won = (present * ranker.ranks(absent)).sum(1)
        return np.asarray(won / np.where(pairs > 0, pairs, np.nan))

    return statistic


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> Statistic:
    """Mean precision at the examples with the label; NaN where none was drawn. Ties count as one threshold."""
    order = np.argsort(-scores, kind="stable")
    ordered, marks = scores[order], truth[order]
    last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        drawn = weights[:, order]
        hits = np.cumsum(drawn * marks, axis=1)[:, last]
        taken = np.cumsum(drawn, axis=1)[:, last]
        gain = np.diff(hits, axis=1, prepend=0)
        total = hits[:, -1]
        return np.asarray((gain * hits / np.maximum(taken, 1e-12)).sum(1) / np.where(total > 0, total, np.nan))

    return statistic


def macro(parts: list[Statistic]) -> Statistic:
    """Mean over labels, over those that are defined in a draw."""

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.stack([part(weights) for part in parts])
        known = np.isfinite(found)
        return np.asarray(np.where(known, found, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))

    return statistic


def point(statistic: Statistic, count: int) -> float | None:
    """Return the statistic of the examples as they are; None where it is undefined."""
    found = float(statistic(np.ones((1, count)))[0])
    return found if np.isfinite(found) else None


NMAD = 1.4826  # of a normal distribution, standard deviation over median absolute deviation
OUTLIER = 0.15  # of |dz| / (1 + z): a catastrophic photometric redshift (Hildebrandt et al. 2010)


def photo_z(
    truth: NDArray[np.float64], given: NDArray[np.float64], groups: NDArray[np.int64], *, seed: int
) -> dict[str, Any]:
    """Photometric-redshift figures of e = (given - truth) / (1 + truth), with 95 % intervals over groups.

    `sigma_nmad`: 1.4826 times the median of |e - median(e)| (Brammer et al. 2008, without their 1 + z of the median).
    `outlier_rate`: share with |e| above 0.15. `bias`: mean of e. truth, given: (n,); groups: (n,) codes.

    Raises:
        UserError: a true value of -1 or less, which is no redshift.
    """
    if truth.min() <= -1:
        raise UserError(
            f"A label is {truth.min():.3g}, and photometric-redshift figures divide by 1 + z.",
            remedy="Leave out --photo-z, or give redshifts as labels.",
        )
    error = (given - truth) / (1 + truth)

    def nmad(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([NMAD * _median(np.abs(error - _median(error, one)), one) for one in weights])

    def share(values: NDArray[np.float64]) -> Statistic:
        return lambda weights: np.asarray(weights @ values / weights.sum(1))

    found: dict[str, Any] = {"outliers_above": OUTLIER}
    statistics = {
        "sigma_nmad": nmad,
        "outlier_rate": share((np.abs(error) > OUTLIER).astype(np.float64)),
        "bias": share(error),
    }
    for name, statistic in statistics.items():
        found[name] = point(statistic, len(truth))
        found[f"{name}_interval"] = cluster_interval(statistic, groups, seed=seed)
    return found


def _median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted median: of whole weights the median of as many copies."""
    order = np.argsort(values)
    ordered, total = values[order], np.cumsum(weights[order])
    low = int(np.searchsorted(total, total[-1] / 2, side="left"))
    high = int(np.searchsorted(total, total[-1] / 2, side="right"))
    return float(ordered[low] + ordered[min(high, len(ordered) - 1)]) / 2
