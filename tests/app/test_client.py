"""The typed client against the real app behind a real server, and through a proxy that breaks connections."""

import re
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.api.service import Service
from app.core.settings import Settings
from lejepa_med import client as package
from lejepa_med.client import (
    BusyError,
    CautionWarning,
    Client,
    ClientError,
    ConflictError,
    InvalidError,
    Job,
    JobDetail,
    JobFailedError,
    NotFoundError,
    ServiceError,
    TooLargeError,
    UnreachableError,
)
from lejepa_med.client import http as http_module
from lejepa_med.client.files import File, suffix_of
from lejepa_med.models.folder import load_encoder
from tests.app.helpers import add_dead_job, eventually, png
from tests.app.server import Proxy, served

BAD = (b"bad", ".png")


@pytest.fixture(scope="module")
def url(client: TestClient) -> Iterator[str]:
    with served(client.app) as address:
        yield address


@pytest.fixture(scope="module")
def service(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    made = Proxy(url)
    yield made
    made.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries, which are noted and not made."""
    made: list[float] = []
    monkeypatch.setattr(http_module, "sleep", made.append)
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("Mustermann")
    for number in range(8):
        (folder / f"Mustermann_{number}.png").write_bytes(png(number, bright=number % 2 == 0))
    return sorted(folder.iterdir())


def test_import_is_light() -> None:
    heavy = ("torch", "numpy", "pyarrow", "data_adapters", "app", "fastapi")
    code = f"import sys, lejepa_med.client; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert sorted(package.__all__) == package.__all__ and all(hasattr(package, name) for name in package.__all__)


def test_the_example_in_the_docstring_runs(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an encoder and pictures of these tests in place of the example's."""
    example = (package.__doc__ or "").partition("```python\n")[2].partition("```")[0]
    for told, real in (("http://127.0.0.1:8000", url), ("galaxies", "images"), ("*.fits", "*.png")):
        assert told in example
        example = example.replace(told, real)
    (tmp_path / "night-3").mkdir()
    for number in range(12):
        name = f"{('spiral', 'elliptical')[number % 2]}-{number}.png"
        (tmp_path / "night-3" / name).write_bytes(png(number, bright=number % 2 == 0))
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:12]] == [str(number) for number in range(12)]
    assert "100%" in lines and [line.split()[0] for line in lines[-3:]] == ["elliptical"] * 3


def test_answers_of_a_newer_service_are_read() -> None:
    """Fields and words that this release does not know, at any depth; the service itself refuses them."""
    found = JobDetail.read(
        {
            "id": "0b8c",
            "kind": "merge-archives",
            "state": "paused",
            "progress": 0.5,
            "created": "2026-11-01T00:00:00Z",
            "attempts": 1,
            "priority": "high",
            "error": {"type": "x:y", "title": "t", "status": 422, "detail": "d", "hint": [1]},
            "events": [{"at": "2026-11-01T00:00:00Z", "message": "m", "level": 2}],
        }
    )
    assert (found.kind, found.state, found.has_ended, found.more) == (
        "merge-archives",
        "paused",
        False,
        {"priority": "high"},
    )
    assert found.error is not None and (found.error.kind, found.error.more) == ("y", {"hint": [1]})
    assert found.events[0].more == {"level": 2} and found.events[0].at.year == 2026
    with pytest.raises(ValidationError, match="kind"):
        JobDetail.model_validate(found.model_dump())
    with pytest.raises(ValidationError, match="progress"):
        JobDetail.read({"id": "0b8c"})


def test_encoders_and_readiness(service: Client) -> None:
    eventually(service.is_ready, seconds=60)
    assert [found.id for found in service.encoders()] == ["galaxy", "histology", "images", "mri"]
    detail = service.encoder("mri")
    assert (detail.dim, detail.modality, len(detail.fingerprint)) == (512, "mri", 64)


def test_embed_equals_the_library(service: Client, runs: Path, pictures: list[Path]) -> None:
    encoder = load_encoder(runs / "images" / "encoder")
    records = [next(iter(encoder.adapter.scan(path))) for path in pictures[:3]]
    expected = encoder.embed([encoder.adapter.prepare(record) for record in records])  # type: ignore[arg-type]
    found = service.embed(pictures[0], str(pictures[1]), (pictures[2].read_bytes(), ".png"), encoder="images")
    assert found.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(found.array(), expected, atol=1e-5)


