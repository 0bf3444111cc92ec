"""A repeated scan reads what changed and nothing else; duplicates are named; a killed scan leaves the old manifest."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.manifest import Manifest
from data_adapters.scan import Scan, scan_archive
from data_adapters.scan.journal import FILE, Journal
from data_adapters.scan.result import Changes
from tests.conftest import write_pictures
from tests.data_adapters.scan.test_processes import PLUGIN, blobs, written

__all__ = ["blobs"]  # the fixture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(6):
        (folder / f"p{number}_{number}.blob").write_text("fine")
    (folder / "p7_bad.blob").write_text("bad pixels")
    (folder / "letter.docx").write_text("x")
    return folder


def scan(adapter: data_adapters.Adapter, root: Path, **options: object) -> Scan:
    return scan_archive(adapter, root, journal=root.parent / "out" / ".scan", **options)  # type: ignore[arg-type]


def reads() -> list[str]:
    """What the plug-in read since the last call."""
    log = Path(os.environ["BLOB_LOG"])
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(lines)


def test_only_what_changed_is_read_again(root: Path, blobs: data_adapters.Adapter, tmp_path: Path) -> None:
    first = scan(blobs, root)
    assert first.changes == Changes(new=8, changed=0, same=0, removed=0) and len(reads()) == 14
    before = written(first, tmp_path / "1")
    again = scan(blobs, root)
    assert again.changes == Changes(new=0, changed=0, same=8, removed=0) and reads() == []
    assert written(again, tmp_path / "2") == before and dict(again.reasons())["bad pixels"] == 1

    (root / "p0_0.blob").write_text("other")
    (root / "p1_1.blob").unlink()
    (root / "p9_9.blob").write_text("fine")
    (root / "p7_bad.blob").write_text("mended now")
    found = scan(blobs, root)
    assert found.changes == Changes(new=1, changed=2, same=5, removed=1)
    names = ("p0_0", "p7_bad", "p9_9")
    assert reads() == sorted(f"{what} {name}.blob" for what in ("inspect", "verify") for name in names)
    fresh = scan_archive(blobs, root)
    assert written(found, tmp_path / "3") == written(fresh, tmp_path / "4") and len(fresh.refused) == 1


def test_size_or_time_alone_is_a_change(root: Path, blobs: data_adapters.Adapter) -> None:
    scan(blobs, root)
    reads()
    file = root / "p0_0.blob"
    stat = file.stat()
    file.write_text("mine")  # of equal length
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert scan(blobs, root).changes.changed == 1 and reads() == ["inspect p0_0.blob", "verify p0_0.blob"]


def test_a_new_catalogue_is_applied_without_reading(root: Path, blobs: data_adapters.Adapter, tmp_path: Path) -> None:
    scan(blobs, root)
    reads()
    table = tmp_path / "labels.csv"
    table.write_text("path,group,label\n" + "".join(f"archive/p{i}_{i}.blob,g{i // 2},x{i % 2}\n" for i in range(6)))
    found = scan(blobs, root, catalog=Catalog(table))
    assert reads() == [] and found.manifest.column("label") == ["x0", "x1"] * 3
    assert len(set(found.manifest.column("group"))) == 3
    fresh = scan_archive(blobs, root, catalog=Catalog(table))
    assert found.manifest.rows.equals(fresh.manifest.rows)
    reads()
    table.write_text("path,mpp\narchive/p0_0.blob,.5\n")  # a measured value is part of what verify is told
    scan(blobs, root, catalog=Catalog(table))
    assert reads() == ["verify p0_0.blob"]


def test_what_was_not_verified_is_verified_when_asked(root: Path, blobs: data_adapters.Adapter) -> None:
    assert len(scan(blobs, root, verify=False)) == 7
    assert not any(line.startswith("verify") for line in reads())
    assert len(scan(blobs, root)) == 6
    assert [line.split()[0] for line in reads()] == ["verify"] * 7
    assert len(scan(blobs, root, verify=False)) == 6 and reads() == []


@pytest.mark.parametrize("other", ["options", "salt", "code", "fresh"])
def test_everything_is_read_where_the_answers_could_differ(
    other: str, root: Path, blobs: data_adapters.Adapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = scan(blobs, root).manifest
    reads()
    if other == "options":
        blobs = data_adapters.create("./blobs.py:Blobs", global_size=32)
    elif other == "salt":
        monkeypatch.setenv("LEJEPA_SALT", "another")
    elif other == "code":
        (tmp_path / "blobs.py").write_text(PLUGIN + "\n# changed\n")
        blobs = data_adapters.create("./blobs.py:Blobs")
    found = scan(blobs, root, fresh=other == "fresh")
    assert len(reads()) == 14 and found.changes.new == 8
    assert (found.manifest.column("id") == first.column("id")) is (other != "salt")


def test_a_pair_is_read_again_when_its_other_file_comes(tmp_path: Path) -> None:
    from tests.data.mri import phantom, write_nifti

    write_nifti(tmp_path / "a" / "x.img", phantom())
    shutil.move(tmp_path / "a" / "x.img", tmp_path / "kept.img")
    adapter, journal = data_adapters.create("mri"), tmp_path / "j"
    assert scan_archive(adapter, tmp_path / "a", journal=journal).reasons() == [("a file of the pair is missing", 1)]
    shutil.move(tmp_path / "kept.img", tmp_path / "a" / "x.img")
    assert len(scan_archive(adapter, tmp_path / "a", journal=journal)) == 1


def test_sister_folders_regroup_remembered_tiles(tmp_path: Path) -> None:
    from tests.data.histology import write_tiles

    adapter, journal = data_adapters.create("histology", global_size=64, local_size=32), tmp_path / "j"
    write_tiles(tmp_path / "a", slides=["s1"], per_slide=2)
    assert len(set(scan_archive(adapter, tmp_path / "a", journal=journal).manifest.column("group"))) == 2
    write_tiles(tmp_path / "a", slides=["s2"], per_slide=2)
    found = scan_archive(adapter, tmp_path / "a", journal=journal)
    assert len(set(found.manifest.column("group"))) == 2 and len(found) == 4  # now a folder is a slide
    assert found.manifest.rows.equals(scan_archive(adapter, tmp_path / "a").manifest.rows)


def test_two_scans_do_not_write_into_one_journal(tmp_path: Path) -> None:
    one = Journal(tmp_path / "j", identity="a")
    with pytest.raises(UserError, match="Another scan"):
        Journal(tmp_path / "j", identity="a")
    one.release()
    Journal(tmp_path / "j", identity="a").release()
    assert (tmp_path / "j").stat().st_mode & 0o077 == 0 and (tmp_path / "j" / FILE).stat().st_mode & 0o077 == 0


def test_a_scan_that_was_overtaken_does_not_answer(root: Path, blobs: data_adapters.Adapter) -> None:
    first = scan(blobs, root)
    assert len(first) == 6
    assert len(scan(blobs, root)) == 6
    with pytest.raises(UserError, match="later scan"):
        len(first)


def test_a_damaged_journal_costs_time_only(root: Path, blobs: data_adapters.Adapter) -> None:
    scan(blobs, root)
    reads()
    (root.parent / "out" / ".scan" / FILE).write_bytes(b"not a database at all, but long enough to be read as one" * 99)
    assert len(scan(blobs, root)) == 6 and len(reads()) == 14


SLOW = """
import sys, time
from pathlib import Path
import data_adapters, data_adapters.scan.journal as journal
from data_adapters.scan import scan_archive
journal.COMMIT_SECONDS = 0.1
adapter = data_adapters.create("./blobs.py:Blobs")
verify = type(adapter).prepare
def slowly(self, record):
    time.sleep(0.02)
    return verify(self, record)
