"""Confounders: do the vectors give the scanner away, and do the labels go with it? Then a probe may have learnt it.

For each metadata column (site, scanner, field strength, survey ...) this measures how well a linear probe predicts it
from the vectors of unseen groups, beside the label; how strongly label and column are associated; and the Robustness
Index. Permutations of whole groups give the chance level, so few patients of two sites raise no false alarm.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata
from sklearn.metrics import balanced_accuracy_score, r2_score

from data_adapters.acquisition import COLUMNS
from lejepa_med.probes.cross_validation import Folds, group_folds
from lejepa_med.probes.linear import blas_threads
from lejepa_med.probes.neighbours import nearest_elsewhere, normalise
from lejepa_med.probes.scores import Statistic, cluster_interval, macro, roc_area, spearman

Value = str | float | None
State = Literal["confounded", "encoded", "tied", "clear", "unknown"]
Progress = Callable[[int, int], None]

FEWEST = 20  # images with a value below which a column is not judged
RARE_ROWS, RARE_GROUPS = 5, 2  # a value with fewer images or groups joins the other rare ones
MOST_VALUES = 20
OTHER = "(other values)"
GRADES = 10  # different numbers up to which a column of numbers is taken as classes
BINS = 4  # equal parts of a column of numbers, for its association with the label
SAMPLE = 3000  # images that are measured, at most; whole groups are drawn
FOLDS = 5
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the ridge, in units of the mean eigenvalue
PERMUTED_PROBES, PERMUTED_TABLES = 199, 999
LEVEL = 0.01  # for all columns together (Bonferroni), as far as the permutations resolve it
STRONG = 0.3  # Cramer's V from which labels count as tied to a column: "medium" of Cohen 1988 for two classes
LEAST_AUROC, LEAST_SPEARMAN = 0.65, 0.35  # below, what the vectors tell of a column is of no practical weight
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


@dataclass(frozen=True)
class Prediction:
    """How well the vectors of unseen groups predict a column.

    Attributes:
        auroc, balanced_accuracy: of classes; AUROC is the mean over one-versus-rest.
        spearman, r2: of numbers.
        interval: 95 %, of the AUROC or Spearman's coefficient, resampling groups; None where it is undefined.
        chance: the mean of the same score with permuted values.
        p: share of permutations that reach the score.
    """

    chance: float
    p: float
    interval: tuple[float, float] | None
    auroc: float | None = None
    balanced_accuracy: float | None = None
    spearman: float | None = None
    r2: float | None = None

    @property
    def score(self) -> float:
        """AUROC or Spearman's coefficient."""
        found = self.auroc if self.auroc is not None else self.spearman
        assert found is not None
        return found

    @property
    def is_relevant(self) -> bool:
        """Whether the score is more than of no practical weight."""
        least = LEAST_AUROC if self.auroc is not None else LEAST_SPEARMAN
        return self.score >= least


@dataclass(frozen=True)
class Association:
    """How strongly the labels go with a column.

    Attributes:
        v: bias-corrected Cramer's V, 0 to 1, of the label that goes with the column most, against all others.
        p: share of permutations of whole groups that reach it.
        label, value: the pair that stands out most.
        share, share_elsewhere: of the images with this label, and of all others, those that have the value.
    """

    v: float
    p: float
    label: str
    value: str
    share: float
    share_elsewhere: float


@dataclass(frozen=True)
class Finding:
    """What is known of one column. `reason` says why nothing could be measured; `values` counts images by value."""

    column: str
    state: State
    images: int
    groups: int
    values: dict[str, int]
    prediction: Prediction | None = None
    association: Association | None = None
    robustness: float | None = None
    neighbours: int | None = None
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The finding for a person, with what to do about it."""
        if self.state == "unknown" or self.prediction is None:
            return f"'{self.column}' cannot be checked: {self.reason}."
        score = f"{'AUROC' if self.prediction.auroc is not None else 'Spearman'} {self.prediction.score:.2f}"
        if self.state == "clear":
            return f"'{self.column}' is no confounder that can be found ({score} on unseen groups)."
        if self.state == "encoded":
            return (
                f"The vectors give away '{self.column}' ({score} on unseen groups), but the labels do not go with it. "
                f"Balance '{self.column}' when you choose images to label."
            )
        assert self.association is not None
        one = self.association
        pair = (
            f"{one.share:.0%} of the images labelled '{one.label}' have {self.column} {one.value}, and "
            f"{one.share_elsewhere:.0%} of the others do (Cramer's V {one.v:.2f})"
        )
        if self.state == "tied":
            return f"The labels go with '{self.column}': {pair}. The vectors do not give it away ({score})."
        return (
            f"The labels are confounded with '{self.column}': {pair}, and the vectors give '{self.column}' away "
            f"({score} on unseen groups). A probe may have learnt '{self.column}' instead of the label: label images "
            f"of every class with every {self.column}, and see: lejepa-med check --leave-out {self.column}"
        )

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON."""
        return {**asdict(self), "sentence": self.sentence}


