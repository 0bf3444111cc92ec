"""ONNX: normalisation, fixed views, encoder and probe as one graph, compared with PyTorch before it is written.

Input `pixels` (items, images, channels, *sides): what `prepare` gives for each item, its slices or tiles as `images`.
Outputs `vector` (items, dim) float32 and, with a probe, `probabilities` (items, classes) or `value` (items,) float32.
Items of different numbers of images go in separate calls. Reading a file, its resolution and its intensities stay with
the adapter: they need headers or the whole volume, which a graph over pixels has not got.
"""

import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_adapters.atomic import new_file
from data_adapters.base import Adapter, Record
from data_adapters.errors import BadFileError, MissingExtraError
from data_adapters.manifest import Manifest
from lejepa_med import __version__
from lejepa_med.errors import ConfigError, UserError
from lejepa_med.models.folder import COST_IMAGES, LoadedEncoder
from lejepa_med.models.formation import fixed_views
from lejepa_med.probes.classification import ClassHead
from lejepa_med.probes.multilabel import MarkHead
from lejepa_med.probes.probe import Probe
from lejepa_med.probes.regression import NumberHead

OPSET = 18
BOUND = 1e-4  # of the largest number in the vectors; of a probability
CHECKED = 8  # images of the archive on which the graph is compared with PyTorch
MOST_ITEMS = 1 << 16  # of one call: the exporter wants a bound


class Head(nn.Module):
    """What a probe answers about vectors (items, dim) -> (items, classes), or (items,) of a number; in float64 inside.

    Raises:
        UserError: a kind of probe that is no linear model on one vector.
    """

    mean: Tensor
    scale: Tensor
    coef: Tensor
    intercept: Tensor
    slopes: Tensor
    offsets: Tensor
    temperature: Tensor

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        head = probe.head
        if isinstance(head, NumberHead):
            linear, facts = head.ridge, {}
        elif isinstance(head, MarkHead):
            linear, facts = head.linear, {"slopes": head.slopes, "offsets": head.offsets}
        elif isinstance(head, ClassHead):
            linear, facts = head.linear, {"temperature": np.array(head.temperature)}
        else:
            raise UserError(
                f"A probe of kind '{probe.kind}' is no linear model on one vector, so it has no ONNX form.",
                remedy="Leave out --probe to export the encoder alone, and apply the probe with: lejepa-med predict",
            )
        self.kind = probe.kind
        for name, values in {**vars(linear), **facts}.items():
            self.register_buffer(name, torch.from_numpy(np.array(values, np.float64)))

    def forward(self, vectors: Tensor) -> Tensor:
        """(items, dim) float32 -> float32, see the class."""
        scaled = (vectors.double() - self.mean) / self.scale
        logits = scaled @ self.coef.T + self.intercept
        if self.kind == "regression":
            return logits[:, 0].float()
        if self.kind == "multilabel":
            return torch.sigmoid(logits * self.slopes + self.offsets).float()
        if self.coef.shape[0] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return torch.softmax(logits / self.temperature, dim=1).float()


