"""After training: embed a sample of the archive with the saved encoder, and show whether it learnt anything."""

import functools
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate

from data_adapters.manifest import Manifest
from lejepa_med.config import PretrainConfig
from lejepa_med.errors import UserError
from lejepa_med.evaluation.features import embed_records
from lejepa_med.evaluation.fit import fit_probe
from lejepa_med.evaluation.metrics import eigen_spectrum, nearest, pca_rgb
from lejepa_med.models.architectures import is_convolutional, is_monai
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised
from lejepa_med.threads import loader_workers
from lejepa_med.training.archive import progress_bar
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.observe.verdict import Verdict, judge
from lejepa_med.training.report import ReportData, write_report

QUERIES = 8
NEIGHBOURS = 7
PATCH_SIDE = 512  # pixels to which images are enlarged for the patch colours of a CNN


def write_run_report(
    run: RunFolder, config: PretrainConfig, manifest: Manifest, *, console: Console, finished: bool, device: str
) -> None:
    """Write report.html: curves, spectrum, neighbours, patch colours, and a probe where the catalogue has labels."""
    encoder = load_encoder(run.encoder, device=device)
    count = min(config.monitor.sample, len(manifest))
    rows = np.unique(np.linspace(0, len(manifest) - 1, count).round().astype(int)).tolist()
    sample = manifest.select(rows)
    workers = min(loader_workers(config.data.workers), 2)
    with progress_bar(console, "report") as bar:
        task = bar.add_task("", total=2 * len(sample))
        kept, vectors = _embed(encoder, sample, workers, lambda: bar.advance(task))
        _, control = _embed(randomised(encoder), sample, workers, lambda: bar.advance(task))
    eigenvalues, rank = eigen_spectrum(vectors) if len(vectors) > 1 else (None, 0.0)
    control_rank = eigen_spectrum(control)[1] if len(control) > 1 else 0.0
    history, online = read_lines(run.metrics), read_lines(run.online)
    judged = judge(history, online)
    verdict = _verdict(
        judged, rank, control_rank, encoder.dim, finished=finished, step=encoder.info["training"]["step"]
    )
    probe = _probe(sample, kept, vectors)
    control_probe = _probe(sample, kept, control)
    if probe and control_probe and probe["linear"] and control_probe["linear"]:
        verdict.append(
            f"On the catalogue's labels, cross-validated by group, a linear probe reaches a balanced accuracy of "
            f"{probe['linear']['balanced_accuracy']:.3f}; on the same encoder without training, "
            f"{control_probe['linear']['balanced_accuracy']:.3f}."
        )
    write_report(
        run.report,
        ReportData(
            title=f"{run.root.resolve().name}: {encoder.info['backbone']} on {config.modality}",
            verdict=verdict,
            alarm=judged.alarming,
            settings=_flat(config.model_dump(mode="json", exclude={"archive", "out", "data"})),
            archive=_archive_rows(manifest),
            history=history,
            online=online,
            eigenvalues=eigenvalues,
            neighbours=_neighbour_sheet(encoder, sample, kept, vectors),
            pca=_pca_sheet(encoder, sample, kept),
            probe=probe,
            bad_files=Counter(line["reason"] for line in read_lines(run.bad_files)),
        ),
    )


