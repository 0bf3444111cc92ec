"""What bfloat16 forward passes change in what an encoder is good for: neighbours, probes, predictions.

    python -m benchmarks.precision --data DIR --sets galaxies --runs FOLDER [FOLDER ...] [--items 600] [--out FILE]

It answers what `lejepa-med precision RUN bfloat16` costs. Each set is a folder with labels.csv (see
`benchmarks.transfer`), each run folder a trained encoder; runs are matched with sets in their order, or all with the
only set. On a CPU without bfloat16 the passes are slow, and round as others do.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.core.settings import Settings
from app.encoders.inference import ServedEncoder
from benchmarks.hardware import cpu_name, publish
from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.models.folder import Precision, load_encoder
from lejepa_med.probes.neighbours import normalise
from lejepa_med.probes.probe import Probe, fit_probe

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
NEIGHBOURS = 10
AT_ONCE = 32  # items of one pass
PAGE = """# bfloat16 against float32

{date}. {where}, torch {torch}. Encoders pretrained on the archive; {items} labelled images of `train` and {items} of
`val`, drawn at random. Distance: |v - v0| / |v0| between an image's two vectors, median (largest). Neighbours: of the
{neighbours} nearest images of `train` by cosine, how many are the same. Balanced accuracy on `val` of a linear probe
trained on `train`, by the bits of the probe's vectors and of those that it is given. Changed: images whose
predicted label differs when only their own vector's precision does, and the mean change of a class's probability.

| set | encoder | distance | neighbours kept | 32 to 32 | 32 to 16 | 16 to 32 | 16 to 16 | changed | change |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
{rows}

Again with: `python -m benchmarks.precision --data DIR --sets SET ... --runs FOLDER ... --items {items}`
"""


def drawn(part: Manifest, count: int) -> Manifest:
    """`count` rows at random, the same in every run."""
    order = np.random.default_rng(0).permutation(len(part))[:count]
    return part.select(sorted(order.tolist()))


def vectors_of(items: Sequence[Tensor], run: Path, precision: Precision) -> np.ndarray:
    """Pooled vectors (n, dim) as the service computes them."""
    settings = Settings(runs_dir=run.parent, threads=torch.get_num_threads())
    loaded = load_encoder(run, device="cuda" if torch.cuda.is_available() else "cpu")
    loaded.precision = precision
    encoder = ServedEncoder(loaded, settings)
    parts = [part for start in range(0, len(items), AT_ONCE) for part in encoder.embed(items[start : start + AT_ONCE])]
    return np.stack([part.mean(axis=0) for part in parts])


def accuracy(probe: Probe, vectors: np.ndarray, labels: Sequence[str]) -> float:
    """Balanced accuracy."""
    hit = np.array([one.label for one in probe.predict(vectors)]) == np.array(labels)
    return float(np.mean([hit[np.array(labels) == name].mean() for name in sorted(set(labels))]))


def nearest(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Rows of the nearest training vectors, (n, NEIGHBOURS)."""
    return np.argsort(-normalise(test) @ normalise(train).T, axis=1)[:, :NEIGHBOURS]


def compare(name: str, root: Path, run: Path, items: int) -> str:
    """One row of the table."""
    adapter = load_encoder(run).adapter
    found = scan_archive(adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    found = found.select([row for row, label in enumerate(found.column("label")) if label])
    parts = [drawn(found.of_split(split), items) for split in ("train", "val")]
    pixels = [[adapter.prepare(record) for record in part.records()] for part in parts]
    both = {kind: [vectors_of(images, run, kind) for images in pixels] for kind in PRECISIONS}
    train_labels, test_labels = (part.column("label") for part in parts)
    groups = parts[0].column("group")
    probes = {kind: fit_probe(vectors[0], train_labels, groups) for kind, vectors in both.items()}
    plain, rough = (both[kind][1] for kind in PRECISIONS)
    away = np.linalg.norm(rough - plain, axis=1) / np.linalg.norm(plain, axis=1)
    sides = [nearest(*both[kind]) for kind in PRECISIONS]
    common = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(*sides, strict=True)])
    scores = [accuracy(probes[a], both[b][1], test_labels) for a in PRECISIONS for b in PRECISIONS]
    said = [probes["float32"].predict(both[kind][1]) for kind in PRECISIONS]
    changed = sum(a.label != b.label for a, b in zip(*said, strict=True))
    chances = [np.array([list((one.probabilities or {}).values()) for one in answers]) for answers in said]
    change = np.abs(chances[0] - chances[1]).mean()
    cells = [name, load_encoder(run).info["backbone"], f"{np.median(away):.1e} ({away.max():.1e})", f"{common:.1%}"]
    cells += [f"{score:.3f}" for score in scores]
    return f"| {' | '.join([*cells, f'{changed} of {len(said[0])}', f'{change:.4f}'])} |"


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders, one a set")
    parser.add_argument("--items", type=int, default=600, help="images of each split")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sets = args.sets * len(args.runs) if len(args.sets) == 1 else args.sets
    if len(sets) != len(args.runs):
        parser.error("give one set, or as many as runs")
    rows = [compare(name, args.data / name, run, args.items) for name, run in zip(sets, args.runs, strict=True)]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    publish(
        PAGE.format(
            date=date.today().isoformat(),
            where=where,
            torch=torch.__version__,
            items=args.items,
            neighbours=NEIGHBOURS,
            rows="\n".join(rows),
        ),
        args.out,
    )


if __name__ == "__main__":
    main()
