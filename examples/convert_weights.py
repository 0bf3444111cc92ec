"""A state dictionary that torch.save wrote (.pth), as a safetensors file or a folder that `--init` takes.

    python -m examples.convert_weights resnet.pth resnet.safetensors
    python -m examples.convert_weights lite0.pth lite0 --architecture tf_efficientnet_lite0 --mean .498 --std .502 \
        --licence apache-2.0 --reference tf_efficientnet_lite0

The file is read with torch.load(weights_only=True), which runs no code of it. A folder gets timm's config.json as well,
so that architecture, normalisation and licence are known wherever it is used. With `--reference NAME` the tensors get
the names of that architecture of timm, in their order; every shape must agree.
"""

import argparse
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import clean_state_dict
from torch import Tensor

from lejepa_med.errors import ConfigError, UserError

INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")  # where a checkpoint keeps the weights


def read_pth(file: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, by name; nothing in it is run.

    Args:
        file: a state dictionary, or a checkpoint that holds one.
        key: where the checkpoint keeps it; None: one of `INSIDE`, or the checkpoint itself.

    Raises:
        ConfigError: it holds objects beside tensors, or no tensors.
    """
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{file} holds more than tensors, and reading that could run code.",
            remedy="Ask its author for the state dictionary alone: torch.save(model.state_dict(), FILE).",
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ConfigError(f"{file} is no file of torch.save: {error}.", remedy="Copy or download it again.") from error
    if isinstance(found, dict):
        named = key or next((name for name in INSIDE if isinstance(found.get(name), dict)), None)
        found = found if named is None else found.get(named)
    tensors = {name: t for name, t in found.items() if isinstance(t, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise ConfigError(
            f"{file} holds no state dictionary{f' under {key}' if key else ''}.",
            remedy="Give --key NAME with the entry that holds the weights.",
        )
    return {name: tensor.clone().contiguous() for name, tensor in clean_state_dict(tensors).items()}


def renamed(tensors: dict[str, Tensor], reference: str) -> dict[str, Tensor]:
    """The tensors under timm's names for `reference`, matched by their order.

    Raises:
        ConfigError: another number of tensors, or another shape.
    """
    with torch.device("meta"):
        wanted = timm.create_model(reference, pretrained=False).state_dict()
    if len(wanted) != len(tensors):
        raise ConfigError(
            f"The file holds {len(tensors)} tensors, {reference} has {len(wanted)}.",
            remedy="Give the architecture of these weights as --reference.",
        )
    for (name, tensor), (other, like) in zip(tensors.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape:
            raise ConfigError(
                f"{name} is {tuple(tensor.shape)}, but {other} of {reference} is {tuple(like.shape)}.",
                remedy="Give the architecture of these weights as --reference.",
            )
    return dict(zip(wanted, tensors.values(), strict=True))


def write(tensors: dict[str, Tensor], out: Path, *, config: dict[str, Any] | None) -> None:
    """Write OUT.safetensors, or with `config` a folder as timm has them."""
    if config is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        out = out / "model.safetensors"
    save_file(tensors, out, metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path, help="a name that ends in .safetensors, or a folder")
    parser.add_argument("--key", help="entry of the checkpoint that holds the weights")
    parser.add_argument("--reference", help="architecture of timm whose names the tensors get, in their order")
    parser.add_argument("--architecture", help="timm's name of it; for a folder")
    parser.add_argument("--mean", type=float, nargs="+", help="of pixels in [0, 1], one for all channels or for each")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--tag", default="", help="of the weights, such as in1k")
    parser.add_argument("--licence", default="")
    given = parser.parse_args(arguments)
    single = given.out.suffix == ".safetensors"
    if single and (given.architecture or given.mean or given.std or given.tag or given.licence):
        parser.error("a .safetensors file has no configuration: give a folder as OUT, or leave out its options")
    if not single and not given.architecture:
        parser.error("a folder needs --architecture NAME; or give OUT a name that ends in .safetensors")
    if not single and given.architecture not in timm.list_models():
        parser.error(f"timm has no architecture '{given.architecture}'")
    try:
        tensors = read_pth(given.file, key=given.key)
        if given.reference:
            tensors = renamed(tensors, given.reference)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    config = None
    if not single:
        usual = timm.get_pretrained_cfg(given.architecture)
        entries = ("input_size", "mean", "std", "first_conv", "classifier")
        described = {name: getattr(usual, name) for name in entries} if usual else {}
        for name in ("mean", "std"):
            if values := getattr(given, name):
                described[name] = values * 3 if len(values) == 1 else values
        described |= {"tag": given.tag or None, "license": given.licence or None}
        config = {"architecture": given.architecture, "pretrained_cfg": described}
    write(tensors, given.out, config=config)
    print(f"wrote {len(tensors)} tensors to {given.out}")


if __name__ == "__main__":
    main()
