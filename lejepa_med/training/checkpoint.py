"""Checkpoints without pickle: safetensors for tensors, JSON for the rest; a checkpoint is whole or it is not there."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_adapters.atomic import new_folder
from lejepa_med.errors import TrainingError

PATTERN, STATE = "step-*", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """Everything that a run continues from, on the CPU and whole, whatever the number of processes.

    Attributes:
        step: finished steps.
        model: weights and buffers by name.
        optimizer: as `Optimizer.state_dict()` gives it.
        average: of the encoder's weights, or empty.
        scaler: of 16-bit gradients, or empty.
        plan: of a run by minutes, or empty.
        origin: of the weights that the run started from, or empty.
        best: the best evaluation of early stopping, or empty.
        best_weights: of its encoder, or empty.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    origin: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Write `folder`/step-XXXXXXXX beside the older checkpoint, and remove that one when the new one is on the disk.

    So at every instant one whole checkpoint is there. One of this very step is kept as it is.

    Raises:
        TrainingError: a weight is not finite; the older checkpoint stays.
    """
    step, optimizer = snapshot.step, snapshot.optimizer
    tensors = {f"model.{name}": _plain(tensor) for name, tensor in snapshot.model.items()}
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise not_finite(step)
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": _plain(torch.as_tensor(value)) for name, value in values.items()}
    tensors |= {f"average.{name}": _plain(tensor) for name, tensor in snapshot.average.items()}
    tensors |= {f"best.{name}": _plain(tensor) for name, tensor in snapshot.best_weights.items()}
    target = folder / f"step-{step:08d}"
    if target in checkpoints(folder):  # replacing it would leave an instant without one
        return target
    with new_folder(target) as draft:
        save_file(tensors, draft / "tensors.safetensors")
        state = {
            "step": step,
            "groups": optimizer["param_groups"],
            "scaler": snapshot.scaler,
            "plan": snapshot.plan,
            "origin": snapshot.origin,
            "best": snapshot.best,
        }
        (draft / STATE).write_text(json.dumps(state, indent=1) + "\n")
    for old in folder.iterdir():  # drafts of killed processes, too
        if old != target:
            (old / STATE).unlink(missing_ok=True)  # first, so that a half that is left is never taken for a whole
            shutil.rmtree(old)
    return target


def not_finite(step: int) -> TrainingError:
    """The error for a run whose numbers left the floating-point range."""
    return TrainingError(
        f"The loss or the weights stopped being finite numbers at or before step {step}; nothing of it was saved.",
        remedy="Start again from the last checkpoint with --resume; if it happens again, start a new run with "
        "--train.precision 32-true or a smaller --optim.lr.",
    )


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; drafts of a killed process have other names."""
    return sorted(path for path in folder.glob(PATTERN) if (path / STATE).is_file())


def load_checkpoint(folder: Path) -> Snapshot | None:
    """The newest checkpoint; None when there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    state: dict[str, Any] = json.loads((found[-1] / STATE).read_text())
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "best": {}}
    for key, tensor in load_file(found[-1] / "tensors.safetensors").items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["optimizer"].items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    return Snapshot(
        step=int(state["step"]),
        model=parts["model"],
        optimizer={"state": moments, "param_groups": state["groups"]},
        average=parts["average"],
        scaler=state.get("scaler", {}),
        plan=state.get("plan", {}),
        origin=state.get("origin", []),
        best=state.get("best", {}),
        best_weights=parts["best"],
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
