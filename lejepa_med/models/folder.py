"""The encoder folder: weights, the preprocessing that belongs to them, and a model card; checked by loading it.

config.json          architecture and arguments, as timm reads them; for a 3-D network, MONAI's class and arguments
NAME.py              only of a backbone of the user's own (./NAME.py:Class), with its SHA-256 in lejepa_med.json
model.safetensors    weights
lejepa_med.json      adapter recipe, formation of vectors, method, data fingerprint, training state, code version
README.md            model card
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import data_adapters
from data_adapters.atomic import new_folder, write_text
from data_adapters.base import Adapter, Spec
from lejepa_med import __version__
from lejepa_med.cpu import keep_freed_memory
from lejepa_med.errors import EncoderError
from lejepa_med.models.architectures import adaptation, build, is_monai, load, model_arguments, origin
from lejepa_med.models.card import curve_rows, model_card
from lejepa_med.models.encoder import Encoder, check_embed_size, lay_out
from lejepa_med.models.formation import LAYERS, VIEWS, Formation, check_formation, formation_of, seen_in
from lejepa_med.models.own import Code, code_of, pooled

INFO = "lejepa_med.json"
FORMAT = 1
Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward passes that make vectors; recorded in lejepa_med.json, float32 unless asked otherwise."""
COST_IMAGES = {2: 16, 3: 1}  # on which the cost of an image is measured, by dimensions
VOLUMES = 4  # in one forward pass: more 96^3 volumes cost memory and gain no speed


def save_encoder(encoder: Encoder, adapter: Adapter, folder: Path, *, details: dict[str, Any] | None = None) -> None:
    """Write the folder, load it back as a user would, compare, and only then put it in place.

    Args:
        encoder: on any device; its weights are written as float32 on the CPU.
        adapter: its description is the preprocessing that every later use of the encoder applies.
        folder: replaced atomically when it exists.
        details: `objective`, `training`, `data` and `metrics` of the run, for lejepa_med.json and the model card.

    A precision and a formation of vectors that were recorded in the folder (`record_precision`, `record_formation`)
    stay.

    Raises:
        EncoderError: what was read back differs from what was written.
    """
    spec, recorded = adapter.spec, _recorded(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    info = {
        "format": FORMAT,
        "version": __version__,
        "backbone": encoder.name,
        "model_args": encoder.model_args,
        "dim": encoder.vector_dim,
        "spec": _without(dataclasses.asdict(spec), "embed_size"),  # which the formation says
        "adapter": _plain_description(adapter),
        "formation": dataclasses.asdict(encoder.formation),
        "precision": precision_of(recorded),
        **({"origin": encoder.origin} if encoder.origin else {}),
        **({"code": {"file": encoder.code.file, "sha256": encoder.code.sha256}} if encoder.code else {}),
        **(details or {}),
    }
    with new_folder(folder) as draft:
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        os.chmod(draft / "model.safetensors", 0o644)  # safetensors makes it private; a container's user must read it
        if encoder.code is not None:
            (draft / encoder.code.file).write_bytes(encoder.code.source)
        info["weights_sha256"] = _sha256(draft / "model.safetensors")
        if recorded.get("weights_sha256") == info["weights_sha256"] and "results" in recorded:
            info["results"] = recorded["results"]
        _write_facts(draft, encoder, spec, info, name=_name(folder))
        _check(encoder, draft, spec)
        if recorded and formation_of(recorded) != encoder.formation:
            other, spec, info = _reformed(info, formation_of(recorded), code=encoder.code)
            _write_facts(draft, other, spec, info, name=_name(folder))


def _write_facts(folder: Path, encoder: Encoder, spec: Spec, info: dict[str, Any], *, name: str) -> None:
    """Write all but the weights; lejepa_med.json, by which everything is read, last."""
    write_text(folder / "config.json", _json(_config(encoder, spec)))
    write_text(folder / "README.md", model_card(name, info, fingerprint=fingerprint(info)))
    write_text(folder / INFO, _json(info))


def _plain_description(adapter: Adapter) -> dict[str, Any]:
    """The adapter's description without the size of images to embed, which the formation says."""
    description = adapter.describe()
    return {**description, "options": _without(description["options"], "embed_size")}


def _without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != name}


def adapter_of(info: dict[str, Any]) -> Adapter:
    """The adapter whose `prepare` gives the images that the encoder's vectors are formed from.

    Raises:
        UserError: another version of the preprocessing.
    """
    return _adapter(info, formation_of(info).size)


