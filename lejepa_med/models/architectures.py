"""Which backbones there are: timm's by name, MONAI's 3-D networks as `monai:NAME`, the user's as `./file.py:Class`.

MONAI is imported when one of its networks is built; it costs seconds, and 2-D work has no use for it.
"""

import inspect
import math
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors.torch import load_file
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

from data_adapters.base import Spec
from lejepa_med.config import is_own
from lejepa_med.errors import ConfigError
from lejepa_med.models.own import Code


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


MONAI = "monai:"
# MONAI's arguments. ResNets: stride 2 in the first layer, as MedicalNet and MONAI's own ResNetFeatures.
_RESNET = {"block_inplanes": [64, 128, 256, 512], "conv1_t_stride": 2, "bias_downsample": False, "feed_forward": False}
_VIT = {"patch_size": 16, "num_layers": 12, "qkv_bias": True}
_SWIN = {"window_size": [7, 7, 7], "patch_size": [2, 2, 2], "depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet10": ("resnet", {**_RESNET, "block": "basic", "layers": [1, 1, 1, 1]}),
    "resnet18": ("resnet", {**_RESNET, "block": "basic", "layers": [2, 2, 2, 2]}),
    "resnet34": ("resnet", {**_RESNET, "block": "basic", "layers": [3, 4, 6, 3]}),
    "resnet50": ("resnet", {**_RESNET, "block": "bottleneck", "layers": [3, 4, 6, 3]}),
    "vit_tiny": ("vit", {**_VIT, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3}),
    "vit_small": ("vit", {**_VIT, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 6}),
    "vit": ("vit", {**_VIT, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12}),  # MONAI's default: ViT-B/16
    "swinunetr_small": ("swinunetr", {**_SWIN, "embed_dim": 24}),
    "swinunetr": ("swinunetr", {**_SWIN, "embed_dim": 48}),
}
CONVOLUTIONAL = ("resnet",)
ORIGIN = {
    "resnet": "monai.networks.nets.resnet.ResNet",
    "vit": "monai.networks.nets.vit.ViT",
    "swinunetr": "monai.networks.nets.swin_unetr.SwinTransformer",
}


def is_monai(name: str) -> bool:
    """Whether `name` is one of MONAI's networks."""
    return name.startswith(MONAI)


def check_name(name: str, *, dims: int) -> None:
    """Refuse unknown names, and a backbone of other dimensions than the adapter's views.

    Raises:
        ConfigError: with names that fit.
    """
    if is_own(name):
        return  # its forward pass shows what it takes
    ours = ", ".join(MONAI + known for known in NETWORKS)
    if is_monai(name) and name.removeprefix(MONAI) not in NETWORKS:
        raise ConfigError(f"There is no 3-D architecture '{name}'.", remedy=f"Use one of {ours}.")
    if dims == 3 and not is_monai(name):
        raise ConfigError(
            f"The modality gives volumes, but '{name}' is a backbone for 2-D images.", remedy=f"Use one of {ours}."
        )
    if dims == 2 and is_monai(name):
        raise ConfigError(
            f"The modality gives 2-D images, but '{name}' is a backbone for volumes.",
            remedy="Use an architecture of timm, such as resnet18 or vit_small_patch16_224, or the modality mri3d.",
        )
    if not is_monai(name):
        _check_timm_name(name)


def _check_timm_name(name: str) -> None:
    """Refuse a name that timm does not know, and one that names weights, which are another setting."""
    plain = re.sub(r"^[\w-]+:", "", name).rpartition("/")[2]
    weights = timm.models.get_deprecated_models().get(plain) or plain
    plain = weights.partition(".")[0]
    if plain != name and plain in timm.list_models():
        raise ConfigError(
            f"'{name}' names pretrained weights, but --backbone takes an architecture.",
            remedy=f"To start from those weights, give --init timm:{weights}; to start from random ones, "
            f"give the architecture alone: --backbone {plain}",
        )
    if name.endswith(".py"):
        raise ConfigError(f"'{name}' names a file, but not the class in it.", remedy=f"Give --backbone {name}:CLASS")
    if "/" in name or ":" in name:
        raise ConfigError(
            f"'{name}' is not the name of an architecture.",
            remedy="Give a name such as --backbone resnet18; "
            "to start from weights that exist, give --init RUN, FOLDER, FILE.safetensors or timm:NAME.",
        )
    if name not in timm.list_models():  # `is_model` also accepts names that timm has removed
        raise ConfigError(f"timm has no architecture '{name}'.", remedy=_closest(name))


def _closest(name: str) -> str:
    """A remedy with up to five of timm's names: 'resnet_18' is close to resnet18, 'vit_small' begins others."""
    bare = {re.sub(r"\W|_", "", known): known for known in timm.list_models(exclude_filters="test_*")}
    words = re.findall("[a-z0-9]+", name.lower())
    begun: list[str] = []
    while words and not begun:
        begun = sorted((key for key in bare if key.startswith("".join(words))), key=len)
        words.pop()
    near = get_close_matches(re.sub(r"\W|_", "", name.lower()), bare, n=5, cutoff=0.8)
    family = max(re.findall("[a-z]{3,}[0-9]?", name.lower()), key=len, default="no name")
    related = sorted((key for key in bare if family in key), key=len)
    if close := list(dict.fromkeys(begun + near))[:5] or related[:5]:
        return f"Use one of the closest names: {', '.join(bare[key] for key in close)}."
    return "Use one of the names that this prints: python -c 'import timm; print(*timm.list_models())'"


