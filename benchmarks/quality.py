"""Frozen-encoder accuracy on real labelled sets: pretrain on `train` without labels, probe on another split.

Each set is a folder with images and labels.csv (path, label, split, and where known group). Printed beside random
initialisation of the same encoder and 8 x 8 thumbnails, all under one protocol: standardised features, logistic
regression with balanced class weights, C by group-aware cross-validation, balanced accuracy at 10 / 50 / all labels per
class over 5 draws, and 20-NN (cosine) with all labels.

    python -m benchmarks.quality --data DIR --sets galaxies histology brain_mri --minutes 15 --out benchmarks/results
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch

from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.evaluation.features import embed_records
from lejepa_med.evaluation.fewshot import fewshot
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised

MODALITY = {"galaxies": "galaxy", "histology": "histology", "brain_mri": "mri"}
EXTRA = {"histology": ["--data.options", '{"group_by": "file"}']}  # its two folders are no slides
SHOTS = (10, 50, None)


def main() -> None:
    """Run the sets and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=list(MODALITY), choices=list(MODALITY))
    parser.add_argument("--split", default="val", help="split to evaluate on")
    parser.add_argument("--minutes", type=float, default=18.0, help="pretraining time of each set")
    parser.add_argument("--runs", type=Path, default=Path("quality-runs"), help="run folders; finished runs are reused")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for quality-SET.json and quality-SET.md")
    parser.add_argument("pretrain", nargs="*", help="further flags of lejepa-med pretrain, after --")
    options = parser.parse_args()
    for name in options.sets:
        report = run_set(name, options)
        print(report["table"])
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"quality-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / f"quality-{name}.md").write_text(report["table"])


def run_set(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Pretrain, embed and score one set."""
    root, run = options.data / name, options.runs / f"{name}-{options.seed}"
    seconds = pretrain(name, root, run, options)
    encoder = load_encoder(run)
    found = scan_archive(encoder.adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    labels = found.column("label")
    found = found.select([row for row, label in enumerate(labels) if label])
    train, test = found.of_split("train"), found.of_split(options.split)
    rows = {
        "LeJEPA, this archive": lambda part: vectors_of(encoder, part),
        "random initialisation": lambda part: vectors_of(randomised(encoder), part),
        "8 x 8 thumbnails": lambda part: thumbnails(encoder, part),
    }
    results = {}
    for title, features in rows.items():
        results[title] = [
            {"shots": r.shots, "linear": r.linear_mean, "linear_std": r.linear_std, "knn": r.knn_mean}
            for r in score(features(train), train, features(test), test)
        ]
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    report = {
        "set": name,
        "split": options.split,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        "pretraining_minutes": round(seconds / 60, 1),
        "images_per_second": round(float(np.median([r["images_per_second"] for r in history])), 1),
        "data_wait": round(float(np.median([r["data_wait"] for r in history])), 4),
        "pretrain_items": encoder.info["data"]["records"],
        "train_items": len(train),
        "test_items": len(test),
        "encoder": {k: encoder.info[k] for k in ("backbone", "spec", "objective", "training")},
        "results": results,
    }
    report["table"] = table(report)
    return report


def pretrain(name: str, root: Path, run: Path, options: argparse.Namespace) -> float:
    """Run the command line as a user would; seconds of the whole command, scan and report included."""
    if (run / "report.html").is_file():
        return float((run.parent / f"{run.name}.seconds").read_text())
    start = time.perf_counter()
    command = [sys.executable, "-m", "lejepa_med.cli", "pretrain", str(root), "--modality", MODALITY[name]]
    command += ["--out", str(run), "--overwrite", "--data.catalog", str(root / "labels.csv"), "--data.split", "train"]
    command += ["--train.seed", str(options.seed), "--train.minutes", str(options.minutes), *EXTRA.get(name, [])]
    run.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command + options.pretrain, check=True)
    seconds = time.perf_counter() - start
    (run.parent / f"{run.name}.seconds").write_text(str(seconds))
    return seconds


def hardware() -> str:
    """Processor, threads and vector width."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


def vectors_of(encoder: LoadedEncoder, part: Manifest) -> np.ndarray:
    """Embeddings of a part, (n, dim)."""
    return np.stack([f.vector for f in embed_records(encoder, part.records(), workers=2) if f.vector is not None])


def thumbnails(encoder: LoadedEncoder, part: Manifest) -> np.ndarray:
    """8 x 8 pixels of each prepared image, (n, 64 C)."""

    def one(row: int) -> np.ndarray:
        pixels = encoder.adapter.prepare(part.record(row)).float().mean(0).permute(1, 2, 0).numpy()
        return cv2.resize(pixels, (8, 8), interpolation=cv2.INTER_AREA).ravel()

    return np.stack([one(row) for row in range(len(part))])


def score(train_x: np.ndarray, train: Manifest, test_x: np.ndarray, test: Manifest) -> list:
    """The protocol on one kind of features."""
    return fewshot(
        train_x, train.column("label"), train.column("group"), test_x, test.column("label"), shots=SHOTS, draws=5
    )


def table(report: dict) -> str:
    """The report as Markdown."""
    head = (
        f"# {report['set']}: balanced accuracy on `{report['split']}`\n\n"
        f"{report['date']}, {report['hardware']}, torch {report['torch']}. {report['encoder']['backbone']} pretrained "
        f"on all {report['pretrain_items']} images of `train` without their labels for "
        f"{report['pretraining_minutes']} minutes, scan and report included "
        f"({report['encoder']['training']['epochs']} epochs, {report['images_per_second']} img/s, data-wait "
        f"{report['data_wait']:.1%}). Mean and standard deviation over 5 draws of labels.\n\n"
    )
    lines = ["| features | 10 labels per class | 50 | all | 20-NN, all |", "|---|---|---|---|---|"]
    for title, rows in report["results"].items():
        cells = [f"{r['linear']:.3f} ± {r['linear_std']:.3f}" if r["shots"] else f"{r['linear']:.3f}" for r in rows]
        lines.append(f"| {title} | {' | '.join(cells)} | {rows[-1]['knn']:.3f} |")
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
