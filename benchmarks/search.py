"""Similarity search: exact against pgvector's HNSW and LanceDB's, on made embeddings.

    python -m benchmarks.search --out benchmarks/results/search-cpu.md

The vectors are made: clusters of unequal size with directions of their own, so that a neighbourhood has far fewer
dimensions than the space, as in embeddings of images; noise all around would make every index look bad and every
neighbour arbitrary. Queries are items of the table, which are left out of their own answers.

Every index answers one query after the other, in turns with the others, by the same code as in the service:
candidates of the index, put into order with the base's own vectors. PostgreSQL is the wheel of the tests with its
default settings.
"""

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path

import lancedb
import numpy as np
import sqlalchemy
from sqlalchemy import text

from app.store.database import database_url, make_engine
from app.vectors import Base, Query
from app.vectors.backend import TOP, exact, rank
from app.vectors.lance import Lance
from app.vectors.pgvector import PgVector
from benchmarks.hardware import cpu_name, publish
from benchmarks.watch import memory
from harness.postgres import postgres
from harness.tables import conditions, query, write_table
from lejepa_med.search.base import build_base

PAGE = """# Search in embedded archives

{date}. {cpu}, {cores} cores, OMP_NUM_THREADS {threads}. PostgreSQL {postgres}, pgvector {pgvector}, LanceDB {lance}.
Vectors of {dim} numbers in {clusters} clusters, {queries} queries of {top} neighbours, one at a time, the kinds of
index in turns. Load average {before:.1f} at the start and {after:.1f} at the end: where that is more than the cores,
other work shared the machine, and p5 says most about the machine alone.

| vectors | index | build s | p5 ms | p50 ms | p95 ms | times exact's p50 | recall@10 | on disk MiB |
|---:|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

With a filter that a tenth of the vectors meets (a range of a number), by the index itself:

| vectors | index | p5 ms | p50 ms | p95 ms | recall@10 |
|---:|---|---:|---:|---:|---:|
{filtered}

{notes}

Again with: `python -m benchmarks.search {arguments}`
"""


def made(rows: int, dim: int, clusters: int) -> np.ndarray:
    """(rows, dim) float32: each cluster has a centre and 16 directions; noise is a third of their spread."""
    rng = np.random.default_rng(0)
    sizes = rng.dirichlet(np.full(clusters, 1.0))
    owner = rng.choice(clusters, rows, p=sizes)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32)
    spread = (1.5 / np.sqrt(1 + np.arange(16))).astype(np.float32)
    out = np.empty((rows, dim), np.float32)
    for cluster in range(clusters):
        mine = np.flatnonzero(owner == cluster)
        directions = rng.standard_normal((16, dim), dtype=np.float32)
        inner = rng.standard_normal((len(mine), 16), dtype=np.float32) * spread
        noise = rng.standard_normal((len(mine), dim), dtype=np.float32)
        out[mine] = centres[cluster] + inner @ directions + noise
    return out


def folder_size(folder: Path) -> float:
    """MiB of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def in_turns(
    kinds: dict[str, Callable[[Query], list[np.ndarray]]], base: Base, asked: Query
) -> dict[str, tuple[list[float], float]]:
    """Milliseconds of each query, and recall, by kind."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    hits = dict.fromkeys(kinds, 0)
    total = 0
    names = list(kinds)
    for index in range(len(asked.vectors)):
        one = replace(
            asked,
            vectors=asked.vectors[index : index + 1],
            own_rows=asked.own_rows[index : index + 1],
            own_groups=asked.own_groups[index : index + 1],
        )
        found = {}
        for name in names[index % len(names) :] + names[: index % len(names)]:
            began = time.perf_counter()
            found[name] = rank(base, one, 0, kinds[name](one)[0])
            times[name].append(1000 * (time.perf_counter() - began))
        total += len(found["exact"])
        for name in names:
            hits[name] += len(np.intersect1d(found[name], found["exact"]))
    return {name: (times[name], hits[name] / total) for name in names}


