"""Masked LeJEPA: which patches are hidden, the predictors, and the loss."""

import math
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_seq
from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.distributed import all_reduce_sum, rank, world_size
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, projector, regularizer
from lejepa_med.methods.masked import MIN_SIDE, SettledMasked
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.lejepa import Pool, Regularizer, Weights, pooled

Kind = Literal["multi_block", "random_token"]
# I-JEPA (arXiv 2301.08243), section 4: four target blocks and one context block, without the targets.
BLOCKS = 4
TARGET_SCALE, TARGET_ASPECT = (0.15, 0.2), (0.75, 1.5)
CONTEXT_SCALE = (0.85, 1.0)
LEAST_CONTEXT = 0.1  # share of the patches that every image keeps visible; where blocks leave less they are drawn again


class Masks(NamedTuple):
    """Patch indices, row by row through the grid; no patch is in both.

    Attributes:
        context: (views, batch, visible) int64, ascending.
        target: (views, batch, hidden) int64. Blocks may overlap, and then a patch is named twice, as in I-JEPA.
    """

    context: NDArray[np.int64]
    target: NDArray[np.int64]


def draw_masks(
    kind: Kind,
    *,
    grid: tuple[int, int],
    views: int,
    batch: int,
    ratio: float,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
) -> Masks:
    """Draw the masks of one step.

    They depend on (seed, step) and on the sample's place in the global batch, of which rank r holds the places r,
    r + world_size, ...; so any number of processes hides the same patches. All images of a step have equally many
    visible and equally many hidden patches, so that they stack; which of a larger context are dropped is drawn too
    (I-JEPA's code drops the last ones, at the lower edge).

    Args:
        kind: multi_block, or random_token.
        grid: patches down and across, at least 4 each.
        views: views of each sample; each has a mask of its own.
        batch: samples of this rank.
        ratio: share of the patches that random_token hides.
        seed: the run's seed.
        step: the optimiser step.
        rank: of this process.
        world_size: number of processes; all hold `batch` samples.

    Raises:
        ValueError: a grid below 4 x 4, or an unknown kind.
    """
    if min(grid) < MIN_SIDE:
        raise ValueError(f"Masks need at least {MIN_SIDE} x {MIN_SIDE} patches, got {grid[0]} x {grid[1]}.")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step, 1)))  # 1: apart from SIGReg's directions
    images = views * batch * world_size
    if kind == "multi_block":
        context, target = _blocks(grid, images, rng)
    elif kind == "random_token":
        context, target = _tokens(grid, images, ratio, rng)
    else:
        raise ValueError(f"There is no mask {kind!r}; choose multi_block or random_token.")
    shape = (views, batch * world_size, -1)
    return Masks(context.reshape(shape)[:, rank::world_size], target.reshape(shape)[:, rank::world_size])


def _tokens(grid: tuple[int, int], images: int, ratio: float, rng: np.random.Generator) -> Masks:
    patches = grid[0] * grid[1]
    hidden = min(patches - 1, max(1, round(ratio * patches)))
    order = rng.random((images, patches)).argsort(axis=1)
    return Masks(np.sort(order[:, hidden:], axis=1), np.sort(order[:, :hidden], axis=1))


def _blocks(grid: tuple[int, int], images: int, rng: np.random.Generator) -> Masks:
    """One size of target and context block a step, as in I-JEPA; places are drawn for every image."""
    patches = grid[0] * grid[1]
    target_size = _size(grid, rng.uniform(*TARGET_SCALE), rng.uniform(*TARGET_ASPECT))
    context_size = _size(grid, rng.uniform(*CONTEXT_SCALE), 1.0)
    places = np.empty((images, BLOCKS, target_size[0] * target_size[1]), np.int64)
    visible = np.zeros((images, patches), bool)
    again = np.arange(images)
    while len(again):
        places[again] = _place(grid, target_size, len(again) * BLOCKS, rng).reshape(len(again), BLOCKS, -1)
        seen = np.zeros((len(again), patches), bool)
        np.put_along_axis(seen, _place(grid, context_size, len(again), rng), True, axis=1)
        np.put_along_axis(seen, places[again].reshape(len(again), -1), False, axis=1)
        visible[again] = seen
        again = again[seen.sum(axis=1) < LEAST_CONTEXT * patches]
    keep = int(visible.sum(axis=1).min())
    # visible patches first, in random order
    order = np.where(visible, rng.random(visible.shape), 2.0).argsort(axis=1)[:, :keep]
    return Masks(np.sort(order, axis=1), places.reshape(images, -1))


