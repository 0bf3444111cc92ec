"""From labelled vectors to a probe: the one way, for the command line, the service and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.evaluation.classification import fit_classes
from lejepa_med.evaluation.examples import Labelled, Rows, check_examples, check_marks, check_numbers
from lejepa_med.evaluation.kinds import Fitted, Kind, Options, Tell, kind_of
from lejepa_med.evaluation.knn import normalise
from lejepa_med.evaluation.linear import quiet_threads
from lejepa_med.evaluation.multilabel import fit_marks
from lejepa_med.evaluation.novelty import fit_novelty
from lejepa_med.evaluation.probe import HeldOut, Label, Probe
from lejepa_med.evaluation.regression import fit_numbers


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
    progress: Tell | None = None,
    table_groups: Sequence[str] = (),
    relatives: Mapping[str, str] | None = None,
) -> Probe:
    """A linear probe and k-NN on labelled vectors (n, dim), scored by cross-validation over groups.

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

    Raises:
        UserError: NaN, lengths that differ, labels of several kinds, empty labels or groups, one class or value only,
            a class with one example, or an id that occurs twice.
    """
    names = tuple(ids) if ids is not None else tuple(map(str, range(len(labels))))
    if len(names) != len(labels) or len(set(names)) != len(names):
        raise UserError("Each example needs an id of its own.", remedy="Label each item once.")
    if folds < 2:
        raise UserError(f"Cross-validation with {folds} folds is impossible.", remedy="Use 2 folds or more.")
    options = Options(seed=seed, folds=folds, balanced=balanced, tell=progress if progress is not None else _silent)
    options.tell(0.0, "checking the split")
    kind = kind_of(labels)
    with quiet_threads(np.size(vectors)):
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
    options.tell(1.0, "done")
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
    """The kind of probe that labels make, before there are vectors.

    Raises:
        UserError: they make none, as in `fit_probe`.
    """
    kind = kind_of(labels)
    check = {"classification": check_examples, "multilabel": check_marks, "regression": check_numbers}[kind]
    check(np.zeros((len(labels), 1)), labels, ["one"] * len(labels))  # type: ignore[operator]
    return kind


def _silent(fraction: float, stage: str) -> None:
    """No progress wanted."""
