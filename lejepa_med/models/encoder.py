"""An encoder: plain pixels in, one embedding out. The backbone is one of timm, of MONAI (3-D), or your own."""

from typing import Any

import torch
from timm.layers import HybridEmbed, PatchEmbed
from torch import Tensor, nn

from data_adapters.base import Spec
from lejepa_med.config import is_own
from lejepa_med.errors import ConfigError
from lejepa_med.models.architectures import build, check_name, inner_layers, is_convolutional, model_arguments
from lejepa_med.models.formation import Formation, fixed_views
from lejepa_med.models.own import Code, check, load_code, pooled

__all__ = ["Encoder", "Normalize", "create_encoder", "is_convolutional", "lay_out", "model_arguments"]


class Normalize(nn.Module):
    """uint8 (divided by 255) or float values in [0, 1] -> (x - mean) / std, float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], *, dims: int = 2) -> None:
        super().__init__()
        shape = (-1, *[1] * dims)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels`: (B, C, H, W), or (B, C, D, H, W) where dims is 3."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        return (scaled - self.mean) / self.std


class Encoder(nn.Module):
    """Normalisation and a backbone without a head.

    `forward` gives the backbone's pooled output (class token or average pool, as the architecture defines), which is
    what is embedded and probed; the projector, on which the objective acts, is not part of it. `form` gives the vector
    that its formation makes of that.

    Args:
        backbone: the network.
        name: of its architecture.
        model_args: that it was built with.
        spec: of the adapter.
        formation: of its vectors; None: one plain pass.
        code: the file that a backbone of the user's own comes from.
        dim: of the backbone's output; None: as timm's and MONAI's say themselves.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        model_args: dict[str, Any],
        spec: Spec,
        formation: Formation | None = None,
        code: Code | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.normalize = Normalize(spec.mean, spec.std, dims=spec.dims)
        self.dims = spec.dims
        self.origin: list[dict[str, Any]] = []  # of the weights that training started from, the oldest first
        self.notes: list[str] = []  # how those weights were adapted, in sentences
        self.frozen: frozenset[str] = frozenset()  # names of the backbone's modules that training leaves as they are
        self.name = name
        self.model_args = model_args
        self.code = code
        # some architectures put a hidden layer between pooling and head, and that is what they return without a head
        self.dim = dim or int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        self.formation = formation or Formation(size=spec.embed_size)
        self.vector_dim = self.dim + (self._inner_dim(spec) if self.formation.layers == 2 else 0)

    def train(self, mode: bool = True) -> "Encoder":
        """Frozen parts stay in evaluation mode: their batch norms must not follow the views, and drop path not act."""
        super().train(mode)
        if self.frozen:
            for name, part in self.backbone.named_modules():
                if name in self.frozen:
                    part.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, D, H, W), uint8 or float in [0, 1] -> (B, dim)."""
        return pooled(self.backbone(self.normalize(pixels)))

    def form(self, pixels: Tensor, *, batch_size: int) -> Tensor:
        """Vectors as `formation` says, of images of any number: (B, C, H, W) or (B, C, D, H, W) -> (B, vector_dim).

        Float32. A pass has at most `batch_size` images, the views counted, so that views cost no memory.
        """
        views = self.formation.views
        one_pass = self.joined if self.formation.layers == 2 else self
        parts = [
            torch.cat([one_pass(part).float() for part in fixed_views(chunk, views).split(batch_size)])
            .unflatten(0, (views, len(chunk)))
            .mean(dim=0)
            for chunk in pixels.split(max(1, batch_size // views))
        ]
        return torch.cat(parts)

    def joined(self, pixels: Tensor) -> Tensor:
        """Pooled outputs of the last stage or block but one and of the backbone, side by side.

        Tokens are normalised as the last ones and pooled as the architecture does; maps are averaged.
        """
        given = self.normalize(pixels)
        if inner_layers(self.backbone) == "maps":
            last, inner = self.backbone.forward_intermediates(given, indices=2)
            return torch.cat([inner[0].mean(dim=(2, 3)), self.backbone.forward_head(last)], dim=1)
        last, inner = self.backbone.forward_intermediates(
            given, indices=2, norm=True, output_fmt="NLC", return_prefix_tokens=True
        )
        before = torch.cat([inner[0][1], inner[0][0]], dim=1) if isinstance(inner[0], tuple) else inner[0]
        return torch.cat([self.backbone.forward_head(before), self.backbone.forward_head(last)], dim=1)

    @torch.no_grad()
    def _inner_dim(self, spec: Spec) -> int:
        """Length of what layers=2 adds.

        Raises:
            ConfigError: the architecture gives no inner layers.
        """
        if inner_layers(self.backbone) == "none":
            raise ConfigError(
                f"'{self.name}' gives its last layer only, so two layers cannot be joined.",
                remedy="Choose 1 layer, or an architecture of timm.",
            )
        self.eval()
        found = self.joined(torch.zeros(1, spec.channels, *[spec.global_size] * spec.dims))
        self.train()
        return found.shape[1] - self.dim

    def patch_maps(self, pixels: Tensor) -> Tensor | None:
        """Features of the last stage, for pictures; prefix tokens are dropped.

        (B, C, H, W) -> (B, h, w, dim); (B, C, D, H, W) -> (B, d, h, w, dim). None where the user's own backbone gives
        vectors and has no `forward_features`.
        """
        forward = getattr(self.backbone, "forward_features", self.backbone)
        features: Tensor = forward(self.normalize(pixels))
        if features.ndim == 2:
            return None
        if features.ndim == 3:
            tokens = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            side = int(tokens.shape[1] ** (1 / self.dims) + 1e-6)  # 216 ** (1/3) is 5.9999...
            features = tokens[:, : side**self.dims].reshape(len(tokens), *[side] * self.dims, -1)
        # timm's convention: feature maps whose last axis is num_features are channels-last (Swin, for one)
        elif features.shape[-1] != int(getattr(self.backbone, "num_features", -1)):
            features = features.movedim(1, -1)
        return features


def lay_out(encoder: Encoder) -> Encoder:
    """Lay the weights of a 2-D CNN out channels-last, in training and whenever the encoder is used; returns it.

    On a CPU networks of depthwise convolutions are up to twice as fast so (benchmarks/results/cpu-settings.md), and
    tensor cores need it. ViTs gain nothing; the 3-D form (channels_last_3d) made a step 1.3 to 1.8 times slower on a
    CPU (docs/mri3d.md); and the user's own code may use view(), which fails in this layout.
    """
    if encoder.dims == 2 and encoder.code is None and is_convolutional(encoder.name):
        encoder.backbone.to(memory_format=torch.channels_last)
    return encoder


def create_encoder(
    name: str,
    spec: Spec,
    *,
    drop_path: float = 0.0,
    registers: int = 0,
    conv_stem: bool = False,
    formation: Formation | None = None,
    code_sha256: str | None = None,
) -> Encoder:
    """A randomly initialised encoder.

    Args:
        name: a timm architecture, such as 'resnet18' or 'vit_small_patch16_224'; for volumes one of MONAI's, such as
            'monai:resnet18', 'monai:vit_small' or 'monai:swinunetr'; your own as './file.py:Class'.
        spec: dimensions, channels, sizes and normalisation of the adapter.
        drop_path: stochastic depth rate.
        registers: register tokens of a ViT.
        conv_stem: whether a ViT's patches come from a stack of convolutions.
        formation: of its vectors; None: one plain pass.
        code_sha256: that the file of your own must have; None: any.

    Raises:
        ConfigError: the name is unknown or of other dimensions, or the architecture cannot take these sizes.
    """
    check_name(name, dims=spec.dims)
    if is_own(name):
        code = load_code(name, sha256=code_sha256)
        args = code.arguments(spec, drop_path=drop_path)
        module = code.build(args)
        dim = check(code, module, args, spec)
        encoder = Encoder(module, name=code.name, model_args=args, spec=spec, formation=formation, code=code, dim=dim)
        check_embed_size(encoder, spec)
        return encoder
    args = model_arguments(name, spec, drop_path=drop_path, registers=registers, conv_stem=conv_stem)
    try:
        encoder = Encoder(build(name, args), name=name, model_args=args, spec=spec, formation=formation)
        check_size(encoder, spec, spec.global_size)
        if spec.n_local:
            check_size(encoder, spec, spec.local_size)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The backbone '{name}' does not take {spec.channels}-channel views of "
            f"{spec.global_size} and {spec.local_size} px: {error}",
            remedy="Set --views.global-size and --views.local-size to multiples of its patch or window, "
            "or --views.n-local 0 where only the local size does not fit.",
        ) from error
    check_embed_size(encoder, spec)
    return encoder


def check_embed_size(encoder: Encoder, spec: Spec) -> None:
    """Refuse a size of images to embed that the architecture does not take.

    Raises:
        ConfigError: with the reason.
    """
    try:
        check_size(encoder, spec, spec.embed_size)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The backbone '{encoder.name}', trained on {spec.global_size} px, does not take {spec.embed_size} px: "
            f"{error}",
            remedy=f"Choose a multiple of its patch or window, or {spec.global_size}, its size in training.",
        ) from error


@torch.no_grad()
def check_size(encoder: Encoder, spec: Spec, size: int) -> None:
    """Run one blank image of this side; ValueError, or the architecture's own error, where it does not fit."""
    encoder.eval()
    embed = getattr(encoder.backbone, "patch_embed", encoder.backbone)
    if isinstance(embed, PatchEmbed | HybridEmbed):
        patch = embed.feat_ratio()  # patches side by side, or what a convolutional stem's layers reduce
    else:  # timm's other stems overlap their patches, so nothing is lost; MONAI's networks name theirs
        patch = max(getattr(encoder.backbone, "patch_size", (1,))) if encoder.dims == 3 else 1
    if size % patch:  # the encoder would ignore the last pixels of each side
        raise ValueError(f"{size} px is no multiple of its patch of {patch} px")
    encoder(torch.zeros(1, spec.channels, *[size] * spec.dims))
    encoder.train()
