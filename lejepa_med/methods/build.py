"""From settings to an encoder."""

import torch

from data_adapters.base import Spec
from lejepa_med.config import MachineModel, ResolvedVector
from lejepa_med.models.encoder import Encoder, create_encoder, is_convolutional
from lejepa_med.models.formation import Formation
from lejepa_med.models.start import checkpoint_activations, freeze, start_from


def formed(config: ResolvedVector, spec: Spec) -> Formation:
    """How vectors are formed by these settings."""
    return Formation(size=spec.embed_size, views=config.views, layers=config.layers)


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
    if spec.dims == 2 and encoder.code is None and is_convolutional(config.backbone):
        # a quarter faster on a CPU (benchmarks/results/cpu-settings.md), and needed for tensor cores; the 3-D form
        # (channels_last_3d) made a step 1.3 to 1.8 times slower on a CPU (docs/mri3d.md); the user's own code may use
        # view(), which fails in this layout
        encoder.backbone.to(memory_format=torch.channels_last)
    return encoder
