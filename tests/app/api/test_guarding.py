"""What must not get in, and what must not get out."""

import contextlib
import io
import json
import logging
import resource
import socket
import stat
import subprocess
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from app.core import logs
from app.core.errors import describe
from app.core.settings import Settings
from app.uploads.bodies import safe_suffix
from app.uploads.unzip import unzip
from data_adapters.errors import BadFileError
from tests.app.helpers import eventually, files, png


def zipped(entries: dict[str, bytes], *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            target.writestr(entry, content)
    return packed.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zipped({"../outside.png": png()}),
        zipped({"a/../../outside.png": png()}),
        zipped({"/etc/outside.png": png()}),
        zipped({"..\\outside.png": png()}),
        zipped({"C:\\outside.png": png()}),
        zipped({"link.png": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777),
        zipped({f"{n}.png": b"0" * (20 << 20) for n in range(2)}),  # beyond the limit of unpacked bytes
        zipped({"bomb.png": b"0" * (24 << 20)}),  # ratio 1000, within the limit of bytes
        zipped({}),
        zipped({"DICOMDIR": b"x", "__MACOSX/a.png": b"x"}),
        zipped({"a.png": png()})[:-30],
        b"PK\x03\x04 no zip",
    ],
)
def test_bad_zips(client: TestClient, runs: Path, content: bytes) -> None:
    before = {path for path in runs.parent.rglob("*") if "lejepa-data" not in path.parts}
    answer = client.post("/v1/embeddings", files=files(content, name="a.zip"), data={"encoder": "images"})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:lejepa-med:problem:bad-file"), answer.text
    assert "zip" in answer.json()["detail"].lower()
    assert {path for path in runs.parent.rglob("*") if "lejepa-data" not in path.parts} == before


