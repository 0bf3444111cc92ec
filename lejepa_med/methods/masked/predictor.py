"""Predictors of the masked method: from what the encoder made of the visible patches to what it makes of the others."""

import math

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD_DIM = 32


class MLPPredictor(nn.Module):
    """Pooled context and a position -> the embedding at that position; one hidden layer.

    Args:
        dim: width of the encoder.
        grid: patches down and across.
        hidden: width of the hidden layer; None: 2 * dim.
    """

    positions: Tensor

    def __init__(self, dim: int, *, grid: tuple[int, int], hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 2 * dim
        self.register_buffer("positions", sincos_positions(grid, hidden), persistent=False)
        self.whole = nn.Parameter(torch.zeros(hidden))
        nn.init.trunc_normal_(self.whole, std=0.02)
        self.context = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden))
        self.out = nn.Sequential(nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, pooled: Tensor, context: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """As `TransformerPredictor.forward`; of the context it uses `pooled` alone."""
        base = self.context(pooled)
        whole = self.out(base + self.whole)
        return whole, self.out(base[:, None] + self.positions[target])


class TransformerPredictor(nn.Module):
    """Narrow transformer: context tokens and one mask token a hidden patch, each with its position (I-JEPA, section 3).

    All hidden patches are predicted in one pass, as in V-JEPA; I-JEPA has a pass a block. One more mask token, with a
    learnt place instead of a position, predicts the embedding of the whole image.

    Args:
        dim: width of the encoder.
        grid: patches down and across.
        width: width inside, a multiple of 32 (heads of 32).
        depth: number of blocks.
    """

    positions: Tensor

    def __init__(self, dim: int, *, grid: tuple[int, int], width: int = 192, depth: int = 4) -> None:
        super().__init__()
        if width % HEAD_DIM or width < HEAD_DIM or depth < 1:
            raise ValueError(f"width must be a multiple of {HEAD_DIM} and depth at least 1, got {width} and {depth}.")
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.whole = nn.Parameter(torch.empty(width))
        for parameter in (self.mask_token, self.whole):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.into = nn.Linear(dim, width)
        self.blocks = nn.Sequential(*[Block(width, num_heads=width // HEAD_DIM, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def forward(self, tokens: Tensor, pooled: Tensor, context: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the embedding of the whole image and those of its hidden patches.

        Args:
            tokens: (images, prefix tokens + visible patches, dim), the encoder's output for the visible patches.
            pooled: (images, dim), the same pooled as the encoder pools.
            context: (images, visible patches), their indices in the grid.
            target: (images, hidden patches), likewise.

        Returns:
            (images, dim) and (images, hidden patches, dim).
        """
        seen = self.into(tokens)
        prefix = seen.shape[1] - context.shape[1]
        seen = torch.cat([seen[:, :prefix], seen[:, prefix:] + self.positions[context]], dim=1)
        hidden = self.mask_token + self.positions[target]
        whole = (self.mask_token + self.whole).expand(len(tokens), 1, -1)
        out = self.out(self.norm(self.blocks(torch.cat([whole, hidden, seen], dim=1))))
        return out[:, 0], out[:, 1 : 1 + target.shape[1]]


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D sine and cosine positions (Vaswani et al. 2017, by axis as in MAE), (rows * columns, dim).

    A quarter of the dimensions each for sine and cosine of row and column.

    Raises:
        ValueError: dim is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2-D positions need a multiple of 4 dimensions, got {dim}.")
    frequency = torch.exp(-math.log(10_000) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()
