"""How long a probe takes, and how much slower scikit-learn would be at what is our own code.

    python -m benchmarks.probes --out benchmarks/results/probes-cpu.md

1,000 labelled vectors of 384 numbers, 5 folds. Every round measures every row once, so that all rows meet the same
machine. Through the service (a process of its own, its jobs on SQLite), the client waits for the job with
`GET /v1/jobs/{id}?wait=30`.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn
from sklearn.metrics import average_precision_score, balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors

from benchmarks.hardware import cpu_name, publish
from lejepa_med.client import Client, UnreachableError
from lejepa_med.models.embed import DONE
from lejepa_med.probes.cross_validation import group_folds
from lejepa_med.probes.linear import GRID, blas_threads
from lejepa_med.probes.neighbours import normalise, top_cosine
from lejepa_med.probes.probe import fit_probe
from lejepa_med.probes.scores import (
    Statistic,
    average_precision,
    cluster_interval,
    group_interval,
    r2,
    roc_area,
)

PAGE = """# Time of a probe

{date}. {cpu}, {threads} BLAS thread(s), scikit-learn {version}. {examples:,} labelled vectors of {dim} numbers in
{groups} groups, 5 folds, C of {grid} chosen by nested cross-validation. Median (and range) of {rounds} rounds, all rows
in turns. Load average {load:.1f} on {cores} cores.

## From the request to the result

| labels | fit alone, s | its CPU time, s | request to result over HTTP, s | one prediction over HTTP, ms |
|---|---:|---:|---:|---:|
{rows}

## scikit-learn's LogisticRegression in place of a solver of our own

Measured on 2026-11-30, in turns on the same processor, three rounds: CPU time of whole fits with the solver that the
project had until then, and with L-BFGS of scikit-learn in float32 to its tolerance of 1e-4, each C started from the one
before. The solver would have stayed if a probe of classes had taken more than 2 s from the request to the result.
Score: balanced accuracy, or macro AUROC for labels of their own. Both chose the same C.

| labels | our solver, s | scikit-learn, s | ratio | score: ours, scikit-learn |
|---|---:|---:|---:|---:|
| 2 classes | 0.55 (0.55 to 0.60) | 0.79 (0.75 to 0.84) | 1.4 (1.4 to 1.4) | 0.6742, 0.6742 |
| 3 classes | 0.79 (0.77 to 0.79) | 0.97 (0.92 to 0.98) | 1.2 (1.2 to 1.2) | 0.5687, 0.5667 |
| 10 classes | 1.38 (1.36 to 1.43) | 1.32 (1.31 to 1.39) | 1.0 (1.0 to 1.0) | 0.2642, 0.2619 |
| 10 labels of their own | 2.22 (2.17 to 2.30) | 4.48 (4.47 to 4.66) | 2.0 (2.0 to 2.1) | 0.7479, 0.7479 |

## Other parts that stay our own

| part | ours, ms of CPU | scikit-learn, ms of CPU | ratio |
|---|---:|---:|---:|
{parts}

Again with: `python -m benchmarks.probes {arguments}`
"""


def library_folds(labels: np.ndarray, groups: np.ndarray) -> None:
    """Five folds by scikit-learn's StratifiedGroupKFold."""
    for _ in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, groups):
        pass