class Graph(nn.Module):
    """The whole of it: (items, images, C, *sides) -> vectors, and answers where there is a probe."""

    def __init__(self, encoder: LoadedEncoder, probe: Probe | None) -> None:
        super().__init__()
        self.encoder, self.head = encoder.module, None if probe is None else Head(probe)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See the module."""
        formation = self.encoder.formation
        one_pass = self.encoder.joined if formation.layers == 2 else self.encoder
        passes = one_pass(fixed_views(pixels.flatten(0, 1), formation.views))
        items, images = pixels.shape[:2]
        vectors = passes.reshape(formation.views, items, images, -1).mean(dim=(0, 2))
        return (vectors,) if self.head is None else (vectors, self.head(vectors))


def outputs_of(probe: Probe | None) -> list[str]:
    """Names of the outputs, in order."""
    if probe is None:
        return ["vector"]
    return ["vector", "value" if probe.kind == "regression" else "probabilities"]


def export_onnx(
    encoder: LoadedEncoder,
    out: Path,
    *,
    images: Sequence[Tensor],
    probe: Probe | None = None,
    bound: float = BOUND,
) -> dict[str, str]:
    """Write the graph of an encoder, and of a probe on its vectors.

    Args:
        encoder: on the CPU.
        out: the .onnx file.
        images: prepared items of real images, (n, C, *sides) each, on which the graph is compared with PyTorch.
        probe: of this encoder.
        bound: largest difference that is accepted: of vectors, relative to the largest number in them; of
            probabilities, absolute; of a number, relative to the spread of its labels.

    Returns:
        The metadata of the file, texts by name.

    Raises:
        ConfigError: the encoder computes in another precision, the probe belongs to another encoder, or the
            architecture has no ONNX form.
        UserError: the graph differs from PyTorch by more than `bound`; nothing is written then.
    """
    require_onnx()
    if encoder.precision != "float32":
        raise ConfigError(
            f"This encoder computes its vectors in {encoder.precision}; an ONNX graph computes in float32, so tables "
            "and probes would not fit it.",
            remedy="Record float32 with: lejepa-med precision RUN float32, then embed and train the probe again.",
        )
    if probe is not None and probe.encoder != encoder.fingerprint:
        raise ConfigError(
            "The probe was trained on the vectors of another encoder, or of this one with another formation.",
            remedy="Train it on a table of this encoder: lejepa-med embed, then lejepa-med probe.",
        )
    graph = Graph(encoder, probe).eval()
    facts = metadata(encoder, probe, images[0])
    with new_file(out) as draft:
        _write(graph, images[0], draft, outputs_of(probe), encoder.module.name)
        differences = parity(draft, graph, images, probe)
        for name, (difference, _) in differences.items():
            if not difference <= bound:  # NaN, too
                raise UserError(
                    f"The ONNX graph differs from PyTorch by {difference:.2g} in '{name}', more than {bound:g}. "
                    "Nothing was written.",
                    remedy="Install the newest torch, onnx and onnxruntime; or accept it with a larger --bound.",
                )
        told = ", ".join(f"{name} {value:.1e} ({unit})" for name, (value, unit) in differences.items())
        facts["parity"] = f"largest difference from PyTorch on {len(images)} images: {told}; refused above {bound:g}"
        _describe(draft, facts)
    return facts


def require_onnx() -> None:
    """Refuse where the extra is missing.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Exporting to ONNX needs the Python packages onnx, onnxscript and onnxruntime ({error}).",
            remedy="Install them with: pip install 'lejepa-med[onnx]'",
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter warns of its own internals, and logs each step."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write(graph: Graph, item: Tensor, file: Path, names: list[str], backbone: str) -> None:
    # two of each: the exporter takes an axis of length 1 for a constant
    example = item[:1].repeat(2, *[1] * (item.ndim - 1))[None].repeat(2, *[1] * item.ndim)
    axes = {axis: torch.export.Dim(name, min=1, max=MOST_ITEMS) for axis, name in enumerate(("items", "images"))}
    try:
        with _silent(), torch.no_grad():
            torch.onnx.export(
                graph,
                (example,),
                str(file),
                input_names=["pixels"],
                output_names=names,
                dynamo=True,
                dynamic_shapes={"pixels": axes},
                opset_version=OPSET,
                external_data=False,  # one file
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
        raise ConfigError(
            f"PyTorch cannot write the architecture '{backbone}' as ONNX ({type(error).__name__}).",
            remedy="Update torch and onnxscript; a backbone of your own must work with torch.export.",
        ) from error


def session(file: Path, *, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU; `threads`: None: as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def parity(file: Path, graph: Graph, images: Sequence[Tensor], probe: Probe | None) -> dict[str, tuple[float, str]]:
    """Largest difference between a file and the PyTorch vectors and answers, by output, with its unit.

    The vectors are those of `embed`, the answers those of the probe's own code, so that the graph is compared with what
    the product computes and not with itself.
    """
    running = session(file)
    encoder: Any = graph.encoder
    found = {name: 0.0 for name in outputs_of(probe)}
    for item in [*images, torch.cat([images[0], images[-1]])]:
        theirs = dict(zip(found, running.run(None, {"pixels": item[None].numpy()}), strict=True))
        ours = torch.cat([encoder.form(part[None], batch_size=encoder.formation.views) for part in item])
        vector = ours.mean(dim=0, keepdim=True).numpy()
        scale = float(np.abs(vector).max()) or 1.0
        found["vector"] = max(found["vector"], float(np.abs(theirs["vector"] - vector).max()) / scale)
        if probe is not None:
            name = outputs_of(probe)[1]
            difference = np.abs(theirs[name].ravel() - _answers(probe, vector).ravel()).max()
            found[name] = max(found[name], float(difference))
    units = {"vector": "of the largest number", "probabilities": "absolute", "value": "of the labels' spread"}
    if "value" in found and probe is not None:
        found["value"] /= float(probe.metrics.get("deviation") or 1)
    return {name: (value, units[name]) for name, value in found.items()}


def _answers(probe: Probe, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    head = probe.head
    if isinstance(head, NumberHead):
        return head.ridge.logits(vectors)[:, 0]
    assert isinstance(head, ClassHead | MarkHead)  # `Head` has refused the rest
    return head.probabilities(vectors)


def metadata(encoder: LoadedEncoder, probe: Probe | None, item: Tensor) -> dict[str, str]:
    """What a user of the file must know, as texts by name; nothing about single images, files or people."""
    info, spec, formation = encoder.info, encoder.adapter.spec, encoder.formation
    kind = "uint8, 0 to 255" if item.dtype == torch.uint8 else "float32, 0 to 1"
    sides = " x ".join([str(formation.size)] * spec.dims)
    axes = "depth, height, width" if spec.dims == 3 else "height, width"
    licences = sorted({one["licence"] for one in info.get("origin", []) if one.get("licence")})
    options = info["adapter"].get("options", {})
    units = {"mpp": "um per pixel", "spacing": "mm per voxel", "pixel_scale": "arcsec per pixel"}
    facts = {
        "written_by": f"lejepa-med {__version__}",
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "backbone": encoder.module.name.rpartition("/")[2],
        "modality": str(info["adapter"]["adapter"]),
        "opset": str(OPSET),
        "input": f"pixels (items, images, {spec.channels} channels, {axes}): {sides}, {kind}, as the adapter's "
        "prepare() gives them; images are the slices, tiles or cubes of one item, whose vectors are averaged",
        "in_the_graph": f"normalisation (mean {list(spec.mean)}, std {list(spec.std)} for values from 0 to 1), "
        f"{formation.text(dims=spec.dims)}",
        "preprocessing": json.dumps(info["adapter"], sort_keys=True),
        "units": "; ".join(f"{name} {options[name]} ({unit})" for name, unit in units.items() if options.get(name))
        or "pixels as prepared",
        "licence": "; ".join(licences) or "weights of your own training: not stated",
        "outputs": f"vector (items, {encoder.dim})",
    }
    if probe is None:
        return facts
    facts |= {"probe_kind": probe.kind, "classes": json.dumps(probe.classes, ensure_ascii=False)}
    if probe.kind == "regression":
        facts["outputs"] += "; value (items,)"
        facts["half_width"] = json.dumps(getattr(probe.head, "half_width", None))
        facts["interval"] = "value - half_width to value + half_width holds the true value of 90 % of the images"
    else:
        facts["outputs"] += f"; probabilities (items, {len(probe.classes)}), calibrated, in the order of classes"
    if isinstance(probe.head, MarkHead):
        facts["thresholds"] = json.dumps(probe.head.thresholds.tolist())
    facts["not_in_the_graph"] = (
        "novelty, uncertainty and neighbours; and images that the probe learnt from get the answer of the whole probe "
        "here, not an out-of-fold one"
    )
    return facts


def _describe(file: Path, facts: dict[str, str]) -> None:
    import onnx

    model = onnx.load(str(file))
    model.producer_name, model.producer_version = "lejepa-med", __version__
    model.doc_string = facts["input"]
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter leaves stack traces, which name this machine's folders
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def some_images(adapter: Adapter, manifest: Manifest, *, count: int = CHECKED) -> list[Tensor]:
    """Prepared items spread evenly over an archive; what cannot be read is left out.

    Raises:
        UserError: none could be read.
    """
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(count, len(manifest))).astype(int))
    records: list[Record] = [manifest.record(int(row)) for row in rows]
    found = []
    for record in records:
        try:
            found.append(adapter.prepare(record))
        except (BadFileError, OSError):
            continue
    if not found:
        raise UserError(
            "None of the images on which the graph is compared with PyTorch could be read.",
            remedy="Give a folder of images that the encoder takes: --images FOLDER",
        )
    return found


def milliseconds(file: Path, encoder: LoadedEncoder, *, dtype: torch.dtype) -> float:
    """Milliseconds that the vector of one blank image takes in onnxruntime, as `folder.image_seconds` measures it."""
    spec, running = encoder.adapter.spec, session(file)
    count = COST_IMAGES[spec.dims]
    pixels = np.zeros((count, 1, spec.channels, *[encoder.formation.size] * spec.dims))
    given = {"pixels": pixels.astype(np.uint8 if dtype == torch.uint8 else np.float32)}
    times = []
    for _ in range(4):  # the first one prepares memory
        began = time.perf_counter()
        running.run(None, given)
        times.append(time.perf_counter() - began)
    return min(times[1:]) / count * 1e3
