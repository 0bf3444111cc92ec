"""Names planted wherever a format has room for them, the whole way from scan to the service, and a search of the rest.

What may hold paths is named here (LOCAL); everything else that is written, printed or answered is searched.
"""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import typing
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pydantic
import pytest

from app.core.errors import describe
from data_adapters.base import rejected
from data_adapters.errors import MissingExtraError
from data_adapters.identity import item_id, pseudonym
from data_adapters.registry import BUILT_IN, load_class
from tests.app.helpers import eventually, wait
from tests.data.planted import FOLDER, NAME, PATIENT, found_in, plant

pytestmark = pytest.mark.timeout(900)  # half a minute alone; commands and a service on a busy machine
ROOT = Path(__file__).parents[1]
# Files of a run folder that stay with the archive's owner; docs/privacy.md names the same.
LOCAL = {"local.yaml", "manifest.parquet", "rejected.csv", "bad_files.jsonl", "duplicates.csv"}
JOURNAL = ".scan"  # a folder of what the next scan need not read again
TINY = (
    "--views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone test_vit --epochs 1 "
    "--model.projector-hidden 32 --model.projector-dim 8 --objective.slices 16 --data.bad-limit 1 "
    "--batch-size 4 --train.log-every 1 --train.accelerator cpu --data.workers 0"
).split()
SIZES = ("n_global=2", "n_local=0", "global_size=32", "local_size=16")
OPTIONS = {
    "images": ["hflip=0"],
    "mri": ["slices=3"],
    "histology": ["tile_px=64", "tiles=4"],
    "galaxy": ["bands=g,r,z"],
}
UNWRITTEN = {"duplicates.csv"}  # there are none
UNVERIFIED = "images"  # its damaged files are met during training and embedding
COMMANDS = "import json, sys\nfrom lejepa_med.cli import main\nfor line in json.load(sys.stdin): main(line)"


def content(file: Path) -> bytes:
    """A file's bytes; of a Parquet file, which is compressed, also its table and metadata as text."""
    raw = file.read_bytes()
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        raw += str(table.to_pydict()).encode() + str(table.schema.metadata).encode()
    return raw


def leaks(folder: Path) -> dict[str, set[str]]:
    """Planted words by file or folder below `folder`: in names everywhere, in contents but for LOCAL files."""
    found = {}
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        words = found_in(name)
        if file.is_file() and file.name not in LOCAL and JOURNAL not in file.parts:
            words |= found_in(content(file))
        if words:
            found[name] = words
    return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("privacy")


@pytest.fixture(scope="module")
def archives(work: Path) -> dict[str, Path]:
    return {modality: plant(work, modality) for modality in OPTIONS}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LEJEPA_SALT": "test", "LEJEPA_CACHE": "off"}


