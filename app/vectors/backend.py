"""What an approximate index must do, the exact answer, and the measurement of the one against the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from lejepa_med.client.wire.common import BackendName
from lejepa_med.search.base import NONE, Base
from lejepa_med.search.filters import Condition

TOP = 10  # neighbours over which recall is counted
SAMPLE = 200  # queries of the measurement: 2,000 neighbours give a standard error below 0.01


@dataclass(frozen=True, kw_only=True)
class Query:
    """A batch of searches in one table.

    Attributes:
        vectors: (Q, dim) float32 of length 1.
        k: neighbours of each.
        conditions: what an item must meet.
        rows: the rows that meet them, ascending; None for all.
        own_rows: (Q,) row of the query item in this table, which is not its own neighbour; NONE where it is none.
        own_groups: (Q,) code of the group that is left out; NONE where none is.
    """

    vectors: np.ndarray
    k: int
    conditions: Sequence[Condition] = ()
    rows: np.ndarray | None = None
    own_rows: np.ndarray
    own_groups: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Report:
    """A finished index.

    Attributes:
        rows: vectors in it.
        recall: share of the exact 10 nearest neighbours that it finds, mean over `sample` items of the table.
        sample: queries of that measurement.
        seconds: wall time of the build.
        built: when, in seconds since 1970.
    """

    rows: int
    recall: float
    sample: int
    seconds: float
    built: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Backend(Protocol):
    """One kind of approximate index over the rows of a base. Methods block; call them on threads."""

    name: BackendName

    def find(self, key: str) -> Report | None:
        """The finished index of the table `key`; None where there is none, however far a build has come."""

    def build(self, base: Base) -> Report:
        """Make the index of `base`. It is seen by `find` and `nearest` once it is whole, never before."""

    def nearest(self, base: Base, query: Query) -> list[np.ndarray]:
        """Rows for each query, about twice k of them, from which the base's own vectors choose k."""

    def drop(self, keep: frozenset[str]) -> None:
        """Remove the indexes of all other tables."""


def exact(base: Base, query: Query) -> list[np.ndarray]:
    """The k nearest rows of each query, found by looking at every vector that meets the conditions."""
    return base.nearest(query.vectors, query.k, rows=query.rows, own_rows=query.own_rows, own_groups=query.own_groups)


def measure(base: Base, nearest: Callable[[Query], list[np.ndarray]]) -> tuple[float, int]:
    """Recall of `nearest` at 10 against the exact answer, and the number of queries, drawn from the table itself.

    The query items are left out of both answers: each finds itself, which says nothing.
    """
    rows = np.sort(np.random.default_rng(0).choice(base.rows, min(SAMPLE, base.rows), replace=False))
    query = Query(
        vectors=np.ascontiguousarray(base.vectors[rows]),
        k=TOP,
        own_rows=rows,
        own_groups=np.full(len(rows), NONE),
    )
    wanted = exact(base, query)
    given = [rank(base, query, index, found) for index, found in enumerate(nearest(query))]
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(wanted, given, strict=True))
    total = sum(len(found) for found in wanted)
    return (hits / total if total else 1.0), len(rows)


def rank(base: Base, query: Query, index: int, rows: np.ndarray) -> np.ndarray:
    """Candidates of one query in their exact order, without the query item and its group, at most k."""
    rows = rows[rows != query.own_rows[index]]
    if query.own_groups[index] != NONE:
        rows = rows[base.groups[rows] != query.own_groups[index]]
    scores = base.vectors[rows] @ query.vectors[index]
    return rows[np.lexsort((rows, -scores))[: query.k]]
