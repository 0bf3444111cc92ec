"""What is trained, from its settings."""

import torch

from data_adapters.base import Spec
from lejepa_med.methods.base import Method
from lejepa_med.methods.build import build_encoder, formed
from lejepa_med.training.settings import RunConfig


def build_method(config: RunConfig, spec: Spec) -> Method:
    """The method of resolved settings; its weights depend on `train.seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(config.model, spec, formation=formed(config.vector, spec))
        return config.objective.build(encoder, config.model)