@pytest.fixture(scope="module")
def printed(work: Path, archives: dict[str, Path], environment: dict[str, str]) -> bytes:
    """What the commands of the README print for all archives; they leave runs, tables, probes and predictions."""
    steps = []
    for modality, archive in archives.items():
        run, table, probe = work / "runs" / modality, work / "runs" / f"{modality}-table", work / "probes" / modality
        labels, options = str(archive / "labels.csv"), [f"--option={one}" for one in OPTIONS[modality]]
        base = [str(archive), "--modality", modality]
        catalog = ["--catalog", labels, *options]
        verify = ["--no-data.verify"] if modality == UNVERIFIED else []
        sizes = [f"--option={one}" for one in SIZES]
        scan = ["--out", str(work / "scans" / modality), "--catalog", labels, *sizes, *options]
        steps += [
            ["scan", *base, *scan],
            ["pretrain", *base, "--out", str(run), *catalog, *TINY, *verify],
            [
                "embed",
                str(run),
                str(archive),
                "--out",
                str(table),
                "--catalog",
                labels,
                "--workers",
                "0",
                "--thumbnails",
            ],
            ["probe", str(table), labels, "--archive", str(archive), "--out", str(probe), "--folds", "2"],
            ["predict", str(probe), str(table), "--out", str(work / "predictions" / f"{modality}.csv")],
        ]
        for suffix in ("csv", "parquet", "fits"):
            exported = str(work / "predictions" / f"{modality}-table.{suffix}")
            steps += [["export", str(table), "--out", exported, "--probe", str(probe), "--vectors"]]
    tiles, slides = str(work / "runs" / "tiles"), str(archives["histology"])
    steps += [["embed", str(work / "runs" / "histology"), slides, "--per-tile", "--out", tiles, "--workers", "0"]]
    steps[-1] += ["--catalog", str(archives["histology"] / "labels.csv")]
    for suffix in ("h5", "geojson", "png"):
        steps += [["export", tiles, "--as", suffix, "--out", str(work / "predictions" / suffix)]]
        steps[-1] += [] if suffix == "h5" else ["--probe", str(work / "probes" / "histology")]
    model = str(work / "predictions" / "model.onnx")
    steps += [
        ["export", str(work / "runs" / "histology"), "--out", model, "--probe", str(work / "probes" / "histology")]
    ]
    dry = ["--out", str(work / "dry"), *catalog, *verify, *TINY, "--dry-run"]
    page = ["--out", str(work / "predictions" / "diff.html")]
    steps += [["pretrain", *base, *dry], ["diff", *(str(work / "runs" / name) for name in ("images", "mri")), *page]]
    # a process of its own, so that what C libraries print is heard too
    command = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(command, input=json.dumps(steps).encode(), env=environment, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done.stdout + done.stderr


def test_nothing_planted_is_printed_or_lies_in_what_is_shared(work: Path, printed: bytes) -> None:
    assert printed.count(b"8 predictions") + printed.count(b"9 predictions") >= 3, printed[-2000:]
    assert found_in(printed) == set()
    for folder in ("runs", "probes", "predictions", "scans"):
        assert leaks(work / folder) == {}, folder


def test_what_is_kept_local_is_where_the_search_would_have_found_it(work: Path, printed: bytes) -> None:
    """The search works, and no more than these files hold paths."""
    run = work / "runs" / UNVERIFIED
    assert {file.name for file in run.iterdir() if file.is_file() and found_in(content(file))} == LOCAL - UNWRITTEN
    assert {file.name for file in (work / "scans" / "mri").iterdir()} - {JOURNAL} <= LOCAL
    refused = (work / "scans" / "mri" / "rejected.csv").read_text()
    assert "secondary capture" in refused and "text is burned into the image" in refused
    for modality in OPTIONS:
        shared = {file.name for file in (work / "runs" / modality / "encoder").iterdir()}
        assert shared == {"README.md", "config.json", "lejepa_med.json", "model.safetensors"}


def test_ids_are_salted(work: Path, printed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(next((work / "runs" / "mri-table").glob("part-*.parquet")))
    manifest = pq.read_table(work / "scans" / "mri" / "manifest.parquet").to_pylist()
    row = next(row for row in manifest if row["path"].endswith("_0.nii.gz"))
    known = row["path"], "", row["digest"]
    monkeypatch.setenv("LEJEPA_SALT", "test")
    assert item_id(*known) in table["id"].to_pylist()
    assert pseudonym("group", f"{NAME} 0") in table["group"].to_pylist()
    monkeypatch.setenv("LEJEPA_SALT", "another")
    assert item_id(*known) not in table["id"].to_pylist()


@contextmanager
def serving(runs: Path, data: Path, log: Path, environment: dict[str, str]) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "lejepa_med.cli", "serve", str(runs), "--port", "0", "--data-dir", str(data)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=ROOT)
    try:
        end = time.monotonic() + 600  # seconds, alone 5
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=address.group(), timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def parts(files: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    """The `files` argument of httpx, under the files' own names."""
    return [("files", (file.name, file.read_bytes())) for file in files]


def zipped(folder: Path) -> tuple[str, tuple[str, bytes]]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for file in sorted(folder.iterdir()):
            target.write(file, f"{NAME}/{PATIENT}/{file.name}")
    return ("files", (f"{NAME}.zip", packed.getvalue()))


def to_sender(answer: httpx.Response) -> httpx.Response:
    """The answer without the names in the zip, which its sender, and nobody else, gets back."""
    body = answer.json()
    names = [item.pop("name") for item in body["items"]]
    assert names and all(name.startswith(f"{NAME}/{PATIENT}/") for name in names)
    return httpx.Response(answer.status_code, json=body, request=answer.request)


def converse(client: httpx.Client, archives: dict[str, Path]) -> Iterator[httpx.Response]:
    """Every route with planted input: good files and bad ones, probes from files and from ids, names in addresses."""
    probes = []
    for modality, archive in archives.items():
        files = sorted(file for file in archive.rglob("*_?.*") if file.is_file())
        bad = sorted(file for file in archive.rglob("*_??.*") if file.is_file())
        fields = {"encoder": modality}
        yield client.post("/v1/embeddings", files=parts(files[:3]), data=fields)
        yield client.post("/v1/embeddings", files=[*parts(files[:1]), *parts(bad)], data=fields)
        for file in bad:
            yield client.post("/v1/embeddings", files=parts([file]), data=fields)
        labels = {"labels": '["one", "one", "two", "two"]', "groups": json.dumps([f"{NAME} {n}" for n in range(4)])}
        four = [file for file in files if file.suffix != ".dcm"][:4]
        yield client.post("/v1/probes", files=parts(four), data={**fields, **labels, "folds": "2"})
        ids = client.get(f"/v1/archives/{modality}-table/ids")
        yield ids
        items = [
            {"id": item["id"], "label": "ab"[n % 2], "group": f"{NAME} {n}"}
            for n, item in enumerate(ids.json()["items"])
        ]
        body = {"archive": f"{modality}-table", "labels": items, "folds": 2}
        trained = client.post("/v1/probes", json=body)
        yield trained
        probes.append((trained.json()["id"], files[:2], bad, items))
        yield client.post("/v1/probes", json={**body, "labels": [*items, {"id": NAME, "label": "a"}]})
    series = next(path for path in archives["mri"].rglob("*_10") if path.is_dir())
    yield to_sender(client.post("/v1/embeddings", files=[zipped(series)], data={"encoder": "mri"}))
    truncated = [*archives["images"].rglob("*_20.jpg"), *archives["images"].rglob("*_[036].png")]
    labels = {"labels": '["a", "a", "b", "b"]', "encoder": "images"}
    failing = client.post("/v1/probes", files=parts(truncated), data=labels)  # its header is good: the job fails
    assert failing.status_code == 202, failing.text
    yield failing
    for job in client.get("/v1/jobs").json()["jobs"]:
        wait(client, job["id"])
        yield client.get(f"/v1/jobs/{job['id']}")
    for probe, good, bad, items in probes:
        yield client.get(f"/v1/probes/{probe}")
        yield client.post(f"/v1/probes/{probe}/predictions", files=parts([*good, *bad]))
        wanted = {"archive": client.get("/v1/archives").json()["archives"][0]["name"], "ids": [items[0]["id"], NAME]}
        yield client.post(f"/v1/probes/{probe}/predictions", json=wanted)
    yield client.post("/v1/embeddings", files=parts(truncated), data={"encoder": "plugin"})
    for place in ("encoders", "encoders/images", "encoders/plugin", "archives", "probes", "jobs", f"jobs/{NAME}", NAME):
        yield client.get(f"/v1/{place}")
    for place in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
        yield client.get(place)


def test_the_service_neither_answers_nor_logs_nor_keeps_what_was_planted(
    work: Path, archives: dict[str, Path], printed: bytes, environment: dict[str, str]
) -> None:
    broken = shutil.copytree(work / "runs" / "images" / "encoder", work / "runs" / "plugin" / "encoder")
    info = json.loads((broken / "lejepa_med.json").read_text())
    info["adapter"]["adapter"] = f"/home/{FOLDER}/{PATIENT}.py:Adapter"
    (broken / "lejepa_med.json").write_text(json.dumps(info))
    data, log = work / "data", work / "service.log"
    with serving(work / "runs", data, log, environment) as client:
        answers = list(converse(client, archives))
        # the inputs of an ended job are removed a moment after its outcome is told
        eventually(lambda: not any(file for folder in ("jobs", "tmp") for file in (data / folder).iterdir()))
    statuses = [answer.status_code for answer in answers]
    assert {200, 202, 404, 422} <= set(statuses) and max(statuses) < 500
    jobs = [answer.json() for answer in answers if "/v1/jobs/" in str(answer.url) and answer.status_code == 200]
    assert [job["state"] for job in jobs].count("succeeded") == 2 * len(archives), jobs
    assert [job["error"]["type"] for job in jobs if job["state"] == "failed"] == ["urn:lejepa-med:problem:bad-file"]
    for answer in answers:
        assert found_in(answer.text + str(answer.headers)) == set(), answer.text[:500]
        assert str(work) not in answer.text
    said = log.read_text()
    assert "POST /v1/embeddings" in said and found_in(said) == set() and str(work) not in said
    assert leaks(data) == {}
    assert data.stat().st_mode & 0o077 == 0


def test_foreign_words_stop_at_the_border(caplog: pytest.LogCaptureFixture) -> None:
    """The words of other people's exceptions quote paths and values; they reach neither rejected.csv nor a client."""
    caplog.set_level(logging.DEBUG)
    shown = rejected("file.nii", OSError(5, f"cannot read {NAME}", f"/data/{FOLDER}/x.nii"))
    assert shown.reason == "unreadable (OSError)" and found_in(shown.reason + shown.remedy) == set() and shown.remedy
    missing = MissingExtraError(
        f"cannot import x from y (/home/{FOLDER}/y.so)", remedy="Install it with: pip install z"
    )
    problem = describe(missing)
    assert "pip install z" in problem.remedy and found_in(problem.model_dump_json() + caplog.text) == set()


@pytest.mark.parametrize("modality", BUILT_IN)
def test_no_option_of_an_adapter_is_a_path(modality: str) -> None:
    """Options are saved in the encoder folder, which is shared, unless they are excluded from it."""

    def types(annotation: Any) -> Iterator[Any]:
        yield annotation
        for part in typing.get_args(annotation):
            yield from types(part)

    fields: dict[str, pydantic.fields.FieldInfo] = load_class(modality).Options.model_fields
    assert not [name for name, field in fields.items() if Path in types(field.annotation) and not field.exclude]