def parts_of(vectors: np.ndarray, groups: np.ndarray) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Parts that are our own, each beside what scikit-learn has for it."""
    rng = np.random.default_rng(2)
    count = len(vectors)
    truth, guessed = rng.integers(0, 3, (2, count))
    values = rng.normal(size=count)
    noisy, marks = values + rng.normal(size=count), values > 0
    many, kinds = np.unique(rng.integers(0, 2000, 5000), return_inverse=True)[1], rng.integers(0, 3, 5000)
    unit = normalise(vectors)
    draws = rng.multinomial(groups.max() + 1, np.full(groups.max() + 1, 1 / (groups.max() + 1)), size=2000)[:, groups]

    def bootstrap(score: Callable[..., float], *columns: np.ndarray) -> Callable[[], Any]:
        return lambda: np.quantile([score(*columns, sample_weight=row) for row in draws], [0.025, 0.975])

    def interval(statistic: Statistic) -> Callable[[], Any]:
        return lambda: cluster_interval(statistic, groups, seed=0)

    return {
        "five stratified folds of 5,000 images in 2,000 groups": (
            lambda: group_folds(kinds, many, folds=5, seed=0),
            lambda: library_folds(kinds, many),
        ),
        "95 % interval of balanced accuracy, 2,000 draws": (
            lambda: group_interval(truth, guessed, groups, classes=3, seed=0),
            bootstrap(balanced_accuracy_score, truth, guessed),
        ),
        "the same of AUROC": (interval(roc_area(marks, noisy)), bootstrap(roc_auc_score, marks, noisy)),
        "the same of average precision": (
            interval(average_precision(marks, noisy)),
            bootstrap(average_precision_score, marks, noisy),
        ),
        "the same of R2": (interval(r2(values, noisy)), bootstrap(r2_score, values, noisy)),
        "20 nearest neighbours of each": (
            lambda: top_cosine(unit, unit, 20),
            lambda: NearestNeighbors(n_neighbors=20, metric="cosine").fit(unit).kneighbors(unit),
        ),
    }


def made_labels(vectors: np.ndarray) -> dict[str, list[Any]]:
    """Labels of each kind that the vectors half explain."""
    rng = np.random.default_rng(1)
    spread = vectors.std(0)
    noisy = vectors / spread + rng.normal(size=vectors.shape)
    found: dict[str, list[Any]] = {
        f"{count} classes": [f"c{k}" for k in noisy[:, :count].argmax(1)] for count in (2, 3, 10)
    }
    found["10 labels of their own"] = [[f"l{k}" for k in np.flatnonzero(row > 0.8)] for row in noisy[:, :10]]
    found["a quantity"] = noisy[:, :5].sum(1).astype(float).tolist()
    return found


def write_table(folder: Path, vectors: np.ndarray, groups: list[str]) -> list[str]:
    """An embedding table as `lejepa-med embed` writes it."""
    ids = [f"{number:032x}" for number in range(len(vectors))]
    folder.mkdir(parents=True)
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    columns = {"id": ids, "group": groups, "label": pa.nulls(len(ids), pa.string()), "vector": values}
    pq.write_table(pa.table(columns), folder / "part-00000.parquet")
    info = {"encoder": "0" * 64, "dim": vectors.shape[1], "embedded": len(ids), "failed": 0, "parts": 1}
    (folder / DONE).write_text(json.dumps(info))
    return ids


class Service:
    """`lejepa-med serve` over a runs directory, on a free port of this machine."""

    def __init__(self, runs: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start = "import sys; from lejepa_med.cli import main; main(sys.argv[1:])"
        self._log = (runs.parent / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, "serve", str(runs), "--port", str(port)],
            stderr=self._log,
            env={**os.environ, "LEJEPA_THREADS": "1"},
        )
        self.client = Client(f"http://127.0.0.1:{port}", timeout=60, retries=0)
        end = time.monotonic() + 300
        while True:
            try:
                self.client.archives()  # without an encoder the service never says that it is ready
                return
            except UnreachableError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self._log.seek(0)
                    raise SystemExit(f"the service did not start:\n{self._log.read()}") from None
                time.sleep(0.2)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(30)

    def train(self, ids: list[str], labels: list[Any]) -> tuple[float, str]:
        """Seconds from the request to the readable result, and the probe's id."""
        given = dict(zip(ids, labels, strict=True))
        start = time.perf_counter()
        job = self.client.wait(self.client.train_probe_on("table", given), poll=30)
        self.client.probe(job.id)
        return time.perf_counter() - start, job.id

    def predict(self, probe: str, item: str) -> float:
        """Milliseconds of the prediction for one embedded item, once the probe is loaded."""
        self.client.predict_items(probe, "table", [item])
        start = time.perf_counter()
        self.client.predict_items(probe, "table", [item])
        return 1000 * (time.perf_counter() - start)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of CPU, and the result."""
    start, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - start, time.process_time() - cpu, found


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Theirs over ours, round by round."""
    return spread([one / own for own, one in zip(ours, theirs, strict=True)], 1)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(args.dim, args.dim)) * np.geomspace(1, 0.01, args.dim)  # correlated, as embeddings are
    vectors = (rng.normal(size=(args.examples, args.dim)) @ mixing).astype(np.float32)
    groups = [f"g{g}" for g in rng.integers(0, args.groups, args.examples)]
    kinds = made_labels(vectors)
    taken: dict[str, tuple[list[float], ...]] = {kind: ([], [], [], []) for kind in kinds}
    parts = parts_of(vectors, np.unique(groups, return_inverse=True)[1])
    pairs: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in parts}
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch, "runs")
        ids = write_table(runs / "table", vectors, groups)
        service = Service(runs)
        try:
            for _ in range(args.rounds):
                for kind, labels in kinds.items():
                    seconds, cpu, _ = timed(lambda labels=labels: fit_probe(vectors, labels, groups))
                    taken[kind][0].append(seconds)
                    taken[kind][1].append(cpu)
                    seconds, probe = service.train(ids, labels)
                    taken[kind][2].append(seconds)
                    taken[kind][3].append(service.predict(probe, ids[0]))
                with blas_threads(vectors.size):
                    for name, pair in parts.items():
                        for side, part in zip(pairs[name], pair, strict=True):
                            side.append(timed(part)[1])
        finally:
            service.close()
    rows = [
        f"| {kind} | {spread(fit)} | {spread(cpu)} | {spread(http)} | {spread(one, 1)} |"
        for kind, (fit, cpu, http, one) in taken.items()
    ]
    compared = [
        f"| {name} | {spread([1000 * one for one in ours], 1)} | {spread([1000 * one for one in theirs], 1)} | "
        f"{ratios(ours, theirs)} |"
        for name, (ours, theirs) in pairs.items()
    ]
    publish(
        PAGE.format(
            date=date.today(),
            cpu=cpu_name(),
            threads=os.environ.get("OMP_NUM_THREADS", "all"),
            examples=args.examples,
            dim=args.dim,
            groups=args.groups,
            rounds=args.rounds,
            load=os.getloadavg()[0],
            cores=os.cpu_count(),
            version=sklearn.__version__,
            grid=", ".join(f"{strength:g}" for strength in GRID),
            rows="\n".join(rows),
            parts="\n".join(compared),
            arguments=" ".join(sys.argv[1:]),
        ),
        args.out,
    )


if __name__ == "__main__":
    main()
