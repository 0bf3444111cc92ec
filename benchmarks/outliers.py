"""Quality control on real sets with planted faults: recall at 1 % false alarms, into benchmarks/results/outliers.md.

    python -m benchmarks.outliers --data DIR --runs RUNS

RUNS holds a run folder for each set (galaxies, histology, brain_mri). Planted are copies (rescaled, re-encoded, in a
group of their own), labels of another class (5 %), pen strokes on tiles that are not in the archive otherwise, and
slices of another plane among axial ones of IXI volumes. An image's score is what `lejepa-med outliers` ranks it by; the
threshold is the score that 1 % of the untouched images reach.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray

from benchmarks.hardware import cpu_name
from data_adapters.atomic import write_text
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.models.embed import ABOUT, EmbeddingTable, embed_archive
from lejepa_med.models.folder import LoadedEncoder, load_encoder
from lejepa_med.models.thumbnails import FILE, Thumbnails
from lejepa_med.probes.probe import fit_probe
from lejepa_med.quality.outliers import describe_pictures, find_copies, find_doubtful_labels, find_layouts, find_odd

ALARMS = 0.01
PLANTED = 40
FLIPPED = 0.05
BARS = {"copies": 0.9, "flipped labels": 0.6, "pen marks": 0.8, "wrong plane": 0.9}
RESULT = Path(__file__).parent / "results" / "outliers.md"
SETS = ("galaxies", "histology", "brain_mri")


@dataclass(frozen=True)
class Row:
    """One figure: recall of `planted` faults at 1 % false alarms among `clean` images, and the threshold."""

    data: str
    fault: str
    planted: int
    clean: int
    recall: float
    note: str = ""


def recall_at(scores: NDArray[np.float64], faulty: NDArray[np.bool_]) -> float:
    """Share of the faulty images above the score that 1 % of the others reach."""
    threshold = np.quantile(scores[~faulty], 1 - ALARMS, method="higher")
    return float((scores[faulty] > threshold).mean())


def copied(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Rescaled to 60 to 90 %, a little brighter or darker, JPEG of quality 50 to 80."""
    side = rng.uniform(0.6, 0.9)
    small = cv2.resize(image, None, fx=side, fy=side, interpolation=cv2.INTER_AREA)
    changed = np.clip(small.astype(np.float32) * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", changed, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 80))])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))


def penned(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """A stroke of blue, green or black ink across the tile, 5 to 10 % of its side wide."""
    side, marked = image.shape[0], image.copy()
    colour = ((150, 60, 20), (60, 130, 30), (25, 25, 30))[int(rng.integers(3))]
    points = [(int(x), int(y)) for x, y in rng.uniform(0, side, (3, 2))]
    cv2.polylines(marked, [np.array(points)], False, colour, max(2, int(side * rng.uniform(0.05, 0.1))), cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(marked, (0, 0), 0.6))


def write_catalog(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    """labels.csv with path, label and group."""
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "group"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def embedded(
    encoder: LoadedEncoder, folder: Path, rows: Sequence[dict[str, str]]
) -> tuple[EmbeddingTable, list[str], Any]:
    """The table, the path of each of its rows, and its pictures."""
    manifest = scan_archive(encoder.adapter, folder, catalog=Catalog(write_catalog(folder, rows))).manifest
    embed_archive(encoder, manifest, folder / "table", thumbnails=True)
    table = EmbeddingTable.open(folder / "table")
    paths = dict(zip(manifest.column("id"), manifest.column("path"), strict=True))
    thumbnails = Thumbnails(folder / "table" / ABOUT / FILE)
    pictures = describe_pictures([thumbnails[row] for row in range(len(thumbnails))])
    return table, [paths[name] for name in table.ids], pictures


def codes_of(groups: Sequence[str]) -> NDArray[np.int64]:
    """Codes of the groups, (n,)."""
    return np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64)


def measure_set(name: str, data: Path, encoder: LoadedEncoder, images: int, seed: int) -> list[Row]:
    """Copies, flipped labels and, of tissue, pen marks in one set."""
    rng = np.random.default_rng([seed, SETS.index(name)])
    with (data / name / "labels.csv").open(newline="", encoding="utf-8") as stream:
        every = [row for row in csv.DictReader(stream) if row["label"]]
    groups: dict[str, list[dict[str, str]]] = {}
    for row in every:
        groups.setdefault(row.get("group") or row["path"], []).append(row)
    order = [list(groups)[place] for place in rng.permutation(len(groups))]
    chosen: list[dict[str, str]] = []
    spare: list[dict[str, str]] = []
    for group in order:
        (chosen if len(chosen) < images else spare).extend({**row, "group": group} for row in groups[group])
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for row in chosen:
            (folder / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / row["path"]).symlink_to((data / name / row["path"]).resolve())
            rows.append({key: row[key] for key in ("path", "label", "group")})
        (folder / "planted").mkdir()
        for number, row in enumerate(rng.choice(np.array(chosen, dtype=object), PLANTED, replace=False)):
            path = f"planted/copy{number:03d}.jpg"
            cv2.imwrite(str(folder / path), copied(cv2.imread(str(data / name / row["path"])), rng))
            rows.append({"path": path, "label": row["label"], "group": f"copy{number}"})
        for number, row in enumerate(spare[:PLANTED] if name == "histology" else []):
            path = f"planted/pen{number:03d}.png"
            cv2.imwrite(str(folder / path), penned(cv2.imread(str(data / name / row["path"])), rng))
            rows.append({"path": path, "label": row["label"], "group": f"pen{number}"})
        table, paths, pictures = embedded(encoder, folder, rows)
    is_copy = np.array([path.startswith("planted/copy") for path in paths])
    is_pen = np.array([path.startswith("planted/pen") for path in paths])
    codes = codes_of(table.groups)
    found = []
    score = np.zeros(len(paths))
    sources: set[int] = set()  # a copy's original is as much of a pair as the copy
    for row, other, similar in find_copies(pictures, codes, least=0.3, most=10**9):
        score[row], score[other] = max(score[row], similar), max(score[other], similar)
        if is_copy[row] != is_copy[other]:
            sources.add(other if is_copy[row] else row)
    kept = ~is_pen & ~np.isin(np.arange(len(paths)), [row for row in sources if score[row] > 0.9 and not is_copy[row]])
    found.append(
        Row(name, "copies", int(is_copy.sum()), int((kept & ~is_copy).sum()), recall_at(score[kept], is_copy[kept]))
    )
    if is_pen.any():
        clean = ~is_copy
        clean_count = int((clean & ~is_pen).sum())
        found.append(
            Row(name, "pen marks", int(is_pen.sum()), clean_count, recall_at(pictures.ink[clean], is_pen[clean]))
        )
        odd = find_odd(table.vectors, codes)[0]
        found.append(
            Row(
                name,
                "pen marks, by vectors alone",
                int(is_pen.sum()),
                clean_count,
                recall_at(odd[clean], is_pen[clean]),
            )
        )
    found.append(flipped(name, table, ~is_copy & ~is_pen, rng, seed))
    return found


def flipped(name: str, table: EmbeddingTable, own: NDArray[np.bool_], rng: np.random.Generator, seed: int) -> Row:
    """5 % of the labels become another class."""
    rows = np.flatnonzero(own)
    names, truth = np.unique(
        np.array([table.labels[row] for row in rows], dtype=object).astype(str), return_inverse=True
    )
    given = truth.copy()
    wrong = rng.choice(len(rows), round(FLIPPED * len(rows)), replace=False)
    given[wrong] = (truth[wrong] + rng.integers(1, len(names), len(wrong))) % len(names)
    groups = [table.groups[row] for row in rows]
    ids = [table.ids[row] for row in rows]
    probe = fit_probe(table.vectors[rows], [str(names[k]) for k in given], groups, ids=ids, seed=seed)
    answers = probe.predict(table.vectors[rows], ids=ids, groups=groups)
    chances = np.array([[(one.probabilities or {})[str(label)] for label in names] for one in answers])
    margin = find_doubtful_labels(chances, given)[2]
    is_wrong = np.zeros(len(rows), dtype=bool)
    is_wrong[wrong] = True
    accuracy = probe.metrics["linear"]["balanced_accuracy"]
    note = f"the probe's balanced accuracy is {accuracy:.2f}"
    return Row(name, "flipped labels", len(wrong), len(rows) - len(wrong), recall_at(margin, is_wrong), note)


def wrong_plane(data: Path, encoder: LoadedEncoder, seed: int) -> list[Row]:
    """Axial slices of IXI volumes, among them coronal and sagittal ones of other volumes than their neighbours'."""
    rng = np.random.default_rng([seed, 9])
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), []
        for number, file in enumerate(sorted((data / "brain_volumes" / "t1").glob("*.nii.gz"))):
            volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(file)).dataobj, dtype=np.float32)
            volume = np.clip(volume / np.percentile(volume, 99.5), 0, 1)
            for axis, kind, many in ((2, "axial", 30), (1, "coronal", 1), (0, "sagittal", 1)):
                middle, reach = volume.shape[axis] // 2, volume.shape[axis] // 5
                for index in rng.choice(np.arange(middle - reach, middle + reach), many, replace=False):
                    image = np.rot90(np.take(volume, int(index), axis=axis))
                    path = f"{kind}-{number:02d}-{index:03d}.png"
                    cv2.imwrite(str(folder / path), (255 * image).astype(np.uint8))
                    rows.append({"path": path, "label": kind, "group": f"p{number}"})
        table, paths, pictures = embedded(encoder, folder, rows)
    is_wrong = np.array([not path.startswith("axial") for path in paths])
    codes, clean, planted = codes_of(table.groups), int((~is_wrong).sum()), int(is_wrong.sum())
    layout, odd = find_layouts(pictures.layouts, codes)[0], find_odd(table.vectors, codes)[0]
    name = "brain_volumes"
    return [
        Row(name, "wrong plane", planted, clean, recall_at(layout, is_wrong), "20 coronal and 20 sagittal slices"),
        Row(name, "wrong plane, by vectors alone", planted, clean, recall_at(odd, is_wrong)),
    ]