def _adapter(info: dict[str, Any], size: int) -> Adapter:
    description = info["adapter"]
    if size != info["spec"]["global_size"]:
        description = {**description, "options": {**description["options"], "embed_size": size}}
    return data_adapters.from_description(description)


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
            "input_size": (spec.channels, *[spec.embed_size] * 3),
            "mean": spec.mean,
            "std": spec.std,
        }
    size = (spec.channels, spec.embed_size, spec.embed_size)
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
            **adaptation(encoder.name, spec.embed_size),
        },
    }


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
        self.dim = module.vector_dim
        self.formation = module.formation
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
            (len(items), dim) float32; an item's vector is the mean over its n slices or tiles. Formed and computed as
            the encoder's folder records, so that `embed`, probes, search and the service agree.
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
        return np.empty((0, module.vector_dim), np.float32)
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
    """One (n, vector_dim) float32 tensor on the CPU for each item of n slices, tiles or cubes; some items."""
    pixels = torch.cat(list(items))
    if module.dims == 3:
        batch_size = min(batch_size, VOLUMES)
    with _computing_in(precision, torch.device(device).type):
        chunks = pixels.split(batch_size)
        vectors = torch.cat([module.form(chunk.to(device), batch_size=batch_size).cpu() for chunk in chunks])
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
    write_text(folder / "README.md", model_card(_name(folder.resolve()), info, fingerprint=fingerprint(info)))
    write_text(folder / INFO, _json(info))
    return folder


