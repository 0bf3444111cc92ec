"""report.html: what a run did and whether its encoder is any good, in one file that needs nothing else.

After training a sample of the archive is embedded with the saved encoder, and with the same one without training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from data_adapters.atomic import write_text
from data_adapters.manifest import Manifest
from data_adapters.tables import count
from lejepa_med.archive import progress_bar
from lejepa_med.config import flat, short_name
from lejepa_med.cpu import loader_workers
from lejepa_med.errors import UserError
from lejepa_med.models.embed import embed_records
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised
from lejepa_med.models.patches import PATCH_SIDE, is_enlarged, patch_maps
from lejepa_med.page import render_page
from lejepa_med.plot import Scale, curves, data_uri, plane, spectra, spectrum
from lejepa_med.probes.examples import few_labels
from lejepa_med.probes.neighbours import nearest
from lejepa_med.probes.probe import fit_probe
from lejepa_med.spectrum import below, effective_rank, eigen_spectrum, most_directions, pca_rgb, records_for, too_few
from lejepa_med.training.early_stopping import Best
from lejepa_med.training.folder import RunFolder, read_lines
from lejepa_med.training.settings import RunConfig
from lejepa_med.training.verdict import Verdict, judge, online_text

Pixels = NDArray[np.uint8]
Curves = tuple[tuple[str, dict[str, str], Scale, str], ...]
BOTH = "backbone", "projector"


def _both(figure: str) -> dict[str, str]:
    return {f"{part}/{figure}": part for part in BOTH}


# Heading, key in the history and its name in the legend, axis, how to read it.
CURVES: Curves = (
    ("Loss", {"loss": ""}, "plain", "Falls and flattens; a jump that stays means a learning rate that is too high."),
    (
        "Label-free score",
        {"score": ""},
        "plain",
        "Loss / lambda^0.4 on a fixed part of the archive; the encoder of the lowest is kept.",
    ),
    (
        "Invariance",
        {"invariance": ""},
        "log",
        "Distance between views of one image; falls as the encoder learns what stays.",
    ),
    (
        "SIGReg above its floor",
        {"sigreg_above_floor": ""},
        "plain",
        "Distance of the projector's output from an isotropic Gaussian, less what a perfect batch has; 0 is ideal.",
    ),
    ("SIGReg", {"sigreg": ""}, "log", "The same with the floor, which is about 1."),
    ("Effective rank", _both("effective_rank"), "zero", "Directions in use; falling towards 1 is collapse."),
    ("RankMe", _both("rankme"), "zero", "The rank without centring (arXiv 2210.02885)."),
    (
        "LiDAR",
        {"projector/lidar": ""},
        "zero",
        "Directions that tell samples apart despite their views (arXiv 2312.04000).",
    ),
    (
        "Standard deviation",
        _both("std"),
        "zero",
        "Of a dimension, on average; 1 is the projector's aim, towards 0 is collapse.",
    ),
    (
        "Length of the mean",
        _both("mean_norm"),
        "zero",
        "Of the mean vector; the projector's aim is 0.",
    ),
    (
        "Condition number",
        _both("condition"),
        "log",
        "Largest over smallest variance of a direction; 1 is ideal for the projector.",
    ),
    ("Gradient norm", {"gradient_norm": ""}, "log", "Before clipping; growth over many steps precedes divergence."),
    ("Learning rate", {"lr": ""}, "zero", "Warm-up, then the chosen schedule."),
    (
        "Images per second",
        {"images_per_second": ""},
        "zero",
        "Throughput; dips mean that something else used the machine.",
    ),
    (
        "Data wait",
        {"data_wait": ""},
        "zero",
        "Share of time spent waiting for images; above 0.2, use more workers.",
    ),
)
ONLINE: Curves = (
    (
        "Accuracy on the catalogue's labels",
        {"knn": "k-NN", "linear": "linear probe"},
        "plain",
        "Balanced accuracy on the half of the sample's groups that the probe never saw.",
    ),
    (
        "Effective rank",
        _both("effective_rank"),
        "zero",
        "Of the whole sample, so higher than that of a batch; at most its records less one.",
    ),
    ("RankMe", _both("rankme"), "zero", "The rank without centring; the label-free score of arXiv 2210.02885."),
)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page; an empty part is left out. Images are uint8, (h, w), (h, w, 1) or (h, w, 3)."""

    title: str
    verdict: Sequence[str] = ()
    """Sentences at the top: is the encoder good, by which number, against what."""
    alarm: bool = False
    """Whether the verdict asks for action."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    archive: Sequence[Sequence[Any]] = ()
    """Rows of the archive's summary; the first cell of a row is its heading."""
    history: Sequence[Mapping[str, Any]] = ()
    """Records of metrics.jsonl: step, and any of the keys in `CURVES`."""
    online: Sequence[Mapping[str, Any]] = ()
    """Records of online.jsonl: step, epoch, and any of the keys in `ONLINE`, with spectra."""
    eigenvalues: NDArray[np.float64] | None = None
    """Of the embedding's covariance, largest first (`spectrum.eigen_spectrum`)."""
    vectors: int | None = None
    """How many embeddings these are of."""
    neighbours: Sequence[tuple[Pixels, Sequence[tuple[Pixels, float]]]] = ()
    """Query image, and its nearest images with their cosine, nearest first."""
    pca: Sequence[tuple[Pixels, Pixels]] = ()
    """Image, and its patch features as colours (`spectrum.pca_rgb`)."""
    probe: Mapping[str, Any] | None = None
    """`Probe.metrics`."""
    bad_files: Mapping[str, int] = field(default_factory=dict)
    """Files refused or replaced, counted by reason."""


