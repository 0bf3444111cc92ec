"""The projector: the head whose output the objective sees, and which is left behind after pretraining."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize


class Projector(nn.Module):
    """MLP: (Linear, BatchNorm, ReLU) x (depth - 1), then a plain Linear.

    Three layers with batch normalisation are the paper's choice (arXiv 2511.08544, Table 4: accuracy grows with the
    depth), 64 outputs its best width (Table 1d). The last layer is plain: SIGReg itself sets mean and scale.

    Args:
        in_dim: width of the encoder's embedding.
        hidden: width of the hidden layers; 512 to 1024 for archives below about 5000 images.
        depth: number of linear layers, >= 1.
        out_dim: width of the output, the K of the objective.

    Raises:
        ValueError: a width or depth below 1.
    """

    def __init__(self, in_dim: int, hidden: int = 2048, depth: int = 3, out_dim: int = 64) -> None:
        super().__init__()
        if min(in_dim, hidden, depth, out_dim) < 1:
            raise ValueError(
                "Projector widths and depth must be at least 1, got "
                f"in_dim={in_dim}, hidden={hidden}, depth={depth}, out_dim={out_dim}."
            )
        self.in_dim = in_dim
        self.out_dim = out_dim
        layers: list[nn.Module] = []
        width = in_dim
        for _ in range(depth - 1):
            # No bias before batch normalisation: its mean subtraction would cancel it.
            layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Project embeddings.

        Args:
            x: (views * batch, in_dim). All views go through in one call, so that batch normalisation sees them all:
                one call per view would let it shift each view by itself.

        Returns:
            (views * batch, out_dim).

        Raises:
            ValueError: x is not (rows, in_dim).
        """
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(
                f"Projector expects (views * batch, {self.in_dim}), got {tuple(x.shape)}; flatten views into rows."
            )
        z: Tensor = self.layers(x)
        return z


class DINOHead(nn.Module):
    """DINO's head (arXiv 2104.14294, appendix C): MLP with GELU, unit-length bottleneck, scores against prototypes.

    Prototypes are used at unit length, which is the paper's weight normalisation with its gain held at 1
    (`norm_last_layer`). No batch normalisation, as for the paper's ViTs.

    Args:
        in_dim: width of the encoder's embedding.
        hidden: width of the hidden layers; 2048 in the paper.
        depth: number of linear layers before the prototypes, >= 1; 3 in the paper.
        bottleneck: width that the prototypes are compared in; 256 in the paper.
        prototypes: number of scores; 65536 in the paper, for ImageNet.
    """

    def __init__(self, in_dim: int, *, hidden: int, depth: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_dim
        for _ in range(depth - 1):
            layers += [nn.Linear(width, hidden), nn.GELU()]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, bottleneck))
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor, *, train_prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Score embeddings.

        Args:
            x: (views * batch, in_dim).
            train_prototypes: scalar 1, or 0 to hold the prototypes still (their gradient is then 0, not missing, which
                data-parallel training would not forgive).

        Returns:
            The bottleneck (views * batch, bottleneck), not normalised, and the scores (views * batch, prototypes).
        """
        z: Tensor = self.layers(x)
        held = self.prototypes.detach()
        weight = held + train_prototypes * (self.prototypes - held)
        return z, linear(normalize(z, dim=1), normalize(weight, dim=1))
