"""latency: what an image costs on this machine, and the accuracy that it buys, over encoders and views."""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from data_adapters.atomic import write_text
from data_adapters.manifest import Manifest
from lejepa_med.archive import progress_bar, run_catalog, scan
from lejepa_med.errors import BadFileError, ConfigError, UserError
from lejepa_med.export.graph import export_onnx, milliseconds, require_onnx, some_images
from lejepa_med.models.embed import embed_records
from lejepa_med.models.encoder import create_encoder, lay_out
from lejepa_med.models.folder import LoadedEncoder, encoder_folder, image_seconds, load_encoder
from lejepa_med.models.formation import most_views
from lejepa_med.page import render_page
from lejepa_med.plot import COLOURS, Series, plot
from lejepa_med.probes.probe import fit_probe


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One encoder with one number of views.

    Attributes:
        name: of the run, or of the untrained architecture.
        backbone: architecture.
        size: side of the image, pixels or voxels.
        views: that are averaged.
        parameters: millions.
        pytorch_ms: milliseconds an image, float32, without reading the file.
        onnx_ms: likewise by onnxruntime; None: not measured, or no ONNX form.
        accuracy: balanced, cross-validated by group; None: untrained, or no labels.
        low: of its 95 % interval.
        high: likewise.
    """

    name: str
    backbone: str
    size: int
    views: int
    parameters: float
    pytorch_ms: float
    onnx_ms: float | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Latency:
    """All rows, and what a reader must know of them, as sentences."""

    rows: list[Timed]
    notes: list[str]


def latency(
    runs: Sequence[Path],
    *,
    views: Sequence[int] | None = None,
    backbones: Sequence[str] = (),
    archive: Path | None = None,
    catalog: Path | None = None,
    group_column: str | None = None,
    label_column: str | None = None,
    most: int = 400,
    onnx: bool = True,
    out: Path | None = None,
) -> Latency:
    """Measure every run with each number of views, then the backbones with the first run's size and one view.

    Accuracy needs labels: those of the run's catalogue, or of `catalog` for `archive`. At most `most` labelled images
    are embedded, spread evenly over the archive.

    Raises:
        UserError: a run has no archive to read, `out` has another ending than .csv or .html, or onnx is not installed.
    """
    if out is not None and out.suffix not in (".csv", ".html"):
        raise ConfigError(f"{out} is neither .csv nor .html.", remedy="Name it --out latency.csv or latency.html.")
    if onnx:
        require_onnx()
    console, rows, notes = Console(stderr=True), list[Timed](), list[str]()
    table = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
    spare: tuple[LoadedEncoder, list[Tensor]] | None = None
    for run in runs:
        encoder = load_encoder(run)
        manifest = _manifest(run, encoder, archive, table, console)
        images = some_images(encoder.adapter, manifest)
        spare = spare or (encoder, images)
        labelled = _labelled(manifest, most)
        if labelled is None:
            notes.append(f"{encoder.name}: no labels of two classes or more, so no accuracy; give --catalog")
        for number in _views(encoder, views):
            chosen = load_encoder(run, views=number)
            row, why = _timed(chosen, images, onnx=onnx)
            notes += [why] if why else []
            if labelled is not None:
                row, why = _scored(row, chosen, labelled, console)
                notes += [why] if why else []
            rows.append(row)
    assert spare is not None  # the command line asks for a run
    for name in backbones:
        row, why = _timed(_untrained(name, spare[0]), spare[1], onnx=onnx)
        rows.append(row)
        notes += [why] if why else []
    return Latency(rows, list(dict.fromkeys(notes)))


def _views(encoder: LoadedEncoder, views: Sequence[int] | None) -> list[int]:
    asked = views or [1, encoder.formation.views]
    return sorted({number for number in asked if number <= most_views(encoder.adapter)}) or [1]


def _manifest(
    run: Path, encoder: LoadedEncoder, archive: Path | None, table: Mapping[str, object], console: Console
) -> Manifest:
    own = encoder_folder(run).resolve().parent / "manifest.parquet"
    if archive is None and table["catalog"] is None and own.is_file():
        return Manifest.read(own)
    if archive is None and own.is_file():
        archive = Manifest.root_of(own)
    if archive is None:
        raise UserError(f"{run} lies in no run, so its images are unknown.", remedy="Give --archive FOLDER.")
    found = table if table["catalog"] else run_catalog(run, archive) or table
    return scan(encoder.adapter, archive, **found, verify=False, of_encoder=True, console=console).manifest  # type: ignore[arg-type]


def _labelled(manifest: Manifest, most: int) -> Manifest | None:
    labels = manifest.column("label")
    rows = [row for row, label in enumerate(labels) if label]
    if len({labels[row] for row in rows}) < 2:
        return None
    even = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    return manifest.select([rows[place] for place in even])


def _timed(encoder: LoadedEncoder, images: Sequence[Tensor], *, onnx: bool) -> tuple[Timed, str]:
    """The row without its accuracy, and why there is no ONNX figure, or ''."""
    row = Timed(
        name=encoder.name,
        backbone=encoder.module.name.rpartition("/")[2],
        size=encoder.formation.size,
        views=encoder.formation.views,
        parameters=sum(p.numel() for p in encoder.module.parameters()) / 1e6,
        pytorch_ms=image_seconds(encoder) * 1e3,
    )
    if not onnx:
        return row, ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "encoder.onnx"
        try:
            export_onnx(encoder, file, images=images[:2])
        except UserError as error:
            return row, f"{encoder.name}: no ONNX figure. {error.cause}"
        return replace(row, onnx_ms=milliseconds(file, encoder, dtype=images[0].dtype)), ""


def _scored(row: Timed, encoder: LoadedEncoder, manifest: Manifest, console: Console) -> tuple[Timed, str]:
    labels, groups, vectors = [], [], []
    with progress_bar(console, f"{row.name}, {row.views} views") as bar:
        task = bar.add_task("", total=len(manifest))
        for feature in embed_records(encoder, manifest.records()):
            bar.update(task, completed=feature.index + 1)
            if feature.vector is not None:
                vectors.append(feature.vector)
                labels.append(manifest.value("label", feature.index))
                groups.append(manifest.value("group", feature.index))
    try:
        found = fit_probe(np.stack(vectors), labels, groups).metrics["linear"]
    except (UserError, BadFileError) as error:
        return row, f"{row.name}: no accuracy. {error.cause}"
    if found is None:
        return row, f"{row.name}: no accuracy, since its labels lie in too few groups to keep some apart"
    low, high = found["balanced_accuracy_interval"] or (None, None)
    return replace(row, accuracy=found["balanced_accuracy"], low=low, high=high), ""


def _untrained(name: str, like: LoadedEncoder) -> LoadedEncoder:
    """An encoder of this architecture with random weights, and the preprocessing of another one."""
    size = replace(like.formation, views=1, layers=1)
    spec = replace(like.adapter.spec, global_size=size.size, embed_size=size.size, n_local=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = lay_out(create_encoder(name, spec, formation=size))
    info = {**like.info, "weights_sha256": f"random:{name}", "origin": [], "precision": "float32"}
    return LoadedEncoder(module=module, adapter=like.adapter, info=info, name=f"{name}, untrained", device="cpu")


def _cells(row: Timed) -> Iterator[str]:
    yield from (row.name, row.backbone, str(row.size), str(row.views), f"{row.parameters:.1f}", f"{row.pytorch_ms:.3g}")
    yield "–" if row.onnx_ms is None else f"{row.onnx_ms:.3g}"
    interval = "" if row.low is None else f" ({row.low:.3f} to {row.high:.3f})"
    yield "–" if row.accuracy is None else f"{row.accuracy:.3f}{interval}"


HEADINGS = (
    "encoder",
    "backbone",
    "size",
    "views",
    "million parameters",
    "ms an image, PyTorch",
    "ms, ONNX",
    "balanced accuracy",
)


def print_latency(found: Latency) -> None:
    """Print the table and its notes."""
    table = Table(title=f"on {torch.get_num_threads()} CPU thread(s), float32, without reading", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in found.rows:
        table.add_row(*_cells(row))
    Console().print(table)
    for note in found.notes:
        print(f"note: {note.rstrip('.')}.")


def write_latency(file: Path, found: Latency) -> None:
    """Write FILE.csv, or FILE.html with the table and a plot of accuracy against milliseconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=list(asdict(found.rows[0])))
        writer.writeheader()
        writer.writerows(map(asdict, found.rows))
        write_text(file, stream.getvalue())
        return
    page = render_page(
        "lejepa_med.study",
        "latency.html.j2",
        title="Latency",
        headings=HEADINGS,
        cells=[list(_cells(row)) for row in found.rows],
        picture=_picture(found.rows),
        notes=found.notes,
        threads=torch.get_num_threads(),
    )
    write_text(file, page)


def _picture(rows: Sequence[Timed]) -> str:
    """Accuracy against milliseconds, one line for each encoder; empty where no accuracy is known."""
    series = []
    names = list(dict.fromkeys(row.name for row in rows if row.accuracy is not None))
    for number, name in enumerate(names):
        own = [row for row in rows if row.name == name and row.accuracy is not None]
        for place, (title, runtime) in enumerate((("PyTorch", "pytorch_ms"), ("ONNX", "onnx_ms"))):
            colour = COLOURS[(2 * number + place) % len(COLOURS)]
            points = [(getattr(row, runtime), row.accuracy) for row in own if getattr(row, runtime) is not None]
            if points:
                label = f"{name}, {title}"
                titles = [f"{row.views} view(s)" for row in own]
                if len(points) > 1:
                    series.append(Series(points=points, colour=colour))  # type: ignore[arg-type]
                series.append(Series(points=points, label=label, colour=colour, dots=True, titles=titles))  # type: ignore[arg-type]
    if not series:
        return ""
    return plot(series, width=720, height=360, x_label="milliseconds an image", y_label="balanced accuracy", x_log=True)