def write_report(path: Path, data: ReportData) -> None:
    """Write the page to `path`; a reader sees the old page or the new one, never a half.

    Raises:
        ValueError: an image that is not uint8 with 1 or 3 channels.
    """
    write_text(path, render(data))


def render(data: ReportData) -> str:
    """The page as HTML. All text is escaped: a label or file name cannot become markup."""
    eigenvalues = data.eigenvalues
    limit = None if eigenvalues is None or data.vectors is None else most_directions(data.vectors, len(eigenvalues))
    rank = None if eigenvalues is None else effective_rank(np.sqrt(np.maximum(eigenvalues, 0)))
    chance = next((row["chance"] for row in data.online if row.get("chance") is not None), None)
    online = _drawn(ONLINE, data.online, against="epoch", first_levels=[(chance, "chance")] if chance else ())
    for part in BOTH:
        note = "Flatter is better: variance is spread over more directions. Dashed: earlier evaluations."
        online.append((f"Spectrum of the {part}", note, Markup(spectra(data.online, part))))
    return render_page(
        "lejepa_med.training",
        "report.html.j2",
        filters={"share": _share, "cell": _cell},
        data=data,
        curves=_drawn(CURVES, data.history),
        online=[entry for entry in online if entry[2]],
        plane=Markup(plane(data.history)),
        spectrum=None if eigenvalues is None or rank is None else Markup(spectrum(eigenvalues, rank, most=limit)),
        rank=rank,
        limit=limit,
        online_text=next((online_text(row) for row in reversed(data.online) if row.get("query_groups")), ""),
        neighbours=[
            (data_uri(query), [(data_uri(image), cosine) for image, cosine in found])
            for query, found in data.neighbours
        ],
        pca=[(data_uri(image, longest=256), data_uri(colours, longest=256)) for image, colours in data.pca],
    )


def _drawn(
    wanted: Curves,
    records: Sequence[Mapping[str, Any]],
    *,
    against: str = "step",
    first_levels: Sequence[tuple[float, str]] = (),
) -> list[tuple[str, str, Markup]]:
    """Heading, note and SVG of the curves that the records hold; the levels belong to the first."""
    found = [
        (name, note, Markup(curves(records, keys, scale=scale, against=against, levels=() if k else first_levels)))
        for k, (name, keys, scale, note) in enumerate(wanted)
    ]
    return [entry for entry in found if entry[2]]