def report_records(config: PretrainConfig, manifest: Manifest) -> tuple[int, int]:
    """How many records the report reads, and how many images of the encoder's size it embeds: what it will cost."""
    read = 2 * min(config.monitor.sample, len(manifest))  # with the trained encoder and with a random one
    side = config.views.global_size or PATCH_SIDE
    coloured = QUERIES * max(1, PATCH_SIDE // side) ** 2 if _enlarged(config.model.backbone or "") else QUERIES
    return read, read + coloured


@functools.cache
def _enlarged(backbone: str) -> bool:
    """Whether patch colours come from enlarged images: a last map with the stride 32 of a CNN is too coarse."""
    return not is_monai(backbone) and is_convolutional(backbone)


def _embed(encoder: LoadedEncoder, sample: Manifest, workers: int, tick: Any) -> tuple[list[int], NDArray[Any]]:
    kept: list[int] = []
    vectors: list[NDArray[Any]] = []
    for feature in embed_records(encoder, sample.records(), workers=workers):
        tick()
        if feature.vector is not None:
            kept.append(feature.index)
            vectors.append(feature.vector)
    return kept, np.stack(vectors) if vectors else np.empty((0, encoder.dim), np.float32)


def _verdict(judged: Verdict, rank: float, control: float, dim: int, *, finished: bool, step: int) -> list[str]:
    lines = [] if judged.state == "early" else [f"The curves say: {judged.text}."]
    lines += [f"{note[0].upper()}{note[1:]}." for note in judged.notes]
    if not finished:
        lines.append(f"The run was stopped at step {step}; this page shows the encoder as it is now.")
    lines.append(
        f"The embeddings of the archive use {rank:.1f} effective directions of {dim} (the same encoder without "
        f"training: {control:.1f})."
    )
    if rank < 0.02 * dim or rank < 3:
        lines.append("That is close to collapse.")
    return [*lines, judged.advice] if judged.advice else lines


def _probe(sample: Manifest, kept: list[int], vectors: NDArray[Any]) -> dict[str, Any] | None:
    """Metrics of a probe on the catalogue's labels; None where there are too few labels to train one."""
    labels, groups = sample.column("label"), sample.column("group")
    labelled = [i for i, row in enumerate(kept) if labels[row]]
    try:
        return fit_probe(
            vectors[labelled], [labels[kept[i]] for i in labelled], [groups[kept[i]] for i in labelled]
        ).metrics
    except UserError:
        return None


def _archive_rows(manifest: Manifest) -> list[list[str]]:
    rows = [
        ["items", f"{len(manifest):,}"],
        ["groups", f"{len(set(manifest.column('group'))):,}"],
        ["samples an epoch", f"{sum(manifest.column('samples')):,}"],
    ]
    labels = Counter(label for label in manifest.column("label") if label)
    return [*rows, ["labels", ", ".join(f"{k} ({v:,})" for k, v in labels.most_common(12))]] if labels else rows


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _picture(pixels: Tensor) -> NDArray[np.uint8]:
    """The middle slice or tile of a prepared item as (h, w, 1 or 3) uint8; of other channel counts, the first.

    Of a volume (n, C, D, H, W), the middle axial plane.
    """
    image = pixels[len(pixels) // 2]
    image = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    image = image if len(image) in (1, 3) else image[:1]
    scaled = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(1, 2, 0).contiguous().numpy()


def _neighbour_sheet(
    encoder: LoadedEncoder, sample: Manifest, kept: list[int], vectors: NDArray[Any]
) -> list[tuple[NDArray[np.uint8], list[tuple[NDArray[np.uint8], float]]]]:
    if len(vectors) < NEIGHBOURS + 1:
        return []
    indices, cosines = nearest(vectors, NEIGHBOURS)
    picture = {}

    def show(index: int) -> NDArray[np.uint8]:
        if index not in picture:
            picture[index] = _picture(encoder.adapter.prepare(sample.record(kept[index])))
        return picture[index]

    return [
        (show(q), [(show(int(i)), float(c)) for i, c in zip(indices[q], cosines[q], strict=True)])
        for q in _spread(len(vectors))
    ]


@torch.inference_mode()
def _pca_sheet(
    encoder: LoadedEncoder, sample: Manifest, kept: list[int]
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    prepared = [encoder.adapter.prepare(sample.record(kept[i])) for i in _spread(len(kept))]
    if not prepared:
        return []
    pixels = torch.stack([item[len(item) // 2] for item in prepared])
    scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    if _enlarged(encoder.module.name):
        scaled = interpolate(scaled, scale_factor=max(1.0, PATCH_SIDE / scaled.shape[-1]), mode="bilinear")
    features = encoder.module.patch_features(scaled.to(encoder.device)).float().cpu().numpy()
    return [(_picture(item), colours) for item, colours in zip(prepared, pca_rgb(features), strict=True)]


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(QUERIES, count)).round().astype(int)).tolist() if count else []
