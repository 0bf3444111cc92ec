"""Quality from a few labels to all of them: the protocol by which encoders are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.probes.examples import check_examples, check_rows, check_vectors
from lejepa_med.probes.linear import blas_threads
from lejepa_med.probes.neighbours import MOST, normalise, top_cosine
from lejepa_med.probes.target import Answers, ClassTarget, Target

LINEAR, MAJORITY, WEIGHTED = "linear", "knn", "weighted"
TEMPERATURE = 0.07  # of the weighted neighbours, exp(cosine / T): DINO's (arXiv 2104.14294, appendix F)


@dataclass(frozen=True)
class FewShotResult:
    """Headline scores (balanced accuracy of classes) on the test part at `shots` labels (None: all), a value a draw."""

    shots: int | None
    linear: tuple[float, ...]
    knn: tuple[float, ...]
    strengths: tuple[float, ...]
    """The C (penalty of numbers) that cross-validation over groups chose in each draw."""
    answers: dict[str, Answers] = field(compare=False)
    """Of `linear`, `knn` and `weighted`: (draws, test items, ...), as the target describes them."""

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
    """`learn_few` of classes, whose labels are given as texts.

    Raises:
        UserError: bad vectors or labels, a class with fewer than `shots` examples, or test classes not in training.
    """
    examples = check_examples(train_vectors, train_labels, train_groups)
    if len(test_labels) != len(test_vectors):
        raise UserError(
            f"There are {len(test_vectors)} test vectors and {len(test_labels)} test labels.", remedy="Give one each."
        )
    for wanted in shots:
        _check_shots(wanted, examples.counts)
    target = ClassTarget(train_labels, test_labels)
    given: dict[str, Any] = {"shots": shots, "draws": draws, "seed": seed, "progress": progress}
    return learn_few(target, train_vectors, train_groups, test_vectors, **given)


def learn_few(
    target: Target,
    train_vectors: NDArray[Any],
    train_groups: Sequence[str],
    test_vectors: NDArray[Any],
    *,
    shots: Sequence[int | None],
    draws: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[FewShotResult]:
    """A linear probe and 20-NN (cosine) learnt from a few labels, asked about a test part of other groups.

    Each draw takes `shots` examples of every class (of numbers, and of several labels an image, so many images in all)
    at random, the same ones for a seed, whatever the encoder. It chooses the regularisation by cross-validation over
    groups among them (the middle one where too few groups allow none), and fits on all of them. All labels (`None`) are
    one draw. With fewer than 20 examples in all, every one of them votes: alike (`knn`, a tie goes to the nearer ones)
    and by exp(cosine / 0.07) (`weighted`). vectors: (n, dim), groups: (n,). `progress` is told the number of draws that
    are done.

    Raises:
        UserError: bad vectors or groups.
    """
    rows = check_rows(train_vectors, list(target.matrix), train_groups)
    test = check_vectors(test_vectors, dim=rows.vectors.shape[1])
    unit, asked = normalise(rows.vectors), normalise(test)
    results = []
    done = 0
    for wanted in shots:
        found: dict[str, list[Answers]] = {LINEAR: [], MAJORITY: [], WEIGHTED: []}
        strengths = []
        for draw in range(1 if wanted is None else draws):
            chosen = target.drawn(wanted, seed=seed, draw=draw)
            with blas_threads(rows.vectors[chosen].size):
                answers, strength = target.fit(rows.vectors, chosen, rows.groups, test, seed + draw)
            found[LINEAR].append(answers)
            strengths.append(strength)
            near, cosines = top_cosine(asked, unit[chosen], min(MOST, len(chosen)))
            found[MAJORITY].append(target.neighbours(chosen, near, 1 + 1e-6 * cosines.astype(np.float64)))
            weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / TEMPERATURE)
            found[WEIGHTED].append(target.neighbours(chosen, near, weights))
            done += 1
            progress(done)
        linear, knn = (tuple(headline(target, one) for one in found[name]) for name in (LINEAR, MAJORITY))
        stacked = {name: np.stack(answers) for name, answers in found.items()}
        results.append(FewShotResult(wanted, linear, knn, tuple(strengths), stacked))
    return results


def headline(target: Target, answers: Answers) -> float:
    """The headline score of one draw's answers; NaN where it is undefined."""
    found = target.scores(answers)[target.metric]
    return float("nan") if found is None else found


def _check_shots(wanted: int | None, counts: dict[str, int]) -> None:
    short = [f"'{name}' has {n}" for name, n in counts.items() if wanted is not None and n < wanted]
    if short or (wanted is not None and wanted < 1):
        raise UserError(
            f"{wanted} labels per class cannot be drawn: {', '.join(short) or 'a class needs one'}.",
            remedy="Leave that number out of `shots`.",
        )
