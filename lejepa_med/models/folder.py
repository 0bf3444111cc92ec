"""The encoder folder: weights, the preprocessing that belongs to them, and a model card; checked by loading it.

config.json          architecture and arguments, as timm reads them; for a 3-D network, MONAI's class and arguments
NAME.py              only of a backbone of the user's own (./NAME.py:Class), with its SHA-256 in lejepa_med.json
model.safetensors    weights
lejepa_med.json      adapter recipe, method, data fingerprint, training state, code version
README.md            model card
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jinja2 import Template
from safetensors.torch import save_file
from torch import Tensor

import data_adapters
from data_adapters.base import Adapter, Spec
from lejepa_med import __version__
from lejepa_med.atomic import new_folder, write_text
from lejepa_med.errors import EncoderError
from lejepa_med.models.architectures import adaptation, build, is_monai, load, origin
from lejepa_med.models.encoder import Encoder
from lejepa_med.models.own import code_of, pooled

INFO = "lejepa_med.json"
FORMAT = 1
Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward passes that make vectors; recorded in lejepa_med.json, float32 unless asked otherwise."""
VOLUMES = 4  # in one forward pass: more 96^3 volumes cost memory and gain no speed


def save_encoder(encoder: Encoder, adapter: Adapter, folder: Path, *, details: dict[str, Any] | None = None) -> None:
    """Write the folder, load it back as a user would, compare, and only then put it in place.

    Args:
        encoder: on any device; its weights are written as float32 on the CPU.
        adapter: its description is the preprocessing that every later use of the encoder applies.
        folder: replaced atomically when it exists.
        details: `objective`, `training`, `data` and `metrics` of the run, for lejepa_med.json and the model card.

    A precision that was recorded in the folder (`record_precision`) stays.

    Raises:
        EncoderError: what was read back differs from what was written.
    """
    spec = adapter.spec
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    info = {
        "format": FORMAT,
        "version": __version__,
        "backbone": encoder.name,
        "model_args": encoder.model_args,
        "dim": encoder.dim,
        "spec": dataclasses.asdict(spec),
        "adapter": adapter.describe(),
        "precision": _recorded_precision(folder),
        **({"origin": encoder.origin} if encoder.origin else {}),
        **({"code": {"file": encoder.code.file, "sha256": encoder.code.sha256}} if encoder.code else {}),
        **(details or {}),
    }
    with new_folder(folder) as draft:
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        os.chmod(draft / "model.safetensors", 0o644)  # safetensors makes it private; a container's user must read it
        (draft / "config.json").write_text(_json(_config(encoder, spec)), encoding="utf-8")
        if encoder.code is not None:
            (draft / encoder.code.file).write_bytes(encoder.code.source)
        info["weights_sha256"] = _sha256(draft / "model.safetensors")
        (draft / INFO).write_text(_json(info), encoding="utf-8")
        (draft / "README.md").write_text(_model_card(_name(folder), info), encoding="utf-8")
        _check(encoder, draft, spec)


def _config(encoder: Encoder, spec: Spec) -> dict[str, Any]:
    if encoder.code is not None:
        return {
            "library": "lejepa_med",
            "architecture": encoder.name,
            "file": encoder.code.file,
            "class": encoder.code.kind,
            "arguments": {key: value for key, value in encoder.model_args.items() if key != "drop_path_rate"},
            "num_features": encoder.dim,
            "input_size": (spec.channels, *[spec.global_size] * spec.dims),
            "mean": spec.mean,
            "std": spec.std,
        }
    if is_monai(encoder.name):
        # timm cannot build these; whoever has MONAI can, from this file alone
        return {
            "library": "monai",
            "architecture": encoder.name,
            "class": origin(encoder.name),
            "arguments": {key: value for key, value in encoder.model_args.items() if key != "drop_path_rate"},
            "num_features": encoder.dim,
            "input_size": (spec.channels, *[spec.global_size] * 3),
            "mean": spec.mean,
            "std": spec.std,
        }
    size = (spec.channels, spec.global_size, spec.global_size)
    return {
        "architecture": encoder.name,
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": encoder.model_args,
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": "img_size" in encoder.model_args and "dynamic_img_size" not in encoder.model_args,
            "mean": spec.mean,
            "std": spec.std,
            "num_classes": 0,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            **adaptation(encoder.name, spec.global_size),
        },
    }


def _model_card(name: str, info: dict[str, Any]) -> str:
    source = files("lejepa_med.models").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    blank: dict[str, Any] = {"objective": {}, "training": {}, "data": {}}
    card: str = Template(source).render(name=name, info={**blank, **info})
    return card + "\n"


