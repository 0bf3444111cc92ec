"""How a vector is formed: input size, fixed views and joined layers of one encoder, by what its vectors are good for.

    python -m benchmarks.vectors --data DIR --set galaxies --run RUN [RUN ...] --sizes 64 96 --views 1 8 --layers 1 2

Each run is a run folder of that set (see `benchmarks.transfer`, which has the protocol); `--epochs 0` with
--init gives the frozen network. Cells that have their file are not run again; --page writes the page from them.
"""

import argparse
import json
import shutil
import tempfile
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.hardware import publish
from benchmarks.transfer import MODALITY, evaluate, hardware
from lejepa_med.errors import UserError
from lejepa_med.models.folder import encoder_folder, load_encoder, record_formation

HEAD = """# How a vector is formed

Balanced accuracy on `val` of a linear probe on frozen encoders with 10, 50 and all labels per class (mean over 5 draws
of labels), 20-NN, and how many of the 10 nearest training images have the label. Views: fixed views whose vectors are
averaged. Layers: the last ones whose outputs are joined. Made by `python -m benchmarks.vectors`, one file a cell in
`vectors/`. One seed: differences of less than 2 points with 10 labels, and of 1 with all, are noise.
"""


def main() -> None:
    """Run the cells that have no file yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--set", choices=list(MODALITY))
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="run folders; their names stand in the page")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--split", default="val")
    parser.add_argument("--cells", type=Path, default=Path("benchmarks/results/vectors"))
    parser.add_argument("--page", type=Path, default=Path("benchmarks/results/vectors.md"))
    options = parser.parse_args()
    if options.run and (options.data is None or options.set is None):
        parser.error("--run needs --data DIR and --set SET")
    for run, size, views, layers in product(options.run, options.sizes, options.views, options.layers):
        cell(options, run, size, views, layers)
    publish(page([json.loads(file.read_text()) for file in sorted(options.cells.glob("*.json"))]), options.page)


def cell(options: argparse.Namespace, run: Path, size: int, views: int, layers: int) -> None:
    """Score one formation of one encoder, unless it has its file."""
    file = options.cells / f"{options.set}-{run.name}-{size}-{views}-{layers}.json"
    if file.is_file():
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(encoder_folder(run), Path(place, "encoder")))
        try:
            encoder = load_encoder(record_formation(folder, size=size, views=views, layers=layers))
        except UserError as error:
            print(f"{run.name}, {size} px, {views} views, {layers} layers: left out. {error}")
            return
        scores = evaluate(encoder, options.data / options.set, options.set, options.split)
    found = {
        "set": options.set,
        "encoder": run.name,
        "trained_at": encoder.info["spec"]["global_size"],
        "backbone": encoder.info["backbone"],
        **{"size": size, "views": views, "layers": layers},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "scores": scores,
    }
    options.cells.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    draft.replace(file)
    print(f"{file.name}: {scores['all']}", flush=True)


def page(found: list[dict]) -> str:
    """A table a set."""
    lines = [HEAD]
    for name in MODALITY:
        own = [one for one in found if one["set"] == name]
        if not own:
            continue
        lines += [f"## {name}", "", "| encoder | size | views | layers | 10 | 50 | all | 20-NN | nearest |"]
        lines += ["|" + "---|" * 9]
        for one in sorted(own, key=lambda c: (c["encoder"], c["size"], c["views"], c["layers"])):
            scores = one["scores"]["all"]
            figures = [float(np.mean(draws)) for draws in scores["linear"].values()]
            shown = " | ".join(f"{value:.3f}" for value in (*figures, scores["knn"], scores["nearest"]))
            title = f"{one['encoder']} ({one['backbone']}, {one['trained_at']} px)"
            lines.append(f"| {title} | {one['size']} | {one['views']} | {one['layers']} | {shown} |")
        where = sorted({f"{one['hardware']}, {one['date']}" for one in own})
        lines += ["", "; ".join(where) + ".", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
