"""Schemathesis over the whole OpenAPI document of a live service: valid and broken requests, all answers checked.

    python -m benchmarks.stress.fuzz --out benchmarks/results/fuzz.md            # 20,000 requests and more
    python -m benchmarks.stress.fuzz --cases 300                                 # a look

A service of its own is started on loopback over a made encoder and table, with an administrator's key and without rate
limits. Rounds with growing seeds run until so many requests were answered; in every second one, paths and most bodies
name what exists (`fuzz_hooks.py`). The exit code is 1 after any answer 5xx, any that the document does not allow, or a
job that ends by the service's fault.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.hardware import publish
from benchmarks.made_archive import make_archive
from benchmarks.stress.fuzz_report import Tally, page, read_report
from benchmarks.train import make_files
from data_adapters.scan import scan_archive
from harness.encoders import make_encoder
from harness.service import service
from lejepa_med.models.embed import embed_archive
from lejepa_med.models.folder import load_encoder

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ENCODER, TABLE = "galaxies", "galaxies-val"  # as in the document's examples
PATHS = {  # parameters of paths, and which of the known values they get
    "encoder_id": "encoder",
    "name": "table",
    "probe_id": "probe",
    "job_id": "probe",
    "application_id": "application",
    "upload_id": "upload",
    "key_id": "key",
    "set_id": "label_set",
    "item_id": "item",
    "column": "column",
}
PICTURES = 3  # of each kind that requests send
PAUSE_SECONDS = 120  # without an answer the service is held to hang
READY_SECONDS = 600  # for what a round needs; the round before may have left jobs
ROOT = Path(__file__).parents[2]


def make_named_runs(folder: Path) -> Path:
    """Make a runs directory whose encoder, and table of 24 items, have the names of the document's examples."""
    runs = folder / "runs"
    make_encoder(runs / ENCODER, "images")
    make_archive(folder / "archive", 24)
    encoder = load_encoder(runs / ENCODER / "encoder")
    embed_archive(encoder, scan_archive(encoder.adapter, folder / "archive").manifest, runs / TABLE)
    return runs


def fuzz_round(
    address: str, key: str, *, seed: int, examples: int, folder: Path, tally: Tally, known: dict[str, Any] | None
) -> None:
    """One run of Schemathesis: its own examples, the bounds of every value, and random requests."""
    report = folder / f"round-{seed}.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"),
        *("--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", str(examples)),
        *("--seed", str(seed), "--checks", ",".join(CHECKS), "--continue-on-failure", "--no-shrink"),
        *("--generation-database", "none", "--suppress-health-check", "all", "--workers", "2"),
        *("--request-timeout", str(PAUSE_SECONDS), "--header", f"Authorization: Bearer {key}"),
        *("--report", "ndjson", "--report-ndjson-path", str(report), "--output-sanitize", "false"),
    ]
    environment = dict(os.environ)
    paths: dict[str, str] = {}
    if known is not None:
        paths = {name: known[field] for name, field in PATHS.items()}
        (folder / "known.json").write_text(json.dumps(known))
        environment |= {
            "SCHEMATHESIS_HOOKS": "benchmarks.stress.fuzz_hooks",
            "LEJEPA_FUZZ_KNOWN": str(folder / "known.json"),
            "PYTHONPATH": str(ROOT),
        }
    lines = ["[parameters]", *(f'"path.{name}" = "{value}"' for name, value in paths.items())]
    (folder / "schemathesis.toml").write_text("\n".join(lines) + "\n")
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if not report.exists():
        raise SystemExit(f"schemathesis did not run:\n{done.stdout}\n{done.stderr}")
    read_report(report, tally)
    report.unlink()


