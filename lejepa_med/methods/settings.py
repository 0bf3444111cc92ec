"""What a method declares: its settings, what goes together with them, and how a module is built from them.

Nothing here needs PyTorch, so that the command line can list a method's settings at once.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, Field

from lejepa_med.config import ObjectiveConfig, ResolvedModel, ResolvedViews

if TYPE_CHECKING:
    from lejepa_med.methods.base import Method
    from lejepa_med.models.encoder import Encoder

Issue = tuple[str, str]
"""What is wrong, and what to do about it."""


class MethodSettings(ObjectiveConfig):
    """A method's settings. Derive, add fields, and write `build`; SIGReg's are here since any method may add it."""

    model_config = ConfigDict(extra="forbid")

    title: ClassVar[str]
    """name in the model card"""
    head: ClassVar[tuple[int, int] | None] = None
    """depth and output width of the projector where the user gives none; None: 3 and 64"""
    views: ClassVar[tuple[int, int] | None] = None
    """numbers of global and local views where the user gives none; None: those of the recipe"""
    many_views: ClassVar[bool] = False
    """whether it takes 8 views of each sample where the archive is small"""

    sigreg_weight: float = Field(default=0.0, ge=0)
    """add this much SIGReg on the projector's output to the loss of another method"""
    variance_hinge: float = Field(default=0.0, ge=0)
    """add this much of VICReg's hinge on the standard deviations: a guard that still pulls where SIGReg goes flat"""
    test: str = "epps_pulley"
    """statistical test inside SIGReg: epps_pulley, cramer_von_mises, anderson_darling, or another of docs/method.md"""
    slices: int = Field(default=1024, ge=1)
    """random directions of each step; left out: 256 on a CPU, 1024 on a GPU"""
    knots: int = Field(default=17, ge=3)
    """quadrature points on [0, t_max]"""
    t_max: float = Field(default=3.0, gt=0)
    """upper limit of the integral over the characteristic function"""

    def build(self, encoder: "Encoder", model: ResolvedModel) -> "Method":
        """Return the method's module around an encoder; `model` has the sizes of its projector."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def for_archive(self, *, views: int, seen: int, items: int) -> "MethodSettings":
        """Return the settings with what follows from the archive.

        Args:
            views: of each sample.
            seen: samples that the loss sees at a time.
            items: records of the archive.
        """
        return self

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together, before anything is read. Call it from an override, too."""
        from lejepa_med.objective.normality import known_tests

        if self.test not in known_tests():
            yield f"There is no test '{self.test}'.", f"Use --objective.test with one of {', '.join(known_tests())}."
        yield from self.without_effect(
            {
                "test": (self._sigreg(), "--objective.regularizer sigreg, or --objective.sigreg-weight"),
                "knots": (self._sigreg() and self.test == "epps_pulley", "--objective.test epps_pulley"),
                "t_max": (self._sigreg() and self.test == "epps_pulley", "--objective.test epps_pulley"),
            }
        )

    def cautions(self, *, views: int, seen: int, projector_dim: int) -> Iterator[str]:
        """Yield what a run should know about its statistics.

        Args:
            views: of each sample.
            seen: samples that the loss sees at a time.
            projector_dim: width of the projector's output.
        """
        if self.test in ("bhep", "henze_zirkler") and projector_dim > 16:
            yield f"{self.test} sees nothing in {projector_dim} dimensions. Use --model.projector-dim 16 or less."

    def without_effect(self, needs: Mapping[str, tuple[bool, str]]) -> Iterator[Issue]:
        """Yield the settings that differ from their default and are not used; `needs`: name to (used, what uses it)."""
        for name, (used, user) in needs.items():
            if not used and getattr(self, name) != type(self).model_fields[name].default:
                flag = "--objective." + name.replace("_", "-")
                yield f"{flag} has no effect with these settings.", f"Leave out {flag}, or set {user}."

    def compares_views(self, views: ResolvedViews) -> Iterator[Issue]:
        """Yield an issue where a loss that compares views would get a single one."""
        if views.n_global + views.n_local < 2:
            yield (
                f"{self.method} compares views, but there is only one.",
                "Set --views.n-global 2 or --views.n-local 1 (or more).",
            )

    def _sigreg(self) -> bool:
        """Whether SIGReg is part of the loss."""
        return self.sigreg_weight > 0


