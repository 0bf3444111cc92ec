"""Where an encoder looks and what it tells apart, patch by patch, for pictures."""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from lejepa_med.config import is_own
from lejepa_med.models.architectures import NETWORKS, is_convolutional, is_monai
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.folder import LoadedEncoder

PATCH_SIDE = 512  # pixels to which images are enlarged for the patch features of a CNN
BATCH = 8  # images of one pass


@functools.cache
def is_enlarged(backbone: str) -> bool:
    """Whether patch features come from enlarged images: a last map with the stride 32 of a CNN is too coarse."""
    return not is_monai(backbone) and not is_own(backbone) and is_convolutional(backbone)


@torch.inference_mode()
def patch_maps(encoder: LoadedEncoder, pixels: Tensor, *, side: int = PATCH_SIDE) -> NDArray[np.float32] | None:
    """Return the last features of each patch: (n, h, w, dim), of volumes (n, d, h, w, dim); None where there are none.

    Args:
        encoder: in evaluation mode.
        pixels: (n, C, H, W) or (n, C, D, H, W), as `prepare` gives them.
        side: pixels to which images are enlarged for a CNN.
    """
    found = []
    for part in _scaled(pixels).split(BATCH if pixels.ndim == 4 else 1):
        if is_enlarged(encoder.module.name) and part.shape[-1] < side:
            part = interpolate(part, scale_factor=side / part.shape[-1], mode="bilinear")
        features = encoder.module.patch_maps(part.to(encoder.device))
        if features is None:
            return None
        found.append(features.float().cpu())
    return np.asarray(torch.cat(found).numpy(), np.float32)


@torch.inference_mode()
def attention_maps(encoder: LoadedEncoder, pixels: Tensor) -> NDArray[np.float32] | None:
    """Return the attention of the last block to each patch: (n, h, w), of volumes (n, d, h, w); None but for ViTs.

    The attention of the class token, or where there is none the mean over all patches that ask, averaged over the heads
    (as Caron et al. 2021 show it for DINO).
    """
    if not _has_attention(encoder.module):
        return None
    pieces = _scaled(pixels).split(BATCH if pixels.ndim == 4 else 1)
    found = [_attention(encoder.module, part.to(encoder.device)).float().cpu() for part in pieces]
    return np.asarray(torch.cat(found).numpy(), np.float32)


def _has_attention(module: Encoder) -> bool:
    if is_monai(module.name):
        return NETWORKS[module.name.removeprefix("monai:")][0] == "vit"
    if not isinstance(module.backbone, VisionTransformer):
        return False
    layer = module.backbone.blocks[-1].attn
    return all(hasattr(layer, name) for name in ("qkv", "num_heads", "scale"))


def _attention(module: Encoder, pixels: Tensor) -> Tensor:
    layer: Any = module.backbone.blocks[-1].attn
    me, seen = threading.get_ident(), []

    def keep(_layer: Any, given: Sequence[Any]) -> None:
        if threading.get_ident() == me:  # the encoder serves other requests meanwhile
            seen.append(given[0])

    handle = layer.register_forward_pre_hook(keep)
    try:
        module(pixels)
    finally:
        handle.remove()
    tokens: Tensor = seen[0]
    count, length, _ = tokens.shape
    query, key, _ = layer.qkv(tokens).reshape(count, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query), layer.k_norm(key)
    given = (query @ key.transpose(-2, -1) * layer.scale).softmax(dim=-1).mean(dim=1)  # (n, from, to), over the heads
    prefix = getattr(module.backbone, "num_prefix_tokens", 0)
    to_patches: Tensor = given[:, 0, prefix:] if prefix else given.mean(dim=1)
    side = round(to_patches.shape[1] ** (1 / module.dims))
    return to_patches.reshape(count, *[side] * module.dims)


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
