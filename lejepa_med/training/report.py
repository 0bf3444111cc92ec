"""report.html: what a run did and whether its encoder is any good, in one file that needs nothing else."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from lejepa_med import __version__
from lejepa_med.evaluation.metrics import effective_rank
from lejepa_med.training.report_plots import Scale, curve, data_uri, spectrum

Pixels = NDArray[np.uint8]
# Key in the history, heading, axis, how to read it.
CURVES: tuple[tuple[str, str, Scale, str], ...] = (
    ("loss", "Loss", "plain", "Falls and flattens; a jump that stays means a learning rate that is too high."),
    ("invariance", "Invariance", "log", "Distance between views of one image; falls as the encoder learns what stays."),
    ("sigreg", "SIGReg", "log", "Distance of the embedding from an isotropic Gaussian; about 1 is ideal."),
    ("effective_rank", "Effective rank", "zero", "Directions in use; falling towards 1 is collapse."),
    ("lr", "Learning rate", "zero", "Warm-up, then the chosen schedule."),
    ("images_per_second", "Images per second", "zero", "Throughput; dips mean that something else used the machine."),
    ("data_wait", "Data wait", "zero", "Share of time spent waiting for images; above 0.2, use more workers."),
)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on the page; an empty part is left out. Images are uint8, (h, w), (h, w, 1) or (h, w, 3)."""

    title: str
    verdict: Sequence[str] = ()
    """Sentences at the top: is the encoder good, by which number, against what."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    archive: Sequence[Sequence[Any]] = ()
    """Rows of the archive's summary; the first cell of a row is its heading."""
    history: Sequence[Mapping[str, Any]] = ()
    """Records of metrics.jsonl: step, and any of loss, invariance, sigreg, effective_rank, lr, images_per_second,
    data_wait."""
    eigenvalues: NDArray[np.float64] | None = None
    """Of the embedding's covariance, largest first (`evaluation.metrics.eigen_spectrum`)."""
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
    html = render(data).encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are made private
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def render(data: ReportData) -> str:
    """The page as HTML. All text is escaped: a label or file name cannot become markup."""
    environment = Environment(
        loader=PackageLoader("lejepa_med.training", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": _share, "cell": _cell}
    eigenvalues = data.eigenvalues
    rank = None if eigenvalues is None else effective_rank(np.sqrt(np.maximum(eigenvalues, 0)))
    curves = [(name, note, Markup(curve(data.history, key, scale=scale))) for key, name, scale, note in CURVES]
    return environment.get_template("report.html.j2").render(
        data=data,
        curves=[entry for entry in curves if entry[2]],
        spectrum=None if eigenvalues is None or rank is None else Markup(spectrum(eigenvalues, rank)),
        rank=rank,
        neighbours=[
            (data_uri(query), [(data_uri(image), cosine) for image, cosine in found])
            for query, found in data.neighbours
        ],
        pca=[(data_uri(image, longest=256), data_uri(colours, longest=256)) for image, colours in data.pca],
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


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
