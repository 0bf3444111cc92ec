"""Our sides of `benchmarks.train`: the bare encoder, with the projector, the views alone, and the whole run."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import data_adapters
from benchmarks.train_window import Settings, Window, run_side
from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.archive import scan
from lejepa_med.config import PretrainConfig
from lejepa_med.data.loader import make_loader
from lejepa_med.methods.base import project
from lejepa_med.training.device import make_fabric
from lejepa_med.training.loop import make_data, pretrain
from lejepa_med.training.resolve import resolve_archive, resolve_machine
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.state import build_state


def config_of(settings: Settings) -> PretrainConfig:
    """The settings as those of a run: one epoch, and every default that is no setting of the comparison."""
    s = settings
    return PretrainConfig.model_validate(
        {
            "archive": s.archive,
            "out": str(Path(s.out, "run")),
            "modality": s.modality,
            "data": {"workers": s.workers, "options": s.options, "verify": False},
            "views": {
                "n_global": s.n_global,
                "n_local": s.n_local,
                "global_size": s.size,
                "local_size": s.local_size,
            },
            "model": {
                "backbone": s.backbone,
                "drop_path": s.drop_path,
                "projector_hidden": s.hidden,
                "projector_dim": s.dim,
            },
            "objective": {"slices": s.slices},
            "optim": {"lr": s.lr, "weight_decay": s.weight_decay},
            "train": {
                "epochs": 1,
                "batch_size": s.batch,
                "precision": s.precision,
                "accelerator": s.accelerator,
            },
        }
    )


def opened(settings: Settings) -> tuple[RunConfig, Manifest, Adapter]:
    """Scan as `pretrain` does; resolved settings, manifest and adapter."""
    config = resolve_machine(config_of(settings), device=settings.accelerator)
    adapter = data_adapters.create(config.modality, **{**config.views.model_dump(), **config.data.options})
    manifest = scan(adapter, config.archive, verify=False, console=Console(file=io.StringIO())).manifest
    return resolve_archive(config, items=len(manifest)), manifest, adapter.fit(manifest.records())


def bare(settings: Settings, window: Window, *, projector: bool) -> None:
    """Forward and backward on one batch that lies ready on the device, and no optimiser."""
    config, manifest, adapter = opened(settings)
    fabric = make_fabric(config)
    state = build_state(fabric, config, adapter)
    dataset, batches = make_data(fabric, config, manifest, adapter, first_step=0)
    batch = next(iter(make_loader(dataset, batches, workers=0)))
    views = fabric.to_device(batch.global_views)
    local = None if batch.local_views is None else fabric.to_device(batch.local_views)
    method: Any = state.module
    for _ in range(settings.all_steps):
        with fabric.autocast():
            out = method.embed_views(views, local)
            out = project(method.projector, out) if projector else out
        fabric.backward(out.float().square().mean())
        method.zero_grad(set_to_none=True)
        window.tick()


def bare_encoder(settings: Settings, window: Window) -> None:
    """The encoder alone."""
    bare(settings, window, projector=False)


def bare_projector(settings: Settings, window: Window) -> None:
    """Encoder and projector."""
    bare(settings, window, projector=True)


def views_alone(settings: Settings, window: Window) -> None:
    """Reading, augmentation and collation in the loader's processes, with nobody else at work."""
    config, manifest, adapter = opened(settings)
    fabric = make_fabric(config)
    dataset, batches = make_data(fabric, config, manifest, adapter, first_step=0)
    for _ in make_loader(dataset, batches, workers=settings.workers, pin=settings.accelerator == "cuda"):
        window.tick()


def whole_run(settings: Settings, window: Window) -> None:
    """`lejepa_med.training.loop.pretrain`, as the command line calls it."""
    with window.follow():
        pretrain(config_of(settings), console=Console(file=io.StringIO()))


SIDES: dict[str, Callable[[Settings, Window], None]] = {
    "bare-encoder": bare_encoder,
    "bare": bare_projector,
    "views": views_alone,
    "ours": whole_run,
}

if __name__ == "__main__":
    run_side(SIDES[sys.argv[3]])