@dataclass(frozen=True)
class Coded:
    """A column or the labels, for the images that have a value.

    Attributes:
        rows: which images these are.
        codes: class of each, (m,); of numbers their part of `BINS` equal parts.
        names: of the codes.
        numbers: the values where they are numbers, else None.
        reason: why nothing can be measured; empty otherwise.
    """

    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    names: tuple[str, ...]
    numbers: NDArray[np.float64] | None = None
    reason: str = ""


def code(values: Sequence[Value], groups: NDArray[np.int64], *, few: int = FEWEST) -> Coded:
    """Make a column measurable: rare values become one, numbers stay numbers. values, groups: (n,)."""
    rows = np.array([row for row, value in enumerate(values) if _known(value)], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    if len(rows) < few:
        return Coded(rows, nothing, (), reason=f"only {len(rows)} images have a value")
    known = [values[row] for row in rows]
    if all(isinstance(value, int | float) for value in known) and len(set(known)) > GRADES:
        numbers = np.array(known, dtype=np.float64)
        edges = np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS))
        codes = np.searchsorted(edges, numbers, side="right")
        if len(np.unique(codes)) > 1:
            places, codes = np.unique(codes, return_inverse=True)
            bounds = ["", *(f"{edge:.4g}" for edge in edges), ""]
            names = tuple(f"below {bounds[k + 1]}" if not bounds[k] else f"from {bounds[k]}" for k in places.tolist())
            return Coded(rows, codes.astype(np.int64), names, numbers)
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in known]
    counts = Counter(texts)
    several = Counter(text for text, _ in {*zip(texts, groups[rows].tolist(), strict=True)})
    common = [
        text for text, number in counts.most_common(MOST_VALUES) if number >= RARE_ROWS and several[text] >= RARE_GROUPS
    ]
    texts = [text if text in common else OTHER for text in texts]
    rare = [row for row, text in zip(rows.tolist(), texts, strict=True) if text == OTHER]
    if len(rare) < RARE_ROWS or len(np.unique(groups[rare])) < RARE_GROUPS:
        kept = [place for place, text in enumerate(texts) if text != OTHER]
        rows, texts = rows[kept], [texts[place] for place in kept]
    unique, codes = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    found = Coded(rows, codes.astype(np.int64), tuple(unique.tolist()))
    if len(counts) == 1:
        return Coded(rows, nothing, (), reason=f"all images have the value {next(iter(counts))}")
    if len(unique) < 2:
        cause = (
            "each value lies in a single group, so no unseen group can be asked"
            if not common
            else ("all but a few images have one value")
        )
        return Coded(rows, nothing, (), reason=cause)
    return found


def _known(value: Value) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and not np.isfinite(value))


