"""The stability grid: the same archive pretrained shortly with every combination of a few settings."""

from typing import Any

from rich.console import Console

from lejepa_med.config import PretrainConfig


def run_grid(
    base: PretrainConfig,
    axes: dict[str, Any],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    records: int | None = None,
    retry: bool = False,
    console: Console,
) -> bool:
    """Run the cells of a grid that are not done; False where it was stopped and can be repeated.

    Args:
        base: settings of every cell.
        axes: values of `lambdas`, `batches`, `n_views` and `backbones`; of the last one None: the machine's.
        steps: as in `Grid`.
        minutes: as in `Grid`.
        records: as in `Grid`.
        retry: as in `Grid`.
        console: where progress is shown.
    """
    from lejepa_med.research.stability.grid import Axes, Grid
    from lejepa_med.training.device import make_fabric
    from lejepa_med.training.resolve import resolve_machine

    backbones = axes["backbones"] or [resolve_machine(base, device=make_fabric(base).device.type).model.backbone]
    chosen = Axes(**axes | {"backbones": backbones})
    given = {"steps": steps, "minutes": minutes, "records": records}
    return Grid(base, chosen, **given, retry=retry, console=console).run()  # type: ignore[arg-type]
