"""Masked LeJEPA: predict the tokens of hidden patches from the visible ones, with SIGReg against collapse."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lejepa_med.config import ResolvedModel, ResolvedViews
from lejepa_med.methods.settings import Issue, RegularisedSettings

if TYPE_CHECKING:
    from lejepa_med.methods.base import Method
    from lejepa_med.models.encoder import Encoder

MIN_SIDE = 4  # patches; in a smaller grid four blocks of rounded sizes leave nothing to see


class MaskedSettings(RegularisedSettings):
    """Predict hidden patches of a ViT, with SIGReg; nothing is published (docs/method.md)."""

    title = "masked LeJEPA"
    views = (1, 0)

    mask: Literal["multi_block", "random_token"] = "multi_block"
    """what masked hides: I-JEPA's four blocks, or single patches"""
    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """share of the patches that random_token hides"""
    predictor: Literal["none", "mlp", "transformer"] = "transformer"
    """predictor of masked"""
    predictor_dim: int = Field(default=192, ge=32, multiple_of=32)
    """width of the transformer predictor, narrower than the encoder"""
    predictor_depth: int = Field(default=4, ge=1)
    """blocks of the transformer predictor"""

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        from lejepa_med.models.architectures import plain_vit_patch

        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        yield from self.without_effect(
            {
                "mask_ratio": (self.mask == "random_token", "--objective.mask random_token"),
                "predictor_dim": (self.predictor != "mlp", "--objective.predictor transformer"),
                "predictor_depth": (self.predictor != "mlp", "--objective.predictor transformer"),
            }
        )
        if views.n_local:
            yield "The masked method takes global views only.", "Set --views.n-local 0."
        if self.predictor == "none":
            yield "The masked method needs a predictor.", "Set --objective.predictor mlp or transformer."
        patch = plain_vit_patch(backbone)
        if patch is None:
            yield (
                f"Patches of '{backbone}' cannot be hidden: the masked method needs timm's plain ViT.",
                "Use --backbone vit_small_patch16_224 or another vit_*, or --objective.method lejepa.",
            )
        elif views.global_size // patch < MIN_SIDE:
            yield (
                f"Views of {views.global_size} px hold fewer than {MIN_SIDE} x {MIN_SIDE} patches of {patch} px.",
                f"Set --views.global-size {MIN_SIDE * patch} or more, or take a backbone with smaller patches.",
            )
        if conv_stem:
            yield (
                "The masked method hides patches, but a convolutional stem has seen their neighbours' pixels.",
                "Leave out --model.conv-stem.",
            )

    def for_archive(self, *, views: int, seen: int, items: int) -> "SettledMasked":
        """Return the settings with lambda."""
        lamb = self._lambda(views=views, seen=seen, items=items)
        return SettledMasked(**self.model_dump(exclude={"lamb"}), lamb=lamb)


class SettledMasked(MaskedSettings):
    """The masked method's settings when lambda is known."""

    lamb: float = Field(gt=0)

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return encoder, projector, predictor and loss."""
        from lejepa_med.methods.masked.method import build

        return build(self, encoder, model)
