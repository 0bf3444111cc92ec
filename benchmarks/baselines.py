"""LeJEPA beside VICReg, SimCLR, Barlow Twins, BYOL and DINO: the same loop, backbone, views, batch and minutes.

Each method pretrains on `train` of a labelled set, without the labels, and is scored as in `benchmarks.quality`:
balanced accuracy of a linear probe at 10 / 50 / all labels per class, and 20-NN. Losses, projectors and teachers are
each method's own; optimiser, schedule and augmentation are the project's for all, and were chosen with LeJEPA: a
baseline may do better with its own. With `--seeds` 0 1 2 the table gives mean and standard deviation over runs.

    python -m benchmarks.baselines --data DIR --sets galaxies --minutes 15 --out benchmarks/results
    python -m benchmarks.baselines --data DIR --sets histology --methods lejepa vicreg -- --model.backbone resnet18

Flags after -- go to every method; `--only METHOD=FLAGS` to one, e.g. --only "simclr=--objective.temperature 0.5".
"""

import argparse
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality import MODALITY, SHOTS, hardware, pretrain, score, vectors_of
from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.models.folder import LoadedEncoder, load_encoder, randomised

METHODS = ("lejepa", "vicreg", "simclr", "barlow_twins", "byol", "dino")
CONTROL = "random initialisation"


def main() -> None:
    """Run the sets and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=list(MODALITY), choices=list(MODALITY))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, "masked"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--split", default="val", help="split to evaluate on")
    parser.add_argument("--minutes", type=float, default=15.0, help="pretraining time of each run")
    parser.add_argument("--runs", type=Path, default=Path("quality-runs"), help="run folders; finished runs are reused")
    parser.add_argument("--only", action="append", default=[], metavar="METHOD=FLAGS", help="flags of one method")
    parser.add_argument("--out", type=Path, help="folder for baselines-SET.json and baselines-SET.md")
    parser.add_argument("pretrain", nargs="*", help="further flags of lejepa-med pretrain for all, after --")
    options = parser.parse_args()
    options.only = dict(item.split("=", 1) for item in options.only)
    for name in options.sets:
        report = run_set(name, options)
        print(report["table"])
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"baselines-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
            (options.out / f"baselines-{name}.md").write_text(report["table"])


def run_set(name: str, options: argparse.Namespace) -> dict:
    """All methods and seeds on one set; seeds in the outer loop, so that a slow hour falls on every method."""
    root = options.data / name
    rows: list[dict] = []
    for seed in options.seeds:
        for method in options.methods:
            run = options.runs / f"{name}-{method}-{seed}"
            seconds = pretrain(name, root, run, with_method(options, method, seed))
            encoder = load_encoder(run)
            rows.append(evaluate(encoder, root, options.split) | describe(run, encoder, method, seed, seconds))
            if method == options.methods[0]:
                control = evaluate(randomised(encoder), root, options.split)
                rows.append(control | {"method": CONTROL, "seed": seed})
    report = {
        "set": name,
        "split": options.split,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        "minutes": options.minutes,
        "flags": options.pretrain,
        "only": options.only,
        "rows": rows,
    }
    report["table"] = table(report)
    return report


def with_method(options: argparse.Namespace, method: str, seed: int) -> argparse.Namespace:
    """The options as `benchmarks.quality.pretrain` wants them, for one method and seed."""
    flags = [*options.pretrain, *shlex.split(options.only.get(method, "")), "--objective.method", method]
    return argparse.Namespace(**{**vars(options), "pretrain": flags, "seed": seed})


def evaluate(encoder: LoadedEncoder, root: Path, split: str) -> dict:
    """Balanced accuracies of one encoder on a set."""
    found = scan_archive(encoder.adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    found = found.select([row for row, label in enumerate(found.column("label")) if label])
    parts: tuple[Manifest, Manifest] = (found.of_split("train"), found.of_split(split))
    train, test = parts
    results = score(vectors_of(encoder, train), train, vectors_of(encoder, test), test)
    linear = {str(r.shots or "all"): r.linear_mean for r in results}
    return {"linear": linear, "knn": results[-1].knn_mean}


def describe(run: Path, encoder: LoadedEncoder, method: str, seed: int, seconds: float) -> dict:
    """What was trained, and how fast."""
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "method": method,
        "seed": seed,
        "minutes": round(seconds / 60, 2),
        "epochs": encoder.info["training"]["epochs"],
        "images_per_second": round(float(np.median([r["images_per_second"] for r in history])), 1),
        "effective_rank": round(history[-1]["effective_rank"], 1),
        "backbone": encoder.info["backbone"],
        "objective": encoder.info["objective"],
    }


def table(report: dict) -> str:
    """The report as Markdown."""
    rows = report["rows"]
    trained = [row for row in rows if row["method"] != CONTROL]
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"# {report['set']}: methods under one loop, balanced accuracy on `{report['split']}`",
        "",
        f"{report['date']}, {report['hardware']}, torch {report['torch']}. {trained[0]['backbone']}, "
        f"{report['minutes']:g} minutes of pretraining each, {seeds} run(s) each; 5 draws of labels a run."
        + (" Mean and standard deviation over runs." if seeds > 1 else ""),
        "",
        "| method | 10 labels per class | 50 | all | 20-NN, all | epochs | img/s | effective rank |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [spread([row["linear"][str(shots or "all")] for row in own]) for shots in SHOTS]
        cells.append(spread([row["knn"] for row in own]))
        cells += [
            f"{np.mean([row[key] for row in own]):.0f}" if key in own[0] else ""
            for key in ("epochs", "images_per_second", "effective_rank")
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation where there are several runs."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
