"""LeJEPA beside other methods at equal wall-clock time and equal start, one result file a cell, resumable.

Every cell has the same set, backbone, views, batch, optimiser, start and minutes. Only the objective differs.
The frozen encoder is then scored on another split as `lejepa-med compare` does it: the same vectors, probe and draws of
labels. `supervised` trains the same network from the same start on the labels alone (all layers, cross-entropy, label
smoothing, mixup, the modality's views), with as many minutes for each number of labels; of 10 and 50 labels it sees the
draw of its seed only.

    python -m benchmarks.methods --data DIR
    python -m benchmarks.methods --data DIR --sets galaxies --starts imagenet --methods lejepa dino --seeds 0

A cell that has its file is not run again, and an interrupted run goes on from its checkpoint; what runs beside a cell
slows it, so give every cell the same company (two commands with different --sets keep two cores busy). --table writes
the page from the files that there are. The table has, for each method, LeJEPA's gain over it on equal seeds and draws.
"""

import argparse
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.transfer import EXTRA, MODALITY, hardware, imagenet, pretrain
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.models.folder import LoadedEncoder, load_encoder
from lejepa_med.probes.fewshot import headline, learn_few
from lejepa_med.study.labelled import ALL, Sides, sides, vectors_of
from lejepa_med.study.supervised import MIXUP, SMOOTHING, Tuned, predict, train, tuning

METHODS = ("lejepa", "simclr", "vicreg", "dino", "supervised")
STARTS = ("scratch", "imagenet")
SHOTS: tuple[int | None, ...] = (10, 50, None)
DRAWS = 20
MOST_STEPS = 1_000_000  # of supervised training, which the minutes end
Cell = dict[str, Any]


def main() -> None:
    """Run the cells that have no file yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=list(MODALITY), choices=list(MODALITY))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--starts", nargs="+", default=["scratch"], choices=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of a cell")
    parser.add_argument("--split", default="val", help="split to score on")
    parser.add_argument("--runs", type=Path, default=Path("methods-runs"), help="run folders and converted weights")
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/results/methods"), help="one file a cell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods.md"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("pretrain", nargs="*", help="further flags of lejepa-med pretrain for every cell, after --")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data DIR is missing: the folder with the sets")
        for cell in cells(options):
            run_cell(options, *cell)
    found = [json.loads(file.read_text()) for file in sorted(options.cells.glob("*.json"))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(found))
    print(options.out.read_text())


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Set, start, method and seed; methods in the inner loop, so that a slow hour falls on all of them."""
    for seed in options.seeds:
        for start in options.starts:
            for name in options.sets:
                for method in options.methods:
                    yield name, start, method, seed