def check_vit_options(name: str, *, registers: int, conv_stem: bool) -> None:
    """Refuse what only timm's plain vision transformer has.

    Raises:
        ConfigError: register tokens or a convolutional stem for another architecture.
    """
    if (registers or conv_stem) and plain_vit_patch(name) is None:
        raise ConfigError(
            f"'{name}' is not timm's plain vision transformer, so it takes no register tokens and no other stem.",
            remedy="Leave out --model.registers and --model.conv-stem, or use one such as vit_small_patch16_224.",
        )


def model_arguments(
    name: str, spec: Spec, *, drop_path: float = 0.0, registers: int = 0, conv_stem: bool = False
) -> dict[str, Any]:
    """Constructor arguments: channels, no head, and the view size where the architecture must know it.

    `conv_stem` is an argument of ours, which `build` turns into timm's `embed_layer`; the rest are the constructor's.

    Raises:
        ConfigError: a drop path for an architecture that has none.
    """
    if is_monai(name):
        return _monai_arguments(name, spec, drop_path)
    args: dict[str, Any] = {"in_chans": spec.channels, "num_classes": 0}
    if drop_path > 0:
        args["drop_path_rate"] = drop_path
    if registers:
        args["reg_tokens"] = registers
    if conv_stem:
        args["conv_stem"] = True
    accepted = _accepted_arguments(name)
    if "img_size" in accepted:
        args["img_size"] = spec.global_size
    others = {spec.embed_size} | ({spec.local_size} if spec.n_local > 0 else set())
    if "dynamic_img_size" in accepted and others != {spec.global_size}:
        args["dynamic_img_size"] = True
    return args


def _monai_arguments(name: str, spec: Spec, drop_path: float) -> dict[str, Any]:
    family, preset = NETWORKS[name.removeprefix(MONAI)]
    channels = {"resnet": "n_input_channels", "vit": "in_channels", "swinunetr": "in_chans"}[family]
    args = {**preset, "spatial_dims": 3, channels: spec.channels}
    if family == "vit":
        args["img_size"] = spec.global_size
    if drop_path > 0:
        if family in CONVOLUTIONAL:
            raise ConfigError(f"'{name}' has no stochastic depth.", remedy="Leave out --model.drop-path.")
        args["drop_path_rate"] = drop_path
    return args


def _accepted_arguments(name: str) -> set[str]:
    """Constructor arguments of the backbone's class, found without building weights."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    accepted: set[str] = set()
    for kind in type(model).__mro__:  # LevitDistilled, for one, only hands its arguments on
        parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
        accepted |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return accepted


def build(name: str, args: dict[str, Any], *, code: Code | None = None) -> nn.Module:
    """A randomly initialised backbone; the user's own from its `code`."""
    if code is not None:
        return code.build(args)
    if not is_monai(name):
        if args.get("conv_stem"):
            args = {**{key: value for key, value in args.items() if key != "conv_stem"}, "embed_layer": conv_stem}
        backbone: nn.Module = timm.create_model(name, pretrained=False, **args)
        return backbone
    from lejepa_med.models.volumes import FAMILIES

    return FAMILIES[NETWORKS[name.removeprefix(MONAI)][0]](**args)


def load(folder: Path, name: str, args: dict[str, Any], *, code: Code | None = None) -> nn.Module:
    """The backbone of an encoder folder: through timm where it is all timm's, else built anew and filled strictly."""
    if code is None and not is_monai(name) and "conv_stem" not in args:
        backbone: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return backbone
    backbone = build(name, args, code=code)
    backbone.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return backbone


def adaptation(name: str, size: int) -> dict[str, Any]:
    """What timm must know to give saved weights another head or other channels: its own entries for the architecture.

    Args:
        name: an architecture of timm.
        size: side of the encoder's input in pixels, for which the entry `pool_size` is scaled.
    """
    known = timm.get_pretrained_cfg(name)
    entries = {"first_conv": known.first_conv, "classifier": known.classifier} if known else {}
    if known and known.pool_size:
        reach = known.input_size[-1] // known.pool_size[-1]
        entries["pool_size"] = (max(1, size // reach),) * 2
    return entries


def origin(name: str) -> str:
    """MONAI's class behind a `monai:` name; another program can load the weights into it."""
    return ORIGIN[NETWORKS[name.removeprefix(MONAI)][0]]


def plain_vit_patch(name: str) -> int | None:
    """Patch side in pixels of timm's VisionTransformer itself; None of all others, its relatives included."""
    if is_monai(name) or is_own(name):
        return None
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return max(model.patch_embed.patch_size) if type(model) is VisionTransformer else None


def inner_layers(backbone: nn.Module) -> Literal["none", "maps", "tokens"]:
    """What a backbone of timm gives of its inner stages or blocks; tokens also where it has no class token."""
    inner = getattr(backbone, "forward_intermediates", None)
    if inner is None:
        return "none"
    with_prefix = "return_prefix_tokens" in inspect.signature(inner).parameters
    return "tokens" if with_prefix and hasattr(backbone, "num_prefix_tokens") else "maps"


def inner_layers_of(name: str) -> Literal["none", "maps", "tokens"]:
    """The same of an architecture, without its weights."""
    if is_monai(name) or is_own(name):
        return "none"
    with torch.device("meta"):
        return inner_layers(timm.create_model(name, pretrained=False))


def is_convolutional(name: str) -> bool:
    """Whether the architecture is a CNN: it has no token sequence. Decides default views and learning rate.

    The user's own counts as one, unless its class says otherwise (`Code.convolutional`).
    """
    if is_own(name):
        return True
    if is_monai(name):
        return NETWORKS.get(name.removeprefix(MONAI), ("",))[0] in CONVOLUTIONAL
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return not any(hasattr(model, attribute) for attribute in ("patch_embed", "pos_embed", "cls_token"))
