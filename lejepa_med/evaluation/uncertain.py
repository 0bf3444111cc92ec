"""Which images to label next."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lejepa_med.evaluation.examples import check_vectors
from lejepa_med.evaluation.knn import normalise, top_cosine
from lejepa_med.evaluation.probe import Probe

POOL = 20  # times as many candidates as are asked for, the most uncertain ones


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
    """At most `limit` rows of vectors (n, dim), those first whose labels would teach the probe most.

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
