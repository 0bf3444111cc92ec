"""What the kinds of probes have in common: the interface of a head, and the steps of a fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_adapters.errors import UserError
from lejepa_med.evaluation.folds import Folds

Kind = Literal["classification", "multilabel", "regression"]
Tell = Callable[[float, str], None]
SEARCH_SHARE = 0.9  # of the work, for the progress bar


@dataclass(frozen=True)
class Options:
    """How a probe is fitted. `balanced`: classes weigh equally; None is the kind's own default."""

    seed: int
    folds: int
    balanced: bool | None
    tell: Tell


class Head(Protocol):
    """What a probe says about vectors: a linear model, and the nearest labelled ones beside it."""

    @property
    def k(self) -> int:
        """Neighbours that are asked."""

    @property
    def kind(self) -> Kind:
        """Which kind of labels it learnt."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of probabilities; none of a quantity."""

    def answers(
        self, vectors: NDArray[np.float32], indices: NDArray[np.int64], cosines: NDArray[np.float32]
    ) -> list[dict[str, Any]]:
        """The kind's fields of a `Prediction`, one for each row (n, dim), given its k nearest examples (n, k)."""

    def uncertainty(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) in 0 .. 1: how much the label of each row would teach."""

    def document(self) -> dict[str, Any]:
        """What of it is JSON."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What of it is numbers."""


@dataclass(frozen=True)
class Fitted:
    """What a kind learns.

    Attributes:
        head: of all examples.
        metrics: JSON.
        split: the folds behind the scores; None where nothing can be scored.
        held_out: for each fold, the head that was learnt from the other folds alone.
    """

    head: Head
    metrics: dict[str, Any]
    split: Folds | None
    held_out: tuple[Head, ...] = ()


def kind_of(labels: Sequence[Any]) -> Kind:
    """Texts are classes, lists of texts are labels of their own, numbers are a quantity.

    Raises:
        UserError: labels of several kinds.
    """
    kinds = {_kind(label) for label in labels} or {"classification"}
    if len(kinds) > 1:
        raise UserError(
            "Labels of several kinds (text, number, list) in one probe.",
            remedy="Give every image a text (its class), or every image a number, or every image a list of texts.",
        )
    return kinds.pop()


def _kind(label: Any) -> Kind:
    if isinstance(label, list | tuple | set | frozenset):
        return "multilabel"
    number = isinstance(label, int | float | np.integer | np.floating) and not isinstance(label, bool)
    return "regression" if number else "classification"
