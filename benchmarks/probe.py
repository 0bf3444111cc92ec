"""How long a probe takes: the fit alone, and through the service over HTTP from the request to the result.

    python -m benchmarks.probe --out benchmarks/results/probe.md

1,000 labelled vectors of 384 numbers, 5 folds. The service is a process of its own with its job queue on SQLite; the
client waits for the job with `GET /v1/jobs/{id}?wait=30`. Kinds are measured in turns, `--rounds` times.
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
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hardware import cpu_name, publish
from lejepa_med.embed import DONE
from lejepa_med.evaluation.probe import fit_probe

PAGE = """# Time of a probe

{date}. {cpu}, {threads} BLAS thread(s). {examples:,} labelled vectors of {dim} numbers in {groups} groups, 5 folds,
nested choice of the regularisation. Median (and range) of {rounds} rounds, all rows in turns. Load average
{load:.1f} on {cores} cores.

| labels | fit alone, s | its CPU time, s | request to result over HTTP, s | one prediction over HTTP, ms |
|---|---:|---:|---:|---:|
{rows}

Again with: `python -m benchmarks.probe {arguments}`
"""


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
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        end = time.monotonic() + 300
        while True:
            try:
                self.client.get("/healthz").raise_for_status()
                return
            except httpx.TransportError:
                if time.monotonic() > end or self._process.poll() is not None:
                    self._log.seek(0)
                    raise SystemExit(f"the service did not start:\n{self._log.read()}") from None
                time.sleep(0.2)

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(30)

    def train(self, ids: list[str], labels: list[Any]) -> tuple[float, str]:
        """Seconds from the request to the readable result, and the probe's address."""
        body = {"archive": "table", "labels": [{"id": i, "label": v} for i, v in zip(ids, labels, strict=True)]}
        start = time.perf_counter()
        job = self.client.post("/v1/probes", json=body).raise_for_status().json()
        while job["state"] in ("queued", "running"):
            job = self.client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).json()
        assert job["state"] == "succeeded", job
        self.client.get(job["result"]).raise_for_status()
        return time.perf_counter() - start, job["result"]

    def predict(self, probe: str, item: str) -> float:
        """Milliseconds of the prediction for one embedded item, once the probe is loaded."""
        body = {"archive": "table", "ids": [item]}
        self.client.post(f"{probe}/predictions", json=body).raise_for_status()
        start = time.perf_counter()
        self.client.post(f"{probe}/predictions", json=body).raise_for_status()
        return 1000 * (time.perf_counter() - start)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


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
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch, "runs")
        ids = write_table(runs / "table", vectors, groups)
        service = Service(runs)
        try:
            for _ in range(args.rounds):
                for kind, labels in kinds.items():
                    start, cpu = time.perf_counter(), time.process_time()
                    fit_probe(vectors, labels, groups)
                    taken[kind][0].append(time.perf_counter() - start)
                    taken[kind][1].append(time.process_time() - cpu)
                    seconds, probe = service.train(ids, labels)
                    taken[kind][2].append(seconds)
                    taken[kind][3].append(service.predict(probe, ids[0]))
        finally:
            service.close()
    rows = [
        f"| {kind} | {spread(fit)} | {spread(cpu)} | {spread(http)} | {spread(one, 1)} |"
        for kind, (fit, cpu, http, one) in taken.items()
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
            rows="\n".join(rows),
            arguments=" ".join(sys.argv[1:]),
        ),
        args.out,
    )


if __name__ == "__main__":
    main()
