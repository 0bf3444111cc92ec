"""What changes during a run, and how it is written: checkpoint and encoder folder together."""

import time
from dataclasses import dataclass
from typing import Any

import lightning_fabric as lightning
import torch

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import PretrainConfig
from lejepa_med.embed import archive_digest
from lejepa_med.methods import Method
from lejepa_med.models.folder import save_encoder
from lejepa_med.training.checkpoint import save_checkpoint
from lejepa_med.training.folder import RunFolder


@dataclass
class State:
    """What changes during a run."""

    model: Any  # the Method, wrapped by Fabric
    optimizer: Any
    module: Method
    step: int = 0


def raw_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside Fabric's wrapper."""
    return optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer  # type: ignore[no-any-return]


class Saver:
    """Checkpoint and encoder folder, together."""

    def __init__(
        self,
        fabric: lightning.Fabric,
        config: PretrainConfig,
        run: RunFolder,
        state: State,
        manifest: Manifest,
        adapter: Adapter,
        *,
        steps: int,
    ) -> None:
        self.fabric, self.config, self.run, self.state = fabric, config, run, state
        self.manifest, self.adapter, self.steps = manifest, adapter, steps
        self.last = time.perf_counter()

    def due(self, fabric: lightning.Fabric) -> bool:
        """Whether the interval has passed; rank 0's clock decides for all."""
        if self.state.step % self.config.train.log_every:
            return False
        due = time.perf_counter() - self.last > self.config.train.checkpoint_minutes * 60
        return bool(fabric.broadcast(due)) if fabric.world_size > 1 else due

    def now(self) -> None:
        """Write both; rank 0 writes, all wait."""
        if self.fabric.is_global_zero:
            module, step = self.state.module, self.state.step
            save_checkpoint(
                self.run.checkpoints, step=step, model=module, optimizer=raw_optimizer(self.state.optimizer)
            )
            save_encoder(module.encoder, self.adapter, self.run.encoder, details=self._details(step))
        self.fabric.barrier()
        self.last = time.perf_counter()

    def _details(self, step: int) -> dict[str, Any]:
        return {
            "objective": self.config.objective.model_dump(mode="json"),
            "training": {
                "step": step,
                "steps": self.steps,
                "epochs": self.config.train.epochs,
                "batch_size": self.config.train.batch_size,
                "seed": self.config.train.seed,
                "precision": self.config.train.precision,
                "optim": self.config.optim.model_dump(mode="json"),
                "model": self.config.model.model_dump(mode="json"),
            },
            "data": {
                "records": len(self.manifest),
                "groups": len(set(self.manifest.column("group"))),
                "fingerprint": archive_digest(self.manifest),
            },
        }
