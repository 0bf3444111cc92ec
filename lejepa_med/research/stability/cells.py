"""The cells of a stability grid, and how one becomes a run folder that `pretrain` can take up."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.manifest import Manifest
from data_adapters.scan import Scan
from lejepa_med.config import PretrainConfig, Section, save_config, short_name
from lejepa_med.models.architectures import is_convolutional
from lejepa_med.training.device import make_fabric
from lejepa_med.training.folder import RunFolder
from lejepa_med.training.resolve import fitted_adapter, resolve_archive, resolve_machine

RECORDS = 20  # of a run at least, where it has so many steps: fewer give no verdict
OFTEN = 2  # steps between two records of a cell by minutes, whose steps are not known before


@dataclass(frozen=True)
class Axes:
    """What is varied."""

    lambdas: Sequence[float]
    batches: Sequence[int]
    n_views: Sequence[int]
    backbones: Sequence[str]

    def cells(self) -> list["Cell"]:
        """Every combination; cells of one architecture and number of views follow each other."""
        product = itertools.product(self.backbones, self.n_views, self.lambdas, self.batches)
        return [Cell(*values) for values in product]


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    backbone: str
    n_views: int
    lamb: float
    batch: int

    @property
    def name(self) -> str:
        """The run's folder."""
        plain = "".join(c if c.isalnum() or c in "._" else "-" for c in short_name(self.backbone))
        return f"{plain}-views{self.n_views}-lambda{self.lamb:g}-batch{self.batch}"

    def config(self, base: PretrainConfig, out: Path) -> PretrainConfig:
        """`base` with this cell's settings. All views of a CNN are global; a ViT has 2 global ones, the rest local."""
        n_global = self.n_views if is_convolutional(self.backbone) else min(2, self.n_views)
        changes: dict[str, dict[str, Any]] = {
            "views": {"n_global": n_global, "n_local": self.n_views - n_global},
            "model": {"backbone": self.backbone},
            "objective": {"lamb": self.lamb},
            "train": {"batch_size": self.batch},
        }
        sections: dict[str, Section] = {
            name: getattr(base, name).model_copy(update=values) for name, values in changes.items()
        }
        return base.model_copy(update={"out": out, **sections})


def subset(manifest: Manifest, records: int | None, *, seed: int) -> Manifest:
    """At most `records` rows drawn by `seed`, in the manifest's order: the same for every cell."""
    if records is None or records >= len(manifest):
        return manifest
    return manifest.select(sorted(np.random.default_rng([seed, 21]).permutation(len(manifest))[:records].tolist()))


def set_up(
    config: PretrainConfig, found: Scan, manifest: Manifest, *, steps: int | None, minutes: float | None
) -> None:
    """Write the run folder as `pretrain` does after its scan, so that `pretrain(config, resume=True)` takes it up.

    Args:
        config: of the cell.
        found: the scan of the archive, for rejected.csv.
        manifest: the rows to train on.
        steps: train for at least so many steps, in whole epochs; None: for `minutes`.
        minutes: where `steps` is None.
    """
    machine = resolve_machine(config, device=make_fabric(config).device.type)
    adapter = fitted_adapter(machine, manifest)
    manifest = dataclasses.replace(manifest, adapter=adapter.describe())
    run_config = resolve_archive(machine, items=len(manifest))
    epoch = max(1, sum(manifest.column("samples")) // run_config.train.batch_size)  # in steps
    if steps is not None:
        epochs = math.ceil(steps / epoch)
        length = {"epochs": epochs, "minutes": None}
        often = max(1, min(run_config.train.log_every, epochs * epoch // RECORDS))
    else:
        length = {"epochs": None, "minutes": minutes}
        often = min(run_config.train.log_every, OFTEN)
    run_config = run_config.model_copy(
        update={"train": run_config.train.model_copy(update={**length, "log_every": often})}
    )
    run = RunFolder(run_config.out)
    run.root.mkdir(parents=True, exist_ok=True)
    found.write(run.root, manifest=manifest)
    save_config(run_config, run.config)
