"""A MIRAX slide is its index and its folder: for duplicates, for a repeated scan, and for refusals."""

import os
import shutil
from pathlib import Path

import pytest

from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.scan import Scan, scan_archive
from tests.data.histology import he_picture, write_mrxs


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One slide, its copy under another name, and a third with the same index but other pixels."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for name, seed in (("a", 4), ("c", 5)):
        write_mrxs(folder / f"{name}.mrxs", he_picture(width=512, height=384, seed=seed)[0])
    shutil.copytree(folder / "a", folder / "b")
    for name in "bc":
        shutil.copyfile(folder / "a.mrxs", folder / f"{name}.mrxs")
    return folder


def scanned(archive: Path) -> Scan:
    adapter = HistologyAdapter(global_size=64, local_size=32)
    return scan_archive(adapter, archive, workers=0, journal=archive.parent / "journal")


def change(file: Path, at: int) -> None:
    """Another byte at `at`, same size; the time moves as it does when a file is written."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


def test_copies_are_told_by_the_data_not_by_the_index(archive: Path) -> None:
    scan = scanned(archive)
    assert not scan.refused
    paths = scan.manifest.column("path")
    assert paths == ["a.mrxs", "b.mrxs", "c.mrxs"]
    assert scan.manifest.duplicates() == [[0, 1]]
    names = [Path(name).name for name in scan.manifest.record(0).meta["files"]]
    assert names == ["a.mrxs", "Data0000.dat", "Index.dat", "Slidedat.ini"]
    sizes = [f.stat().st_size for f in [archive / "a.mrxs", *(archive / "a").iterdir()]]
    assert scan.manifest.column("bytes")[0] == sum(sizes)


def test_a_slide_whose_data_changed_in_place_is_read_again(archive: Path) -> None:
    before = scanned(archive).manifest.column("digest")
    assert scanned(archive).changes.changed == 0
    change(archive / "b" / "Data0000.dat", 20)  # in the head, before the first image
    scan = scanned(archive)
    after = scan.manifest.column("digest")
    assert scan.changes.changed >= 1
    assert [x == y for x, y in zip(before, after, strict=True)] == [True, False, True]
    assert scan.manifest.duplicates() == []


def test_a_refused_slide_is_one_refusal(archive: Path) -> None:
    (archive / "c" / "Index.dat").unlink()
    adapter = HistologyAdapter(global_size=64, local_size=32, mpp=0.4)  # the scan is coarser
    scan = scan_archive(adapter, archive, workers=0)
    assert [Path(r.uri).name for r in scan.refused] == ["a.mrxs", "b.mrxs", "c.mrxs"]
