"""3-D backbones: MONAI's networks as encoders, with the attributes that timm's models have.

`forward` gives pooled features (B, num_features), `forward_features` those of the last stage. State dictionaries are
MONAI's own, so MONAI alone can load them (the model card says how).
"""

from importlib.util import find_spec
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lejepa_med.errors import MissingExtraError


def _require_einops() -> None:
    """MONAI imports it inside its attention blocks and names no remedy."""
    if find_spec("einops") is None:
        raise MissingExtraError(
            "MONAI's ViT and SwinUNETR need the Python package 'einops'.",
            remedy="Install it with: pip install 'lejepa-med[mri]', or use --backbone monai:resnet18.",
        )


class ResNet3d(ResNet):
    """3-D ResNet (He et al. 2016; Hara et al. 2018); total stride 32 with `conv1_t_stride` 2."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.num_features = int(self.in_planes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, num_features, d, h, w)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


class ViT3d(ViT):
    """3-D ViT (Dosovitskiy et al. 2021) that takes cubes of any multiple of its patch; the mean token is the embedding.

    Positions are learnt for cubes of `img_size` and interpolated for others, as timm does for multi-crop views.
    """

    def __init__(self, *, drop_path_rate: float = 0.0, **arguments: Any) -> None:
        _require_einops()
        super().__init__(**arguments)
        self.num_features = int(arguments["hidden_size"])
        self.patch_size = (int(arguments["patch_size"]),) * 3
        for block in self.blocks:
            # MONAI builds it for cross-attention even where there is none; data-parallel training stops at idle weights
            block.norm_cross_attn.requires_grad_(False)
        rates = torch.linspace(0, drop_path_rate, len(self.blocks)).tolist()
        self.drop_paths = nn.ModuleList(DropPath(rate) if rate > 0 else nn.Identity() for rate in rates)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, tokens, num_features)."""
        patches = self.patch_embedding.patch_embeddings(x)
        x = patches.flatten(2).transpose(1, 2) + self._positions(patches.shape[2:])
        for block, drop in zip(self.blocks, self.drop_paths, strict=True):
            # a dropped block leaves x as it is: stochastic depth without rewriting MONAI's block
            x = block(x) if isinstance(drop, nn.Identity) else x + drop(block(x) - x)
        normed: Tensor = self.norm(x)
        return normed

    def _positions(self, grid: torch.Size) -> Tensor:
        learnt: Tensor = self.patch_embedding.position_embeddings
        side = round(learnt.shape[1] ** (1 / 3))
        if tuple(grid) == (side,) * 3:
            return learnt
        cube = learnt.transpose(1, 2).unflatten(2, (side,) * 3)
        return interpolate(cube, size=tuple(grid), mode="trilinear").flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, num_features)."""
        return self.forward_features(x).mean(dim=1)


class SwinUNETREncoder(SwinTransformer):
    """The encoder of SwinUNETR (Hatamizadeh et al. 2022): four stages after patches of 2 voxels, total stride 32."""

    def __init__(self, **arguments: Any) -> None:
        _require_einops()
        super().__init__(**arguments)
        self.num_features = int(self.embed_dim * 2**self.num_layers)  # each stage ends with a merging of patches

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, num_features, d, h, w), normalised at each place as SwinUNETR's decoder sees it."""
        features: Tensor = super().forward(x)[-1]
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, num_features)."""
        return self.forward_features(x).mean(dim=(2, 3, 4))


FAMILIES: dict[str, type[nn.Module]] = {"resnet": ResNet3d, "vit": ViT3d, "swinunetr": SwinUNETREncoder}