class Lab:
    """What the requests shall find, made anew for each round, as they remove some of it."""

    def __init__(self, address: str, key: str, pictures: list[Path]) -> None:
        self._client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        self._pictures = pictures

    def known(self) -> dict[str, Any]:
        """By what `fuzz_hooks` and PATHS call them: names and ids of what exists."""
        detail = self._get(f"/v1/archives/{TABLE}")
        ids = [item["id"] for item in self._get(f"/v1/archives/{TABLE}/ids")["items"]]
        labels = [{"id": name, "label": ("spiral", "elliptical")[row % 2]} for row, name in enumerate(ids)]
        probe = self._done(self._client.post("/v1/probes", json={"archive": TABLE, "labels": labels}))
        application = self._done(self._client.post(f"/v1/probes/{probe}/applications", json={"archive": TABLE}))
        files = [("files", (path.name, path.read_bytes())) for path in self._pictures]
        upload = self._done(self._client.post("/v1/uploads", files=files, data={"encoder": ENCODER}))
        made = self._client.post("/v1/label-sets", json={"name": "fuzz", "archive": TABLE}).raise_for_status().json()
        change, address = {"labels": labels}, f"/v1/label-sets/{made['id']}"
        self._client.patch(address, json=change, headers={"If-Match": "*"}).raise_for_status()
        spare = self._client.post("/v1/keys", json={"name": "spare", "scopes": ["embed"]}).raise_for_status().json()
        return {
            "encoder": ENCODER,
            "table": TABLE,
            "ids": ids,
            "dim": detail["dim"],
            "probe": probe,
            "application": application,
            "upload": upload,
            "key": spare["id"],
            "label_set": made["id"],
            "item": ids[0],
            "column": "label",
            "pictures": [str(path) for path in self._pictures],
        }

    def outcomes(self, tally: Tally) -> None:
        """Wait for the jobs, and count how they ended."""
        end = time.monotonic() + READY_SECONDS
        while any(self._get(f"/v1/jobs?limit=1&state={state}")["jobs"] for state in ("queued", "running")):
            if time.monotonic() > end:
                break
            time.sleep(1)
        link: str | None = "/v1/jobs?limit=1000"
        while link:
            found = self._get(link)
            for job in found["jobs"]:
                tally.jobs.setdefault(job["kind"], Counter())[job["state"]] += 1
                if job["error"] is not None:
                    tally.reasons[job["error"]["type"].rpartition(":")[2]] += 1
            link = found["next"]

    def _get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()

    def _done(self, answer: httpx.Response) -> str:
        """The id of a job, which has ended well."""
        job: str = answer.raise_for_status().json()["id"]
        end = time.monotonic() + READY_SECONDS
        while (state := self._get(f"/v1/jobs/{job}?wait=10")["state"]) != "succeeded":
            if state not in ("queued", "running") or time.monotonic() > end:
                raise SystemExit(f"what the requests shall find was not made: a job is {state}")
        return job


def fuzz(
    *, cases: int, seed: int, examples: int, minutes: float = 600, database_url: str | None = None
) -> tuple[Tally, int, float, str]:
    """Rounds until so many requests were answered: the tally, the number of rounds, seconds, and the service's log.

    Every second round puts what exists into paths and bodies. None begins after `minutes`.
    """
    tally, rounds, began = Tally(), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lejepa-med-fuzz-") as temporary:
        folder = Path(temporary)
        with service(
            make_named_runs(folder), folder / "data", database_url=database_url, LEJEPA_MAX_UPLOAD_BYTES=str(8 << 20)
        ) as (address, key, _):
            photographs = make_files(folder / "photographs", count=PICTURES, side=48)
            drawn = sorted((folder / "archive").rglob("*.png"))[:PICTURES]
            lab = Lab(address, key, [*sorted(photographs.iterdir()), *drawn])
            while tally.requests < cases and time.monotonic() - began < 60 * minutes:
                before = tally.requests
                known = lab.known() if rounds % 2 else None
                fuzz_round(address, key, seed=seed + rounds, examples=examples, folder=folder, tally=tally, known=known)
                rounds += 1
                print(f"round {rounds}: {tally.requests} requests, {tally.server_errors} x 5xx", file=sys.stderr)
                if tally.requests == before:
                    raise SystemExit("schemathesis sends no requests any more")
            lab.outcomes(tally)
            alive = httpx.get(f"{address}/healthz", timeout=30).status_code == 200
        log = (folder / "data" / "service.log").read_text()
    if not alive:
        raise SystemExit("the service does not answer any more")
    return tally, rounds, time.monotonic() - began, log


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000, help="requests at least")
    parser.add_argument("--examples", type=int, default=60, help="random requests of each operation and round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=600, help="after so many no further round begins")
    parser.add_argument("--database-url", default=None, help="postgresql://... of an empty database; else SQLite")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None, help="the counts as JSON")
    given = parser.parse_args()
    tally, rounds, seconds, log = fuzz(
        cases=given.cases,
        seed=given.seed,
        examples=given.examples,
        minutes=given.minutes,
        database_url=given.database_url,
    )
    database = "PostgreSQL" if given.database_url else "SQLite"
    text = page(tally, rounds=rounds, seconds=seconds, seed=given.seed, log=log, database=database)
    publish(text, given.out)
    if given.json is not None:
        counts = {"rounds": rounds, "statuses": tally.statuses, "jobs": tally.jobs}
        given.json.write_text(json.dumps(counts))
    if tally.server_errors or tally.violations or tally.broken_jobs:
        sys.exit(1)


if __name__ == "__main__":
    main()
