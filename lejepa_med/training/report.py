"""report.html: what a run did and whether its encoder is any good, in one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from data_adapters.atomic import write_text
from lejepa_med.evaluation.enough import most_directions
from lejepa_med.evaluation.metrics import effective_rank
from lejepa_med.page import render_page
from lejepa_med.training.report_plots import Scale, curves, data_uri, plane, spectra, spectrum
from lejepa_med.training.verdict import online_text

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
    """Of the embedding's covariance, largest first (`evaluation.metrics.eigen_spectrum`)."""
    vectors: int | None = None
    """How many embeddings these are of."""
    neighbours: Sequence[tuple[Pixels, Sequence[tuple[Pixels, float]]]] = ()
    """Query image, and its nearest images with their cosine, nearest first."""
    pca: Sequence[tuple[Pixels, Pixels]] = ()
    """Image, and its patch features as colours (`evaluation.metrics.pca_rgb`)."""
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
