"""Weights that a run starts from: an encoder of ours, a folder of timm's, a safetensors file, or timm's hub by name."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lejepa_med.config import is_own, same_name, short_name
from lejepa_med.errors import ConfigError
from lejepa_med.models.architectures import is_monai
from lejepa_med.models.folder import INFO, encoder_folder, load_encoder, read_info

HUB, LOCAL = "timm:", "local-dir:"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
CONVERT = "Convert it first: python -m examples.convert_weights FILE.pth WEIGHTS.safetensors"
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz", ".h5")


@dataclass(frozen=True)
class Source:
    """Where weights lie and what their configuration says; `tensors` reads them.

    Attributes:
        place: as messages name it.
        file: the safetensors file, or the encoder folder where `ours`.
        backbone: its architecture, by the name that `--backbone` takes.
        volumes: whether it takes them; else images.
        arguments: of the constructor that they were made with.
        mean: of each channel's values in [0, 1]; empty where nobody says it.
        std: likewise.
        name: of the weights, without a folder: ARCHITECTURE.TAG, a run or a file.
        tag: timm's tag of the weights, or empty; lejepa_med where `ours`.
        licence: as their configuration has it, or empty.
        earlier: what these weights were themselves started from, the oldest first.
    """

    place: str
    file: Path
    backbone: str
    ours: bool = False
    volumes: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name: str = ""
    tag: str = ""
    licence: str = ""
    earlier: tuple[dict[str, Any], ...] = ()

    def tensors(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """The weights by name, and their origin for lejepa_med.json: the oldest source first, this one last.

        Raises:
            EncoderError: an encoder folder of ours is damaged.
            ConfigError: the file is no whole safetensors file.
        """
        if self.ours:
            loaded = load_encoder(self.file)
            state, digest = loaded.module.backbone.state_dict(), str(loaded.info["weights_sha256"])
        else:
            try:
                state = load_file(self.file)
                with self.file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except (SafetensorError, OSError) as error:
                raise ConfigError(
                    f"{self.place}: {self.file.name} is not a readable safetensors file ({error}).",
                    remedy="Copy or download it again; a copy may have been cut short.",
                ) from error
        here = {"name": self.name, "architecture": short_name(self.backbone), "tag": self.tag, "licence": self.licence}
        return state, [*self.earlier, {**here, "sha256": digest}]


def open_source(init: Path, *, backbone: str | None) -> Source:
    """What `--init` names. Only `timm:NAME` uses the network, to fetch weights that are not in its cache.

    Args:
        init: a run or encoder folder, a folder of timm's with or without 'local-dir:', a .safetensors file, timm:NAME.
        backbone: that was chosen, or None: that of the weights.

    Raises:
        EncoderError: an encoder folder of another release, or a folder that is neither ours nor timm's.
        ConfigError: weights of another architecture, in another format, or not to be had.
    """
    given = str(init)
    if given.startswith(HUB):
        source = _of_timm(_fetched(given.removeprefix(HUB)), place=given)
    else:
        path = Path(given.removeprefix(LOCAL))
        if path.name == WEIGHTS and any((path.parent / name).is_file() for name in (CONFIG, INFO)):
            path = path.parent  # the file of a folder whose configuration lies beside it
        if path.is_dir() and not (encoder_folder(path) / INFO).is_file() and (path / CONFIG).is_file():
            source = _of_timm(path, place=given)
        elif path.is_dir():
            source = _of_ours(path, place=given)
        elif not path.exists():
            name = path.name.partition(".")[0] in timm.list_models() and path.name
            raise ConfigError(
                f"--init: {given} does not exist.",
                remedy=f"To fetch weights of timm by their name, give --init {HUB}{name}."
                if name
                else "Give a run or encoder folder, a folder that timm wrote, a .safetensors file, or timm:NAME.",
            )
        else:
            source = _of_file(path, backbone, place=given)
    if backbone is not None and not same_name(backbone, source.backbone):
        theirs, ours = short_name(source.backbone), short_name(backbone)
        raise ConfigError(
            f"The encoder in {given} is a {theirs}, this run's is a {ours}.",
            remedy=f"Use --backbone {theirs}, or leave it out; or give weights of a {ours}.",
        )
    return source


def _of_ours(path: Path, *, place: str) -> Source:
    folder = encoder_folder(path)
    if not (folder / INFO).is_file():
        raise ConfigError(
            f"{place} holds no weights to start from: neither {INFO} of a run, nor {CONFIG} and {WEIGHTS} of timm.",
            remedy="Give RUN of a finished or interrupted run, or a folder that timm wrote; of another folder the "
            ".safetensors file itself, with --backbone NAME.",
        )
    info = read_info(folder)
    name = folder.resolve()
    return Source(
        place=place,
        file=folder,
        backbone=f"{folder}/{info['backbone']}" if "code" in info else info["backbone"],
        ours=True,
        volumes=info["spec"].get("dims", 2) == 3,
        arguments=info["model_args"],
        mean=tuple(info["spec"]["mean"]),
        std=tuple(info["spec"]["std"]),
        name=f"encoder {name.parent.name if name.name == 'encoder' else name.name}",
        tag="lejepa_med",
        earlier=tuple(info.get("origin", ())),
    )


def _of_timm(folder: Path, *, place: str) -> Source:
    """A folder as timm writes it: config.json and model.safetensors."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        described = config.get("pretrained_cfg", config)
        backbone = str(config.get("architecture") or described["architecture"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{place}: {CONFIG} does not name an architecture of timm ({type(error).__name__}).",
            remedy="Give a folder that timm wrote (timm.models.save_for_hf), or the .safetensors file alone with "
            "--backbone NAME.",
        ) from error
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLED))
        instead = f", but {', '.join(others)}" if others else ""
        raise ConfigError(
            f"{place} holds no {WEIGHTS}{instead}.",
            remedy=f"{CONVERT}. Put it beside {CONFIG} as {WEIGHTS}." if others else "Copy the whole folder again.",
        )
    backbone, _, tag = backbone.partition(".")
    tag = str(described.get("tag") or tag)
    known = _registered(backbone, tag, place=place)
    mean, std = _in_unit_range(described.get("mean"), described.get("std"), place=place)
    return Source(
        place=place,
        file=folder / WEIGHTS,
        backbone=backbone,
        arguments=config.get("model_args") or {},
        mean=mean or known["mean"],
        std=std or known["std"],
        name=f"{backbone}.{tag}" if tag else backbone,
        tag=tag,
        licence=str(described.get("license") or config.get("license") or known["licence"]),
    )


