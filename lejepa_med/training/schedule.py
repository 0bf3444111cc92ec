"""Learning rate and parameter groups."""

import math
from typing import Any

from torch import nn
from torch.optim import AdamW

from lejepa_med.config import OptimConfig


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then cosine from `lr` to `lr * final_lr`, which the last step reaches exactly.

    Args:
        step: from 0.
        steps: of the whole run.
        config: `lr`, `warmup` (fraction of the steps) and `final_lr` (fraction of `lr`).
    """
    peak = config.lr or 0.0
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    low = peak * config.final_lr
    return low + (peak - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW without weight decay on norms, biases and other vectors, positional embeddings and class tokens."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        vector = parameter.ndim <= 1 or name.endswith(("pos_embed", "position_embeddings", "cls_token", "reg_token"))
        (plain if vector else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=config.lr or 0.0)