def test_a_folder_is_a_series(service: Client, tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_series

    write_series(tmp_path / "Doe^Jane", phantom(shape=(24, 30, 8)))
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as packed:
        for path in sorted((tmp_path / "Doe^Jane").iterdir()):
            packed.write(path, path.name)
    one = service.embed(tmp_path / "Doe^Jane", tmp_path / "same.zip", encoder="mri")
    assert [item.items > 0 for item in one.items] == [True, True]
    np.testing.assert_allclose(*one.array(), atol=1e-5)


def test_embed_many_counts_over_all_files_and_goes_on_after_bad_ones(service: Client, pictures: list[Path]) -> None:
    taken = []

    def source() -> Iterator[File]:
        for number, file in enumerate([*pictures[:3], BAD, BAD, BAD, *pictures[3:5]]):
            taken.append(number)
            yield file

    items = service.embed_many(source(), encoder="images", batch=2)
    first = next(items)
    assert taken == [0, 1], "files are taken as they are needed"
    found = [first, *items]
    assert [item.index for item in found] == [item.file_index for item in found] == list(range(8))
    assert [item.error.kind if item.error else "" for item in found] == ["", "", "", *["bad-file"] * 3, "", ""]
    whole = service.embed(*pictures[:3], encoder="images").array()
    np.testing.assert_allclose([item.vector for item in found[:3]], whole, atol=1e-5)
    with pytest.raises(NotFoundError):
        next(service.embed_many(pictures, encoder="none"))


def test_cautions_are_warnings_in_the_callers_names(service: Client, tmp_path: Path) -> None:
    """One for each kind of trouble, whatever the number of files and requests; none where the scale is stated."""
    from tests.data.histology import write_tiles

    tiles = write_tiles(tmp_path / "own", slides=["s1", "s2"], per_slide=3)

    def warns(count: int, named: list[str], *, more: str = "Files") -> Any:
        """Exactly one, of so many tiles, which names these files."""
        listed = re.escape(", ".join(named))
        return pytest.warns(CautionWarning, match=f"^{count} of {count} tiles .*'mpp' .* {more}: {listed}\\.$")

    names = [f"'{tile}'" for tile in tiles]
    with warns(2, names[:2]) as told:
        found = service.embed(*tiles[:2], encoder="histology")
    assert len(told) == 1 and told[0].filename == __file__ and f"{found.cautions[0]}." == str(told[0].message)
    with warns(2, names[:2]) as told:
        assert len(list(service.embed_many(tiles, encoder="histology", batch=2))) == 6
    assert len(told) == 1 and told[0].filename == __file__
    with warns(4, [names[0], *names[3:]]):
        service.embed(tiles[0], tmp_path / "own" / "s2", encoder="histology")
    with warns(3, ["key 'A 1, 2'", "key 7", "file 2"]):
        sent = (tiles[2].read_bytes(), ".png")
        service.embed(*tiles[:2], sent, encoder="histology", keys=["A 1, 2", 7, None])
    with warns(6, names[:5], more="The first files") as told:
        job = service.train_probe(tiles, [*"ababab"], encoder="histology", folds=2)
    assert told[0].filename == __file__
    assert job.cautions and service.wait(job, timeout=60).state == "succeeded"
    (kept,) = service.probe(job.id).cautions
    assert kept.endswith("The first files (by position, from 0): 0, 1, 2, 3, 4")
    with warns(1, names[:1]):
        service.predict_files(job.id, tiles[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CautionWarning)
        assert service.embed(*tiles[:2], encoder="histology", mpp=0.2).cautions == []
        assert len(list(service.embed_many(tiles[:2], encoder="histology", mpp=0.2))) == 2
        service.predict_files(job.id, tiles[:1], mpp=0.2)


def test_probe_from_files_to_prediction(service: Client, pictures: list[Path]) -> None:
    labels = ["bright" if number % 2 == 0 else "dark" for number in range(8)]
    job = service.train_probe(pictures, labels, encoder="images", name="light", folds=2, groups=[*"aabbccdd"])
    seen: list[Job] = []
    done = service.wait(job, progress=seen.append, timeout=60, poll=0.05)
    assert done.state == "succeeded" and done.started is not None and done.result == f"/v1/probes/{job.id}"
    assert seen[-1].progress == 1.0 and [one.progress for one in seen] == sorted(one.progress for one in seen)
    probe = service.probe(job.id)
    assert (probe.name, probe.count, probe.labels) == ("light", 8, ["bright", "dark"]) and probe.metrics
    assert job.id in [one.id for one in service.probes()] and job.id in [one.id for one in service.jobs()]
    found = service.predict_files(job.id, [(png(50, bright=True), ".png"), (png(51, bright=False), ".png"), BAD])
    assert [one.label for one in found] == ["bright", "dark", None]
    assert found[2].error is not None and found[2].error.remedy
    with pytest.raises(ConflictError) as caught:
        service.cancel(job)
    assert caught.value.kind == "job-ended" and caught.value.remedy and caught.value.reference


def test_probe_on_an_archive_and_search(service: Client) -> None:
    (archive,) = [one for one in service.archives() if one.name == "table"]
    items = list(service.archive_items("table", page=10))
    assert len(items) == archive.count == 24
    labels = {item.id: "ab"[place % 2] for place, item in enumerate(items)}
    job = service.train_probe_on("table", labels, groups={items[0].id: "own"}, folds=2)
    assert service.wait(job, timeout=60, poll=0.05).has_ended
    asked = [items[3].id, items[5].id]
    assert [one.id for one in service.predict_items(job.id, "table", asked)] == asked
    near = service.search("table", asked, k=3)
    assert [one.id for one in near] == asked and all(len(one.hits) == 3 for one in near)
    assert asked[0] not in [hit.id for hit in near[0].hits] and -1 <= near[0].hits[0].score <= 1.001
    dark = (png(0, bright=False), ".png")
    sent = service.embed(dark, encoder="images")
    by_vector = service.search_vectors("table", sent.array(), fingerprint=sent.fingerprint, k=2)
    by_file = service.search_files("table", dark, k=2)
    assert [hit.id for hit in by_vector[0].hits] == [hit.id for hit in by_file[0].hits]


def test_lists_are_read_page_by_page_to_their_end(url: str, service: Client, pictures: list[Path]) -> None:
    sent: list[str] = []

    def small(request: httpx.Request) -> None:
        """Ask for pages of two where the client asks for the largest ones."""
        if request.url.params.get("limit") == "1000":
            request.url = request.url.copy_set_param("limit", "2")
        sent.append(request.url.raw_path.decode())

    labels = {item.id: "ab"[place % 2] for place, item in enumerate(service.archive_items("table"))}
    jobs = [service.train_probe_on("table", labels, folds=2) for _ in range(3)]
    probe, *_ = [service.wait(job, timeout=60, poll=0.05).id for job in jobs]
    for job in [service.apply_probe(probe, "table") for _ in range(3)]:
        service.wait(job, timeout=60, poll=0.05)
    uploads = [service.send_upload(pictures[:5], name=f"paged {n}", modality="images") for n in range(3)]
    for job in uploads:
        service.wait(job, timeout=60, poll=0.05)
    with httpx.Client(event_hooks={"request": [small]}) as hooked:
        paged = Client(url, http=hooked)
        lists: dict[str, tuple[list[str], list[str]]] = {
            "probes": ([one.id for one in paged.probes()], [one.id for one in service.probes()]),
            "uploads": ([one.id for one in paged.uploads()], [one.id for one in service.uploads()]),
            "applications": (
                [one.id for one in paged.applications(probe)],
                [one.id for one in service.applications(probe)],
            ),
            "jobs": ([one.id for one in paged.jobs(limit=1000)], [one.id for one in service.jobs(limit=1000)]),
        }
        for name, (found, whole) in lists.items():
            assert found == whole and len(set(found)) == len(found) >= 3, name
            assert len([path for path in sent if f"/{name}?" in path]) == -(-len(found) // 2), name
        assert [one.id for one in paged.jobs(limit=3)] == lists["jobs"][1][:3]
        sent.clear()
        assert [one.id for one in paged.archive_items("table", page=10)] == list(labels)
        table = "/v1/archives/table/ids"
        assert sent == [f"{table}?limit=10", f"{table}?offset=10&limit=10", f"{table}?offset=20&limit=10"]
        sent.clear()
        items = [one.id for one in paged.upload_items(uploads[0].id, page=2)]
        assert items == [one.id for one in service.upload_items(uploads[0].id)] and len(set(items)) == 5
        assert len(sent) == 3


def test_a_list_that_repeats_is_an_error(client: TestClient) -> None:
    async def without_query(scope: Any, receive: Any, send: Any) -> None:
        """The service behind something that removes the query of each address."""
        await client.app({**scope, "query_string": b"limit=10"}, receive, send)  # type: ignore[arg-type]

    with served(without_query) as address, Client(address) as lost:
        found = []
        with pytest.raises(ClientError, match="list repeats"):
            for item in lost.archive_items("table"):
                found.append(item.id)
        assert len(found) == 20


def test_cancelled_job(service: Client, pictures: list[Path], gate: threading.Event) -> None:
    first, last = (service.train_probe(pictures, [*"abababab"], encoder="images", folds=2) for _ in range(2))
    assert service.cancel(last).state == "cancelled"
    with pytest.raises(JobFailedError) as caught:
        service.wait(last)
    assert caught.value.job.state == "cancelled"
    with pytest.raises(TimeoutError):
        service.wait(first, timeout=0, poll=0.01)
    with pytest.raises(ConflictError) as refused:
        service.retry(last)
    assert refused.value.kind == "job-not-dead"
    gate.set()
    service.wait(first, timeout=60)


def test_from_an_upload_to_predictions_of_the_whole_archive(
    service: Client, client: TestClient, pictures: list[Path], tmp_path: Path
) -> None:
    sent = [*pictures, BAD, (pictures[0].read_bytes(), ".png")]
    labels = [*["bright", "dark"] * 4, None, None]
    job = service.send_upload(
        sent, name="of the client", encoder="images", embed=True, archive="sent", labels=labels, groups=[*"aabbccdd--"]
    )
    assert service.wait(job, timeout=60, poll=0.05).result == f"/v1/uploads/{job.id}"
    upload = service.upload(job.id)
    assert (upload.name, upload.state, upload.files, upload.items) == ("of the client", "ready", 10, 9)
    assert (upload.refused, upload.duplicates, upload.catalog_unused) == (1, 1, 1)
    assert job.id in [one.id for one in service.uploads()] and upload.embedding is not None
    items = list(service.upload_items(job.id, page=4))
    assert [one.file_index for one in items if one.label == "dark"] == [1, 3, 5, 7]
    assert len({one.group for one in items}) == 5 and "a" not in {one.group for one in items}

    service.wait(upload.embedding, timeout=60, poll=0.05)
    archive = service.archive("sent")
    assert (archive.count, archive.upload, archive.groups) == (9, job.id, 5) and archive.created is not None
    again = service.embed_archive("sent-again", upload=job.id, encoder="images")
    service.wait(again, timeout=60, poll=0.05)
    with pytest.raises(ConflictError):
        service.embed_archive("sent", upload=job.id, encoder="images")
    assert service.download_archive("sent", tmp_path / "sent.parquet").read_bytes()[:4] == b"PAR1"
    with pytest.raises(FileExistsError):
        service.download_archive("sent", tmp_path / "sent.parquet")

    known = {one.id: one.label for one in items if one.label}
    first = service.wait(service.train_probe_on("sent", dict(list(known.items())[:6]), folds=2), timeout=60, poll=0.05)
    candidates = service.uncertain(first.id, "sent", limit=2)
    assert len(candidates) == 2 and not {one.id for one in candidates} & set(list(known)[:6])
    assert all(one.distance >= 0 and 0 <= (one.uncertainty or 0) <= 1 and one.group for one in candidates)
    second = service.wait(service.add_labels_on(first.id, "sent", dict(list(known.items())[6:])), timeout=60, poll=0.05)
    third = service.wait(service.add_labels(second.id, [(png(60), ".png")], ["bright"]), timeout=60, poll=0.05)
    probe = service.probe(third.id)
    assert (probe.kind, probe.version, probe.series, probe.parent) == ("classification", 3, first.id, second.id)
    assert [one.version for one in probe.versions] == [3, 2, 1] and probe.more == {}
    (found,) = service.predict_files(third.id, [(png(61), ".png")])
    assert found.novelty is not None and found.uncertainty is not None and found.more == {}

    applied = service.wait(service.apply_probe(third.id, "sent"), timeout=60, poll=0.05)
    assert [one.id for one in service.applications(third.id)] == [applied.id]
    assert service.application(applied.id).count == 9
    rows = service.download_application(applied.id, tmp_path / "found.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 10 and rows[0].startswith("id,")
    service.remove_application(applied.id)
    assert service.applications(third.id) == []

    kept: Service = client.app.state.service  # type: ignore[attr-defined]
    kept.archiving.accept_plan("d" * 32, kept.archiving.plan("late", "images", upload=job.id))
    add_dead_job(kept.store, "d" * 32, kept.archiving.kind)
    assert "d" * 32 in [one.id for one in service.jobs(state="dead", kind="embed-archive")]
    service.wait(service.retry("d" * 32), timeout=60, poll=0.05)

    for name in ("sent", "sent-again", "late"):
        service.remove_archive(name)
    service.remove_upload(job.id)
    with pytest.raises(NotFoundError):
        service.archive("sent")
    with pytest.raises(NotFoundError):
        service.upload(job.id)
    with pytest.raises(ValueError, match="takes no label"):
        service.send_upload([pictures[0].parent], labels=["a"])
    with pytest.raises(ValueError, match="argument"):
        service.send_upload(pictures, labels=["a"])


def test_errors_carry_the_service_s_words(service: Client, client: TestClient) -> None:
    with pytest.raises(NotFoundError) as missing:
        service.job("Mustermann")
    assert (missing.value.kind, missing.value.status) == ("not-found", 404)
    assert missing.value.remedy == "GET /v1/jobs lists the jobs." and len(missing.value.reference or "") == 32
    with pytest.raises(InvalidError) as bad:
        service.embed(BAD, encoder="images", region=(0, 0, 1, 1))
    assert bad.value.kind == "not-possible"
    with pytest.raises(InvalidError) as none:
        service.embed(BAD, encoder="images")
    assert (none.value.problem.index, none.value.kind) == (0, "bad-file") and isinstance(none.value, ServiceError)
    with pytest.raises(TooLargeError):
        service.predict_items("x", "table", ["x" * 99] * 700)


def test_a_busy_service_is_asked_again_after_the_time_it_names(
    service: Client, client: TestClient, pauses: list[float], monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    drain = client.app.state.drain  # type: ignore[attr-defined]

    def wait_once(seconds: float) -> None:
        pauses.append(seconds)
        drain.since = None

    drain.begin()
    try:
        monkeypatch.setattr(http_module, "sleep", wait_once)
        job = service.train_probe(pictures, [*"abababab"], encoder="images", folds=2)  # refused, so it may be repeated
        assert pauses == [5.0]
        monkeypatch.undo()
        service.wait(job, timeout=60)
        drain.begin()
        assert not service.is_ready()
        monkeypatch.setattr(http_module, "sleep", pauses.append)
        with pytest.raises(BusyError) as caught:
            service.embed(pictures[0], encoder="images")
        assert caught.value.retry_after == 5 and caught.value.kind == "draining"
        assert len(pauses) == 6 and pauses == sorted(pauses)
    finally:
        drain.since = None


def test_broken_connections(proxy: Proxy, service: Client, pictures: list[Path], pauses: list[float]) -> None:
    with Client(proxy.url, retries=2) as shaky:
        proxy.limits = [0, 0]
        assert len(shaky.encoders()) == 4, "asked again"
        assert len(pauses) == 2 and pauses[0] < pauses[1]
    with Client(proxy.url, retries=2) as shaky:
        proxy.limits = [20, 20, 20]
        with pytest.raises(UnreachableError):
            shaky.encoders()
    before = len(service.jobs(limit=1000))
    with Client(proxy.url, retries=5) as shaky:
        proxy.limits, proxy.connections = [0] * 5, 0
        with pytest.raises(UnreachableError):
            shaky.train_probe(pictures, [*"abababab"], encoder="images", folds=2)
        assert proxy.connections == 1, "a job that may have been accepted is not sent twice"
    assert len(service.jobs(limit=1000)) <= before + 1
    for job in service.jobs(limit=1000):
        if not job.has_ended:
            service.wait(job, timeout=60)
    with Client("http://127.0.0.1:9", retries=1) as nobody:
        assert not nobody.is_ready()
        with pytest.raises(UnreachableError):
            nobody.encoders()


def test_an_answer_that_breaks_off_is_taken_up_where_it_broke(
    proxy: Proxy, service: Client, pictures: list[Path], pauses: list[float]
) -> None:
    expected = [item.vector for item in service.embed_many(pictures, encoder="images")]
    with Client(proxy.url, retries=3) as shaky:
        proxy.limits = [30_000]  # of some 60,000
        found = list(shaky.embed_many(pictures, encoder="images"))
    assert [item.index for item in found] == list(range(8))
    np.testing.assert_allclose([item.vector for item in found], expected, atol=1e-5)
    assert proxy.connections == 2 and len(pauses) == 1
    with Client(proxy.url, retries=1) as shaky, pytest.raises(UnreachableError):
        proxy.limits = [30_000] * 2
        shaky.embed(*pictures, encoder="images")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("Jane Doe.nii.gz", ".nii.gz"),
        ("1.2.840.113619.2", ""),
        ("doe.jane.PNG", ".png"),
        ("a", ""),
        ("x.fits.fz", ".fits.fz"),
        ("smith.gz", ".gz"),
        ("scan.dcm.zip", ".zip"),
    ],
)
def test_only_the_suffix_of_a_name_is_sent(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_names_are_never_sent(proxy: Proxy, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    with httpx.Client(event_hooks={"request": [lambda request: sent.append(request.read())]}) as hooked:
        Client(proxy.url, key="lj_1_secret", http=hooked).embed(pictures[0], encoder="images")
    assert b'filename="0.png"' in sent[0] and b"Mustermann" not in sent[0]


def test_labels_pictures_and_maps(service: Client, settings: Settings, tmp_path: Path) -> None:
    assert settings.archives_dir is not None
    settings.archives_dir.mkdir(exist_ok=True)
    items = [one.id for one in service.archive_items("table")]
    assert service.thumbnail("table", items[0])[:4] == b"RIFF"
    assert service.map_points("table").shape == (len(items), 2)
    assert service.archive_map("table").content == service.columns("table").content
    assert service.column("id", "table") == items and service.column("label", "table") == [None] * len(items)
    made = service.new_label_set("by hand", "table", classes=["a", "b"])
    labels = {item: "ab"[place % 2] for place, item in enumerate(items[:8])}
    assert service.change_labels(made.id, labels, version=1).version == 2
    assert made.id in [one.id for one in service.label_sets("table")]
    assert {one.id: one.label for one in service.label_set(made.id).labels} == labels
    with pytest.raises(ConflictError) as caught:
        service.change_labels(made.id, {items[0]: "b"}, version=1)
    assert caught.value.problem.more["conflicts"] == [{"id": items[0], "yours": "b", "theirs": "a"}]
    table = service.export_labels(made.id)
    assert service.import_labels(made.id, table, replace=True).imported == 8
    probe = service.wait(service.train_probe_from(made.id, name="ab", folds=2)).id
    assert service.probe(probe).count == 8
    assert service.next_to_label(made.id, probe=probe, limit=2).by == "uncertainty"
    application = service.wait(service.apply_probe(probe, "table")).id
    assert set(service.column("label", application=application)) <= {"a", "b"}
    service.remove_label_set(made.id)
    told = service.inspect((png(7), ".png"), encoder="images", archive="table", k=2)
    assert len(told.neighbours or []) == 2 and probe in [one.probe for one in told.predictions]
    assert service.evaluation(probe).scored == 8
    assert service.training_curve("images").training == {}
    with pytest.raises(NotFoundError, match="report"):
        service.download_report("images", tmp_path / "report.html")
    assert service.folders().path == ""
