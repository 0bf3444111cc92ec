"""A probe: what a handful of labels teaches about the vectors of a frozen encoder. Fit, predict, save and load it.

Its folder holds probe.json (what it is) and probe.safetensors (its numbers). Never pickle.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from data_adapters.atomic import new_folder, recover
from data_adapters.errors import UserError
from lejepa_med.probes.classification import ClassHead, fit_classes
from lejepa_med.probes.confounders import Check, Value, warnings_of
from lejepa_med.probes.cross_validation import Fitted, Head, Options, Progress
from lejepa_med.probes.examples import (
    Kind,
    Label,
    Labelled,
    Rows,
    check_examples,
    check_marks,
    check_numbers,
    check_vectors,
    kind_of,
)
from lejepa_med.probes.linear import blas_threads
from lejepa_med.probes.multilabel import MarkHead, fit_marks
from lejepa_med.probes.neighbours import normalise, top_cosine
from lejepa_med.probes.novelty import Memory, Novelty, Seen, fit_novelty, seen_counts, seen_remarks
from lejepa_med.probes.regression import NumberHead, fit_numbers

FORMAT = 2
DOCUMENT, ARRAYS = "probe.json", "probe.safetensors"
TRAIN_AGAIN = "Train the probe again from its labels (lejepa-med probe, or POST /v1/probes)."
CHECK_SHARE = 0.95  # of the work, for the progress bar, before the check for confounders
POOL = 20  # times as many candidates as are asked for, the most uncertain ones


class OtherFormatError(UserError):
    """The probe was written by another release."""


def write_folder(folder: Path, document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write both files into a folder that is whole or absent (`new_folder`); it replaces a probe that stands there.

    Raises:
        UserError: `folder` exists and is not a probe.
    """
    folder = folder.absolute()
    recover(folder)
    if folder.exists() and not (folder / DOCUMENT).is_file():
        raise UserError(f"{folder} exists and is not a probe.", remedy="Give the name of a new folder.")
    weights = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    document = {"format": FORMAT, **document, "arrays_sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    with new_folder(folder) as draft:
        (draft / ARRAYS).write_bytes(weights)
        (draft / DOCUMENT).write_text(text, encoding="utf-8")


def find_probes(runs: Path) -> list[Path]:
    """Return probe folders at most three levels below `runs`, sorted, without drafts of unfinished probes."""
    found = {file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for file in runs.glob(depth + DOCUMENT)}
    return sorted(
        folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(runs).parts)
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the document and the arrays that `write_folder` wrote.

    Raises:
        OtherFormatError: written by another release.
        UserError: no probe there, or damaged.
    """
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
        weights = (folder / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"There is no probe in {folder} ({Path(error.filename).name} is missing).",
            remedy="Give the folder that 'lejepa-med probe' wrote.",
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / DOCUMENT} is damaged: {error}.", remedy=TRAIN_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise OtherFormatError(
            f"{folder / DOCUMENT} is not in format {FORMAT}, the one this installation reads.",
            remedy="Install the lejepa-med release that wrote it, or train the probe again.",
        )
    if hashlib.sha256(weights).hexdigest() != document.get("arrays_sha256"):
        raise UserError(f"{folder / ARRAYS} does not match its probe.json.", remedy=TRAIN_AGAIN)
    return document, load(weights)


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
    """The heads that answer for each fold's examples and groups, learnt from the other folds alone, as for the scores.

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
        """Class names, in the order of the probabilities; empty for regression."""
        return self.head.classes

    @property
    def dim(self) -> int:
        """Dimension of the vectors that it reads."""
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
        """Predict each row of vectors (n, dim).

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
        """Return the uncertainties of `predict` alone, (n,); images are found again by ids and groups only."""
        table = check_vectors(vectors, dim=self.dim)
        fold = self.memory.places(table, None, ids, groups).fold
        found = np.empty(len(table))
        for number in np.unique(fold).tolist():
            head = self.head if self.held_out is None or number < 0 else self.held_out.heads[number]
            found[fold == number] = head.uncertainty(table[fold == number])
        return found

    def remarks(self, predictions: Sequence[Prediction] | Mapping[str, int]) -> list[str]:
        """Return remarks, as sentences, on predictions (or their `seen_counts`) that are not for new images."""
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
        """Load the probe that `save` wrote; its predictions are the same bit for bit.

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
    """Rebuild a head from the arrays named `prefix`...; it was learnt from the examples that the mask `rows` picks."""
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if kind == "classification":
        return ClassHead.restore(document, own, examples.labels, unit)
    if kind == "multilabel":
        return MarkHead.restore(document, own, examples.labels)
    return NumberHead.restore(document, own, examples.labels, examples.vectors, rows)


def fit_probe(
    vectors: NDArray[Any],
    labels: Sequence[Label],
    groups: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    folds: int = 5,
    balanced: bool | None = None,
    encoder: str = "",
    progress: Progress | None = None,
    table_groups: Sequence[str] = (),
    relatives: Mapping[str, str] | None = None,
    columns: Mapping[str, Sequence[Value]] | None = None,
) -> Probe:
    """Fit a linear probe and k-NN on labelled vectors (n, dim), scored by cross-validation over groups.

    The labels decide the kind: texts are exclusive classes (logistic regression), lists of texts are labels of their
    own (one logistic head each), numbers are a quantity (ridge regression). Scores are out-of-fold, with the
    regularisation chosen inside each fold, and so are calibration, thresholds and intervals; the probe itself then
    learns from every example. `folds` shrinks to what the groups allow; where nothing can be scored, metrics say so.

    Args:
        vectors: of one encoder.
        labels: one a vector.
        groups: patient, slide or sky cell of each.
        ids: names by which `Labelled.updated` knows the examples again; by default the rows' numbers.
        seed: of folds and intervals.
        folds: of the cross-validation.
        balanced: classes weigh equally whatever their counts, so that probabilities are those of a population with
            equal classes. None: so for classes, while labels of their own keep their frequency.
        encoder: fingerprint, kept with the probe.
        progress: gets (fraction, stage) between fits; an exception that it raises (a cancelled job) passes through.
        table_groups: groups of the vectors in their embedding table, where `groups` are other ones. A prediction looks
            for images of both.
        relatives: group by id of images without a label; those in groups of labelled images are kept with the probe.
        columns: how each image was made (scanner, site ...), (n,) by name; `metrics["confounders"]` says what of it the
            vectors give away, and a warning names columns that the labels are confounded with.

    Raises:
        UserError: NaN, lengths that differ, labels of several kinds, empty labels or groups, one class or value only,
            a class with one example, or an id that occurs twice.
    """
    names = tuple(ids) if ids is not None else tuple(map(str, range(len(labels))))
    if len(names) != len(labels) or len(set(names)) != len(names):
        raise UserError("Each example needs an id of its own.", remedy="Label each item once.")
    if folds < 2:
        raise UserError(f"Cross-validation with {folds} folds is impossible.", remedy="Use 2 folds or more.")
    options = Options(seed=seed, folds=folds, balanced=balanced, progress=progress if progress is not None else _silent)
    options.progress(0.0, "checking the split")
    kind = kind_of(labels)
    with blas_threads(np.size(vectors)):
        rows, fitted = _learn(kind, vectors, labels, groups, options)
        split = fitted.split
        novelty, held_out = fit_novelty(normalise(rows.vectors), rows.groups, None if split is None else split.fold)
    metrics = {
        "kind": kind,
        "examples": len(rows.groups),
        "groups": len(rows.names),
        "folds": split.count if split else 0,
        "seed": seed,
        "split_receipt": split.receipt(rows.names) if split else None,
        **fitted.metrics,
    }
    if columns:
        options.progress(CHECK_SHARE, "checking for confounders")
        texts = [";".join(sorted(v)) if kind == "multilabel" else v for v in labels]  # type: ignore[arg-type]
        found = Check(rows.vectors, groups, labels=texts, seed=seed).columns(columns)  # type: ignore[arg-type]
        metrics["confounders"] = [one.as_json() for one in found]
        metrics["warnings"] = [*metrics["warnings"], *warnings_of(found)]
    options.progress(1.0, "done")
    kept = [tuple(v) if kind == "multilabel" else v for v in labels]  # type: ignore[arg-type]
    known = set(groups)
    return Probe(
        head=fitted.head,
        encoder=encoder,
        metrics=metrics,
        examples=Labelled(
            ids=names,
            vectors=rows.vectors,
            labels=tuple(kept),
            groups=tuple(groups),
            table_groups=tuple(table_groups) if list(table_groups) != list(groups) else (),
            relatives={name: group for name, group in (relatives or {}).items() if group in known},
        ),
        novelty=novelty,
        held_out=None if split is None else HeldOut(split.fold, fitted.held_out, tuple(held_out)),
    )


def _learn(
    kind: Kind, vectors: Any, labels: Sequence[Any], groups: Sequence[str], options: Options
) -> tuple[Rows, Fitted]:
    if kind == "multilabel":
        marks = check_marks(vectors, labels, groups)
        return marks, fit_marks(marks, options)
    if kind == "regression":
        numbers = check_numbers(vectors, labels, groups)
        return numbers, fit_numbers(numbers, options)
    examples = check_examples(vectors, labels, groups)
    return examples, fit_classes(examples, options)


def check_labels(labels: Sequence[Label]) -> Kind:
    """Return the kind of probe that labels make, before there are vectors.

    Raises:
        UserError: they make none, as in `fit_probe`.
    """
    kind = kind_of(labels)
    check = {"classification": check_examples, "multilabel": check_marks, "regression": check_numbers}[kind]
    check(np.zeros((len(labels), 1)), labels, ["one"] * len(labels))  # type: ignore[operator]
    return kind


def _silent(fraction: float, stage: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Candidate:
    """A row of the table, and why it is listed. `distance` is that to the nearest labelled or listed image, 0 .. 2."""

    row: int
    uncertainty: float
    distance: float


def most_uncertain(
    probe: Probe,
    vectors: NDArray[Any],
    ids: Sequence[str],
    *,
    limit: int,
    groups: Sequence[str] | None = None,
    skip: Collection[str] = (),
) -> list[Candidate]:
    """Choose at most `limit` rows of vectors (n, dim), those first whose labels would teach the probe most.

    Uncertainty alone lists twenty pictures of one patch of tissue. So each row in turn is the one whose uncertainty
    times distance to the nearest labelled or listed vector (of unit length) is greatest, among the 20 x `limit` most
    uncertain: uncertainty weighs what diversity alone (k-center, Sener & Savarese 2018) would miss. Rows that stand
    where a labelled or listed one does are left out, as are labelled ids and those in `skip`. With `groups` (n,), the
    uncertainty of rows of labelled groups is out-of-fold, as in `Probe.predict`.

    Raises:
        UserError: wrong dimension, NaN or infinite values.
    """
    known = set(skip)
    open_rows = np.array(
        [row for row, name in enumerate(ids) if name not in known and not probe.memory.labelled(name)], dtype=np.int64
    )
    if not len(open_rows) or limit < 1:
        return []
    table = check_vectors(vectors, dim=probe.dim)
    doubt = probe.uncertainty(
        table[open_rows],
        ids=[ids[row] for row in open_rows],
        groups=None if groups is None else [groups[row] for row in open_rows],
    )
    order = np.argsort(-doubt, kind="stable")[: POOL * limit]
    rows, doubt = open_rows[order], doubt[order]
    unit = normalise(table[rows])
    closest = top_cosine(unit, probe.references, 1)[1][:, 0].astype(np.float64)
    found: list[Candidate] = []
    while len(found) < limit:
        distance = np.sqrt(np.maximum(2 - 2 * closest, 0))
        distance[distance < 1e-3] = 0  # equal up to the rounding of float32
        best = int(np.argmax(doubt * distance))
        if doubt[best] * distance[best] <= 0:
            break
        found.append(Candidate(int(rows[best]), float(doubt[best]), float(distance[best])))
        closest = np.maximum(closest, unit @ unit[best])
    return found


def most_different(unit: NDArray[np.float32], labelled: Sequence[int], *, limit: int) -> list[Candidate]:
    """Choose at most `limit` rows of unit (n, dim), each the farthest from what is labelled or listed before.

    Farthest-first traversal (Gonzalez 1985), which covers the table with few labels while there is no probe that knows
    what is uncertain. Without labels it begins with the row that is nearest to the mean.

    Args:
        unit: vectors of length 1.
        labelled: rows that have a label; they are not listed.
        limit: how many.
    """
    if not len(unit) or limit < 1:
        return []
    first = [] if len(labelled) else [int(np.argmax(unit @ unit.mean(axis=0)))]
    found = [Candidate(row, 1.0, 2.0) for row in first]
    closest = np.full(len(unit), -1.0, np.float32)  # cosine to the nearest labelled or listed row
    for start in range(0, len(labelled), 64):
        closest = np.maximum(closest, (unit @ unit[list(labelled[start : start + 64])].T).max(axis=1))
    for row in first:
        closest = np.maximum(closest, unit @ unit[row])
    closest[list(labelled) + first] = np.inf
    while len(found) < min(limit, len(unit)):
        best = int(np.argmin(closest))
        distance = float(np.sqrt(max(2 - 2 * closest[best], 0))) if np.isfinite(closest[best]) else 0.0
        if distance < 1e-3:  # equal up to the rounding of float32
            break
        found.append(Candidate(best, 1.0, distance))
        closest = np.maximum(closest, unit @ unit[best])
        closest[best] = np.inf
    return found
