"""What is trained: the encoder on every view, the projector on all of them together."""

import torch
from torch import Tensor, nn

from data_adapters.base import Spec
from lejepa_med.config import ModelConfig
from lejepa_med.models.encoder import Encoder, create_encoder, is_convolutional
from lejepa_med.models.projector import Projector


class ViewModel(nn.Module):
    """Encoder and projector over the views of a batch."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, global_views: Tensor, local_views: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embed and project.

        Global and local views go through the encoder as two batches, since their sizes differ; the projector's batch
        norm sees all views in one pass.

        Args:
            global_views: (Vg, B, C, H, W), or (Vg, B, C, D, H, W) of volumes.
            local_views: (Vl, B, C, h, w) or (Vl, B, C, d, h, w), or None.

        Returns:
            z (Vg + Vl, B, K) and the embeddings of the first global view (B, dim).
        """
        batch = global_views.shape[1]
        embeddings = self.encoder(global_views.flatten(0, 1))
        first = embeddings[:batch]
        if local_views is not None:
            embeddings = torch.cat([embeddings, self.encoder(local_views.flatten(0, 1))])
        return self.projector(embeddings).unflatten(0, (-1, batch)), first


def build_model(config: ModelConfig, spec: Spec, *, seed: int) -> ViewModel:
    """A model whose weights depend on the seed only."""
    assert config.backbone is not None and config.projector_hidden is not None and config.drop_path is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = create_encoder(config.backbone, spec, drop_path=config.drop_path)
        projector = Projector(
            encoder.dim, hidden=config.projector_hidden, depth=config.projector_depth, out_dim=config.projector_dim
        )
    if spec.dims == 2 and is_convolutional(config.backbone):
        # about twice the speed of the default layout for convolutions on the CPU, and needed for tensor cores; the 3-D
        # form (channels_last_3d) made a step 1.4 to 1.6 times slower on the CPU (docs/mri3d.md)
        encoder.backbone.to(memory_format=torch.channels_last)
    return ViewModel(encoder, projector)
