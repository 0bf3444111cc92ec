"""Quality at 10, 50 and all labels per class: the protocol by which encoders are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from data_adapters.errors import UserError
from lejepa_med.probes.classification import choose_strength
from lejepa_med.probes.cross_validation import group_folds
from lejepa_med.probes.examples import Examples, check_examples, check_vectors
from lejepa_med.probes.linear import MIDDLE, blas_threads, fit_path
from lejepa_med.probes.neighbours import Neighbours

FOLDS = 5


@dataclass(frozen=True)
class FewShotResult:
    """Balanced accuracy on the test part at `shots` labels per class (None: all of them), one value a draw."""

    shots: int | None
    linear: tuple[float, ...]
    knn: tuple[float, ...]
    strengths: tuple[float, ...]
    """The C that cross-validation over groups chose in each draw."""
    hits: NDArray[np.bool_] = field(compare=False)
    """Whether the linear probe is right, (draws, test items)."""

    @property
    def linear_mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.linear))

    @property
    def linear_std(self) -> float:
        """Sample standard deviation over the draws; 0 for a single one."""
        return float(np.std(self.linear, ddof=1)) if len(self.linear) > 1 else 0.0

    @property
    def knn_mean(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.knn))

    @property
    def knn_std(self) -> float:
        """Sample standard deviation over the draws; 0 for a single one."""
        return float(np.std(self.knn, ddof=1)) if len(self.knn) > 1 else 0.0


def fewshot(
    train_vectors: NDArray[Any],
    train_labels: Sequence[str],
    train_groups: Sequence[str],
    test_vectors: NDArray[Any],
    test_labels: Sequence[str],
    *,
    shots: Sequence[int | None] = (10, 50, None),
    draws: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[FewShotResult]:
    """Logistic regression and 20-NN (cosine) learnt from a few labels, scored on a test part of other groups.

    Each draw takes `shots` examples of every class at random (the same ones for a seed, whatever the encoder), chooses
    C by cross-validation over groups among them (0.1 where too few groups allow none), and fits on all of them. All
    labels (`None`) are one draw. With fewer than 20 examples in all, every one of them votes. vectors: (n, dim),
    labels and groups: (n,). `progress` is told the number of draws that are done.

    Raises:
        UserError: bad vectors or labels, a class with fewer than `shots` examples, or test classes not in training.
    """
    examples = check_examples(train_vectors, train_labels, train_groups)
    test = check_vectors(test_vectors, dim=examples.vectors.shape[1])
    truth = _codes(test_labels, examples.classes, len(test))
    members = [np.flatnonzero(examples.labels == k) for k in range(len(examples.classes))]
    results = []
    done = 0
    for wanted in shots:
        _check_shots(wanted, examples.counts)
        rows: list[tuple[float, float, float, NDArray[np.bool_]]] = []
        for draw in range(1 if wanted is None else draws):
            rows.append(_one(examples, drawn(members, wanted, seed=seed, draw=draw), test, truth, seed + draw))
            done += 1
            progress(done)
        linear, knn, strengths, hits = zip(*rows, strict=True)
        results.append(FewShotResult(shots=wanted, linear=linear, knn=knn, strengths=strengths, hits=np.stack(hits)))
    return results


def drawn(members: Sequence[NDArray[np.int64]], shots: int | None, *, seed: int, draw: int) -> NDArray[np.int64]:
    """The rows that one draw takes, `shots` of the `members` of each class (None: all), in order."""
    rng = np.random.default_rng([seed, draw, shots or 0])
    taken = [m if shots is None else rng.choice(m, shots, replace=False) for m in members]
    return np.sort(np.concatenate(taken))


def _one(
    examples: Examples, chosen: NDArray[np.int64], test: NDArray[np.float32], truth: NDArray[np.int64], seed: int
) -> tuple[float, float, float, NDArray[np.bool_]]:
    """Balanced accuracy of the linear probe and of k-NN learnt from the chosen rows, the C, and the probe's hits."""
    vectors, labels = examples.vectors[chosen], examples.labels[chosen]
    groups = np.unique(examples.groups[chosen], return_inverse=True)[1]
    with blas_threads(vectors.size):
        split = group_folds(labels, groups, folds=FOLDS, seed=seed)
        strength = choose_strength(vectors, labels, split) if split is not None else MIDDLE
        model = fit_path(vectors, labels, strengths=[strength], final=True)[0]
    knn = Neighbours.fit(vectors, labels, balanced=False)
    predicted = model.probabilities(test).argmax(1)
    linear, voted = (float(balanced_accuracy_score(truth, one)) for one in (predicted, knn.vote(test).winners))
    return linear, voted, strength, predicted == truth


def _codes(labels: Sequence[str], classes: tuple[str, ...], rows: int) -> NDArray[np.int64]:
    if len(labels) != rows:
        raise UserError(f"There are {rows} test vectors and {len(labels)} test labels.", remedy="Give one each.")
    code = {name: k for k, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels} - code.keys())
    if unknown:
        raise UserError(
            f"Test labels that do not occur in training: {', '.join(unknown[:5])}.",
            remedy="Leave those images out, or add examples of the class to the training part.",
        )
    return np.array([code[label] for label in labels], dtype=np.int64)


def _check_shots(wanted: int | None, counts: dict[str, int]) -> None:
    short = [f"'{name}' has {n}" for name, n in counts.items() if wanted is not None and n < wanted]
    if short or (wanted is not None and wanted < 1):
        raise UserError(
            f"{wanted} labels per class cannot be drawn: {', '.join(short) or 'a class needs one'}.",
            remedy="Leave that number out of `shots`.",
        )