def test_zip_with_too_many_entries_or_a_lie_about_sizes(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "many.zip").write_bytes(zipped({f"{n}.png": b"x" for n in range(11)}))
    few = settings.model_copy(update={"max_zip_entries": 10})
    with pytest.raises(BadFileError, match="more than 10 entries"):
        unzip(tmp_path / "many.zip", tmp_path / "many", settings=few, budget=1 << 20)
    # The directory says 10 bytes, the stream holds 1 MiB: real bytes are what counts.
    honest = zipped({"a.png": b"0" * (1 << 20)})
    (tmp_path / "lie.zip").write_bytes(honest.replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(BadFileError):
        unzip(tmp_path / "lie.zip", tmp_path / "lie", settings=settings, budget=1000)
    assert sum(path.stat().st_size for path in (tmp_path / "lie").iterdir()) <= 1000


def test_entries_of_a_zip_are_items_under_our_own_names(client: TestClient) -> None:
    content = zipped({"b/Jane.png": png(1), "a/Doe.png": png(2), "notes.txt": b"Doe"})
    body = client.post("/v1/embeddings", files=files(content, name="x.ZIP"), data={"encoder": "images"}).json()
    one = client.post("/v1/embeddings", files=files(png(2), png(1)), data={"encoder": "images"}).json()
    assert [item["file_index"] for item in body["items"]] == [0, 0]
    for found, expected in zip(body["items"], one["items"], strict=True):
        assert found["vector"] == pytest.approx(expected["vector"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("Jane Doe.nii.gz", ".nii.gz"),
        ("../../etc/passwd", ""),
        ("..\\x.DCM", ".dcm"),
        ("1.2.840.113619.2", ""),
        ("doe.jane.png", ".png"),
        ("a.p;ng", ""),
        ("a." + "x" * 40, ""),
        ("slide.svs", ".svs"),
        ("smith.gz", ".gz"),
        ("cutout.fits.fz", ".fits.fz"),
        ("", ""),
    ],
)
def test_only_a_known_shape_of_suffix_is_kept(name: str, suffix: str) -> None:
    assert safe_suffix(name) == suffix


def test_names_and_identifiers_never_come_back(
    client: TestClient, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Planted names in file names, in a DICOM header and in values: neither in an answer nor in what is logged."""
    from tests.data.mri import phantom, write_series

    paths = write_series(tmp_path / "series", phantom())
    slice_ = paths[3].read_bytes()
    broken = slice_[: len(slice_) // 2]
    name = "Mustermann_Erika_47110815.dcm"
    caplog.set_level(logging.DEBUG)
    heard = logging.StreamHandler(stream := io.StringIO())
    heard.addFilter(logs.heard)
    logging.getLogger().addHandler(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers = [
                client.post("/v1/embeddings", files=files(content, name=name), data={"encoder": encoder})
                for content in (slice_, broken, b"", b"junk")
                for encoder in ("mri", "images", "Mustermann")
            ]
            answers += [
                client.get("/v1/probes/Mustermann"),
                client.get("/Mustermann/47110815"),
                client.post("/v1/probes", json={"archive": "Mustermann", "labels": [], "Erika": 1}),
                client.post(
                    "/v1/probes", content=b'{"archive": Mustermann}', headers={"content-type": "application/json"}
                ),
                client.post("/v1/embeddings", files=[("Mustermann", (name, b"x"))]),
            ]
    finally:
        logging.getLogger().removeHandler(heard)
    assert any(answer.status_code == 200 for answer in answers)
    text = "".join(answer.text + str(answer.headers) for answer in answers) + stream.getvalue()
    assert "POST /v1/embeddings" in stream.getvalue(), "the log was listened to"
    planted = (
        "Mustermann",
        "47110815",
        "Erika",
        "Doe",
        "Jane",
        "1.2.826",
        'P1"',
        str(settings.data),
        str(settings.runs_dir),
    )
    for word in planted:
        assert word not in text, word


def test_errors_of_the_framework_are_problems_too(client: TestClient) -> None:
    for answer, status in (
        (client.get("/v2"), 404),
        (client.put("/v1/encoders"), 405),
        (client.get("/v1/jobs?limit=x"), 422),
        (client.get("/v1/encoders/none"), 404),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["remedy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_unexpected_errors_show_no_internals(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    try:
        raise OSError(5, "secret", "/archive/Mustermann.nii")
    except OSError as error:
        found = describe(error)
    assert found.status == 500 and found.reference and found.reference in caplog.text
    assert "Mustermann" not in found.model_dump_json() + caplog.text
    assert "secret" not in found.model_dump_json() + caplog.text


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEJEPA_MAX_UPLOAD_BYTES", "1000")
    monkeypatch.setenv("LEJEPA_ALLOW_UNAUTHENTICATED", "1")
    settings = Settings(runs_dir=tmp_path / "runs")
    assert (settings.max_upload_bytes, settings.allow_unauthenticated) == (1000, True)
    assert settings.data == (tmp_path / "lejepa-data").resolve()


def test_data_directory_is_private(client: TestClient, settings: Settings) -> None:
    assert settings.data.stat().st_mode & 0o077 == 0
    assert json.loads(client.get("/healthz").text) == {"status": "ok"}


# --- clients that stall, and a disk that is full --------------------------------------------------------------------


@pytest.fixture
def served(client: TestClient) -> Iterator[tuple[str, int]]:
    """The app over a real socket, beside the client's own lifespan."""
    server = uvicorn.Server(uvicorn.Config(client.app, port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


@pytest.mark.parametrize("pause", [None, 0.1])
def test_a_client_that_stalls_or_trickles_is_cut(
    client: TestClient, served: tuple[str, int], monkeypatch: pytest.MonkeyPatch, pause: float | None
) -> None:
    service = client.app.state.service
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"upload_idle_seconds": 0.5}))
    tmp = service.settings.data / "tmp"
    head = (
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 1000000\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection(served, timeout=20) as stalling:
        stalling.sendall(head + b"0" * 2000)
        ended = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while pause is not None and not ended.wait(pause):
                    stalling.sendall(b"0")

        thread = threading.Thread(target=trickle)
        thread.start()
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := stalling.recv(1 << 16):
                answer += piece
        ended.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"LEJEPA_UPLOAD_IDLE_SECONDS" in answer and b"application/problem+json" in answer
    assert list(tmp.iterdir()) == [], "the file that was begun is gone"


def test_a_full_disk_is_told_and_leaves_nothing(client: TestClient, settings: Settings) -> None:
    """The kernel refuses to let files grow, as it does with a quota; the next request finds everything in order."""
    big = png(side=512)
    assert len(big) > 256 << 10
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 << 10, limits[1]))
    try:
        answer = client.post("/v1/embeddings", files=files(big), data={"encoder": "images"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:lejepa-med:problem:disk-full")
    assert answer.json()["remedy"] and str(settings.data) not in answer.text
    assert list((settings.data / "tmp").iterdir()) == []
    assert client.post("/v1/embeddings", files=files(big), data={"encoder": "images"}).status_code == 200


def test_a_full_file_system_is_told_and_leaves_nothing(client: TestClient, settings: Settings) -> None:
    """The same with a real one of 256 KiB, where this process may mount it."""
    tmp = settings.data / "tmp"
    tmp.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        zip_of_large = zipped({"a.png": b"0" * (1 << 20)})
        for content, name in ((png(side=512), "a.png"), (zip_of_large, "a.zip")):
            answer = client.post("/v1/embeddings", files=files(content, name=name), data={"encoder": "images"})
            assert (answer.status_code, answer.json()["type"]) == (507, "urn:lejepa-med:problem:disk-full"), name
            assert list(tmp.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp)], check=True)
