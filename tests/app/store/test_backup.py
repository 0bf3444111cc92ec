"""Backup of a running service, and what a restored one can do; damage and hostile archives are refused whole."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.api.service import Service
from app.core.settings import Settings
from app.jobs.worker import HEARTBEAT_SECONDS
from app.store.backup import MANIFEST, RESTORING, _frozen, backup, restore
from data_adapters.errors import UserError
from harness.launcher import Launcher
from lejepa_med.cli import main
from tests.app.helpers import client_of, eventually, files, png, wait


def start(client: httpx.Client, count: int) -> str:
    """A probe job of `count` files; its id."""
    sent = client.post(
        "/v1/probes",
        files=files(*(png(i, bright=i % 2 == 0) for i in range(count))),
        data={"encoder": "images", "labels": json.dumps(["ab"[i % 2] for i in range(count)]), "folds": "2"},
    )
    assert sent.status_code == 202, sent.text
    return str(sent.json()["id"])


def begin(client: httpx.Client) -> tuple[str, str]:
    """A trained probe, and a job that is at work."""
    probe = start(client, 8)
    assert wait(client, probe)["state"] == "succeeded"
    job = start(client, 160)
    eventually(lambda: client.get(f"/v1/jobs/{job}").json()["progress"] > 0.05, seconds=60)
    return probe, job


@pytest.fixture(scope="module")
def saved(launchers: Launcher, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A backup made while a job ran, that job's id, and that of a probe; a service on the restored folder goes on."""
    place = tmp_path_factory.mktemp("backup")
    data, file = place / "data", place / "b.tar"
    launchers.use(runs, data, place)
    try:
        service = launchers.service()
        with client_of(service) as client:
            probe, job = begin(client)
            main(["backup", str(file), "--data-dir", str(data)])
            assert client.get(f"/v1/jobs/{job}").json()["state"] == "running", "the service goes on"
            assert not list((data / "tmp").iterdir())
            service.end(signal.SIGKILL)
        data.rename(place / "lost")
        main(["restore", str(file), "--data-dir", str(data)])
        assert data.stat().st_mode & 0o077 == 0
        service = launchers.service()
        with client_of(service) as client:
            asked = client.post(f"/v1/probes/{probe}/predictions", files=files(png(100, bright=True)))
            assert asked.json()["items"][0]["label"] == "a", "the probe is there"
            found = client.get(f"/v1/jobs/{job}").json()
            assert found["progress"] >= 0.05, "what was done is still done"
            assert wait(client, job, seconds=60)["state"] == "succeeded", "the job goes on"
            assert client.get(f"/v1/probes/{job}").json()["count"] == 160
            service.end(signal.SIGKILL)
    finally:
        launchers.end_all()
    return file, job, probe


def test_a_restored_service_has_the_probes_and_continues_the_jobs(saved: tuple[Path, str, str]) -> None:
    file, job, probe = saved
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as tar:
        names = tar.getnames()
    assert names[-1] == MANIFEST and {"service.sqlite", f"jobs/{job}/plan.json"} < set(names)
    assert f"probes/{probe}/probe.safetensors" in names
    assert not [name for name in names if name.endswith(("-wal", "-shm", ".lock", ".migrate"))]


@pytest.fixture
def on_sqlite(launchers: Launcher, runs: Path, tmp_path: Path) -> Iterator[Launcher]:
    """Services on tmp_path / "data", whatever database the other tests take."""
    launchers.use(runs, tmp_path / "data", tmp_path)
    yield launchers
    launchers.end_all()


def test_a_backup_may_last(on_sqlite: Launcher, tmp_path: Path) -> None:
    """The service looks every two seconds for what dead processes left; a backup at work is none of them."""
    data = tmp_path / "data"
    service = on_sqlite.service()
    with client_of(service) as client:
        assert wait(client, start(client, 4))["state"] == "succeeded"
    with _frozen(data) as frozen:
        files = sorted(frozen.rglob("*"))
        assert files
        time.sleep(2.5 * HEARTBEAT_SECONDS)
        assert sorted(frozen.rglob("*")) == files
        (lock,) = (data / "workers").glob(f"*-{os.getpid()}-*")
    assert not lock.exists() and not list((data / "tmp").iterdir())


