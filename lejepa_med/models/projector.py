"""The projector: the head whose output the objective sees, and which is left behind after pretraining."""

from torch import Tensor, nn


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
