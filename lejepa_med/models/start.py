"""Before the first step: weights of an earlier run, and what the backward pass keeps."""

import os
import shutil
from pathlib import Path

import torch

from lejepa_med.errors import ConfigError
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.folder import load_encoder


def start_from(encoder: Encoder, path: Path) -> None:
    """Copy the weights of an encoder folder into `encoder`: continued pretraining. Heads stay as they are.

    Raises:
        EncoderError: no readable encoder folder.
        ConfigError: another architecture, number of channels or size.
    """
    source = load_encoder(path).module
    if source.name != encoder.name:
        raise ConfigError(
            f"The encoder in {path} is a {source.name}, this run's is a {encoder.name}.",
            remedy=f"Use --model.backbone {source.name}.",
        )
    own, other = encoder.backbone.state_dict(), source.backbone.state_dict()
    different = [name for name in own if name not in other or own[name].shape != other[name].shape]
    if different or len(own) != len(other):
        shapes = "; ".join(
            f"{name} {tuple(other[name].shape) if name in other else 'missing'} against {tuple(own[name].shape)}"
            for name in different[:3]
        )
        raise ConfigError(
            f"The weights in {path} do not fit this run's encoder ({shapes or 'other layers'}).",
            remedy="Give --views.global-size, --model.registers, --model.conv-stem and --data.options "
            "(bands, channels) as its config.yaml has them.",
        )
    encoder.backbone.load_state_dict(other, strict=True)


def checkpoint_activations(encoder: Encoder) -> None:
    """Forget activations in the forward pass and compute them again in the backward pass (timm's own switch).

    Raises:
        ConfigError: the architecture has no such switch.
    """
    message = f"'{encoder.name}' has no activation checkpointing."
    try:
        encoder.backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, RuntimeError) as error:
        raise ConfigError(message, remedy="Leave out --model.checkpointing.") from error


def compile_backbone(encoder: Encoder) -> None:
    """torch.compile of the backbone in place: names of weights, and so checkpoints and encoder folders, stay.

    Raises:
        ConfigError: weights on a CPU, and no C++ compiler for the code that PyTorch generates.
    """
    compiler = os.environ.get("CXX", "g++")
    on_cpu = next(encoder.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    if on_cpu and shutil.which(compiler) is None:
        raise ConfigError(
            f"--train.compile needs a C++ compiler on a CPU, and there is no '{compiler}'.",
            remedy="Install g++, name another in the variable CXX, or leave out --train.compile.",
        )
    encoder.backbone.compile()
