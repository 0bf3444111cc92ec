"""Numbers that show collapse before the probe does."""

import numpy as np
from torch import Tensor

from lejepa_med.evaluation.metrics import eigen_spectrum


def effective_rank(vectors: Tensor) -> float:
    """Effective rank of a batch of vectors (N, D), at most min(N - 1, D); NaN where a value is not finite."""
    table = vectors.detach().float().cpu().numpy()
    return eigen_spectrum(table)[1] if np.isfinite(table).all() else float("nan")


class RunningMean:
    """Means of scalars on their device, without a host synchronisation until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, **values: Tensor) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            detached = value.detach().double()
            self._sums[name] = self._sums[name] + detached if name in self._sums else detached
        self._count += 1

    def take(self) -> dict[str, float]:
        """Means since the last call; starts anew."""
        means = {name: float(total) / max(1, self._count) for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means