def measured(
    rows: int, options: argparse.Namespace, engine: sqlalchemy.Engine, *, with_indexes: bool
) -> dict[str, list[str]]:
    """Rows of the page for one size."""
    with tempfile.TemporaryDirectory(prefix="search-") as name:
        folder = Path(name)
        numbers = np.random.default_rng(1).uniform(0, 1, rows).tolist()
        write_table(folder / "table", made(rows, options.dim, options.clusters), shard_rows=2048, quality=numbers)
        gc.collect()
        before = memory("self").own
        began = time.perf_counter()
        build_base(folder / "table", folder / "base")
        builds = {"exact": time.perf_counter() - began}
        building = memory("self").own - before
        base = Base(folder / "base")
        sizes = {"exact": folder_size(folder / "base")}
        chosen = np.random.default_rng(2).choice(rows, options.queries, replace=False)
        asked = query(np.ascontiguousarray(base.vectors[chosen]), TOP, own_rows=chosen)
        kinds: dict[str, Callable[[Query], list[np.ndarray]]] = {"exact": lambda one: exact(base, one)}
        if with_indexes:
            pgvector, lance = PgVector(engine), Lance(folder / "lance")
            builds["pgvector"] = pgvector.build(base).seconds
            builds["lancedb"] = lance.build(base).seconds
            with engine.connect() as connection:
                size = text("SELECT pg_total_relation_size(:name)")
                sizes["pgvector"] = connection.scalar(size, {"name": f"lejepa_search.v_{base.key}"}) / 2**20
            sizes["lancedb"] = folder_size(folder / "lance")
            kinds["pgvector"] = lambda one: pgvector.nearest(base, one)
            kinds["lancedb"] = lambda one: lance.nearest(base, one)
        in_turns(kinds, base, replace(asked, vectors=asked.vectors[:5]))  # pages and plans warm
        before = memory("self").own
        found = in_turns(kinds, base, asked)
        searching = memory("self").own - before
        began = time.perf_counter()
        exact(base, asked)
        batch = 1000 * (time.perf_counter() - began) / len(asked.vectors)
        narrow = conditions({"column": "quality", "min": 0.45, "max": 0.55})
        keep = np.flatnonzero(base.meets(narrow))
        filtered = in_turns(kinds, base, replace(asked, conditions=narrow, rows=keep))
        if with_indexes:
            pgvector.drop(frozenset())
    usual = float(np.median(found["exact"][0]))
    lines = [
        f"| {rows:,} | {name} | {builds[name]:.1f} | {_percentiles(times)} "
        f"| {np.median(times) / usual:.2f} | {recall:.3f} | {sizes[name]:.0f} |"
        for name, (times, recall) in found.items()
    ]
    narrowed = [
        f"| {rows:,} | {name} | {_percentiles(times)} | {recall:.3f} |" for name, (times, recall) in filtered.items()
    ]
    note = (
        f"- {rows:,} vectors: {batch:.2f} ms a query when {options.queries} are sent as one exact search. Memory of "
        f"the process's own after the base was made: {building:+.0f} MiB; after all single searches: {searching:+.0f} "
        "MiB. The base's file is mapped: its pages are the system's, shared, and dropped when memory is short."
    )
    return {"rows": lines, "filtered": narrowed, "notes": [note]}


def _percentiles(times: list[float]) -> str:
    return " | ".join(f"{value:.1f}" for value in np.percentile(times, [5, 50, 95]))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors for all kinds of index")
    parser.add_argument("--large", type=int, default=500_000, help="vectors for exact search alone; 0 leaves it out")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=300)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    page: dict[str, list[str]] = {"rows": [], "filtered": [], "notes": []}
    with ExitStack() as stack:
        new_database = stack.enter_context(postgres())
        engine = make_engine(database_url(new_database(), data=Path()))
        stack.callback(engine.dispose)
        for rows, with_indexes in ((options.rows, True), (options.large, False)):
            if rows:
                for part, lines in measured(rows, options, engine, with_indexes=with_indexes).items():
                    page[part] += lines
        with engine.connect() as connection:
            server = str(connection.scalar(text("SHOW server_version"))).split()[0]
            extension = connection.scalar(text("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
    publish(
        PAGE.format(
            date=date.today(),
            cpu=cpu_name(),
            cores=os.cpu_count(),
            threads=os.environ.get("OMP_NUM_THREADS", "not set"),
            postgres=server,
            pgvector=extension,
            lance=lancedb.__version__,
            dim=options.dim,
            clusters=options.clusters,
            queries=options.queries,
            top=TOP,
            before=before,
            after=os.getloadavg()[0],
            arguments=f"--rows {options.rows} --large {options.large} --queries {options.queries}",
            **{part: "\n".join(lines) for part, lines in page.items()},
        ),
        options.out,
    )


if __name__ == "__main__":
    main()
