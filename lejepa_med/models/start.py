"""Before the first step: weights that exist already, and what the backward pass keeps."""

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import clean_state_dict, group_parameters
from torch import Tensor

from lejepa_med.errors import ConfigError
from lejepa_med.models.architectures import adaptation, is_monai
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.source import Source, open_source

ENOUGH = (
    0.9  # of the backbone's weights must be in a file; resized or left-out parts of the right one are a few percent
)
SETTABLE = ("in_chans", "num_classes", "img_size", "reg_tokens", "conv_stem", "drop_rate", "drop_path_rate",
            "proj_drop_rate", "attn_drop_rate", "dynamic_img_size", "dynamic_img_pad", "strict_img_size")  # fmt: skip


def start_from(encoder: Encoder, init: Path) -> None:
    """Copy existing weights into `encoder`, adapted to its channels and size. Heads stay as they are.

    `encoder.origin` then says where they come from, and `encoder.notes` what was adapted and what did not load.

    Raises:
        EncoderError: no readable encoder folder.
        ConfigError: another architecture, or a file that holds too little of this one.
    """
    source = open_source(init, backbone=encoder.name)
    with torch.random.fork_rng(devices=[]):  # heads get the weights that they have in a run without a source
        given, origin = source.tensors()
    own = encoder.backbone.state_dict()
    notes: list[str] = []
    exact = is_monai(encoder.name) or "conv_stem" in {**encoder.model_args, **source.arguments}
    if encoder.code is not None or (source.ours and exact):
        state = given
        _check_exact(source, own, state)
    else:
        state = _adapted(encoder, source, given, notes)
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in own
        and tensor.shape == own[name].shape
        and tensor.is_floating_point() == own[name].is_floating_point()
    }
    _check_share(encoder, source, state, fitting)
    broken = [name for name, tensor in fitting.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"{source.place}: the weights {_listed(broken)} are not finite numbers.",
            remedy="Take an earlier checkpoint of those weights.",
        )
    encoder.backbone.load_state_dict(fitting, strict=False)
    encoder.origin = origin
    parameters = {name for name, _ in encoder.backbone.named_parameters()}
    learnt = [name for name in own if name in parameters or name.endswith(("running_mean", "running_var"))]
    missing = [name for name in learnt if name not in fitting]
    unused = [name for name in state if name not in own and not name.endswith("num_batches_tracked")]
    loaded = f"{len(learnt) - len(missing)} of {len(learnt)} tensors of the {encoder.name} loaded"
    notes.insert(0, f"started from {source.name}: {loaded}")
    if missing:
        notes.append(f"not in these weights, so random or untrained: {_listed(missing)}")
    if unused:
        notes.append(f"in these weights, but not in the backbone, so left out: {_listed(unused)}")
    notes += _on_arguments(source)
    notes.append(f"normalised with {_on_normalisation(encoder, source)}")
    encoder.notes = notes


def _check_exact(source: Source, own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Refuse any difference: nothing resizes weights of MONAI's networks, a convolutional stem or the user's own."""
    different = [name for name in own if name not in other or own[name].shape != other[name].shape]
    if different or len(own) != len(other):
        shapes = "; ".join(
            f"{name} {tuple(other[name].shape) if name in other else 'missing'} against {tuple(own[name].shape)}"
            for name in different[:3]
        )
        raise ConfigError(
            f"The weights in {source.place} do not fit this run's encoder ({shapes or 'other layers'}).",
            remedy="Give --views.global-size, --model.registers, --model.conv-stem and the options (-o) "
            "bands and channels as its config.yaml has them.",
        )


def _adapted(encoder: Encoder, source: Source, given: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The weights as the backbone has them: timm's names and sizes, this number of channels, and no classifier."""
    own = encoder.backbone.state_dict()
    state: dict[str, Tensor] = clean_state_dict(given)
    entries = adaptation(encoder.name, 0)
    classifiers = _names(entries.get("classifier")) or ("fc", "head", "head.fc", "classifier")
    heads = [f"{name}." for name in classifiers if not any(k.startswith(f"{name}.") for k in own)]
    dropped = [name for name in state if name.startswith(tuple(heads))] if heads else []
    state = {name: tensor for name, tensor in state.items() if name not in dropped}
    if dropped:
        notes.append(f"the classifier was left out: {_listed(dropped)}")
    # timm's modules each have one, which renames older names and resizes positions
    convert = getattr(sys.modules[type(encoder.backbone).__module__], "checkpoint_filter_fn", None)
    if convert is not None and any(name not in state or state[name].shape != own[name].shape for name in own):
        before = {name: tensor.shape for name, tensor in state.items()}
        try:
            state = dict(convert(dict(state), encoder.backbone))
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, TypeError) as error:
            raise ConfigError(
                f"The weights in {source.place} cannot be made to fit this run's {encoder.name} ({error}).",
                remedy="Give --model.registers and --views.global-size as the weights have them, or check that they "
                f"are those of a {encoder.name}.",
            ) from error
        for name, tensor in state.items():
            if name.endswith("pos_embed") and name in own:
                state[name] = _positions(tensor, own[name].shape)
        resized = [
            f"{name} from {_shape(before[name])} to {_shape(tensor.shape)}"
            for name, tensor in state.items()
            if name in before and before[name] != tensor.shape
        ]
        notes += [f"resized: {_listed(resized)}"] if resized else []
    for name in (f"{layer}.weight" for layer in _names(entries.get("first_conv"))):
        if name not in state or name not in own or state[name].ndim != own[name].ndim:
            continue
        want = encoder.normalize.mean.numel()
        # stems that take blocks of pixels as channels have all channels of one pixel side by side
        have, pixels = state[name].shape[1] * want // own[name].shape[1], max(1, own[name].shape[1] // want)
        if have != want and state[name].shape[2:] == own[name].shape[2:] and state[name].ndim == 4:
            parts = state[name].chunk(pixels, dim=1)
            state[name] = torch.cat([adapt_channels(part, want) for part in parts], dim=1)
            notes.append(f"adapted: {name} from {have} to {want} channel{'s' if want > 1 else ''}")
    return state


