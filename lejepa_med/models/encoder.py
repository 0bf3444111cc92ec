"""An encoder: plain pixels in, one embedding out. The backbone is any timm model."""

import inspect
from typing import Any

import timm
import torch
from torch import Tensor, nn

from data_adapters.base import Spec
from lejepa_med.errors import ConfigError


class Normalize(nn.Module):
    """uint8 (divided by 255) or float values in [0, 1] -> (x - mean) / std, float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels`: (B, C, H, W)."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return (scaled - self.mean) / self.std


class Encoder(nn.Module):
    """Normalisation and a timm backbone without a head.

    `forward` gives the backbone's pooled output (class token or average pool, as the architecture defines), which is
    what is embedded and probed; the projector, on which the objective acts, is not part of it.
    """

    def __init__(self, backbone: nn.Module, *, name: str, model_args: dict[str, Any], spec: Spec) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.normalize = Normalize(spec.mean, spec.std)
        self.name = name
        self.model_args = model_args
        # some architectures put a hidden layer between pooling and head, and that is what they return without a head
        self.dim = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) uint8 or float in [0, 1] -> (B, dim)."""
        return self.backbone(self.normalize(pixels))  # type: ignore[no-any-return]

    def patch_features(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, dim) features of the last stage, for pictures; prefix tokens are dropped."""
        features: Tensor = self.backbone.forward_features(self.normalize(pixels))
        if features.ndim == 3:
            tokens = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            side = int(tokens.shape[1] ** 0.5)
            return tokens[:, : side * side].reshape(len(tokens), side, side, -1)
        # timm's convention: feature maps whose last axis is num_features are channels-last (Swin, for one)
        if features.shape[-1] == int(self.backbone.num_features):
            return features
        return features.permute(0, 2, 3, 1)


def model_arguments(name: str, spec: Spec, *, drop_path: float = 0.0) -> dict[str, Any]:
    """Timm arguments for this backbone: channels, no head, and the view size where the architecture must know it."""
    args: dict[str, Any] = {"in_chans": spec.channels, "num_classes": 0}
    if drop_path > 0:
        args["drop_path_rate"] = drop_path
    accepted = _accepted_arguments(name)
    if "img_size" in accepted:
        args["img_size"] = spec.global_size
    if "dynamic_img_size" in accepted and spec.n_local > 0 and spec.local_size != spec.global_size:
        args["dynamic_img_size"] = True
    return args


def _accepted_arguments(name: str) -> set[str]:
    """Constructor arguments of the backbone's class, found without building weights."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return set(inspect.signature(type(model).__init__).parameters)


def create_encoder(name: str, spec: Spec, *, drop_path: float = 0.0) -> Encoder:
    """A randomly initialised encoder.

    Args:
        name: a timm architecture, such as 'resnet18' or 'vit_small_patch16_224'.
        spec: channels, sizes and normalisation of the adapter.
        drop_path: stochastic depth rate.

    Raises:
        ConfigError: timm does not know the name, or the architecture cannot take these sizes.
    """
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
        raise ConfigError(
            f"timm has no architecture '{name}'.",
            remedy=f"Close names: {close}."
            if close
            else "List names with: python -c 'import timm; timm.list_models()'",
        )
    args = model_arguments(name, spec, drop_path=drop_path)
    try:
        backbone = timm.create_model(name, pretrained=False, **args)
        encoder = Encoder(backbone, name=name, model_args=args, spec=spec)
        _check_sizes(encoder, spec)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The backbone '{name}' does not take {spec.channels}-channel views of "
            f"{spec.global_size} and {spec.local_size} px: {error}",
            remedy="Choose sizes that are multiples of its patch or window, or set --views.n-local 0.",
        ) from error
    return encoder


@torch.no_grad()
def _check_sizes(encoder: Encoder, spec: Spec) -> None:
    encoder.eval()
    patch = max(getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", (1, 1)))
    for size in {spec.global_size} | ({spec.local_size} if spec.n_local else set()):
        if size % patch:  # the last pixels of each side would be dropped without a word
            raise ValueError(f"{size} px is no multiple of its patch of {patch} px")
        encoder(torch.zeros(1, spec.channels, size, size))
    encoder.train()


def is_convolutional(name: str) -> bool:
    """Whether the architecture is a CNN: it has no token sequence. Decides default views and learning rate."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return not any(hasattr(model, attribute) for attribute in ("patch_embed", "pos_embed", "cls_token"))
