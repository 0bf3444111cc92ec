"""LeJEPA: the encoder on every view, the projector on all of them together, invariance plus SIGReg on its output."""

from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, project, projector, regularizer
from lejepa_med.methods.lejepa import SettledLeJEPA
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.lejepa import LeJEPA


class LeJEPAMethod(Method):
    """Encoder, projector and the LeJEPA loss (arXiv 2511.08544).

    Args:
        encoder: the backbone.
        projector: its head.
        objective: the loss.
        regularizer: name under which the log shows the regulariser's value.
        added: further terms.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        objective: LeJEPA,
        *,
        regularizer: str = "sigreg",
        added: AddedTerms | None = None,
    ) -> None:
        super().__init__(encoder, added=added)
        self.projector = projector
        self.objective = objective
        self.regularizer = regularizer

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch, with the terms invariance and sigreg (or the regulariser chosen instead)."""
        embeddings = self.embed_views(global_views, local_views)
        z = project(self.projector, embeddings)
        n_global = len(global_views)
        losses = self.objective(z[:n_global], z[n_global:] if local_views is not None else None, seed=seed, step=step)
        terms = {"invariance": losses.invariance, self.regularizer: losses.regularizer}
        return self.finish(losses.loss, terms, embeddings=embeddings, z=z, seed=seed, step=step)


def build(settings: SettledLeJEPA, encoder: Encoder, model: ResolvedModel) -> LeJEPAMethod:
    """The method of these settings around an encoder."""
    head = projector(model, encoder.dim)
    return LeJEPAMethod(
        encoder, head, objective_of(settings), regularizer=settings.regularizer, added=added_terms(settings)
    )


def objective_of(settings: SettledLeJEPA) -> LeJEPA:
    """The LeJEPA loss of these settings."""
    return LeJEPA(
        settings.lamb,
        regularizer(settings),
        target=settings.target,
        pool=settings.pool,
        weighting=settings.weighting,
    )