@torch.no_grad()
def _check(encoder: Encoder, draft: Path, spec: Spec) -> None:
    """Compare the written weights with the live ones, then a forward pass of the reloaded model with a second one."""
    loaded = load(draft, encoder.name, encoder.model_args, code=encoder.code)
    live = encoder.backbone.state_dict()
    read = loaded.state_dict()
    same = live.keys() == read.keys() and all(torch.equal(read[name], live[name].cpu()) for name in live)
    loaded.eval()
    # a whole volume takes a transformer many seconds on the CPU, at every checkpoint; a local view proves the same
    size = spec.local_size if spec.dims == 3 and spec.n_local else spec.global_size
    pixels = torch.rand(1, spec.channels, *[size] * spec.dims, generator=torch.Generator().manual_seed(0))
    shape = tuple(pooled(loaded(pixels)).shape)
    if not same or shape != (1, encoder.dim):
        raise EncoderError(
            "The encoder folder, read back, differs from the encoder in memory.",
            remedy="Nothing was replaced. Look for packages that are too old with lejepa-med doctor, check the disk, "
            "and repeat the command with --resume.",
        )


def _on_cpu(encoder: Encoder) -> bool:
    return all(parameter.device.type == "cpu" for parameter in encoder.parameters())


class LoadedEncoder:
    """An encoder folder in use: the adapter for pixels, the model for vectors."""

    def __init__(self, *, module: Encoder, adapter: Adapter, info: dict[str, Any], name: str, device: str) -> None:
        self.module = module.to(device).eval()
        self.adapter = adapter
        self.info = info
        self.name = name
        self.device = device
        self.dim = module.dim
        self.precision = precision_of(info)
        self.fingerprint = fingerprint(info)

    @torch.inference_mode()
    def embed(self, items: Sequence[Tensor], *, batch_size: int = 64) -> np.ndarray:
        """Embed prepared items.

        Args:
            items: one (n, C, H, W) or (n, C, D, H, W) tensor for each item, as `adapter.prepare` gives it; n slices,
                tiles or cubes.
            batch_size: slices or tiles in one forward pass; of cubes never more than 4.

        Returns:
            (len(items), dim) float32; an item's vector is the mean over its n slices or tiles. Computed in the
            encoder's recorded precision, so that `embed`, probes, search and the service agree.
        """
        return embed_items(self.module, items, device=self.device, batch_size=batch_size, precision=self.precision)


def embed_items(
    module: Encoder,
    items: Sequence[Tensor],
    *,
    device: torch.device | str,
    batch_size: int,
    precision: Precision = "float32",
) -> np.ndarray:
    """`LoadedEncoder.embed` for an encoder in evaluation mode that need not come from a folder, as during training."""
    if not items:
        return np.empty((0, module.dim), np.float32)
    parts = embed_parts(module, items, device=device, batch_size=batch_size, precision=precision)
    return torch.stack([part.mean(dim=0) for part in parts]).numpy()


def embed_parts(
    module: Encoder,
    items: Sequence[Tensor],
    *,
    device: torch.device | str,
    batch_size: int,
    precision: Precision = "float32",
) -> list[Tensor]:
    """One (n, dim) float32 tensor on the CPU for each item of n slices, tiles or cubes; items must not be empty."""
    pixels = torch.cat(list(items))
    if module.dims == 3:
        batch_size = min(batch_size, VOLUMES)
    with _computing_in(precision, torch.device(device).type):
        vectors = torch.cat([module(chunk.to(device)).float().cpu() for chunk in pixels.split(batch_size)])
    return list(vectors.split([len(item) for item in items]))


@contextmanager
def _computing_in(precision: Precision, device: str) -> Iterator[None]:
    """Exactly this arithmetic, whatever the processor offers and the caller has set."""
    before = exact_float32()
    try:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, matmul = before
        torch.set_float32_matmul_precision(matmul)


def exact_float32() -> tuple[bool, str]:
    """Keep PyTorch from rounding float32 by itself, in the whole process; returns what was set before.

    Two things do: TensorFloat-32 in cuDNN (10 bits, on by default from Ampere on), and where the caller has asked for
    it, bfloat16 or TensorFloat-32 in matrix products.
    """
    before = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return before


def precision_of(info: dict[str, Any]) -> Precision:
    """The recorded precision in lejepa_med.json; folders from before it was recorded compute in float32."""
    precision: Precision = info.get("precision", "float32")
    return precision


def record_precision(path: Path | str, precision: Precision) -> Path:
    """Record in RUN/encoder (or RUN) in which precision its vectors are computed; returns the encoder folder.

    The fingerprint follows: tables and probes of the other precision are then those of another encoder.

    Raises:
        EncoderError: no encoder folder.
    """
    folder = encoder_folder(path)
    info = read_info(folder) | {"precision": precision}
    write_text(folder / "README.md", _model_card(_name(folder.resolve()), info))
    write_text(folder / INFO, _json(info))
    return folder