def _share(value: float | None) -> str:
    """A score to three digits; a dash where it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def _cell(value: Any) -> str:
    """A table cell: numbers short, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_cell, value)) if isinstance(value, list | tuple) else str(value)


QUERIES = 8
NEIGHBOURS = 7
LEAST_RANK, LEAST_RANK_SHARE = 3.0, 0.02  # an encoder that uses fewer directions, of its dimension, is near collapse


def write_run_report(
    run: RunFolder, config: RunConfig, manifest: Manifest, *, console: Console, finished: bool, device: str
) -> None:
    """Write report.html: curves, spectrum, neighbours, patch colours, and a probe where the catalogue has labels."""
    encoder = load_encoder(run.encoder, device=device)
    size = min(config.monitor.sample, len(manifest))
    rows = np.unique(np.linspace(0, len(manifest) - 1, size).round().astype(int)).tolist()
    sample = manifest.select(rows)
    workers = min(loader_workers(config.data.workers), 2)
    with progress_bar(console, "report") as bar:
        task = bar.add_task("", total=2 * len(sample))
        kept, vectors = _embed(encoder, sample, workers, lambda: bar.advance(task))
        _, control = _embed(randomised(encoder), sample, workers, lambda: bar.advance(task))
    dim = encoder.module.dim  # of the pooled output, which stands last: a layer joined to it would hide its collapse
    eigenvalues, rank = eigen_spectrum(vectors[:, -dim:]) if len(vectors) > 1 else (None, 0.0)
    control_rank = eigen_spectrum(control[:, -dim:])[1] if len(control) > 1 else 0.0
    spectrum = Spread(rank=rank, control=control_rank, dim=dim, records=len(vectors))
    history, online = read_lines(run.metrics), read_lines(run.online)
    judged = judge(history, online)
    verdict = _verdict(judged, spectrum, encoder.info["training"], finished=finished)
    probe, refused = _probe(sample, kept, vectors)
    control_probe, _ = _probe(sample, kept, control)
    if probe and control_probe and probe["linear"] and control_probe["linear"]:
        verdict.append(
            f"On the catalogue's labels, cross-validated by group, a linear probe reaches a balanced accuracy of "
            f"{_with_interval(probe['linear'])}; on the same encoder without training, "
            f"{_with_interval(control_probe['linear'])} (95 % intervals)."
        )
        verdict += few_labels({name: int(number) for name, number in probe["counts"].items()})
    elif refused or probe:
        why = refused or " ".join(probe["warnings"] if probe else ())
        verdict.append(f"The catalogue's labels are too few to score the encoder. {why}")
    write_report(
        run.report,
        ReportData(
            title=f"{run.root.resolve().name}: {encoder.info['backbone']} on {config.modality}",
            verdict=verdict,
            alarm=judged.alarming,
            settings=flat(config.model_dump(mode="json", exclude={"archive", "out", "data"}))
            | {"model.backbone": short_name(config.model.backbone)}
            | {"objective.method": short_name(config.objective.method)},
            archive=_archive_rows(manifest),
            history=history,
            online=online,
            eigenvalues=eigenvalues,
            vectors=len(vectors),
            neighbours=_neighbour_sheet(encoder, sample, kept, vectors),
            pca=_pca_sheet(encoder, sample, kept),
            probe=probe,
            bad_files=Counter(line["reason"] for line in read_lines(run.bad_files)),
        ),
    )


