"""From settings to a method."""

import torch

from data_adapters.base import Spec
from lejepa_med.config import ModelConfig, ObjectiveConfig, PretrainConfig
from lejepa_med.methods.base import Method
from lejepa_med.methods.lejepa import LeJEPAMethod
from lejepa_med.models.encoder import Encoder, create_encoder, is_convolutional
from lejepa_med.models.projector import Projector
from lejepa_med.models.start import checkpoint_activations, start_from
from lejepa_med.objective.lejepa import LeJEPA
from lejepa_med.objective.sigreg import SIGReg


def build_method(config: PretrainConfig, spec: Spec) -> Method:
    """The method of resolved settings; its weights depend on `train.seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(config.model, spec)
        return LeJEPAMethod(encoder, build_projector(config.model, encoder.dim), build_objective(config.objective))


def build_encoder(config: ModelConfig, spec: Spec) -> Encoder:
    """A randomly initialised encoder in the memory layout that is fastest for it."""
    assert config.backbone is not None and config.drop_path is not None
    encoder = create_encoder(
        config.backbone,
        spec,
        drop_path=config.drop_path,
        registers=config.registers,
        conv_stem=config.conv_stem,
    )
    if config.init is not None:
        start_from(encoder, config.init)
    if config.checkpointing:
        checkpoint_activations(encoder)
    if spec.dims == 2 and is_convolutional(config.backbone):
        # about twice the speed of the default layout for convolutions on the CPU, and needed for tensor cores; the 3-D
        # form (channels_last_3d) made a step 1.4 to 1.6 times slower on the CPU (docs/mri3d.md)
        encoder.backbone.to(memory_format=torch.channels_last)
    return encoder


def build_projector(config: ModelConfig, in_dim: int) -> Projector:
    """The projector of these settings."""
    assert config.projector_hidden is not None
    return Projector(in_dim, hidden=config.projector_hidden, depth=config.projector_depth, out_dim=config.projector_dim)


def build_objective(config: ObjectiveConfig) -> LeJEPA:
    """The LeJEPA loss of these settings."""
    assert config.lamb is not None and config.slices is not None
    return LeJEPA(config.lamb, SIGReg(slices=config.slices, knots=config.knots, t_max=config.t_max))
