"""Numbers that show collapse before the probe does, from the batch at hand."""

from torch import Tensor, nn

from lejepa_med.evaluation.spread import Figures, lidar, spread
from lejepa_med.objective.normality import NormalityTest, floor_for
from lejepa_med.objective.sigreg import SIGReg

ROWS = 256  # samples of a batch that the figures look at: an eigen-decomposition of 256 takes milliseconds
LIDAR_ROWS = 512  # views times samples of a batch that LiDAR looks at


def batch_figures(features: Tensor, z: Tensor, z_views: Tensor | None = None) -> dict[str, float | int | None]:
    """`backbone/...` and `projector/...`: dim, rows and the figures of `spread`; with views, `projector/lidar`.

    This waits for the device, so it is for log steps only. Of larger batches the first 256 samples are used, for LiDAR
    the first 512 / views.

    Args:
        features: (B, dim), of one view.
        z: (B, K), of the same view.
        z_views: (V, B, K), all views, or None.
    """
    found: dict[str, float | int | None] = {}
    for name, vectors in (("backbone", features), ("projector", z)):
        table = vectors[:ROWS].detach().float().cpu().numpy()
        figures: Figures = spread(table)
        found |= {f"{name}/dim": table.shape[1], f"{name}/rows": len(table)}
        found |= {f"{name}/{key}": value for key, value in figures.items()}
    if z_views is not None and len(z_views) > 1:
        views = z_views[:, : max(2, LIDAR_ROWS // len(z_views))].detach().float().cpu().numpy()
        found["projector/lidar"] = lidar(views)
    return found


def sigreg_figures(method: nn.Module, sigreg: float, *, samples: int, dim: int) -> dict[str, float]:
    """`sigreg_above_floor`, and for the Epps-Pulley test `sigreg_per_sample`, in which one point gives .409.

    Empty where the method holds no test of normality.

    Args:
        method: what is trained.
        sigreg: the mean that its log shows.
        samples: of one view over all ranks, or of all views where they are pooled.
        dim: of the projector's output.
    """
    test = next((module for module in method.modules() if isinstance(module, SIGReg | NormalityTest)), None)
    if test is None:
        return {}
    found = {"sigreg_above_floor": sigreg - floor_for(test, n=samples, dim=dim)}
    return {**found, "sigreg_per_sample": sigreg / samples} if isinstance(test, SIGReg) else found


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
