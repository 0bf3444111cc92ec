"""LeJEPA beside VICReg, SimCLR, Barlow Twins, BYOL and DINO: the same loop, backbone, views, batch and minutes.

Each method pretrains on `train` of a labelled set, without the labels, and is scored as in `benchmarks.transfer`:
balanced accuracy of a linear probe at 10 / 50 / all labels per class, and 20-NN. Losses, projectors and teachers are
each method's own; optimiser, schedule and augmentation are the project's for all, and were chosen with LeJEPA: a
baseline may do better with its own. With `--seeds` 0 1 2 the table gives mean and standard deviation over runs.

    python -m benchmarks.baselines --data DIR --sets galaxies --minutes 15 --out benchmarks/results
    python -m benchmarks.baselines --data DIR --sets histology --methods lejepa vicreg -- --backbone resnet18

Flags after -- go to every method; `--only METHOD=FLAGS` to one, e.g. --only "simclr=--objective.temperature 0.5".
"""

import argparse
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.transfer import EXTRA, MODALITY, SHOTS, evaluate, hardware, pretrain, shots_name
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
    parser.add_argument(
        "--runs", type=Path, default=Path("transfer-runs"), help="run folders; finished runs are reused"
    )
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
            pretrain(name, root, run, flags_of(options, name, method, seed))
            encoder = load_encoder(run)
            scores = evaluate(encoder, root, name, options.split)["all"]
            rows.append(scores | describe(run, encoder, method, seed))
            if method == options.methods[0]:
                control = evaluate(randomised(encoder), root, name, options.split)["all"]
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


def flags_of(options: argparse.Namespace, name: str, method: str, seed: int) -> list[str]:
    """Flags of `lejepa-med pretrain` for one method and seed."""
    flags = ["--seed", str(seed), "--minutes", str(options.minutes), *EXTRA.get(name, [])]
    return [*flags, *options.pretrain, *shlex.split(options.only.get(method, "")), "--objective.method", method]


def describe(run: Path, encoder: LoadedEncoder, method: str, seed: int) -> dict:
    """What was trained, and how fast."""
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "method": method,
        "seed": seed,
        "epochs": encoder.info["training"]["epochs"],
        "images_per_second": round(float(np.median([r["images_per_second"] for r in history])), 1),
        "effective_rank": round(history[-1]["backbone/effective_rank"], 1),
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
        cells = [spread([float(np.mean(row["linear"][shots_name(shots)])) for row in own]) for shots in SHOTS]
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
