"""Does the label-free score of --train.stop-early know a good encoder from a bad one, and when training makes it worse?

Trains on `train` of a real labelled set, keeps the encoder of every evaluation, and scores each on another split by the
protocol of benchmarks/transfer.py. Printed for each evaluation: the score, effective rank and LiDAR beside the
accuracies; and Spearman's correlation of each with the accuracies within a run.

    python -m benchmarks.early_stopping --data DIR --set brain_mri --out FILE.json --name good \
        -- --init lite0 --optim.lr 4e-4 --epochs 8
    python -m benchmarks.early_stopping --page benchmarks/results/early-stopping.md FILE.json ...
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.transfer import EXTRA, MODALITY, hardware, score, vectors_of
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.cli import main as command_line
from lejepa_med.evaluation.spread import spread
from lejepa_med.models.folder import LoadedEncoder, load_encoder
from lejepa_med.study.select import spearman
from lejepa_med.training.early_stopping import Best
from lejepa_med.training.folder import read_lines

COLUMNS = ("10", "50", "all", "20-NN")
SCORES = {"score": -1, "loss": -1, "effective rank": 1, "RankMe": 1, "LiDAR": 1}  # and whether more is better


def main() -> None:
    """Train one arm, or write the page of several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--set", default="brain_mri", choices=list(MODALITY))
    parser.add_argument("--split", default="val", help="split to evaluate on")
    parser.add_argument("--name", help="of the arm, on the page")
    parser.add_argument("--out", type=Path, help="JSON file of the arm")
    parser.add_argument("--page", type=Path, help="write this page from the JSON files that follow")
    parser.add_argument("rest", nargs="*", help="flags of lejepa-med pretrain after --, or JSON files")
    options = parser.parse_args()
    if options.page:
        options.page.write_text(page([json.loads(Path(file).read_text()) for file in options.rest]))
        return
    options.out.write_text(json.dumps(arm(options), indent=1) + "\n")


def arm(options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with an evaluation about every epoch, and score the encoder of each."""
    root = options.data / options.set
    with tempfile.TemporaryDirectory() as place:
        run, kept = Path(place) / "run", Path(place) / "kept"
        kept.mkdir()
        real = Best.add

        def add(self: Best, score: float, *, step: int, encoder: Any) -> None:
            real(self, score, step=step, encoder=encoder)
            state = {name: value.detach().cpu().contiguous() for name, value in encoder.backbone.state_dict().items()}
            save_file(state, kept / f"{step:08d}.safetensors")

        Best.add = add  # type: ignore[method-assign]
        command = ["pretrain", str(root), "--modality", MODALITY[options.set], "--out", str(run)]
        command += ["--catalog", str(root / "labels.csv"), "--split", "train", *EXTRA.get(options.set, [])]
        command_line([*command, "--train.stop-early", "1000000", "--no-monitor.online", *options.rest])
        encoder = load_encoder(run)
        records = [row for row in read_lines(run / "metrics.jsonl") if row.get("score") is not None]
        rows = [_scored(encoder, kept / f"{row['step']:08d}.safetensors", row, root, options.split) for row in records]
    return {
        "name": options.name,
        "set": options.set,
        "split": options.split,
        "flags": options.rest,
        "training": encoder.info["training"],
        "objective": encoder.info["objective"],
        "backbone": encoder.info["backbone"],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "rows": rows,
    }


def _scored(encoder: LoadedEncoder, file: Path, record: dict[str, Any], root: Path, split: str) -> dict[str, Any]:
    """Scores and accuracies of the encoder of one evaluation."""
    encoder.module.backbone.load_state_dict(load_file(file))
    encoder.module.eval()
    found = scan_archive(encoder.adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    found = found.select([row for row, label in enumerate(found.column("label")) if label])
    train, test = found.of_split("train"), found.of_split(split)
    vectors = vectors_of(encoder, train)
    results = score(vectors, train, vectors_of(encoder, test), test)
    figures = spread(vectors[:: max(1, len(vectors) // 1000)])
    accuracies = [*(float(np.mean(draws)) for draws in results["linear"].values()), results["knn"]]
    return {
        "step": record["step"],
        "epoch": record["epoch"],
        "score": record["score"],
        "loss": record["loss"],
        "LiDAR": record["projector/lidar"],
        "effective rank": figures["effective_rank"],
        "RankMe": figures["rankme"],
        **dict(zip(COLUMNS, accuracies, strict=True)),
    }


def agreement(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """For each score, Spearman's correlation with each accuracy; positive where the score points to the better ones."""
    found: dict[str, list[float | None]] = {}
    for name, sign in SCORES.items():
        values = np.array([row[name] for row in rows], float)
        each = [spearman(sign * values, np.array([row[column] for row in rows], float)) for column in COLUMNS]
        found[name] = [one and one.value for one in each]
    return found


def page(arms: list[dict[str, Any]]) -> str:
    """The tables of all arms as Markdown."""
    lines = []
    for one in arms:
        rows = one["rows"]
        best = min(rows, key=lambda row: row["score"])
        lines += [
            f"## {one['set']}, {one['name']}\n",
            f"`{' '.join(Path(flag).name for flag in one['flags'])}` ({one['hardware']}, {one['date']})\n",
        ]
        lines += [f"| epoch | score | loss | effective rank | LiDAR | {' | '.join(COLUMNS)} |", "|---" * 9 + "|"]
        for row in rows:
            cells = [f"{row['epoch']:.1f}", f"{row['score']:.4f}", f"{row['loss']:.4f}", f"{row['effective rank']:.0f}"]
            cells += [f"{row['LiDAR']:.1f}", *(f"{row[column]:.3f}" for column in COLUMNS)]
            lines.append(f"| {' | '.join(f'**{c}**' if row is best else c for c in cells)} |")
        lines += [
            "",
            f"| Spearman's correlation over these {len(rows)} evaluations | {' | '.join(COLUMNS)} |",
            "|---" * 5 + "|",
        ]
        for name, values in agreement(rows).items():
            lines.append(f"| {name} | {' | '.join('–' if v is None else f'{v:+.2f}' for v in values)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
