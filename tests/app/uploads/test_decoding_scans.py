"""Scans of uploads and archives run in processes of the fork server: what these may, and what a lost one costs."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import data_adapters
from app.core.errors import ProblemError
from app.core.settings import Settings
from app.uploads.sandbox import Sandbox
from data_adapters.base import Adapter, Rejected
from data_adapters.scan import Scan, scan_archive
from tests.app.helpers import eventually
from tests.app.uploads.test_decoding import ODD, children


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    os.environ["LEJEPA_SECRET"] = "s"
    box = Sandbox(Settings(runs_dir=tmp_path_factory.mktemp("box"), threads=1))
    box.warm()
    del os.environ["LEJEPA_SECRET"]
    yield box
    box.close()


@pytest.fixture
def odd(tmp_path: Path) -> Adapter:
    """Does what a file's content says when its pixels are checked."""
    (tmp_path / "odd.py").write_text(
        ODD + "    def verify(self, record):\n        if self.prepare(record).any(): raise ValueError('secret')\n"
    )
    return data_adapters.create(f"{tmp_path / 'odd.py'}:Odd", global_size=32, local_size=32)


def archive(folder: Path, *texts: str) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.odd").write_text(text)
    return folder


def scanned(box: Sandbox, odd: Adapter, root: Path, *, workers: int = 1) -> Scan:
    return scan_archive(
        odd, root, workers=workers, file_seconds=5, memory_bytes=1 << 29, start=box.start_scan, journal=None
    )


def reasons(found: Scan) -> dict[str, str]:
    return {Path(one.uri).name: one.reason for one in found.refused if isinstance(one, Rejected)}


def test_a_scan_is_as_in_processes_of_its_own(box: Sandbox, odd: Adapter, tmp_path: Path) -> None:
    root = archive(tmp_path / "a", *["fine"] * 40)
    forked, own = scanned(box, odd, root, workers=2), scan_archive(odd, root, workers=1)
    assert len(forked) == 40 and forked.manifest.rows.equals(own.manifest.rows), "groups under the same salt"


def test_a_file_costs_itself(box: Sandbox, odd: Adapter, tmp_path: Path) -> None:
    root = archive(tmp_path / "a", "fine", "crash", "memory", "write", "secret", "hang", "fine")
    found = scanned(box, odd, root)
    told = reasons(found)
    assert len(found) == 3, "the two good ones, and the one that looks for a secret and finds none"
    assert told["1.odd"] == "crashes its reader (SIGSEGV)"
    assert "MemoryError" in told["2.odd"] or "allocate" in told["2.odd"]
    assert told["3.odd"] and told["5.odd"] == "takes longer than 5 s to read"
    assert sum(path.stat().st_size for path in root.glob("*.out")) == 0, "no byte is written"


def test_processes_are_gone_after_the_scan(box: Sandbox, odd: Adapter, tmp_path: Path) -> None:
    def family() -> dict[int, list[int]]:
        return {pid: children(pid) for pid in children(os.getpid())}

    before = family()
    scanned(box, odd, archive(tmp_path / "a", "fine", "fine"), workers=2)
    assert family() == before


def test_a_fork_server_that_ended_is_replaced(odd: Adapter, tmp_path: Path) -> None:
    others = set(children(os.getpid()))
    box = Sandbox(Settings(runs_dir=tmp_path, threads=1))
    root = archive(tmp_path / "a", "fine", "fine")
    try:
        box.warm()
        (server,) = set(children(os.getpid())) - others
        os.kill(server, signal.SIGKILL)
        eventually(lambda: Path(f"/proc/{server}/stat").read_text().split(") ")[1][0] == "Z")
        assert len(scanned(box, odd, root)) == 2
    finally:
        box.close()
    with pytest.raises(ProblemError) as caught:
        scanned(box, odd, root)
    assert caught.value.problem.status == 503, "a service that ends takes up no scan"
