"""Terms that can be added to the loss of any method: SIGReg, and the variance hinge as a guard against collapse."""

from collections.abc import Mapping

from torch import Tensor, nn

from lejepa_med.objective.moments import variance_hinge


class AddedTerms(nn.Module):
    """loss + sigreg_weight * SIGReg(z) + hinge_weight * hinge(z), per view on the projector's output.

    Args:
        sigreg: the regulariser; None without it.
        sigreg_weight: its weight.
        hinge_weight: weight of `variance_hinge`; 0 without it.
    """

    def __init__(self, sigreg: nn.Module | None, *, sigreg_weight: float, hinge_weight: float) -> None:
        super().__init__()
        self.sigreg = sigreg
        self.sigreg_weight = sigreg_weight
        self.hinge_weight = hinge_weight

    def forward(
        self, loss: Tensor, terms: Mapping[str, Tensor], z: Tensor, *, seed: int, step: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The whole loss, and the terms with `sigreg` and `variance_hinge` where they are on.

        Args:
            loss: of the method.
            terms: its parts.
            z: (views, batch, K).
            seed: as in `Method.forward`.
            step: as in `Method.forward`.
        """
        found = dict(terms)
        if self.sigreg is not None:
            value = self.sigreg(z, seed=seed, step=step)
            loss, found["sigreg"] = loss + self.sigreg_weight * value, value.detach()
        if self.hinge_weight > 0:
            value = variance_hinge(z)
            loss, found["variance_hinge"] = loss + self.hinge_weight * value, value.detach()
        return loss, found