def _recorded_precision(folder: Path) -> Precision:
    with suppress(EncoderError):
        return precision_of(read_info(folder))
    return "float32"


def fingerprint(info: dict[str, Any]) -> str:
    """SHA-256 over weights, preprocessing and precision: vectors are compared only where it is equal."""
    spec = dict(info["spec"])
    if spec.get("dims") == 2:
        del spec["dims"]  # folders from before 3-D encoders do not say it; theirs and new ones must agree
    parts = [info["weights_sha256"], info["adapter"], spec]
    if precision_of(info) != "float32":  # folders from before the precision was recorded do not say it either
        parts.append(precision_of(info))
    if "code" in info:
        parts.append(info["code"]["sha256"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_info(folder: Path) -> dict[str, Any]:
    """lejepa_med.json of an encoder folder.

    Raises:
        EncoderError: the folder is no encoder folder, or was written by a newer release.
    """
    try:
        info: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{folder} is not an encoder folder (no readable {INFO}).",
            remedy="Give RUN/encoder of a finished or interrupted run of: lejepa-med pretrain",
        ) from error
    if info.get("format") != FORMAT:
        raise EncoderError(
            f"{folder} has encoder format {info.get('format')}, this release reads format {FORMAT}.",
            remedy=f"Install lejepa-med {info.get('version', 'in the release')}, which wrote it, or pretrain again.",
        )
    return info


def load_encoder(path: Path | str, *, device: str = "cpu", trusted: bool = True) -> LoadedEncoder:
    """Load RUN/encoder (or RUN).

    Args:
        path: of the folder.
        device: where it computes.
        trusted: whether the Python file of a backbone of somebody's own may be run.

    Raises:
        EncoderError: no encoder folder, damaged weights, another version of the preprocessing, or a changed or
            untrusted Python file.
    """
    folder = encoder_folder(path)
    info = read_info(folder)
    if _sha256(folder / "model.safetensors") != info["weights_sha256"]:
        raise EncoderError(
            f"The weights in {folder} do not match {INFO}: a copy was cut short, or files of two encoders were mixed.",
            remedy="Copy the whole folder again, or write it anew: repeat its pretrain command with --resume.",
        )
    if precision_of(info) not in get_args(Precision):
        raise EncoderError(
            f"{folder} asks for vectors in '{info['precision']}', which this release does not compute.",
            remedy=f"Set it anew with: lejepa-med precision {folder} float32",
        )
    code = code_of(folder, info, trusted=trusted)
    adapter = data_adapters.from_description(info["adapter"])
    name, args = info["backbone"], info["model_args"]
    backbone = load(folder, name, args, code=code)
    module = Encoder(
        backbone, name=name, model_args=args, spec=adapter.spec, code=code, dim=info["dim"] if code else None
    )
    return LoadedEncoder(module=module, adapter=adapter, info=info, name=_name(folder.resolve()), device=device)


def encoder_folder(path: Path | str) -> Path:
    """RUN/encoder for RUN; an encoder folder itself, and whatever is neither, as it is."""
    folder = Path(path)
    inner = folder / "encoder"
    return inner if not (folder / INFO).is_file() and (inner / INFO).is_file() else folder


def _name(folder: Path) -> str:
    """What users call an encoder: its run, `RUN` for RUN/encoder and `RUN-average` for RUN/encoder-average."""
    if folder.name.startswith("encoder"):
        return folder.parent.name + folder.name.removeprefix("encoder")
    return folder.name


def find_encoders(runs: Path) -> list[Path]:
    """Encoder folders at most three levels below `runs`, sorted."""
    found = {file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for file in runs.glob(depth + INFO)}
    return sorted(
        folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(runs).parts)
    )


def randomised(encoder: LoadedEncoder, *, seed: int = 0) -> LoadedEncoder:
    """The same architecture and preprocessing with fresh weights: the control beside which every probe is reported."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        args = {key: value for key, value in encoder.module.model_args.items() if key != "drop_path_rate"}
        name, spec, code = encoder.module.name, encoder.adapter.spec, encoder.module.code
        module = Encoder(
            build(name, args, code=code), name=name, model_args=args, spec=spec, code=code, dim=encoder.dim
        )
    info = {**encoder.info, "weights_sha256": f"random:{seed}"}
    return LoadedEncoder(
        module=module, adapter=encoder.adapter, info=info, name=f"{encoder.name}-random", device=encoder.device
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _sha256(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(
            f"{file} cannot be read ({type(error).__name__}).", remedy="Copy the whole encoder folder again."
        ) from error
