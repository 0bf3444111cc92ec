"""A convolutional stem for vision transformers (Xiao et al., arXiv 2106.14881), from timm's own parts."""

import math
from typing import Any

from timm.layers import HybridEmbed
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn


def conv_stem(img_size: Any, patch_size: int, in_chans: int, embed_dim: int, **kwargs: Any) -> nn.Module:
    """An `embed_layer` for timm's VisionTransformer: 3 x 3 convolutions of stride 2 in place of one of stride `patch`.

    log2(patch) of them, of widths rising to `embed_dim` by doubling, with batch normalisation and ReLU between; as many
    tokens as before.

    Raises:
        ValueError: the patch is no power of two of at least 4 pixels.
    """
    depth = round(math.log2(patch_size))
    if patch_size < 4 or 2**depth != patch_size:
        raise ValueError(f"a convolutional stem needs patches of 4, 8, 16 or 32 px, not {patch_size}")
    stem = ConvStem(in_chans, depth=depth, channels=embed_dim, stride=(2,) * depth)
    embed: nn.Module = HybridEmbed(
        stem, img_size=img_size, in_chans=in_chans, embed_dim=embed_dim, proj=False, **kwargs
    )
    return embed
