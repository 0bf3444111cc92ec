"""LeJEPA: predict the centre of the global views, and keep the embeddings isotropic Gaussian (arXiv 2511.08544)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lejepa_med.config import ResolvedModel, ResolvedViews
from lejepa_med.methods.settings import Issue, RegularisedSettings, default_lambda

if TYPE_CHECKING:
    from lejepa_med.methods.base import Method
    from lejepa_med.models.encoder import Encoder

WEAK_BATCH = 128  # below it a lambda of less than half the default is worth a warning


class LeJEPASettings(RegularisedSettings):
    """LeJEPA, the default: (1 - lamb) * invariance + lamb * SIGReg (arXiv 2511.08544)."""

    title = "LeJEPA (arXiv 2511.08544)"
    many_views = True

    target: Literal["global_mean", "all_mean", "pairwise"] = "global_mean"
    """what the views are pulled to: the mean of the global views, of all views, or each global view (Equation 5)"""

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        yield from self.compares_views(views)

    def for_archive(self, *, views: int, seen: int, items: int) -> "SettledLeJEPA":
        """Return the settings with lambda."""
        lamb = self._lambda(views=views, seen=seen, items=items)
        return SettledLeJEPA(**self.model_dump(exclude={"lamb"}), lamb=lamb)

    def cautions(self, *, views: int, seen: int, projector_dim: int) -> Iterator[str]:
        """Yield what a run should know about lambda."""
        yield from super().cautions(views=views, seen=seen, projector_dim=projector_dim)
        usual = default_lambda(views, seen)
        published = (self.regularizer, self.test, self.pool, self.weighting)
        weak = seen < WEAK_BATCH and self.lamb is not None and self.lamb < usual / 2
        if weak and published == ("sigreg", "epps_pulley", "per_view", "convex"):
            yield (
                f"lambda {self.lamb:g} is weak with {seen} samples at a time: SIGReg's gradient grows with them, so "
                f"the default here would be {usual:g}. On galaxies, .01 with 32 left 3 of 64 directions."
            )


class SettledLeJEPA(LeJEPASettings):
    """LeJEPA's settings when lambda is known."""

    lamb: float = Field(gt=0)

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector and loss."""
        from lejepa_med.methods.lejepa.method import build

        return build(self, encoder, model)