def text(rows: Sequence[Row], encoders: Sequence[str], *, seed: int) -> str:
    """The result page."""
    lines = [
        "# Quality control: recall of planted faults at 1 % false alarms",
        "",
        f"`python -m benchmarks.outliers` on {cpu_name()}, seed {seed}. Encoders: runs on {', '.join(encoders)}.",
        "The bars were set beforehand; a row below its bar says so. Doubtful labels are limited by the probe: an image",
        "whose right label the probe misses is doubted like a flipped one. A better encoder raises that row.",
        "",
        "| set | fault | planted | untouched images | recall | bar | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = BARS.get(row.fault)
        verdict = "" if bar is None else "met" if row.recall >= bar else "**missed**"
        verdict += f"; {row.note}" if row.note and verdict else row.note
        shown = "" if bar is None else f"{bar:.1f}"
        lines.append(
            f"| {row.data} | {row.fault} | {row.planted} | {row.clean:,} | {row.recall:.2f} | {shown} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the labelled sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder with a run for each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--images", type=int, default=1200, help="untouched images of a set, whole groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    rows: list[Row] = []
    encoders = []
    for name in given.sets:
        encoder = load_encoder(given.runs / name)
        encoders.append(name)
        rows += measure_set(name, given.data, encoder, given.images, given.seed)
        if name == "brain_mri":
            rows += wrong_plane(given.data, encoder, given.seed)
        for row in rows:
            print(row, flush=True)
    write_text(given.out, text(rows, encoders, seed=given.seed))
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
