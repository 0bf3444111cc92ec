"""A probe: what a handful of labels teaches about the vectors of a frozen encoder."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.evaluation.crossval import MIDDLE, Folds, cross_validate, group_folds
from lejepa_med.evaluation.examples import Examples, check_examples, check_vectors
from lejepa_med.evaluation.knn import Neighbours, Votes
from lejepa_med.evaluation.linear import LinearModel, fit_path, quiet_threads
from lejepa_med.evaluation.probe_files import TRAIN_AGAIN, read_folder, write_folder
from lejepa_med.evaluation.scores import summary

UNUSUAL = 0.01  # share of the labelled images that lie as far from the others as a query that gets a note
SEARCH_SHARE = 0.9  # of the work, for the progress bar


@dataclass(frozen=True)
class Prediction:
    """One image's answer.

    `probabilities` (by class) are the linear probe's, `knn_label` the vote of the nearest labelled images,
    `nearest_cosine` the similarity of the nearest one. `note` is empty unless the image is unlike the labelled ones.
    """

    label: str
    probabilities: dict[str, float]
    knn_label: str
    nearest_cosine: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained probe. Make one with `fit_probe` or `Probe.load`."""

    classes: tuple[str, ...]
    dim: int
    encoder: str
    """Fingerprint of the encoder whose vectors it reads."""
    metrics: dict[str, Any]
    """JSON: counts, cross-validated scores of `linear` and `knn` (null where impossible), split receipt, warnings."""
    linear: LinearModel
    neighbours: Neighbours
    novelty: float | None
    """Cosine to the nearest labelled image below which a query is unlike them; None where it cannot be known."""

    def predict(self, vectors: NDArray[Any]) -> list[Prediction]:
        """One prediction for each row of vectors (n, dim).

        Raises:
            UserError: wrong dimension, NaN or infinite values.
        """
        table = check_vectors(vectors, dim=self.dim)
        votes = self.neighbours.vote(table)
        return [
            Prediction(
                label=self.classes[int(row.argmax())],
                probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
                knn_label=self.classes[winner],
                nearest_cosine=nearest,
                note=self._note(nearest),
            )
            for row, winner, nearest in zip(
                self.linear.probabilities(table), votes.winners.tolist(), votes.nearest.tolist(), strict=True
            )
        ]

    def _note(self, nearest: float) -> str:
        if self.novelty is None or nearest >= self.novelty:
            return ""
        return (
            f"Unlike the labelled images: the nearest has cosine {nearest:.3f}, and 99 % of the labelled images "
            f"lie nearer than {self.novelty:.3f} to one of another group. Check this prediction by eye."
        )

    def save(self, folder: Path) -> None:
        """Write probe.json and probe.safetensors, atomically; a probe that stands there is replaced.

        Raises:
            UserError: `folder` exists and is not a probe.
        """
        document = {
            "classes": list(self.classes),
            "dim": self.dim,
            "encoder": self.encoder,
            "k": self.neighbours.k,
            "novelty": self.novelty,
            "metrics": self.metrics,
        }
        arrays = {
            **{field.name: getattr(self.linear, field.name) for field in dataclasses.fields(LinearModel)},
            "references": self.neighbours.references,
            "reference_labels": self.neighbours.labels,
            "vote_weights": self.neighbours.weights,
        }
        write_folder(Path(folder), document, arrays)

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """The probe that `save` wrote; its predictions are the same bit for bit.

        Raises:
            UserError: no probe there, of a later format, or damaged.
        """
        document, arrays = read_folder(Path(folder))
        try:
            return cls(
                classes=tuple(document["classes"]),
                dim=document["dim"],
                encoder=document["encoder"],
                metrics=document["metrics"],
                linear=LinearModel(**{field.name: arrays[field.name] for field in dataclasses.fields(LinearModel)}),
                neighbours=Neighbours(
                    references=arrays["references"],
                    labels=arrays["reference_labels"],
                    weights=arrays["vote_weights"],
                    k=document["k"],
                ),
                novelty=document["novelty"],
            )
        except KeyError as error:
            raise UserError(f"The probe in {folder} lacks {error}.", remedy=TRAIN_AGAIN) from error


