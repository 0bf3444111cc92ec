"""Checkpoints without pickle: safetensors for tensors, JSON for the rest; a checkpoint is whole or it is not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lejepa_med.atomic import new_folder
from lejepa_med.errors import TrainingError

KEEP = 2
PATTERN = "step-*"


def save_checkpoint(folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write `folder`/step-XXXXXXXX, then remove all but the two newest.

    Raises:
        TrainingError: a weight is not finite; the older checkpoints stay.
    """
    tensors = {f"model.{name}": _plain(tensor) for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise not_finite(step)
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": _plain(torch.as_tensor(value)) for name, value in values.items()}
    target = folder / f"step-{step:08d}"
    with new_folder(target) as draft:
        save_file(tensors, draft / "tensors.safetensors")
        (draft / "state.json").write_text(json.dumps({"step": step, "groups": state["param_groups"]}, indent=1) + "\n")
    for old in checkpoints(folder)[:-KEEP]:
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
    return sorted(path for path in folder.glob(PATTERN) if (path / "state.json").is_file())


def load_checkpoint(folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest checkpoint and return its step; 0 when there is none."""
    found = checkpoints(folder)
    if not found:
        return 0
    state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text())
    tensors = load_file(found[-1] / "tensors.safetensors")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": state["groups"]})
    return int(state["step"])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
