"""Masked LeJEPA: predict the encoder's tokens of hidden patches from the visible ones, with SIGReg against collapse."""

from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_seq
from torch import Tensor, nn

from lejepa_med.config import ResolvedModel
from lejepa_med.distributed import all_reduce_sum, rank, world_size
from lejepa_med.errors import ConfigError
from lejepa_med.methods.base import AddedTerms, Method, StepOutput, added_terms, projector, regularizer
from lejepa_med.methods.masked import SettledMasked
from lejepa_med.methods.masked.masks import Kind, draw_masks
from lejepa_med.methods.masked.predictor import MLPPredictor, TransformerPredictor
from lejepa_med.models.encoder import Encoder
from lejepa_med.objective.lejepa import Pool, Regularizer, Weights, pooled


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
        predictor: of `lejepa_med.methods.masked.predictor`.
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