def fit_probe(
    vectors: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int = 0,
    folds: int = 5,
    encoder: str = "",
    progress: Callable[[float, str], None] | None = None,
) -> Probe:
    """Logistic regression and k-NN on labelled vectors (n, dim), scored by cross-validation over groups.

    Scores are out-of-fold, with C chosen inside each fold; the probe itself then learns from every example. `folds`
    shrinks to the number of groups of the class that has fewest; below two groups nothing can be scored, and metrics
    say so. `progress` gets (fraction, stage) between fits; an exception that it raises (a cancelled job) passes
    through.

    Raises:
        UserError: NaN, lengths that differ, empty labels or groups, one class only, or a class with one example.
    """
    examples = check_examples(vectors, labels, groups)
    if folds < 2:
        raise UserError(f"Cross-validation with {folds} folds is impossible.", remedy="Use 2 folds or more.")
    tell = progress if progress is not None else _silent
    tell(0.0, "checking the split")
    split = group_folds(examples.labels, examples.groups, folds=folds, seed=seed)
    metrics: dict[str, Any] = {
        "examples": len(examples.labels),
        "groups": len(examples.names),
        "classes": list(examples.classes),
        "counts": examples.counts,
        "groups_per_class": examples.groups_per_class,
        "chance": 1 / len(examples.classes),
        "folds": split.count if split else 0,
        "seed": seed,
        "linear": None,
        "knn": None,
        "split_receipt": split.receipt(examples.names) if split else None,
        "warnings": [*examples.warnings(), *_fold_warnings(examples, split, folds)],
    }
    strength, novelty = MIDDLE, None
    with quiet_threads(examples.vectors.size):
        if split is not None:
            strength, novelty = _score(examples, split, metrics, seed, tell)
        tell(SEARCH_SHARE, "fitting the probe on every label")
        linear = fit_path(examples.vectors, examples.labels, strengths=[strength], final=True)[0]
    neighbours = Neighbours.fit(examples.vectors, examples.labels, balanced=True)
    metrics |= {"C": strength, "k": neighbours.k}
    tell(1.0, "done")
    return Probe(
        classes=examples.classes,
        dim=examples.vectors.shape[1],
        encoder=encoder,
        metrics=metrics,
        linear=linear,
        neighbours=neighbours,
        novelty=novelty,
    )


def _score(
    examples: Examples, split: Folds, metrics: dict[str, Any], seed: int, tell: Callable[[float, str], None]
) -> tuple[float, float]:
    """Fill in the scores of both probes; gives the C for all examples, and the novelty threshold."""
    result = cross_validate(
        examples.vectors, examples.labels, split, progress=lambda done, stage: tell(SEARCH_SHARE * done, stage)
    )
    count = len(examples.classes)
    votes = Votes(np.zeros((len(split.fold), count)), np.zeros_like(split.fold), np.zeros(len(split.fold), np.float32))
    for k in range(split.count):
        inside = split.fold == k
        learnt = Neighbours.fit(examples.vectors[~inside], examples.labels[~inside], balanced=True)
        found = learnt.vote(examples.vectors[inside])
        votes.shares[inside], votes.winners[inside], votes.nearest[inside] = found.shares, found.winners, found.nearest
    for name, predicted, probabilities in (
        ("linear", result.probabilities.argmax(1), result.probabilities),
        ("knn", votes.winners, votes.shares),
    ):
        metrics[name] = summary(
            examples.labels, predicted, probabilities, examples.groups, names=examples.classes, seed=seed
        )
    metrics["linear"]["C_of_folds"] = result.fold_strengths
    return result.strength, float(np.quantile(votes.nearest, UNUSUAL))


def _fold_warnings(examples: Examples, split: Folds | None, folds: int) -> list[str]:
    scarce = min(examples.groups_per_class.items(), key=lambda item: item[1])
    if split is None:
        return [
            f"No cross-validation is possible: '{scarce[0]}' occurs in {scarce[1]} group(s), and a score needs every "
            f"class in two groups that can be kept apart. The probe is fitted with C = {MIDDLE}; its quality "
            "is unknown."
        ]
    found = []
    if split.count < folds:
        found.append(f"{split.count} folds instead of {folds}: '{scarce[0]}' occurs in {scarce[1]} groups only.")
    if split.count == 2:
        found.append(f"Two folds leave no labels to choose C by inside a fold: scores are those of C = {MIDDLE}.")
    return found


def _silent(fraction: float, stage: str) -> None:
    """No progress wanted."""
