"""What changes during a run: model, optimiser and progress; how it is built, saved, restored, and moved by a step."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning_fabric as lightning
import torch
from torch import Tensor

from data_adapters.base import Adapter, Spec
from lejepa_med.config import MachineModel, ResolvedVector
from lejepa_med.data.dataset import Batch
from lejepa_med.methods.base import Method
from lejepa_med.models.batchnorm import convert_batchnorm
from lejepa_med.models.encoder import Encoder, create_encoder, lay_out
from lejepa_med.models.formation import Formation
from lejepa_med.models.start import checkpoint_activations, compile_backbone, freeze, start_from
from lejepa_med.training.checkpoint import Snapshot
from lejepa_med.training.early_stopping import Best
from lejepa_med.training.optimizer import WeightAverage, learning_rate, make_optimizer
from lejepa_med.training.plan import Plan
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.sharding import gather, is_sharded, scatter, whole


@dataclass
class State:
    """What changes during a run."""

    model: Any  # the Method, wrapped by Fabric
    optimizer: Any
    module: Method
    plan: Plan
    average: WeightAverage | None = None
    best: Best = field(default_factory=Best)
    step: int = 0


def build_state(fabric: lightning.Fabric, config: RunConfig, adapter: Adapter, *, started: bool = False) -> State:
    """Model and optimiser at step 0, a function of the seed; the time of a run by minutes starts here.

    A run that `started` before takes its weights from a checkpoint: those of `--init` may be gone by now.
    """
    plan = Plan(config.train.minutes if config.train.epochs is None else None)
    begun = config.model_copy(update={"model": config.model.model_copy(update={"init": None})}) if started else config
    module = build_method(begun, adapter.spec)
    if fabric.world_size > 1:
        module = convert_batchnorm(module)  # type: ignore[assignment]
    if config.train.compile:
        compile_backbone(module.encoder)
    # the optimiser after the model: sharding replaces the parameters
    model = fabric.setup_module(module)
    # Fabric clips scaled gradients, and FSDP2 shards, in the plain form only
    fused = config.train.precision != "16-mixed" and not is_sharded(module)
    optimizer = fabric.setup_optimizers(make_optimizer(module, config.optim, fused=fused))
    average = WeightAverage(module.encoder, config.optim.average) if config.optim.average else None
    return State(model=model, optimizer=optimizer, module=module, plan=plan, average=average)


def build_method(config: RunConfig, spec: Spec) -> Method:
    """The method of resolved settings; its weights depend on `train.seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(config.model, spec, formation=formed(config.vector, spec))
        return config.objective.build(encoder, config.model)


def build_encoder(config: MachineModel, spec: Spec, *, formation: Formation | None = None) -> Encoder:
    """A randomly initialised encoder in the memory layout that is fastest for it."""
    encoder = create_encoder(
        config.backbone,
        spec,
        drop_path=config.drop_path,
        registers=config.registers,
        conv_stem=config.conv_stem,
        formation=formation,
        code_sha256=config.code_sha256,
    )
    if config.init is not None:
        start_from(encoder, config.init)
    if config.freeze:
        freeze(encoder, config.freeze)
    if config.checkpointing:
        checkpoint_activations(encoder)
    return lay_out(encoder)


def formed(config: ResolvedVector, spec: Spec) -> Formation:
    """How vectors are formed by these settings."""
    return Formation(size=spec.embed_size, views=config.views, layers=config.layers)


def raw_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside Fabric's wrapper."""
    return optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer  # type: ignore[no-any-return]


def snapshot(fabric: lightning.Fabric, state: State) -> Snapshot:
    """The state as a whole; called by all ranks, complete on rank 0."""
    optimizer = raw_optimizer(state.optimizer)
    if is_sharded(state.module):
        model, moments = gather(state.module, optimizer)
    else:
        model, moments = state.module.state_dict(), optimizer.state_dict()
    return Snapshot(
        step=state.step,
        model=model,
        optimizer=moments,
        average=state.average.state_dict() if state.average is not None else {},
        scaler=fabric.strategy.precision.state_dict(),
        plan=state.plan.state_dict(),
        origin=state.module.encoder.origin,
        best=state.best.state_dict(),
        best_weights=state.best.weights,
    )


def restore(fabric: lightning.Fabric, state: State, saved: Snapshot) -> None:
    """The reverse of `snapshot`; every rank has read the same file."""
    optimizer = raw_optimizer(state.optimizer)
    if is_sharded(state.module):
        scatter(state.module, optimizer, saved.model, saved.optimizer)
    else:
        state.module.load_state_dict(saved.model)
        optimizer.load_state_dict(saved.optimizer)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    # in the parameter's own layout: the fused AdamW pairs elements by their place in memory, and those
                    # of a channels-last weight lie elsewhere than in the file (torch 2.15, silently)
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if state.average is not None:
        state.average.load_state_dict(saved.average)
    if saved.scaler:
        fabric.strategy.precision.load_state_dict(saved.scaler)
    state.plan.load_state_dict(saved.plan)
    state.module.encoder.origin = saved.origin
    state.best.load_state_dict(saved.best, saved.best_weights)
    state.step = saved.step


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
