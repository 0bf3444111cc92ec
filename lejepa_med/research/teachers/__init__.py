"""BYOL and DINO: baselines in which a student predicts what its slowly moving teacher makes of another view."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from lejepa_med.config import ResolvedModel, ResolvedViews
from lejepa_med.methods.settings import Issue, MethodSettings

if TYPE_CHECKING:
    from lejepa_med.methods.base import Method
    from lejepa_med.models.encoder import Encoder


class TeacherSettings(MethodSettings):
    """What both have in common."""

    teacher_momentum: float = Field(default=0.996, ge=0, lt=1)
    """of BYOL and DINO at the first step; rises to 1 along a cosine"""

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        yield from self.compares_views(views)


class BYOLSettings(TeacherSettings):
    """BYOL (arXiv 2006.07733), a baseline: predict the projections of a moving average of the network."""

    title = "BYOL"
    head = (2, 256)

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector, predictor and their moving average."""
        from lejepa_med.research.teachers.method import build_byol

        return build_byol(self, encoder, model)


class DINOSettings(TeacherSettings):
    """DINO (arXiv 2104.14294), a baseline: match the moving average's soft assignment to prototypes."""

    title = "DINO"
    head = (3, 256)

    prototypes: int = Field(default=4096, ge=2)
    """outputs of DINO's head"""

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, head and their moving average."""
        from lejepa_med.research.teachers.method import build_dino

        return build_dino(self, encoder, model)