class Check:
    """Measures columns against the vectors and, where there are any, the labels."""

    def __init__(
        self,
        vectors: NDArray[Any],
        groups: Sequence[str],
        *,
        labels: Sequence[Value] | None = None,
        seed: int = 0,
    ) -> None:
        """Draw the images that are measured.

        Args:
            vectors: (n, dim), of one encoder.
            groups: patient, slide or field of each, (n,).
            labels: class names or numbers, (n,), None where there is none.
            seed: of folds, permutations and intervals.
        """
        codes = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)[1]
        self._rows = _sampled(codes, seed)
        self._seed = seed
        self._vectors = np.asarray(vectors)[self._rows].astype(np.float64)
        self._groups = np.unique(codes[self._rows], return_inverse=True)[1].astype(np.int64)
        self._labels = None if labels is None else [labels[row] for row in self._rows]

    @cached_property
    def label(self) -> Coded | None:
        """The labels, coded; None where there are none."""
        return None if self._labels is None else code(self._labels, self._groups, few=2)

    @cached_property
    def label_prediction(self) -> Prediction | None:
        """How well the vectors predict the labels; None where nothing can be measured."""
        return None if self.label is None or self.label.reason else self._predict(self.label, permuted=19)

    def columns(self, columns: Mapping[str, Sequence[Value]], *, progress: Progress | None = None) -> list[Finding]:
        """Judge each column, (n,) values by name; the most serious come first."""
        found = []
        with blas_threads(self._vectors.size):
            for done, (name, values) in enumerate(columns.items()):
                if progress is not None:
                    progress(done, len(columns))
                found.append(self._judge(name, [values[row] for row in self._rows], len(columns)))
        order: tuple[State, ...] = ("confounded", "tied", "encoded", "clear", "unknown")
        return sorted(found, key=lambda one: (order.index(one.state), -_score(one)))

    def _judge(self, name: str, values: Sequence[Value], columns: int) -> Finding:
        coded = code(values, self._groups)
        facts: dict[str, Any] = {
            "column": name,
            "images": len(coded.rows),
            "groups": len(np.unique(self._groups[coded.rows])),
            "values": dict(zip(coded.names, np.bincount(coded.codes).tolist(), strict=True)),
        }
        prediction = None if coded.reason else self._predict(coded, permuted=PERMUTED_PROBES)
        if prediction is None:
            reason = coded.reason or "too few groups have each value"
            return Finding(**facts, state="unknown", reason=reason)
        association = self._associate(coded)
        sees = prediction.is_relevant and prediction.p <= max(LEVEL / columns, 1 / (1 + PERMUTED_PROBES))
        is_tied = (
            association is not None
            and association.v >= STRONG
            and association.p <= max(LEVEL / columns, 1 / (1 + PERMUTED_TABLES))
        )
        state: State = "confounded" if sees and is_tied else "encoded" if sees else "tied" if is_tied else "clear"
        index, k = self._robustness(coded)
        return Finding(
            **facts, state=state, prediction=prediction, association=association, robustness=index, neighbours=k
        )

    # --- prediction -------------------------------------------------------------------------------------------------

    def _predict(self, coded: Coded, *, permuted: int) -> Prediction | None:
        """Score a ridge on unseen groups; None where the groups allow no folds."""
        vectors, groups = self._vectors[coded.rows], np.unique(self._groups[coded.rows], return_inverse=True)[1]
        folds = group_folds(coded.codes, groups.astype(np.int64), folds=FOLDS, seed=self._seed)
        if folds is None:
            return None
        rng = np.random.default_rng([self._seed, 7])
        truth = coded.codes if coded.numbers is None else coded.numbers
        kept = _units(groups, truth)
        drawn = [truth, *(_shuffled(truth, kept, rng) for _ in range(permuted))]
        if coded.numbers is None:
            classes = len(coded.names)
            targets = np.concatenate([np.eye(classes)[one] for one in drawn], axis=1)
            outputs = ridge_outputs(vectors, targets, folds)  # (strengths, n, draws * classes)
            areas = np.stack([_areas(one, targets).reshape(-1, classes).mean(1) for one in outputs])
            best = int(areas[:, 0].argmax())
            mine = outputs[best][:, :classes]
            statistic: Statistic = macro([roc_area(truth == k, mine[:, k]) for k in range(classes)])
            prior = np.bincount(truth, minlength=classes) / len(truth)
            shown = {
                "auroc": float(areas[best, 0]),
                "balanced_accuracy": float(balanced_accuracy_score(truth, (mine / prior).argmax(1))),
            }
            scores, parts = areas.max(0), classes
        else:
            ranked = np.stack([rankdata(one) for one in drawn], axis=1)
            outputs = ridge_outputs(vectors, ranked, folds)
            found = np.stack([_correlations(rankdata(one, axis=0), ranked) for one in outputs])
            best = int(found[:, 0].argmax())
            statistic, parts = spearman(truth, outputs[best][:, 0]), 1
            # R2 of the ranks: the ridge learns them, so that a few extreme values do not decide
            shown = {"spearman": float(found[best, 0]), "r2": float(r2_score(ranked[:, 0], outputs[best][:, 0]))}
            scores = found.max(0)
        interval = cluster_interval(statistic, groups.astype(np.int64), seed=self._seed, parts=parts)
        return Prediction(
            **shown,
            interval=None if interval is None else (interval[0], interval[1]),
            chance=float(scores[1:].mean()),
            p=float((1 + (scores[1:] >= scores[0]).sum()) / len(scores)),
        )

    # --- association ------------------------------------------------------------------------------------------------

    def _associate(self, coded: Coded) -> Association | None:
        label = self.label
        if label is None or label.reason:
            return None
        both, mine, theirs = np.intersect1d(coded.rows, label.rows, return_indices=True)
        values, labels = coded.codes[mine], label.codes[theirs]
        if len(both) < FEWEST or len(np.unique(values)) < 2 or len(np.unique(labels)) < 2:
            return None
        groups = np.unique(self._groups[both], return_inverse=True)[1]
        weights = (1 / np.bincount(groups))[groups]  # each group counts once, however many images it has
        rng = np.random.default_rng([self._seed, 8])
        kept = _units(groups, values)
        shape = (len(label.names), len(coded.names))
        ties = label_ties(labels, values, weights, shape)
        v = float(ties.max())
        drawn = (_shuffled(values, kept, rng) for _ in range(PERMUTED_TABLES))
        reached = sum(float(label_ties(labels, one, weights, shape).max()) >= v for one in drawn)
        table = np.bincount(labels * shape[1] + values, minlength=shape[0] * shape[1]).reshape(shape)
        rest = table.sum(0) - table
        inside = table / np.maximum(table.sum(1, keepdims=True), 1)
        outside = rest / np.maximum(rest.sum(1, keepdims=True), 1)
        # Of two labels both are tied alike; the pair that a person sees at once is the most frequent one.
        apart = np.where((ties >= 0.9 * v)[:, None], inside - outside, -np.inf)
        k, value = np.unravel_index(np.argmax(apart), shape)
        return Association(
            v=v,
            p=(1 + reached) / (1 + PERMUTED_TABLES),
            label=label.names[k],
            value=coded.names[value],
            share=float(inside[k, value]),
            share_elsewhere=float(outside[k, value]),
        )

    def _robustness(self, coded: Coded) -> tuple[float | None, int | None]:
        label = self.label
        if label is None or label.reason or label.numbers is not None or coded.numbers is not None:
            return None, None
        both, mine, theirs = np.intersect1d(coded.rows, label.rows, return_indices=True)
        return robustness_index(self._vectors[both], label.codes[theirs], coded.codes[mine], self._groups[both])


