"""One optimiser step, over the whole batch or over parts of it."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import lightning_fabric as lightning
import torch
from torch import Tensor

from lejepa_med.data.dataset import Batch
from lejepa_med.training.save import State
from lejepa_med.training.schedule import learning_rate
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.sharding import whole


def train_step(fabric: lightning.Fabric, config: RunConfig, state: State, batch: Batch) -> dict[str, Any]:
    """One optimiser step, at its place in `state.plan`; advances `state.step`.

    Returns scalars, features (B, dim), z (B, K) and z_views (V, B, K) or None, all detached.
    """
    place, length = state.plan.position(state.step)
    rate = learning_rate(place, steps=length, config=config.optim)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    # whatever draws inside the model (drop path) depends on seed, step and rank only, so nothing of it must be saved
    torch.manual_seed((config.train.seed * 1_000_003 + state.step) * 1_009 + fabric.global_rank)
    scalars: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=fabric.device))
    outputs = []
    count = config.train.accumulate
    for part, (global_views, local_views) in enumerate(parts(batch, count)):
        local = None if local_views is None else fabric.to_device(local_views)
        with fabric.no_backward_sync(state.model, enabled=part + 1 < count):
            out = state.model(fabric.to_device(global_views), local, seed=config.train.seed, step=state.step)
            fabric.backward(out.loss / count if count > 1 else out.loss)
        for name, value in {"loss": out.loss.detach(), **out.terms}.items():
            scalars[name] = scalars[name] + value / count
        outputs.append(out._replace(loss=out.loss.detach()))
    norm = fabric.clip_gradients(state.model, state.optimizer, max_norm=config.optim.clip, error_if_nonfinite=False)
    norm = whole(norm)
    if config.train.precision == "16-mixed":
        # gradients too large for 16 bits: the scaler leaves out this step and halves its factor
        fits = norm.isfinite()
        scalars["skipped"], norm = 1 - fits.float(), torch.where(fits, norm, 0.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.module.after_step(step=place, steps=length)
    if state.average is not None:
        state.average.update(state.module.encoder)
    state.step += 1
    return {
        **scalars,
        "gradient_norm": norm.detach(),
        "features": torch.cat([out.features for out in outputs]),
        "z": torch.cat([out.z for out in outputs]),
        "z_views": _along_batch([out.z_views for out in outputs]),
    }


def parts(batch: Batch, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Global and local views of `count` equal parts of the batch's samples."""
    size = batch.global_views.shape[1] // count
    for first in range(0, size * count, size):
        chosen = slice(first, first + size)
        yield batch.global_views[:, chosen], None if batch.local_views is None else batch.local_views[:, chosen]


def _along_batch(views: list[Tensor | None]) -> Tensor | None:
    """(V, b, K) of each part -> (V, B, K); None where the method does not give them."""
    return torch.cat([part for part in views if part is not None], dim=1) if views[0] is not None else None
