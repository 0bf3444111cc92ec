"""LeJEPA: the encoder on every view, the projector on all of them together, invariance plus SIGReg on its output."""

from torch import Tensor, nn

from lejepa_med.methods.base import Method, StepOutput
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.lejepa import LeJEPA


class LeJEPAMethod(Method):
    """Encoder, projector and the LeJEPA loss (arXiv 2511.08544)."""

    def __init__(self, encoder: Encoder, projector: nn.Module, objective: LeJEPA) -> None:
        super().__init__(encoder)
        self.projector = projector
        self.objective = objective

    def project(self, embeddings: Tensor) -> Tensor:
        """(V, B, dim) -> (V, B, K). The projector's batch norm sees all views in one pass."""
        z: Tensor = self.projector(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2])
        return z

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch, with the terms invariance and sigreg."""
        embeddings = self.embed_views(global_views, local_views)
        z = self.project(embeddings)
        n_global = len(global_views)
        losses = self.objective(z[:n_global], z[n_global:] if local_views is not None else None, seed=seed, step=step)
        return StepOutput(
            loss=losses.loss,
            terms={"invariance": losses.invariance, "sigreg": losses.sigreg},
            features=embeddings[0].detach(),
            z=z[0].detach(),
            z_views=z.detach(),
        )