def _of_file(path: Path, backbone: str | None, *, place: str) -> Source:
    """A state dictionary alone, which names neither architecture nor normalisation.

    The user names the first; the second is the one that timm has for that architecture.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{place} is not a .safetensors file; other formats can run code when they are read.",
            remedy=f"{CONVERT}." if path.suffix in PICKLED else "Give a folder or a .safetensors file.",
        )
    if backbone is None:
        raise ConfigError(
            f"{place} holds weights, but a file alone does not name their architecture.",
            remedy="Add --backbone NAME with timm's name of it, such as resnet50.",
        )
    if is_monai(backbone) or is_own(backbone):
        return Source(place=place, file=path, backbone=backbone, name=path.name)
    known = _registered(backbone, "", place=place)
    return Source(place=place, file=path, backbone=backbone, mean=known["mean"], std=known["std"], name=path.name)


def _registered(backbone: str, tag: str, *, place: str) -> dict[str, Any]:
    """Mean and std that timm has for an architecture, and the licence of its weights with this tag, or ''."""
    if backbone not in timm.list_models():
        raise ConfigError(
            f"{place}: the installed timm {timm.__version__} has no architecture '{backbone}'.",
            remedy="Install the release of timm that wrote the weights: pip install -U timm",
        )
    usual = timm.get_pretrained_cfg(backbone)
    if usual is None:
        return {"mean": (), "std": (), "licence": ""}
    try:
        tagged = timm.get_pretrained_cfg(f"{backbone}.{tag}") if tag else None
    except RuntimeError:  # a tag of the user's own
        tagged = None
    return {"mean": usual.mean, "std": usual.std, "licence": (tagged and tagged.license) or ""}


def _in_unit_range(mean: Any, std: Any, *, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for values in [0, 1]; numbers above 1 are for values up to 255, and are divided by it."""
    if mean is None and std is None:
        return (), ()
    try:
        means, stds = (tuple(float(v) for v in (one if isinstance(one, list) else [one])) for one in (mean, std))
    except (TypeError, ValueError):
        means, stds = (), ()
    if (
        not means
        or len(means) != len(stds)
        or not all(0 < s < 1e4 for s in stds)
        or not all(abs(m) < 1e4 for m in means)
    ):
        raise ConfigError(
            f"{place}: mean {mean} and std {std} in {CONFIG} are no normalisation.",
            remedy=f"Write one number for each channel into both, for pixel values from 0 to 1, in {CONFIG}.",
        )
    if max(*map(abs, means), *stds) > 1:
        return tuple(m / 255 for m in means), tuple(s / 255 for s in stds)
    return means, stds


@cache
def _fetched(name: str) -> Path:
    """The folder in the hub's cache for NAME or OWNER/NAME; what is not in it is fetched.

    Raises:
        ConfigError: timm does not know the name, or the hub does not give the files.
    """
    repository = name.removeprefix("hf-hub:")
    if "/" not in repository:
        architecture = name.partition(".")[0]
        try:
            known = timm.get_pretrained_cfg(name) if architecture in timm.list_models() else None
        except RuntimeError:
            known = None
        if known is None or not known.hf_hub_id:
            found = timm.list_pretrained(f"{architecture}*")[:5] or timm.list_pretrained("resnet18*")[:5]
            raise ConfigError(
                f"timm has no weights by the name '{name}'.",
                remedy=f"Use one of its names, such as {', '.join(HUB + one for one in found)}.",
            )
        repository = str(known.hf_hub_id)
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repository, CONFIG)
        return Path(hf_hub_download(repository, WEIGHTS)).parent
    except Exception as error:  # the hub's client raises its HTTP library's errors, and those differ by release
        raise ConfigError(
            f"The weights {HUB}{name} could not be fetched from huggingface.co/{repository} ({type(error).__name__}).",
            remedy="Check the network and the name. Without network, fetch config.json and model.safetensors from "
            f"https://huggingface.co/{repository} on another machine, copy both into a folder, and give that folder: "
            "--init FOLDER",
        ) from error
