"""A probe: what a handful of labels teaches about the vectors of a frozen encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.evaluation.classification import ClassHead
from lejepa_med.evaluation.examples import Labelled, check_vectors
from lejepa_med.evaluation.kinds import Head, Kind
from lejepa_med.evaluation.knn import normalise, top_cosine
from lejepa_med.evaluation.multilabel import MarkHead
from lejepa_med.evaluation.novelty import Novelty
from lejepa_med.evaluation.probe_files import TRAIN_AGAIN, read_folder, write_folder
from lejepa_med.evaluation.regression import NumberHead
from lejepa_med.evaluation.seen import Memory, Seen, seen_counts, seen_remarks

Label = str | float | Sequence[str]
"""A class, a quantity, or the labels of one image."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's answer; fields of other kinds of probes are None.

    Attributes:
        seen: whether the probe learnt from this image (record), or from others of its group. If so, every field comes
            from the part of the cross-validation that has seen neither, as the probe's scores do.
        in_sample: no such part exists, so this is no answer to a new image and must not be scored.
        nearest_cosine: similarity of the nearest labelled image.
        novelty: 0 .. 1, how unlike the labelled images it is (`Novelty.of`).
        uncertainty: 0 .. 1, how much its label would teach (`Head.uncertainty`).
        note: empty unless the image is unlike the labelled ones.
        label, knn_label: classification; of the logistic regression, and of the nearest labelled images.
        probabilities: classification and multilabel; calibrated, by class.
        labels, knn_labels: multilabel; the labels whose chance reaches their threshold.
        value, knn_value: regression; of the ridge, and the mean of the nearest labelled images.
        interval: regression; holds the true value of 90 % of the images, None where labels are too few.
    """

    seen: Seen
    in_sample: bool
    nearest_cosine: float
    novelty: float
    uncertainty: float
    note: str = ""
    label: str | None = None
    knn_label: str | None = None
    probabilities: dict[str, float] | None = None
    labels: tuple[str, ...] | None = None
    knn_labels: tuple[str, ...] | None = None
    value: float | None = None
    knn_value: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What each fold's examples and groups are answered with: learnt from the other folds alone, as the scores were.

    fold: (n,) of each example. heads, novelty: one a fold.
    """

    fold: NDArray[np.int64]
    heads: tuple[Head, ...]
    novelty: tuple[Novelty, ...]


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained probe. Make one with `fit_probe` or `Probe.load`."""

    head: Head
    encoder: str
    """Fingerprint of the encoder whose vectors it reads."""
    metrics: dict[str, Any]
    """JSON: counts, cross-validated scores of `linear` and `knn` (null where impossible), split receipt, warnings."""
    examples: Labelled
    novelty: Novelty
    held_out: HeldOut | None = None
    """None where no folds were possible, and in probes that were saved before folds were kept."""

    @property
    def kind(self) -> Kind:
        """classification, multilabel or regression."""
        return self.head.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes or labels in the order of probabilities; none of a quantity."""
        return self.head.classes

    @property
    def dim(self) -> int:
        """Length of the vectors that it reads."""
        return int(self.examples.vectors.shape[1])

    @cached_property
    def references(self) -> NDArray[np.float32]:
        """The labelled vectors at unit length, (n, dim)."""
        return normalise(self.examples.vectors)

    @cached_property
    def memory(self) -> Memory:
        """Finds images among the examples."""
        return Memory(self.examples, None if self.held_out is None else self.held_out.fold)

    def predict(
        self, vectors: NDArray[Any], *, ids: Sequence[str] | None = None, groups: Sequence[str] | None = None
    ) -> list[Prediction]:
        """One prediction for each row of vectors (n, dim).

        An image that the probe learnt from, or another one of its group, is answered by the part of the
        cross-validation that has seen neither; so are all fields of its prediction. Images are found again by their
        vectors, and by ids and groups, (n,) each, where they are given: those of an embedding table.

        Raises:
            UserError: wrong dimension, NaN or infinite values.
        """
        table = check_vectors(vectors, dim=self.dim)
        unit = normalise(table)
        indices, cosines = top_cosine(unit, self.references, self.head.k)
        places = self.memory.places(table, indices[:, 0], ids, groups)
        found: dict[int, Prediction] = {}
        for fold in np.unique(places.fold).tolist():
            rows = np.flatnonzero(places.fold == fold)
            head, novelty, near = self.head, self.novelty, (indices[rows], cosines[rows])
            if fold >= 0:
                assert self.held_out is not None
                head, novelty = self.held_out.heads[fold], self.held_out.novelty[fold]
                near = top_cosine(unit[rows], self.references, head.k, barred=self.held_out.fold == fold)
            nearest = near[1][:, 0]
            for row, answer, cosine, score, doubt in zip(
                rows.tolist(),
                head.answers(table[rows], *near),
                nearest.tolist(),
                novelty.of(nearest).tolist(),
                head.uncertainty(table[rows]).tolist(),
                strict=True,
            ):
                found[row] = Prediction(
                    **answer,
                    seen=places.seen[row],
                    in_sample=bool(places.in_sample[row]),
                    nearest_cosine=cosine,
                    novelty=score,
                    uncertainty=doubt,
                    note=novelty.note(cosine, score),
                )
        return [found[row] for row in range(len(table))]

    def uncertainty(
        self, vectors: NDArray[Any], *, ids: Sequence[str] | None = None, groups: Sequence[str] | None = None
    ) -> NDArray[np.float64]:
        """That of `predict`, (n,), without the rest; images are found again by ids and groups alone."""
        table = check_vectors(vectors, dim=self.dim)
        fold = self.memory.places(table, None, ids, groups).fold
        found = np.empty(len(table))
        for number in np.unique(fold).tolist():
            head = self.head if self.held_out is None or number < 0 else self.held_out.heads[number]
            found[fold == number] = head.uncertainty(table[fold == number])
        return found

    def remarks(self, predictions: Sequence[Prediction] | Mapping[str, int]) -> list[str]:
        """What of predictions, or of their `seen_counts`, is not the answer to new images, in sentences."""
        counts = predictions
        if not isinstance(counts, Mapping):
            counts = seen_counts([one.seen for one in counts], [one.in_sample for one in counts])
        return seen_remarks(counts, folds=self.metrics.get("folds", 0), kept=self.held_out is not None)

    def save(self, folder: Path) -> None:
        """Write probe.json and probe.safetensors, atomically; a probe that stands there is replaced.

        Raises:
            UserError: `folder` exists and is not a probe.
        """
        document: dict[str, Any] = {
            "kind": self.kind,
            "encoder": self.encoder,
            "head": self.head.document(),
            "metrics": self.metrics,
            "examples": {
                "ids": list(self.examples.ids),
                "labels": [list(v) if isinstance(v, tuple) else v for v in self.examples.labels],
                "groups": list(self.examples.groups),
                "table_groups": list(self.examples.table_groups),
                "relatives": dict(self.examples.relatives),
            },
        }
        arrays = {
            "vectors": self.examples.vectors,
            "novelty": self.novelty.cosines,
            **{f"head.{name}": values for name, values in self.head.arrays().items()},
        }
        if self.held_out is not None:
            document["held_out"] = [head.document() for head in self.held_out.heads]
            arrays["fold"] = self.held_out.fold
            for number, (head, novelty) in enumerate(zip(self.held_out.heads, self.held_out.novelty, strict=True)):
                arrays[f"fold{number}.novelty"] = novelty.cosines
                arrays |= {f"fold{number}.{name}": values for name, values in head.arrays().items()}
        write_folder(Path(folder), document, arrays)

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """The probe that `save` wrote; its predictions are the same bit for bit.

        Raises:
            UserError: no probe there, of another format, or damaged.
        """
        document, arrays = read_folder(Path(folder))
        try:
            given = document["examples"]
            labels = tuple(tuple(v) if isinstance(v, list) else v for v in given["labels"])
            examples = Labelled(
                ids=tuple(given["ids"]),
                vectors=arrays["vectors"],
                labels=labels,
                groups=tuple(given["groups"]),
                table_groups=tuple(given.get("table_groups", ())),
                relatives=given.get("relatives", {}),
            )
            restore = partial(_restore, document["kind"], arrays, examples, normalise(examples.vectors))
            held_out = None
            if "held_out" in document:
                fold, heads = arrays["fold"], document["held_out"]
                held_out = HeldOut(
                    fold=fold,
                    heads=tuple(restore(f"fold{k}.", head, fold != k) for k, head in enumerate(heads)),
                    novelty=tuple(Novelty(arrays[f"fold{k}.novelty"]) for k in range(len(heads))),
                )
            return cls(
                head=restore("head.", document["head"]),
                encoder=document["encoder"],
                metrics=document["metrics"],
                examples=examples,
                novelty=Novelty(arrays["novelty"]),
                held_out=held_out,
            )
        except KeyError as error:
            raise UserError(f"The probe in {folder} lacks {error}.", remedy=TRAIN_AGAIN) from error


def _restore(
    kind: Kind,
    arrays: Mapping[str, NDArray[Any]],
    examples: Labelled,
    unit: NDArray[np.float32],
    prefix: str,
    document: dict[str, Any],
    rows: NDArray[np.bool_] | None = None,
) -> Head:
    """A head of the arrays whose names begin with `prefix`, learnt from the examples that the mask `rows` picks."""
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if kind == "classification":
        return ClassHead.restore(document, own, examples.labels, unit)
    if kind == "multilabel":
        return MarkHead.restore(document, own, examples.labels)
    return NumberHead.restore(document, own, examples.labels, examples.vectors, rows)