def _size(grid: tuple[int, int], scale: float, aspect: float) -> tuple[int, int]:
    """Height and width in patches of a block with this share of the area; aspect is height / width."""
    area = scale * grid[0] * grid[1]
    height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    return min(max(1, height), grid[0]), min(max(1, width), grid[1])


def _place(grid: tuple[int, int], size: tuple[int, int], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count, height * width): indices of blocks at random places."""
    top, left = (rng.integers(0, whole - part + 1, (count, 1)) for whole, part in zip(grid, size, strict=True))
    inside = (np.arange(size[0])[:, None] * grid[1] + np.arange(size[1])).ravel()
    return top * grid[1] + left + inside


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


class MaskedMethod(Method):
    """One encoder for both branches, a predictor and a projector; the gradient flows through both branches.

    The context branch encodes the visible patches, the target branch the whole view. The predictor makes the target's
    tokens at the hidden places from the context's, and the embedding of the whole view from them too. Both sides go
    through the projector together, and the loss is

        prediction = (mean over hidden patches + mean over whole views) / 2 of the squared distance of projections
        regulariser = (mean over hidden places of SIGReg + SIGReg of whole views) / 2, on the target's projections
        loss = (1 - lambda) * prediction + lambda * regulariser

    Each hidden place of each view is a sample of its own over the batch (`pool=per_view`), or all of them are one
    sample. The whole view's embedding (class token or mean, as the encoder pools) has half of each term, because it is
    what is used afterwards, and because nothing else would train a class token.

    Blocks and predictor are those of I-JEPA (arXiv 2301.08243); SIGReg in place of teacher and stop-gradient is what
    the authors of LeJEPA suggest for masked prediction (galilai-group/lejepa, issue 31). There is no published result.

    Args:
        encoder: a plain ViT of timm.
        projector: its head.
        predictor: of `lejepa_med.methods.masked.method`.
        regularizer: SIGReg or what stands in for it.
        weigh: lambda.
        pool: as above.
        mask: kind of mask.
        mask_ratio: share hidden by random_token.
        regularizer_name: name under which the log shows the regulariser's value.
        added: further terms, on the projections of whole views.

    Raises:
        ConfigError: another kind of encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: nn.Module,
        predictor: nn.Module,
        regularizer: nn.Module,
        *,
        weigh: Weights,
        pool: Pool = "per_view",
        mask: Kind = "multi_block",
        mask_ratio: float = 0.6,
        regularizer_name: str = "sigreg",
        added: AddedTerms | None = None,
    ) -> None:
        super().__init__(encoder, added=added)
        self.grid = patch_grid(encoder)
        self.projector = projector
        self.predictor = predictor
        self.regularizer = regularizer
        self.weigh, self.pool, self.mask, self.mask_ratio = weigh, pool, mask, mask_ratio
        self.regularizer_name = regularizer_name

    def forward(self, global_views: Tensor, local_views: Tensor | None, *, seed: int, step: int) -> StepOutput:
        """Loss of one batch of global views, with the terms prediction and sigreg (or the regulariser chosen instead).

        Raises:
            ValueError: there are local views.
        """
        if local_views is not None:
            raise ValueError("The masked method takes global views only; set n_local to 0.")
        views, batch = global_views.shape[:2]
        context, target = self._masks(views, batch, seed=seed, step=step, device=global_views.device)
        images = self.encoder.normalize(global_views.flatten(0, 1))
        backbone: Any = self.encoder.backbone
        tokens = backbone.forward_features(images)
        whole = backbone.forward_head(tokens)
        seen = visible_features(backbone, images, context)
        guess_whole, guess = self.predictor(seen, backbone.forward_head(seen), context, target)
        truth = take(tokens[:, backbone.num_prefix_tokens :], target)
        rows = torch.cat([whole[:, None], truth, guess_whole[:, None], guess], dim=1)  # (images, 2 + 2 hidden, dim)
        z = self.projector(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        z = z if z.dtype == torch.float64 else z.float()
        actual, predicted = z.chunk(2, dim=1)
        prediction = _distance(actual, predicted)
        at_view = actual[:, 0].unflatten(0, (views, batch))
        at_place = actual[:, 1:].unflatten(0, (views, batch)).movedim(2, 1).flatten(0, 1)  # (views * hidden, batch, K)
        both = [
            cast(Regularizer, self.regularizer)(pooled(part, self.pool), seed=seed, step=step)
            for part in (at_view, at_place)
        ]
        regularizer = (both[0] + both[1]) / 2
        terms = {"prediction": prediction.detach(), self.regularizer_name: regularizer.detach()}
        loss = self.weigh(prediction, regularizer)
        embeddings = whole.unflatten(0, (views, batch))
        return self.finish(loss, terms, embeddings=embeddings, z=at_view, seed=seed, step=step)

    def _masks(self, views: int, batch: int, *, seed: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Visible and hidden patches of each image, (views * batch, ...), on the device."""
        masks = draw_masks(
            self.mask,
            grid=self.grid,
            views=views,
            batch=batch,
            ratio=self.mask_ratio,
            seed=seed,
            step=step,
            rank=rank(),
            world_size=world_size(),
        )
        context, target = (torch.from_numpy(indices.reshape(views * batch, -1)) for indices in masks)
        return context.to(device, non_blocking=True), target.to(device, non_blocking=True)


def build(settings: SettledMasked, encoder: Encoder, model: ResolvedModel) -> MaskedMethod:
    """The method of these settings around an encoder."""
    grid = patch_grid(encoder)
    predictor = (
        MLPPredictor(encoder.dim, grid=grid)
        if settings.predictor == "mlp"
        else TransformerPredictor(encoder.dim, grid=grid, width=settings.predictor_dim, depth=settings.predictor_depth)
    )
    return MaskedMethod(
        encoder,
        projector(model, encoder.dim),
        predictor,
        regularizer(settings),
        weigh=Weights(settings.lamb, settings.weighting),
        pool=settings.pool,
        mask=settings.mask,
        mask_ratio=settings.mask_ratio,
        regularizer_name=settings.regularizer,
        added=added_terms(settings),
    )


def patch_grid(encoder: Encoder) -> tuple[int, int]:
    """Patches down and across of a global view.

    Raises:
        ConfigError: the encoder is not timm's plain ViT, whose tokens can be left out.
    """
    if type(encoder.backbone) is not VisionTransformer:
        raise ConfigError(
            f"Patches of '{encoder.name}' cannot be hidden: the masked method needs timm's plain ViT.",
            remedy="Use --backbone vit_small_patch16_224 or another vit_*, or --objective.method lejepa.",
        )
    rows, columns = encoder.backbone.patch_embed.grid_size
    return int(rows), int(columns)


def visible_features(vit: Any, images: Tensor, context: Tensor) -> Tensor:
    """Timm's `VisionTransformer.forward_features` with only the patches of `context` (images, visible).

    Positions are added before patches are left out, so each keeps its own.

    Returns:
        (images, prefix tokens + visible patches, dim).
    """
    x = vit._pos_embed(vit.patch_embed(images))
    prefix = vit.num_prefix_tokens
    x = vit.norm_pre(torch.cat([x[:, :prefix], take(x[:, prefix:], context)], dim=1))
    x = checkpoint_seq(vit.blocks, x) if vit.grad_checkpointing else vit.blocks(x)
    features: Tensor = vit.norm(x)
    return features


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """(images, tokens, dim) and (images, n) -> (images, n, dim)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[2]))


def _distance(actual: Tensor, predicted: Tensor) -> Tensor:
    """Mean squared distance of (images, 1 + hidden, K), where the first place weighs as much as all others together."""
    squares = (actual - predicted).square()
    sums = torch.stack([squares[:, 0].sum(), squares[:, 1:].sum()])
    counts = sums.new_tensor([squares[:, 0].numel(), squares[:, 1:].numel()])
    total = all_reduce_sum(torch.cat([sums, counts]))
    return (total[:2] / total[2:]).mean()
