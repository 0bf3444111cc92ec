"""Learning rate and parameter groups."""

import math
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.optim import AdamW

from lejepa_med.config import OptimConfig
from lejepa_med.errors import ConfigError

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