# VISReg's best lambda, convex (arXiv 2606.02572, Tables 3 and 12): small archives, and ImageNet.
VISREG_LAMBDA, VISREG_LAMBDA_LARGE, LARGE = 0.6, 0.9, 1_000_000
SPECTRAL_LAMBDA = 0.5  # equal weights, as in the article; nothing is published


class RegularisedSettings(MethodSettings):
    """Settings of a loss with two terms: a prediction, and a regulariser of weight lambda."""

    lamb: float | None = Field(default=None, gt=0)
    """weight of the regulariser; None: .05 / .02 / .01 for 8 / 4 / 2 views, more for small batches"""
    pool: Literal["per_view", "pooled"] = "per_view"
    """regularise every view by itself, or all views as one sample (stable-pretraining's way; V times stronger)"""
    weighting: Literal["convex", "additive"] = "convex"
    """(1 - lamb) * invariance + lamb * regulariser, or invariance + lamb * regulariser"""
    regularizer: Literal["sigreg", "visreg", "spectral_entropy"] = "sigreg"
    """visreg: arXiv 2606.02572; spectral_entropy is not LeJEPA but a third-party article's variant"""

    def issues(self, *, backbone: str, views: ResolvedViews, conv_stem: bool) -> Iterator[Issue]:
        """Yield what does not go together."""
        yield from super().issues(backbone=backbone, views=views, conv_stem=conv_stem)
        if self.lamb is not None and self.lamb >= 1 and self.weighting == "convex":
            yield (
                f"Convex weights need a lambda below 1, got {self.lamb}.",
                "Lower --objective.lamb, or set --objective.weighting additive.",
            )
        if self.sigreg_weight > 0 and self.regularizer == "sigreg":
            yield (
                f"{self.method} has SIGReg in its loss already.",
                "Leave out --objective.sigreg-weight, and raise --objective.lamb instead.",
            )

    def cautions(self, *, views: int, seen: int, projector_dim: int) -> Iterator[str]:
        """Yield what a run should know about lambda."""
        if self.test != "epps_pulley" and self.lamb == default_lambda(views, seen):
            yield (
                f"The default lambda belongs to the test epps_pulley; {self.test} has gradients of another size "
                "(docs/method.md). Choose --objective.lamb by a small sweep."
            )
        yield from super().cautions(views=views, seen=seen, projector_dim=projector_dim)

    def _sigreg(self) -> bool:
        return self.regularizer == "sigreg" or super()._sigreg()

    def _lambda(self, *, views: int, seen: int, items: int) -> float:
        """Return lambda, and where none is given the one with the usual ratio of regulariser to prediction.

        Pooled views make SIGReg `views` times stronger; additive weights leave out the factor 1 - lambda.
        """
        if self.lamb is not None:
            return self.lamb
        if self.regularizer == "visreg":
            lamb = VISREG_LAMBDA_LARGE if items >= LARGE else VISREG_LAMBDA
        elif self.regularizer == "spectral_entropy":
            lamb = SPECTRAL_LAMBDA
        else:
            lamb = default_lambda(views, seen) / (max(1, views) if self.pool == "pooled" else 1)
        return lamb / (1 - lamb) if self.weighting == "additive" else lamb


def default_lambda(views: int, batch: int) -> float:
    """.01 / .02 / .05 for 2 / 4 / 8 views (LeJEPA, Table 7), raised by 256/B below a batch of 128, at most .2.

    The second rule is inferred, not published: the gradient of SIGReg grows linearly with the batch.
    """
    lamb = 0.05 if views >= 8 else 0.02 if views >= 3 else 0.01
    return min(0.2, lamb * 256 / batch) if batch < 128 else lamb