def _positions(tensor: Tensor, wanted: torch.Size) -> Tensor:
    """Learnt positions (1, prefix + rows * rows, dim) for another grid, where timm's module does not resize them."""
    if tensor.ndim == 3 == len(wanted) and tensor.shape != wanted and tensor.shape[2] == wanted[2]:
        for prefix in (0, 1, 2):
            rows = [math.isqrt(shape[1] - prefix) for shape in (tensor.shape, wanted)]
            if [side * side + prefix for side in rows] == [tensor.shape[1], wanted[1]]:
                return resample_abs_pos_embed(tensor, [rows[1]] * 2, [rows[0]] * 2, num_prefix_tokens=prefix)  # type: ignore[no-any-return]
    return tensor


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """(out, C, h, w) -> (out, channels, h, w), as timm's `adapt_input_conv` does, but from any number of channels.

    One channel gets the sum over all; otherwise the channels are repeated in their order, and scaled by C / channels,
    so that equal values in all channels give the response that they gave before.
    """
    have = weight.shape[1]
    if channels == 1:
        return weight.float().sum(dim=1, keepdim=True)
    repeated = weight.float().repeat(1, -(-channels // have), 1, 1)[:, :channels]
    return repeated * (have / channels)


def _check_share(encoder: Encoder, source: Source, state: dict[str, Tensor], fitting: dict[str, Tensor]) -> None:
    """Refuse a file that holds too little of the backbone, and one of a deeper network of the same family."""
    sizes = {name: parameter.numel() for name, parameter in encoder.backbone.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in fitting) / max(1, sum(sizes.values()))
    roots = {name.partition(".")[0] for name in sizes if "." in name}
    deeper = [n for n, t in state.items() if n not in sizes and n.partition(".")[0] in roots and t.ndim > 1]
    surplus = sum(state[name].numel() for name in deeper) / max(1, sum(sizes.values()))
    if share >= ENOUGH and surplus <= 1 - ENOUGH:
        return
    detail = (
        f"only {share:.0%} of that backbone's weights are in it, in these shapes"
        if share < ENOUGH
        else f"it has further layers, such as {_listed(deeper)}"
    )
    theirs = _resembles(state)
    raise ConfigError(
        f"The weights in {source.place} are not those of a {encoder.name}: {detail}. They look like {theirs}.",
        remedy="Give --backbone with the architecture of the weights, or other weights.",
    )


def _resembles(state: dict[str, Tensor]) -> str:
    """The architecture of timm's common ones that has just these names and shapes, in words."""
    shapes = {name: tuple(tensor.shape) for name, tensor in clean_state_dict(state).items()}
    families = {"layer1": "resnet*", "patch_embed": "vit_*", "conv_stem": "*efficientnet_*", "stem": "convnext*"}
    known = {name: tensor for name, tensor in shapes.items() if "num_batches" not in name}
    for root, pattern in families.items():
        if not any(name.startswith(f"{root}.") for name in shapes):
            continue
        for name in sorted(timm.list_models(pattern, exclude_filters="*_*_*_*_*"), key=len)[:40]:
            with torch.device("meta"):
                try:
                    model = timm.create_model(name, pretrained=False, num_classes=0)
                except (RuntimeError, NotImplementedError):
                    continue
            own = {k: tuple(p.shape) for k, p in model.named_parameters() if p.ndim > 1 and k != "pos_embed"}
            body = {k: shape for k, shape in known.items() if len(shape) > 1 and k.partition(".")[0] in
                    {n.partition(".")[0] for n in own} and k != "pos_embed"}  # fmt: skip
            if own.keys() == body.keys() and sum(own[k] != body[k] for k in own) <= 1:  # the stem's channels may differ
                return str(name)
    return f"those of an architecture that they do not name, with {_listed(list(shapes))}"


def _on_arguments(source: Source) -> list[str]:
    """A note on constructor arguments of the weights that this run does not set."""
    others = {k: v for k, v in source.arguments.items() if k not in SETTABLE and k != "global_pool"}
    if source.ours or not others:
        return []
    listed = ", ".join(f"{name}={value}" for name, value in others.items())
    return [f"the weights were made with arguments that this run does not take over: {listed}"]


def _on_normalisation(encoder: Encoder, source: Source) -> str:
    mean, std = (part.flatten().tolist() for part in (encoder.normalize.mean, encoder.normalize.std))
    text = f"mean {_numbers(mean)} and deviation {_numbers(std)}"
    if not source.mean:
        return f"{text}, the modality's; the weights do not say theirs"
    if len(source.mean) == len(mean):
        same = torch.allclose(torch.tensor(mean + std), torch.tensor([*source.mean, *source.std]), atol=1e-6)
        return (
            f"{text}, those of the weights" if same else f"{text}, chosen or measured for this data; not the weights'"
        )
    average = [sum(source.mean) / len(source.mean), sum(source.std) / len(source.std)]
    same = torch.allclose(torch.tensor([mean[0], std[0]]), torch.tensor(average), atol=1e-6)
    return f"{text}, the average of the weights' {len(source.mean)} channels" if same else f"{text}, this data's own"


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shape(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in (values if len(set(values)) > 1 else values[:1]))


def layers_of(network: Any) -> dict[str, int] | None:
    """The layer of each parameter, from 0, by timm's coarse grouping; None where the network does not say it."""
    if not hasattr(network, "group_matcher"):
        return None
    place: dict[str, int] = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    return place


def half_of_layers(backbone: str) -> int:
    """Half the number of layers of timm's network `backbone`, rounded down."""
    place = layers_of(timm.create_model(backbone, num_classes=0))
    return (max(place.values()) + 1) // 2 if place else 0


def freeze(encoder: Encoder, layers: int) -> None:
    """Stop training the lowest `layers` of the backbone: they get no gradient and keep their batch-norm statistics.

    Layers are timm's coarse grouping: the stem is the first, then each stage of a CNN or block of a ViT.

    Raises:
        ConfigError: the backbone does not say what its layers are, or has no more than these.
    """
    backbone: Any = encoder.backbone
    place = layers_of(backbone)
    if place is None:
        raise ConfigError(
            f"--model.freeze needs a backbone of timm, which says what its layers are; {encoder.name} does not.",
            remedy="Leave out --model.freeze.",
        )
    most = max(place.values())
    if layers > most:
        raise ConfigError(
            f"--model.freeze {layers} leaves nothing of {encoder.name} to train: it has {most + 1} layers.",
            remedy=f"Freeze at most {most}, or give --epochs 0 for the network as it is.",
        )
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(place[name] >= layers)
    encoder.frozen = frozenset(
        name
        for name, part in backbone.named_modules()
        if (own := list(part.parameters())) and not any(parameter.requires_grad for parameter in own)
    )
    encoder.train()
    encoder.notes.append(f"the lowest {layers} of {most + 1} layers are not trained")


def checkpoint_activations(encoder: Encoder) -> None:
    """Forget activations in the forward pass and compute them again in the backward pass (timm's own switch).

    Raises:
        ConfigError: the architecture has no such switch.
    """
    message = f"'{encoder.name}' has no activation checkpointing."
    try:
        encoder.backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, RuntimeError) as error:
        raise ConfigError(message, remedy="Leave out --model.checkpointing.") from error


def compile_backbone(encoder: Encoder) -> None:
    """torch.compile of the backbone in place: names of weights, and so checkpoints and encoder folders, stay.

    Raises:
        ConfigError: weights on a CPU, and no C++ compiler for the code that PyTorch generates.
    """
    compiler = os.environ.get("CXX", "g++")
    on_cpu = next(encoder.parameters()).device.type == "cpu" and not torch.cuda.is_available()
    if on_cpu and shutil.which(compiler) is None:
        raise ConfigError(
            f"--train.compile needs a C++ compiler on a CPU, and there is no '{compiler}'.",
            remedy="Install g++, name another in the variable CXX, or leave out --train.compile.",
        )
    encoder.backbone.compile()
