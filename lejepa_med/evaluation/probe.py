"""A probe: what a handful of labels teaches about the vectors of a frozen encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.evaluation.classification import ClassHead
from lejepa_med.evaluation.examples import check_vectors
from lejepa_med.evaluation.kinds import Head, Kind
from lejepa_med.evaluation.knn import normalise, top_cosine
from lejepa_med.evaluation.multilabel import MarkHead
from lejepa_med.evaluation.novelty import Novelty
from lejepa_med.evaluation.probe_files import TRAIN_AGAIN, read_folder, write_folder
from lejepa_med.evaluation.regression import NumberHead

Label = str | float | Sequence[str]
"""A class, a quantity, or the labels of one image."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's answer; fields of other kinds of probes are None.

    Attributes:
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
class Labelled:
    """What a probe learnt from, in the order of the rows: ids, vectors (n, dim) float32, labels, groups.

    Labels are texts (classes), numbers, or lists of texts.
    """

    ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    labels: tuple[Any, ...]
    groups: tuple[str, ...]

    def updated(self, newer: "Labelled") -> "Labelled":
        """Both together; where an id occurs in both, the newer label, vector and group hold."""
        known = set(newer.ids)
        kept = [row for row, name in enumerate(self.ids) if name not in known]
        return Labelled(
            ids=(*(self.ids[row] for row in kept), *newer.ids),
            vectors=np.concatenate([self.vectors[kept], newer.vectors]),
            labels=(*(self.labels[row] for row in kept), *newer.labels),
            groups=(*(self.groups[row] for row in kept), *newer.groups),
        )


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

    def predict(self, vectors: NDArray[Any]) -> list[Prediction]:
        """One prediction for each row of vectors (n, dim).

        Raises:
            UserError: wrong dimension, NaN or infinite values.
        """
        table = check_vectors(vectors, dim=self.dim)
        indices, cosines = top_cosine(normalise(table), self.references, self.head.k)
        nearest = cosines[:, 0]
        return [
            Prediction(
                **answer, nearest_cosine=near, novelty=score, uncertainty=doubt, note=self.novelty.note(near, score)
            )
            for answer, near, score, doubt in zip(
                self.head.answers(table, indices, cosines),
                nearest.tolist(),
                self.novelty.of(nearest).tolist(),
                self.head.uncertainty(table).tolist(),
                strict=True,
            )
        ]

    def save(self, folder: Path) -> None:
        """Write probe.json and probe.safetensors, atomically; a probe that stands there is replaced.

        Raises:
            UserError: `folder` exists and is not a probe.
        """
        document = {
            "kind": self.kind,
            "encoder": self.encoder,
            "head": self.head.document(),
            "metrics": self.metrics,
            "examples": {
                "ids": list(self.examples.ids),
                "labels": [list(v) if isinstance(v, tuple) else v for v in self.examples.labels],
                "groups": list(self.examples.groups),
            },
        }
        arrays = {
            "vectors": self.examples.vectors,
            "novelty": self.novelty.cosines,
            **{f"head.{name}": values for name, values in self.head.arrays().items()},
        }
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
            examples = Labelled(tuple(given["ids"]), arrays["vectors"], labels, tuple(given["groups"]))
            own = {name.removeprefix("head."): array for name, array in arrays.items() if name.startswith("head.")}
            return cls(
                head=_restore(document["kind"], document["head"], own, examples),
                encoder=document["encoder"],
                metrics=document["metrics"],
                examples=examples,
                novelty=Novelty(arrays["novelty"]),
            )
        except KeyError as error:
            raise UserError(f"The probe in {folder} lacks {error}.", remedy=TRAIN_AGAIN) from error


def _restore(kind: Kind, document: dict[str, Any], arrays: Mapping[str, NDArray[Any]], examples: Labelled) -> Head:
    own = dict(arrays)
    if kind == "classification":
        return ClassHead.restore(document, own, examples.labels, normalise(examples.vectors))
    if kind == "multilabel":
        return MarkHead.restore(document, own, examples.labels)
    return NumberHead.restore(document, own, examples.labels, examples.vectors)
