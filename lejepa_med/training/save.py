"""What changes during a run, and how it is written: checkpoint and encoder folders together."""

import copy
import dataclasses
import platform
import time
from typing import Any

import lightning_fabric as lightning
import timm
import torch

from data_adapters.base import Adapter
from data_adapters.manifest import Manifest
from lejepa_med.config import short_name
from lejepa_med.models.architectures import build
from lejepa_med.models.card import curve_rows
from lejepa_med.models.embed import archive_digest
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.folder import save_encoder
from lejepa_med.training.checkpoint import save_checkpoint
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.optimizer import UPDATES
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.sharding import is_sharded
from lejepa_med.training.state import State, snapshot


class Saver:
    """Checkpoint and encoder folders, together. With early stopping `encoder/` is the best one so far, else the last.

    The checkpoint of a finished run is without the optimiser's state.
    """

    def __init__(
        self,
        fabric: lightning.Fabric,
        config: RunConfig,
        run: RunFolder,
        state: State,
        manifest: Manifest,
        adapter: Adapter,
    ) -> None:
        self.fabric, self.config, self.run, self.state = fabric, config, run, state
        self.adapter = adapter
        self.epoch_steps = sum(manifest.column("samples")) // config.train.batch_size
        # once: at a million records this is seconds, and a checkpoint should not be
        self.data = {
            "records": len(manifest),
            "groups": len(set(manifest.column("group"))),
            "fingerprint": archive_digest(manifest),
        }
        self.software = {"Python": platform.python_version(), "PyTorch": torch.__version__, "timm": timm.__version__}
        on_gpu = fabric.device.type == "cuda"
        self.software["device"] = (
            torch.cuda.get_device_name(fabric.device) if on_gpu else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
        )
        self.last = time.perf_counter()

    def due(self, fabric: lightning.Fabric) -> bool:
        """Whether the interval has passed; rank 0's clock decides for all."""
        if self.state.step % self.config.train.log_every:
            return False
        due = time.perf_counter() - self.last > self.config.train.checkpoint_minutes * 60
        return bool(fabric.broadcast(due)) if fabric.world_size > 1 else due

    def now(self) -> None:
        """Write all; rank 0 writes, the others help to gather and wait."""
        whole = snapshot(self.fabric, self.state)
        if self.state.step == self.state.plan.steps:
            # two thirds of a checkpoint, which nothing continues from
            whole = dataclasses.replace(whole, optimizer={**whole.optimizer, "state": {}})
        if self.fabric.is_global_zero:
            save_checkpoint(self.run.checkpoints, whole)
            details = self._details(whole.step)
            live = self.state.module.encoder
            prefix = "encoder.backbone."
            if whole.best_weights:
                live = self._encoder(whole.best_weights)
            elif is_sharded(self.state.module):
                weights = {k.removeprefix(prefix): v for k, v in whole.model.items() if k.startswith(prefix)}
                live = self._encoder(weights)
            save_encoder(live, self.adapter, self.run.encoder, details=details)
            if whole.average:
                weights = {name: value for name, value in whole.average.items() if name != UPDATES}
                save_encoder(self._encoder(weights), self.adapter, self.run.averaged, details=details)
        self.fabric.barrier()
        self.last = time.perf_counter()

    def _encoder(self, weights: dict[str, torch.Tensor]) -> Encoder:
        """An encoder like the live one, on the CPU, with these weights of its backbone."""
        live = self.state.module.encoder
        backbone = build(live.name, copy.deepcopy(live.model_args), code=live.code)
        backbone.load_state_dict(weights, strict=True)
        encoder = Encoder(
            backbone,
            name=live.name,
            model_args=live.model_args,
            spec=self.adapter.spec,
            formation=live.formation,
            code=live.code,
            dim=live.dim if live.code else None,
        )
        encoder.origin = live.origin
        return encoder

    def _details(self, step: int) -> dict[str, Any]:
        train, steps = self.config.train, self.state.plan.steps
        model = self.config.model.model_dump(mode="json", exclude={"init"})  # a place on this machine
        model["backbone"] = short_name(self.config.model.backbone)
        objective = self.config.objective.model_dump(mode="json")
        objective["method"] = short_name(objective["method"])
        return {
            "objective": objective,
            "training": {
                "step": step,
                "steps": steps,
                "method": self.config.objective.title,
                "epochs": round(steps / self.epoch_steps, 2) if train.epochs is None else train.epochs,
                "batch_size": train.batch_size,
                "accumulate": train.accumulate,
                "seed": train.seed,
                "precision": train.precision,
                "optim": self.config.optim.model_dump(mode="json"),
                "model": model | {"continued": self.config.model.init is not None},
                **({"best": self.state.best.state_dict()} if self.state.best.weights else {}),
            },
            "data": self.data,
            "software": self.software,
            # at the end only: at every checkpoint of a long run it would take seconds
            **({"curve": curve_rows(read_lines(self.run.metrics))} if step == steps else {}),
        }
