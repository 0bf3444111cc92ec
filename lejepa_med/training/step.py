"""One optimiser step."""

from typing import Any

import lightning_fabric as lightning
import torch

from lejepa_med.config import PretrainConfig
from lejepa_med.data.dataset import Batch
from lejepa_med.training.save import State
from lejepa_med.training.schedule import learning_rate


def train_step(
    fabric: lightning.Fabric, config: PretrainConfig, state: State, batch: Batch, *, steps: int
) -> dict[str, Any]:
    """One optimiser step; advances `state.step`.

    Returns scalars, features (B, dim), z (B, K) and z_views (V, B, K) or None, all detached.
    """
    rate = learning_rate(state.step, steps=steps, config=config.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    # whatever draws inside the model (drop path) depends on seed, step and rank only, so nothing of it must be saved
    torch.manual_seed((config.train.seed * 1_000_003 + state.step) * 1_009 + fabric.global_rank)
    local = None if batch.local_views is None else fabric.to_device(batch.local_views)
    out = state.model(fabric.to_device(batch.global_views), local, seed=config.train.seed, step=state.step)
    fabric.backward(out.loss)
    norm = fabric.clip_gradients(state.model, state.optimizer, max_norm=config.optim.clip, error_if_nonfinite=False)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.module.after_step(step=state.step, steps=steps)
    state.step += 1
    return {
        "loss": out.loss.detach(),
        **out.terms,
        "gradient_norm": norm.detach(),
        "features": out.features,
        "z": out.z,
        "z_views": out.z_views,
    }
