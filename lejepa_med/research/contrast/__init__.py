"""VICReg, Barlow Twins and SimCLR: baselines without a teacher, with a loss on the projections of all views."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from lejepa_med.config import ResolvedModel, ResolvedViews
from lejepa_med.methods.settings import Issue, MethodSettings

if TYPE_CHECKING:
    from lejepa_med.methods.base import Method
    from lejepa_med.models.encoder import Encoder


class ContrastSettings(MethodSettings):
    """What the three have in common."""

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        yield from self.compares_views(views)


class VICRegSettings(ContrastSettings):
    """VICReg (arXiv 2105.04906), a baseline: invariance, variance and covariance of the projections."""

    title = "VICReg"
    # depth from the paper; it has 8192 outputs for ImageNet, of which 2048 is a quarter, as the hidden layers here are
    head = (3, 2048)

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        if self.variance_hinge > 0:
            yield "VICReg has the variance hinge in its loss already.", "Leave out --objective.variance-hinge."

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector and loss."""
        from lejepa_med.research.contrast.method import VICReg, build

        return build(self, VICReg(), encoder, model)


class BarlowTwinsSettings(ContrastSettings):
    """Barlow Twins (arXiv 2103.03230), a baseline: the cross-correlation of two views should be the identity."""

    title = "Barlow Twins"
    head = VICRegSettings.head  # the paper's is VICReg's

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector and loss."""
        from lejepa_med.research.contrast.method import BarlowTwins, build

        return build(self, BarlowTwins(), encoder, model)


class SimCLRSettings(ContrastSettings):
    """SimCLR (arXiv 2002.05709), a baseline: find the other view of the same image among all images of the batch."""

    title = "SimCLR"
    head = (2, 128)

    temperature: float = Field(default=0.1, gt=0)
    """of SimCLR"""

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector and loss."""
        from lejepa_med.research.contrast.method import SimCLR, build

        return build(self, SimCLR(temperature=self.temperature), encoder, model)
