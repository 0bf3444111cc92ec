"""The demo's labelled items, the scores of predictions, and problems of the service as errors with a remedy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from warnings import catch_warnings, simplefilter

import numpy as np

from data_adapters.errors import UserError


@dataclass(frozen=True)
class Item:
    """One labelled item of the archive: `id` in the embedding table, path below the archive, label, split."""

    id: str
    path: str
    label: str
    split: str


@contextmanager
def explained() -> Iterator[None]:
    """Raise a problem of the service as a UserError with the service's own remedy, and ignore cautions.

    Raises:
        UserError: the service refused a request, a job failed, or there was no answer.
    """
    from lejepa_med.client import CautionWarning, JobFailedError, ServiceError, UnreachableError

    try:
        with catch_warnings():
            simplefilter("ignore", CautionWarning)  # the step that embedded the archive has printed them
            yield
    except ServiceError as error:
        raise UserError(f"The service answered {error.status}: {error.detail}", remedy=error.remedy) from error
    except JobFailedError as error:
        problem = error.job.error
        reason, remedy = ("no reason given", "") if problem is None else (problem.detail, problem.remedy)
        raise UserError(f"The probe's job ended as {error.job.state}: {reason}", remedy=remedy) from error
    except UnreachableError as error:
        raise UserError(f"The service stopped answering: {error}", remedy="See its log, service.log.") from error


def draw_labels(items: Sequence[Item], *, per_class: int, seed: int) -> list[Item]:
    """`per_class` items of each class, at random."""
    rng = np.random.default_rng(seed)
    chosen: list[Item] = []
    for label in sorted({item.label for item in items}):
        of_class = [item for item in items if item.label == label]
        chosen += [of_class[i] for i in rng.permutation(len(of_class))[:per_class]]
    return chosen


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean over classes of the share of a class that is found."""
    actual, given = np.array(truth), np.array(predicted)
    return float(np.mean([(given[actual == label] == label).mean() for label in np.unique(actual)]))


def budgets(items: Sequence[Item], wanted: Sequence[int]) -> list[int]:
    """The numbers of labels per class that the smallest class can pay for; at least one."""
    labels = [item.label for item in items]
    smallest = min(labels.count(label) for label in set(labels))
    return [n for n in wanted if n <= smallest] or [smallest]
