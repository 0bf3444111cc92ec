"""A reader that hangs costs its own file and a set time; and the next scan tries that file again."""

import csv
import os
import time
from pathlib import Path

import pytest

import data_adapters
from data_adapters.errors import UserError
from data_adapters.readers.process import new_process
from data_adapters.scan import FILE_SECONDS, Scan, scan_archive
from data_adapters.scan.batches import Batch, GivenUp, Readers, inspection

LIMIT = 3.0  # seconds: far more than reading these files takes, also on a busy machine
PLUGIN = """
import time
from pathlib import Path
import torch
from data_adapters import Record
from data_adapters.images.adapter import ImagesAdapter

class Notes(ImagesAdapter):
    name = "notes"
    suffixes = (".note",)

    def inspect(self, path: Path, root: Path):
        self._obey(path, "inspect")
        yield Record(uri=str(path), group=path.stem)

    def verify(self, record):
        self._obey(Path(record.uri), "verify")

    def _obey(self, path, where):
        if path.read_text() == f"hang in {where}":
            time.sleep(3600)
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data_adapters.Adapter:
    """The images adapter, with files that say where to hang; twelve of them in `a`."""
    (tmp_path / "notes.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for number in range(12):
        (tmp_path / "a" / f"{number:02d}.note").write_text("fine")
    return data_adapters.create("./notes.py:Notes")


def scan(adapter: data_adapters.Adapter, *, workers: int | None) -> Scan:
    return scan_archive(adapter, Path("a"), workers=workers, journal=Path("out/.scan"), file_seconds=LIMIT)


@pytest.mark.slow
def test_a_reader_that_hangs_costs_its_own_file_and_is_tried_again(notes: data_adapters.Adapter) -> None:
    Path("a/04.note").write_text("hang in inspect")
    Path("a/07.note").write_text("hang in verify")
    start = time.monotonic()
    found = scan(notes, workers=1)
    assert 2 * LIMIT < time.monotonic() - start < 60
    assert len(found) == 10 and found.reasons() == [("takes longer than 3 s to read", 2)]
    assert [Path(one.uri).name for one in found.refused] == ["04.note", "07.note"]
    assert all("--file-seconds" in one.remedy for one in found.refused)
    found.write(Path("out"))
    with open("out/rejected.csv", newline="") as stream:
        assert {row["path"] for row in csv.DictReader(stream)} == {"04.note", "07.note"}

    reasons, rows = found.reasons(), found.manifest.rows

    # a few files would be read in this very process, but not when one of them hung last time
    again = scan(notes, workers=None)
    assert again.reasons() == reasons and again.manifest.rows.equals(rows)

    Path("a/04.note").write_text("fine")
    kept = Path("a/07.note").stat()
    Path("a/07.note").write_text("all in vain...")  # of the length of before, and below with its time
    os.utime("a/07.note", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    mended = scan(notes, workers=1)
    assert (len(mended), mended.changes.same, mended.changes.changed) == (12, 11, 1)
    assert scan(notes, workers=None).changes.same == 12


def read(readers: Readers, batch: Batch, *paths: Path) -> list[object]:
    for path in paths:
        batch.add(str(path), 0)
    readers.read(batch)
    return batch.future.result()


def test_the_files_beside_the_one_that_hangs_are_read(notes: data_adapters.Adapter) -> None:
    Path("a/05.note").write_text("hang in inspect")
    readers = Readers(notes, processes=1, file_seconds=LIMIT, start=new_process)
    try:
        results = read(readers, inspection(notes, "try_inspect", (Path("a"),)), *sorted(Path("a").iterdir()))
    finally:
        readers.close()
    lost = [place for place, result in enumerate(results) if isinstance(result, GivenUp)]
    assert len(results) == 12 and lost == [5] and not results[5].lasting  # type: ignore[attr-defined]


def test_the_command_has_the_same_limit_as_the_function() -> None:
    from lejepa_med.cli.archive import ScanCommand

    field = ScanCommand.model_fields["file_seconds"]
    assert field.default == FILE_SECONDS == 300
    with pytest.raises(ValueError, match="file_seconds"):
        ScanCommand(archive=Path("a"), modality="images", out=Path("o"), file_seconds=0)


@pytest.mark.slow
def test_processes_that_cannot_start_are_no_files_fault() -> None:
    adapter = data_adapters.create("images")
    adapter.reference = "no-such"  # type: ignore[attr-defined]
    readers = Readers(adapter, processes=1, file_seconds=0.01, start=new_process)
    try:
        with pytest.raises(UserError, match=r"no modality 'no-such'.*--workers 0"):
            read(readers, inspection(adapter, "try_inspect", ()), Path("x"))
    finally:
        readers.close()