def run_cell(options: argparse.Namespace, name: str, start: str, method: str, seed: int) -> None:
    """Train and score one cell, unless it has its file."""
    title = f"{name}-{start}-{method}-{options.minutes:g}-min-{seed}"
    file, root, run = options.cells / f"{title}.json", options.data / name, options.runs / title
    if file.is_file():
        return
    flags = ["--seed", str(seed), *EXTRA.get(name, []), *options.pretrain]
    flags += ["--init", str(imagenet(options.runs))] if start == "imagenet" else []
    if method == "supervised":  # the start itself, as it would begin to be pretrained
        pretrain(name, root, run, [*flags, "--epochs", "0"])
    else:
        pretrain(name, root, run, [*flags, "--minutes", str(options.minutes), "--objective.method", method])
    encoder = load_encoder(run)
    manifest = scan_archive(encoder.adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    parts = sides(manifest, on=options.split, allow_leak=False)
    began = time.perf_counter()
    supervised = method == "supervised"
    scores = labels_alone(run, encoder, parts, options.minutes, seed) if supervised else frozen(encoder, parts)
    result = {
        "set": name,
        "start": start,
        "method": method,
        "seed": seed,
        "minutes": options.minutes,
        "split": options.split,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        "receipt": parts.receipt(),
        "encoder": {key: encoder.info.get(key) for key in ("backbone", "dim", "formation", "objective")},
        "training": encoder.info["training"],
        "scoring_seconds": round(time.perf_counter() - began),
        "scores": scores,
    }
    options.cells.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    draft.replace(file)
    print(f"{file.name}: {scores}", flush=True)


def frozen(encoder: LoadedEncoder, parts: Sides) -> dict[str, Any]:
    """Balanced accuracy of the linear probe in each draw by number of labels, and 20-NN with all."""
    console = Console(stderr=True)
    x, y = vectors_of(encoder, (parts.learn, parts.test), name=encoder.name, workers=1, console=console)
    found = learn_few(parts.target, x, parts.learn.column("group"), y, shots=SHOTS, draws=DRAWS)
    linear = {str(one.shots or ALL): [round(value, 4) for value in one.linear] for one in found}
    return {"linear": linear, "knn": round(found[-1].knn_mean, 4)}


def labels_alone(run: Path, encoder: LoadedEncoder, parts: Sides, minutes: float, seed: int) -> dict[str, Any]:
    """The network itself, trained on the labels for so many minutes at each number of them."""
    target, scores, steps = parts.target, {}, []
    for k in SHOTS:
        rows = target.drawn(k, seed=0, draw=seed)
        model, done = load_encoder(run).module, [0]

        def count(share: float, done: list[int] = done) -> None:
            done[0] += 1

        trained = train(
            Tuned(model, len(target.names), depth="full", blocks=0),
            tuning(model),
            target,
            encoder.adapter,
            parts.learn,
            rows,
            seed=seed,
            steps=MOST_STEPS,
            seconds=60 * minutes,
            smoothing=SMOOTHING,
            mixup=MIXUP,
            step_done=count,
        )
        images = (encoder.adapter.prepare(record) for record in parts.test.records())
        answers = predict([(trained, rows)], target, images, encoder.formation)[0]
        scores[str(k or ALL)] = [round(headline(target, answers), 4)]
        steps.append(done[0])
    return {"linear": scores, "knn": None, "steps": steps}


def page(found: list[Cell]) -> str:
    """Tables by set and start."""
    lines = ["# LeJEPA beside other methods at equal wall-clock", ""]
    lines += [
        "Balanced accuracy of a linear probe on the frozen encoder (`supervised`: of the network itself), mean and "
        f"standard deviation over seeds, each over {DRAWS} draws of labels (`supervised`: one). 'Gain': points that "
        "LeJEPA is above the method, mean over equal seeds and draws with the standard deviation over seeds. Made by "
        "`python -m benchmarks.methods`, one file a cell in `methods/`."
    ]
    for key in sorted({(cell["set"], cell["start"], cell["minutes"]) for cell in found}):
        own = [cell for cell in found if (cell["set"], cell["start"], cell["minutes"]) == key]
        name, start, minutes = key
        backbone = own[0]["encoder"]["backbone"]
        lines += ["", f"## {name}, {backbone} from {start}, {minutes:g} minutes, scored on {own[0]['split']}", ""]
        lines += ["| method | seeds | 10 labels per class | 50 | all | 20-NN | gain: 10 | 50 | all |", "|" + "---|" * 9]
        for method in METHODS:
            if rows := sorted((cell for cell in own if cell["method"] == method), key=lambda cell: cell["seed"]):
                lines.append(row(method, rows, {cell["seed"]: cell for cell in own if cell["method"] == "lejepa"}))
        lines += ["", f"{own[0]['hardware']}, PyTorch {own[0]['torch']}, {own[0]['date']}."]
    return "\n".join(lines) + "\n"


def row(method: str, rows: list[Cell], ours: dict[int, Cell]) -> str:
    """One method's line."""
    keys = [str(k or ALL) for k in SHOTS]
    figures = [spread([float(np.mean(cell["scores"]["linear"][key])) for cell in rows], 1) for key in keys]
    near = [cell["scores"]["knn"] for cell in rows if cell["scores"]["knn"] is not None]
    gains = ["", "", ""]
    if method != "lejepa":
        gains = [spread([gain(ours[c["seed"]], c, key) for c in rows if c["seed"] in ours], 100) for key in keys]
    cells_of = [method, str(len(rows)), *figures, spread(near, 1), *gains]
    return f"| {' | '.join(cells_of)} |"


def gain(ours: Cell, other: Cell, key: str) -> float:
    """Mean difference over the draws that both have."""
    one, two = ours["scores"]["linear"][key], other["scores"]["linear"][key]
    if len(two) == 1 < len(one):  # supervised: the draw of its seed
        return float(one[other["seed"]] - two[0])
    return float(np.mean(np.subtract(one, two)))


def spread(values: list[float], scale: float) -> str:
    """Mean ± standard deviation of several values, as points where they are scaled."""
    if not values:
        return ""
    text = "{:+.1f}" if scale == 100 else "{:.3f}"
    mean = text.format(scale * float(np.mean(values)))
    deviation = "{:.1f}" if scale == 100 else "{:.3f}"
    return mean + (f" ± {deviation.format(scale * np.std(values, ddof=1))}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