def _score(one: Finding) -> float:
    return one.prediction.score if one.prediction is not None else 0.0


def _sampled(groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Rows of whole groups, drawn until `SAMPLE` is reached."""
    if len(groups) <= SAMPLE:
        return np.arange(len(groups))
    order = np.random.default_rng([seed, 6]).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[order]
    chosen = order[: max(2, int(np.searchsorted(np.cumsum(sizes), SAMPLE, side="right")))]
    return np.flatnonzero(np.isin(groups, chosen))


def _units(groups: NDArray[Any], values: NDArray[Any]) -> NDArray[np.int64]:
    """What a permutation keeps together: images of one group with one value, so a patient's scanner moves as one."""
    return np.unique(np.stack([groups.astype(np.float64), values.astype(np.float64)]), axis=1, return_inverse=True)[
        1
    ].reshape(-1)


def _shuffled(values: NDArray[Any], units: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    first = np.zeros(int(units.max()) + 1, dtype=values.dtype)
    first[units] = values
    return rng.permutation(first)[units]  # type: ignore[no-any-return]


def ridge_outputs(vectors: NDArray[np.float64], targets: NDArray[np.float64], folds: Folds) -> NDArray[np.float64]:
    """Out-of-fold outputs of ridge regressions, (strengths, n, targets).

    One eigendecomposition a fold serves all targets and strengths, so that 200 permuted columns cost little more than
    the real one; 200 logistic regressions would take minutes. vectors: (n, dim). targets: (n, targets).
    """
    outputs = np.empty((len(STRENGTHS), *targets.shape))
    for number in range(folds.count):
        inside = folds.fold == number
        mean, scale = vectors[~inside].mean(0), vectors[~inside].std(0)
        scale[scale <= 1e-12] = 1.0
        train, test = (vectors[~inside] - mean) / scale, (vectors[inside] - mean) / scale
        centre = targets[~inside].mean(0)
        values, basis = np.linalg.eigh(train.T @ train)
        values = np.maximum(values, 0)
        projected, learnt = test @ basis, basis.T @ (train.T @ (targets[~inside] - centre))
        for place, strength in enumerate(STRENGTHS):
            shrunk = learnt / (values + strength * max(values.mean(), 1e-12))[:, None]
            outputs[place, inside] = projected @ shrunk + centre
    return outputs


def _areas(outputs: NDArray[np.float64], marks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each column (Mann and Whitney 1947). outputs, marks: (n, columns) -> (columns,)."""
    ranks = rankdata(outputs, axis=0)
    present = marks.sum(0)
    absent = len(marks) - present
    won = (ranks * marks).sum(0) - present * (present + 1) / 2
    return np.asarray(np.where(present * absent > 0, won / np.maximum(present * absent, 1), 0.5))


def _correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's coefficient of each pair of columns, (n, columns) each -> (columns,); 0 where one is constant."""
    a, b = one - one.mean(0), other - other.mean(0)
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.asarray((a * b).sum(0) / np.where(spread > 0, spread, np.inf))


def label_ties(
    labels: NDArray[np.int64], values: NDArray[np.int64], weights: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return, for each label against all others, the bias-corrected Cramer's V with a column, (labels,).

    One label of four that has a scanner of its own hardly shows in the V of the whole table. labels, values: codes
    (n,), `shape` how many there are of each. Each image counts by its weight (n,).
    """
    table = np.bincount(labels * shape[1] + values, weights, minlength=shape[0] * shape[1]).reshape(shape)
    return np.array([cramers_v(np.stack([row, table.sum(0) - row])) for row in table])


def cramers_v(table: NDArray[np.float64]) -> float:
    """Return the bias-corrected Cramer's V of a contingency table.

    Bergsma, "A bias-correction for Cramer's V and Tschuprow's T", Journal of the Korean Statistical Society 42 (2013).
    """
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    total = table.sum()
    r, k = table.shape
    if min(r, k) < 2 or total <= 2:
        return 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / total
    phi2 = float(((table - expected) ** 2 / expected).sum() / total)
    phi2 = max(0.0, phi2 - (r - 1) * (k - 1) / (total - 1))
    least = min(r - (r - 1) ** 2 / (total - 1), k - (k - 1) ** 2 / (total - 1)) - 1
    return float(min(1.0, np.sqrt(phi2 / least))) if least > 0 else 0.0


def robustness_index(
    vectors: NDArray[Any], labels: NDArray[np.int64], values: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[float | None, int | None]:
    """Return the Robustness Index of PathoROB (arXiv 2507.17845), and the number of neighbours k that it was taken at.

    Among the k nearest neighbours (cosine) of all images, SO have the same label and another value of the column, OS
    another label and the same value: the index is SO / (SO + OS). 1: neighbours share what matters; 0: they share the
    scanner. k is the one that predicts the labels best. Images of the own group are no neighbours. All are (n,) codes.
    None where there are no such pairs.
    """
    most = min(NEIGHBOURS[-1], len(vectors) - int(np.bincount(groups).max()))
    steps = [k for k in NEIGHBOURS if k <= most]
    if not steps:
        return None, None
    indices, _ = nearest_elsewhere(normalise(vectors), groups, steps[-1])
    classes = int(labels.max()) + 1
    prior = np.bincount(labels, minlength=classes) / len(labels)
    votes = np.zeros((len(labels), classes))
    accuracy, done = {}, 0
    for k in steps:
        for column in range(done, k):
            votes[np.arange(len(labels)), labels[indices[:, column]]] += 1
        done = k
        accuracy[k] = balanced_accuracy_score(labels, (votes / np.where(prior > 0, prior, 1)).argmax(1))
    best = max(steps, key=lambda k: accuracy[k])
    near = indices[:, :best]
    same_label, same_value = labels[near] == labels[:, None], values[near] == values[:, None]
    good, bad = int((same_label & ~same_value).sum()), int((~same_label & same_value).sum())
    return (good / (good + bad), best) if good + bad else (None, best)


def unseen_groups(groups: Sequence[str], values: Sequence[Value]) -> list[str]:
    """Return groups that keep each value of a column, and each group, on one side of every split, (n,).

    With these as groups, the scores of `fit_probe` are those of sites that the probe has never seen. An image without
    a value keeps its own group.
    """
    first = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    second = {name: place for place, name in enumerate(dict.fromkeys(v for v in values if _known(v)), len(first))}
    pairs = [(first[g], second[v] if _known(v) else first[g]) for g, v in zip(groups, values, strict=True)]
    size = len(first) + len(second)
    rows, columns = np.array(pairs).T
    parts = connected_components(
        coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(size, size)), directed=False
    )[1]
    return [str(parts[row]) for row in rows]


def acquisition_columns(columns: Mapping[str, Sequence[Value]]) -> dict[str, Sequence[Value]]:
    """Those columns whose name says that they tell how an image was made."""
    return {name: values for name, values in columns.items() if name.strip().lower() in COLUMNS}


def warnings_of(findings: Sequence[Finding]) -> list[str]:
    """The sentences that a probe's user must hear."""
    return [one.sentence for one in findings if one.state == "confounded"]