type(adapter).prepare = slowly
scan_archive(adapter, Path("archive"), workers=0, journal=Path("out/.scan")).write(Path("out"))
"""


@pytest.mark.slow
def test_a_killed_scan_leaves_the_old_manifest_and_goes_on(
    root: Path, blobs: data_adapters.Adapter, tmp_path: Path
) -> None:
    scan(blobs, root).write(tmp_path / "out")
    old = (tmp_path / "out" / "manifest.parquet").read_bytes()
    for number in range(300):
        (root / f"q{number:03d}.blob").write_text(str(number))
    reads()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", SLOW], cwd=tmp_path, env=environment)
    log = Path(os.environ["BLOB_LOG"])
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("verify") < 150:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out" / "manifest.parquet").read_bytes() == old
    done = len(reads())
    found = scan(blobs, root)
    left = len(reads())
    assert 0 < left < 600 - done + 260  # at most what was read after the last commit is read twice
    assert len(found) == 306
    found.write(tmp_path / "out")
    whole = scan_archive(blobs, root).manifest
    assert Manifest.read(tmp_path / "out" / "manifest.parquet").rows.equals(whole.rows)


def test_duplicates_are_named_and_those_across_splits_called_out(tmp_path: Path) -> None:
    root, adapter = write_pictures(tmp_path / "a", count=16), data_adapters.create("images")
    shutil.copy(root / "0000.png", root / "0002.png")  # g0 and g1, both train
    shutil.copy(root / "0001.png", root / "0006.png")  # g0 train, g3 val
    shutil.copy(root / "0004.png", root / "0005.png")  # within g2
    found = scan_archive(adapter, root, catalog=Catalog(root / "labels.csv"))
    assert (found.copied.contents, found.copied.across_splits) == (2, 1)
    found.write(tmp_path / "out")
    with (tmp_path / "out" / "duplicates.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    pairs = {frozenset(r["path"] for r in rows if r["content"] == number) for number in ("1", "2")}
    assert pairs == {frozenset({"0000.png", "0002.png"}), frozenset({"0001.png", "0006.png"})}
    assert {r["split"] for r in rows if r["path"] == "0006.png"} == {"val"}
    (root / "0002.png").unlink()
    (root / "0006.png").unlink()
    scan_archive(adapter, root, catalog=Catalog(root / "labels.csv")).write(tmp_path / "out")
    assert not (tmp_path / "out" / "duplicates.csv").exists()


def test_the_bytes_of_a_file_with_many_items_count_once(tmp_path: Path) -> None:
    from tests.data.galaxy import write_hdf5

    write_hdf5(tmp_path / "t.h5", rows=6)
    figures = scan_archive(data_adapters.create("galaxy"), tmp_path / "t.h5").figures(["size"])
    assert (figures.items, figures.bytes) == (6, (tmp_path / "t.h5").stat().st_size)
    assert figures.facts == {"size": {"[48, 48]": 6}}