def test_the_service_removes_what_a_killed_backup_left(on_sqlite: Launcher, tmp_path: Path) -> None:
    on_sqlite.service()
    code = (
        "import sys, time; from pathlib import Path; from app.store.backup import _frozen\n"
        "with _frozen(Path(sys.argv[1])): print('frozen', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None and killed.stdout.readline() == "frozen\n"
    assert list((tmp_path / "data" / "tmp").iterdir())
    killed.kill()
    killed.communicate()
    eventually(lambda: not list((tmp_path / "data" / "tmp").iterdir()))


def changed(file: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a backup whose members went through `change`; None leaves one out."""
    with tarfile.open(file) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            made = change(member.name, content.read())
            if made is not None:
                member.size = len(made)
                new.addfile(member, io.BytesIO(made))
    return target


def test_damaged_backups_leave_nothing_behind(saved: tuple[Path, str, str], tmp_path: Path) -> None:
    file, _, probe = saved
    weights = f"probes/{probe}/probe.safetensors"
    bad = {
        "flipped": changed(file, tmp_path / "1.tar", lambda n, c: c[:-1] + b"x" if n == weights else c),
        "missing": changed(file, tmp_path / "2.tar", lambda n, c: None if n == weights else c),
        "no manifest": changed(file, tmp_path / "3.tar", lambda n, c: None if n == MANIFEST else c),
        "other format": changed(
            file, tmp_path / "4.tar", lambda n, c: c.replace(b'"format": 1', b'"format": 9') if n == MANIFEST else c
        ),
        "no store": changed(file, tmp_path / "5.tar", lambda n, c: None if n == "service.sqlite" else c),
    }
    (tmp_path / "6.tar").write_bytes(file.read_bytes()[:-40_000])
    (tmp_path / "7.tar").write_bytes(b"no tar")
    for what, wrong in {**bad, "cut": tmp_path / "6.tar", "junk": tmp_path / "7.tar"}.items():
        with pytest.raises(UserError) as caught:
            restore(wrong, data=tmp_path / "new")
        assert caught.value.remedy, what
        assert list((tmp_path / "new").iterdir()) == [], what


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", ".restore/x", "a\\..\\outside"])
def test_members_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="outside"):
        restore(tmp_path / "b.tar", data=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.tar", "new"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_plain_files(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member = tarfile.TarInfo("probes")
        member.type, member.linkname = kind, "/etc"
        tar.addfile(member)
    with pytest.raises(UserError, match="no plain file"):
        restore(tmp_path / "b.tar", data=tmp_path / "new")


def test_nothing_is_overwritten(saved: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _, _ = saved
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        restore(file, data=tmp_path / "full")
    restore(file, data=tmp_path / "good")
    with pytest.raises(UserError, match="exists"):
        backup(file, data=tmp_path / "good")
    with pytest.raises(UserError, match="data directory itself"):
        backup(tmp_path / "good" / "b.tar", data=tmp_path / "good")
    with pytest.raises(UserError, match="not written"):
        backup(tmp_path / "nowhere" / "b.tar", data=tmp_path / "good")
    with pytest.raises(UserError, match=r"service\.sqlite") as caught:
        backup(tmp_path / "new.tar", data=tmp_path / "full")
    monkeypatch.setenv("LEJEPA_DATABASE_URL", "postgresql://u:secret@h/d")
    with pytest.raises(UserError) as caught:
        backup(tmp_path / "new.tar", data=tmp_path / "good")
    assert "pg_dump" in caught.value.remedy and "secret" not in str(caught.value)
    assert not (tmp_path / "new.tar").exists()


def test_a_backup_waits_for_jobs_that_end_while_it_links(
    saved: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the copy of the store and the links: its inputs may be gone, so it is done again."""
    import sqlite3

    from app.store import backup as module

    file, job, _ = saved
    data = tmp_path / "data"
    restore(file, data=data)
    real, calls = module._link, []

    def link(source: Path, folder: Path) -> None:
        real(source, folder)
        calls.append(folder)
        if len(calls) == 1:
            with sqlite3.connect(data / "service.sqlite") as store:
                store.execute("UPDATE jobs SET state = 'succeeded' WHERE id = ?", (job,))
            store.close()

    monkeypatch.setattr(module, "_link", link)
    backup(tmp_path / "b.tar", data=data)
    assert len(calls) == 2
    restore(tmp_path / "b.tar", data=tmp_path / "new")
    with sqlite3.connect(tmp_path / "new" / "service.sqlite") as store:
        assert store.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchall() == [("succeeded",)]
    store.close()


def test_the_service_refuses_a_folder_whose_restore_was_killed(
    saved: tuple[Path, str, str], runs: Path, tmp_path: Path
) -> None:
    restore(saved[0], data=tmp_path / "new")
    (tmp_path / "new" / RESTORING).mkdir()
    with pytest.raises(UserError, match="has not ended"):
        Service(Settings(runs_dir=runs, data_dir=tmp_path / "new")).start()