def report_records(config: RunConfig, manifest: Manifest) -> tuple[int, int]:
    """How many records the report reads and embeds, and how many images of the encoder's size it colours: its cost."""
    read = 2 * min(config.monitor.sample, len(manifest))  # with the trained encoder and with a random one
    side = config.vector.size
    coloured = QUERIES * max(1, PATCH_SIDE // side) ** 2 if is_enlarged(config.model.backbone) else QUERIES
    return read, coloured


def _embed(encoder: LoadedEncoder, sample: Manifest, workers: int, tick: Any) -> tuple[list[int], NDArray[Any]]:
    kept: list[int] = []
    vectors: list[NDArray[Any]] = []
    for feature in embed_records(encoder, sample.records(), workers=workers):
        tick()
        if feature.vector is not None:
            kept.append(feature.index)
            vectors.append(feature.vector)
    return kept, np.stack(vectors) if vectors else np.empty((0, encoder.dim), np.float32)


@dataclass(frozen=True)
class Spread:
    """Effective ranks of embeddings of so many records: of the trained encoder, and of it without training."""

    rank: float
    control: float
    dim: int
    records: int

    @property
    def limit(self) -> float:
        """The effective rank below which an encoder is close to collapse; our own choice."""
        return max(LEAST_RANK, LEAST_RANK_SHARE * self.dim)

    def sentences(self) -> list[str]:
        """How many directions are used, and whether that is close to collapse, or why nobody can tell."""
        lines = []
        if self.records > 1:
            lines.append(
                f"The embeddings of {count(self.records, 'record')} use {self.rank:.1f} effective directions of at "
                f"most {most_directions(self.records, self.dim)} (the same encoder without training: "
                f"{self.control:.1f})."
            )
        low = below(self.rank, self.limit, records=self.records) if self.records > 1 else None
        if low:
            lines.append("That is close to collapse.")
        elif low is None:
            tell = "whether the encoder is close to collapse"
            lines.append(f"{too_few(self.records, records_for(self.limit), tell=tell)}.")
        return lines


def _verdict(judged: Verdict, spread: Spread, training: dict[str, Any], *, finished: bool) -> list[str]:
    lines = [f"The curves say: {judged.text}."]
    lines += [f"{note[0].upper()}{note[1:]}." for note in judged.notes]
    best = Best(**training["best"]) if "best" in training else None
    if not finished:
        shown = "as it is now" if best is None else "of the best evaluation until then"
        lines.append(f"The run was stopped at step {training['step']}; this page shows the encoder {shown}.")
    if best is not None:
        lines.append(best.text(steps=training["step"]))
    lines += spread.sentences()
    return [*lines, judged.advice] if judged.advice else lines


def _with_interval(scores: dict[str, Any]) -> str:
    low, high = scores["balanced_accuracy_interval"]
    return f"{scores['balanced_accuracy']:.3f} ({low:.2f} to {high:.2f})"


def _probe(sample: Manifest, kept: list[int], vectors: NDArray[Any]) -> tuple[dict[str, Any] | None, str]:
    """Metrics of a probe on the catalogue's labels, or why there is none; neither where nothing is labelled."""
    labels, groups = sample.column("label"), sample.column("group")
    labelled = [i for i, row in enumerate(kept) if labels[row]]
    if not labelled:
        return None, ""
    try:
        return fit_probe(
            vectors[labelled], [labels[kept[i]] for i in labelled], [groups[kept[i]] for i in labelled]
        ).metrics, ""
    except UserError as error:
        return None, error.cause


def _archive_rows(manifest: Manifest) -> list[list[str]]:
    rows = [
        ["items", f"{len(manifest):,}"],
        ["groups", f"{len(set(manifest.column('group'))):,}"],
        ["samples an epoch", f"{sum(manifest.column('samples')):,}"],
    ]
    labels = Counter(label for label in manifest.column("label") if label)
    return [*rows, ["labels", ", ".join(f"{k} ({v:,})" for k, v in labels.most_common(12))]] if labels else rows


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


def _pca_sheet(
    encoder: LoadedEncoder, sample: Manifest, kept: list[int]
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    prepared = [encoder.adapter.prepare(sample.record(kept[i])) for i in _spread(len(kept))]
    if not prepared:
        return []
    pixels = torch.stack([item[len(item) // 2] for item in prepared])
    features = patch_maps(encoder, pixels)
    if features is None:
        return []
    colours = pca_rgb(features[:, features.shape[1] // 2] if features.ndim == 5 else features)
    return [(_picture(item), rgb) for item, rgb in zip(prepared, colours, strict=True)]


def _spread(size: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(QUERIES, size)).round().astype(int)).tolist() if size else []