def record_results(
    path: Path | str, kind: str, results: dict[str, Any], *, history: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Record in RUN/encoder (or RUN) what `evaluate` or `compare` measured, for its model card; returns the folder.

    The fingerprint stays. Results belong to it: after the formation or the precision has changed, the card leaves them
    out. `history`: of metrics.jsonl, for the training curve.

    Raises:
        EncoderError: no encoder folder.
        OSError: the folder cannot be written.
    """
    folder = encoder_folder(path)
    info = read_info(folder)
    mark = fingerprint(info)
    info["results"] = {**info.get("results", {}), kind: {**results, "fingerprint": mark}}
    if history:
        info["curve"] = curve_rows(history)
    write_text(folder / "README.md", model_card(_name(folder.resolve()), info, fingerprint=mark))
    write_text(folder / INFO, _json(info))
    return folder


def record_formation(
    path: Path | str, *, size: int | None = None, views: int | None = None, layers: int | None = None
) -> Path:
    """Record in RUN/encoder (or RUN) how its vectors are formed; what is None stays. Returns the encoder folder.

    The fingerprint follows: tables and probes of another formation are then those of another encoder.

    Raises:
        EncoderError: no encoder folder.
        ConfigError: a formation that the modality or the architecture does not allow.
    """
    folder = encoder_folder(path)
    info = read_info(folder)
    formation = _changed(formation_of(info), size=size, views=views, layers=layers)
    if formation != formation_of(info):
        encoder, spec, info = _reformed(info, formation, code=code_of(folder, info))
        _write_facts(folder, encoder, spec, info, name=_name(folder.resolve()))
    return folder


def formation_rows(encoder: LoadedEncoder) -> list[tuple[str, str]]:
    """How an encoder's vectors are formed, and what an image costs on its device, measured now: names and texts."""
    formation, spec = encoder.formation, encoder.adapter.spec
    plain = Formation(size=spec.global_size)
    unit = "voxels" if spec.dims == 3 else "px"
    seen = f" ({seen_in(formation, dims=spec.dims)})" if formation.views > 1 else ""
    joined = ", the output of the last stage or block but one and the pooled output" if formation.layers > 1 else ""
    rows = [
        ("views", f"{formation.views}{seen}"),
        ("size", f"{formation.size} {unit} (trained at {spec.global_size})"),
        ("layers", f"{formation.layers}{joined or ', the pooled output'}"),
        ("vector", f"{encoder.dim} numbers"),
    ]
    each = image_seconds(encoder)
    cost = f"{each * 1e3:.3g} ms an image on this machine ({COST_IMAGES[spec.dims]} at a time)"
    if formation != plain:
        share = each / image_seconds(encoder, formation=plain)
        cost += f", {share:.1f} times one plain pass at {spec.global_size} {unit}"
    return [*rows, ("cost", f"{formation.views} pass{'es' if formation.views > 1 else ''} an image: {cost}")]


def image_seconds(encoder: LoadedEncoder, *, formation: Formation | None = None) -> float:
    """Seconds that the vector of one blank image takes, by default as the encoder forms it; the best of three runs."""
    spec, module, own = encoder.adapter.spec, encoder.module, encoder.formation
    count, size = COST_IMAGES[spec.dims], (formation or own).size
    pixels = torch.zeros(count, spec.channels, *[size] * spec.dims)
    module.formation = formation or own
    try:
        with torch.inference_mode():
            times = []
            for _ in range(4):  # the first one prepares kernels and memory
                began = time.perf_counter()
                encoder.embed([pixels])
                times.append(time.perf_counter() - began)
    finally:
        module.formation = own
    return min(times[1:]) / count


def _changed(formation: Formation, **given: int | None) -> Formation:
    return dataclasses.replace(formation, **{name: value for name, value in given.items() if value is not None})


def _reformed(info: dict[str, Any], formation: Formation, *, code: Code | None) -> tuple[Encoder, Spec, dict[str, Any]]:
    """The facts of an encoder with another formation, checked on the architecture; the weights are not read."""
    adapter = _adapter(info, formation.size)
    check_formation(formation, adapter)
    spec, name, args = adapter.spec, info["backbone"], dict(info["model_args"])
    if code is None and "dynamic_img_size" in model_arguments(name, spec):
        args["dynamic_img_size"] = True  # positions are then interpolated; at the size of training nothing changes
    encoder = Encoder(
        build(name, args, code=code),
        name=name,
        model_args=args,
        spec=spec,
        formation=formation,
        code=code,
        dim=info["dim"] if code else None,
    )
    check_embed_size(encoder, spec)
    facts = {"formation": dataclasses.asdict(formation), "model_args": args, "dim": encoder.vector_dim}
    return encoder, spec, {**info, **facts}


def _recorded(folder: Path) -> dict[str, Any]:
    """lejepa_med.json of a folder that is about to be replaced; empty where there is none."""
    with suppress(EncoderError):
        return read_info(folder)
    return {}


def fingerprint(info: dict[str, Any]) -> str:
    """SHA-256 over weights, preprocessing, formation and precision: vectors are compared only where it is equal."""
    spec = dict(info["spec"])
    if spec.get("dims") == 2:
        del spec["dims"]  # folders from before 3-D encoders do not say it; theirs and new ones must agree
    parts = [info["weights_sha256"], info["adapter"], spec]
    plain = {"size": spec.get("global_size"), "views": 1, "layers": 1}
    if info.get("formation", plain) != plain:  # folders from before formations were recorded do not say it, either
        parts.append(info["formation"])
    if precision_of(info) != "float32":  # folders from before the precision was recorded do not say it either
        parts.append(precision_of(info))
    if "code" in info:
        parts.append(info["code"]["sha256"])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def way_back(info: dict[str, Any], wanted: str) -> str:
    """The commands after which this encoder has the fingerprint again, "" where its weights are others.

    Sizes other than the present one and that of training are not tried.
    """
    try:
        now, sizes = formation_of(info), {formation_of(info).size, info["spec"]["global_size"]}
    except EncoderError:  # of a newer release
        return ""
    for size, views, layers, precision in product(sizes, VIEWS, LAYERS, get_args(Precision)):
        formation = Formation(size=size, views=views, layers=layers)
        facts = {"formation": dataclasses.asdict(formation), "precision": precision}
        if fingerprint({**info, **facts}) == wanted:
            options = " ".join(f"--{name} {value}" for name, (value, _) in formation.differs(now).items())
            commands = [f"lejepa-med vectors RUN {options}"] if options else []
            commands += [f"lejepa-med precision RUN {precision}"] if precision != precision_of(info) else []
            return " and ".join(commands)
    return ""


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


def load_encoder(
    path: Path | str,
    *,
    device: str = "cpu",
    views: int | None = None,
    layers: int | None = None,
    trusted: bool = True,
) -> LoadedEncoder:
    """Load RUN/encoder (or RUN), set up to be fast on its device.

    Args:
        path: of the folder.
        device: where it computes.
        views: fixed views that are averaged, in place of those that the folder records; the fingerprint follows.
        layers: layers that are joined, likewise.
        trusted: whether the Python file of a backbone of somebody's own may be run.

    Raises:
        EncoderError: no encoder folder, damaged weights, another version of the preprocessing, or a changed or
            untrusted Python file.
        ConfigError: views that the modality, or layers that the architecture does not allow.
    """
    folder = encoder_folder(path)
    info = read_info(folder)
    formation = _changed(formation_of(info), views=views, layers=layers)
    if formation != formation_of(info):
        check_formation(formation, _adapter(info, formation.size))
        info = {**info, "formation": dataclasses.asdict(formation)}
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
    adapter, name, args = adapter_of(info), info["backbone"], info["model_args"]
    module = Encoder(
        load(folder, name, args, code=code),
        name=name,
        model_args=args,
        spec=adapter.spec,
        formation=formation,
        code=code,
        dim=info["dim"] if code else None,
    )
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    return LoadedEncoder(
        module=lay_out(module), adapter=adapter, info=info, name=_name(folder.resolve()), device=device
    )


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
            build(name, args, code=code),
            name=name,
            model_args=args,
            spec=spec,
            formation=encoder.formation,
            code=code,
            dim=encoder.module.dim if code else None,
        )
    info = {**encoder.info, "weights_sha256": f"random:{seed}"}
    return LoadedEncoder(
        module=lay_out(module), adapter=encoder.adapter, info=info, name=f"{encoder.name}-random", device=encoder.device
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
