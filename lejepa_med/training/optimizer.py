"""Learning rate, parameter groups, and a moving average of the encoder's weights."""

import math
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW

from lejepa_med.config import OptimConfig
from lejepa_med.errors import ConfigError
from lejepa_med.models.encoder import Encoder
from lejepa_med.training.sharding import whole

PLAIN = ("pos_embed", "position_embeddings", "cls_token", "reg_token")  # tensors, but no weights of a layer


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine from `lr` to `lr * final_lr`, which the last step reaches exactly; or constant.

    Args:
        step: from 0.
        steps: of the whole run.
        config: `lr`, `schedule`, `warmup` (fraction of the steps) and `final_lr` (fraction of `lr`).
    """
    peak = config.lr or 0.0
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    done = (step - warmup) / max(1, steps - 1 - warmup)
    low = peak * config.final_lr
    return low + (peak - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def make_optimizer(model: nn.Module, config: OptimConfig, *, fused: bool = False) -> AdamW:
    """AdamW without weight decay on norms, biases and other vectors, positional embeddings and class tokens.

    `fused` does all in one pass over memory, a tenth of a step on a CPU (benchmarks/results/cpu-settings.md).
    With `layer_decay`, a group carries `lr_scale`, the factor of its learning rate: layer_decay ** (layers above it).
    """
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim <= 1 or name.endswith(PLAIN)
            decay = 0.0 if vector else float(config.weight_decay or 0.0)
            groups.setdefault((scales.get(name, 1.0), decay), []).append(parameter)
    named = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], -item[0][1]))
    ]
    return AdamW(named, lr=config.lr or 0.0, fused=fused)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Learning-rate factors of the backbone's parameters by their names in `model`; what is not named has 1.

    Layers are timm's own grouping: the stem is the lowest, the final norm the highest.

    Raises:
        ConfigError: the backbone does not say what its layers are.
    """
    backbone: Any = model.get_submodule("encoder.backbone")
    if not hasattr(backbone, "group_matcher"):
        raise ConfigError(
            "--optim.layer-decay needs a backbone of timm, which says what its layers are.",
            remedy="Leave out --optim.layer-decay, or use one such as --backbone vit_small_patch16_224.",
        )
    layers: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {f"encoder.backbone.{name}": decay ** (top - layer) for name, layer in layers.items()}


UPDATES = "updates"  # the count, beside the tensors in a checkpoint


class WeightAverage:
    """Exponential moving average of weights and floating-point buffers (batch-norm statistics).

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run's average forgets its random start.
    Counters are copied. LeJEPA needs no average (arXiv 2511.08544 uses one, as SWA, for some ViT rows only).
    """

    def __init__(self, encoder: Encoder, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in encoder.backbone.state_dict().items()}

    @torch.no_grad()
    def update(self, encoder: Encoder) -> None:
        """Take in the weights after an optimiser step."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = encoder.backbone.state_dict()
        floating = [name for name in live if live[name].is_floating_point()]
        mine, its = [_local(self.state[name]) for name in floating], [_local(live[name]) for name in floating]
        torch._foreach_lerp_(mine, its, weight)
        for name in live.keys() - set(floating):
            self.state[name].copy_(live[name])

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint: whole tensors, also where the model is sharded; called by all ranks."""
        tensors = {name: whole(value) for name, value in self.state.items()}
        return {**tensors, UPDATES: torch.tensor(self.updates)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From the checkpoint."""
        self.updates = int(state[UPDATES])
        for name, value in self.state.items():
            saved = state[name].to(value.device)
            if isinstance(value, DTensor):
                saved = distribute_tensor(saved, value.device_mesh, value.placements)
            value.copy_(saved)


def _local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor; an average of parts needs no other."""
    return value.to_local() if isinstance(value, DTensor) else value
