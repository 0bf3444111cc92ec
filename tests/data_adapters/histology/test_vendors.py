"""Slides of each vendor's layout that can be written here: found once, their pixels right, their macro image unread."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest

from data_adapters.base import Record
from data_adapters.histology.adapter import HistologyAdapter
from data_adapters.scan import Scan, scan_archive
from tests.data.histology import he_picture, write_mrxs, write_ndpi, write_ome, write_scn, write_svs

SMALL = {"global_size": 64, "local_size": 32}
WRITERS: dict[str, Callable[..., Path]] = {
    "a.ndpi": write_ndpi,
    "a.scn": write_scn,
    "a.mrxs": write_mrxs,
    "a.svs": write_svs,
    "a.ome.tif": write_ome,
}
VENDORS = {"a.mrxs": "mirax", "a.ndpi": "hamamatsu", "a.scn": "leica", "a.svs": "aperio", "a.ome.tif": "ome-tiff"}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return he_picture(width=768, height=640, seed=4)[0]


@pytest.mark.parametrize("name", WRITERS)
def test_a_slide_is_one_record_with_its_own_pixels(
    tmp_path: Path, picture: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / name, picture, mpp=0.5)

    def forbidden(self: object) -> None:
        raise AssertionError("associated images show the patient's label")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(forbidden))
    adapter = HistologyAdapter(**SMALL)
    (record,) = adapter.scan(tmp_path)
    assert isinstance(record, Record), record
    own = record.meta["histology"]
    assert own["vendor"] == VENDORS[name]
    assert np.abs(np.subtract(record.meta["size"], [768, 640])).max() <= 1  # Leica rounds the scanned area up
    assert record.meta["mpp"] == pytest.approx(0.5, rel=1e-3)
    marked = Record(uri=record.uri, group="g", meta={**record.meta, "region": [320, 256, 64, 64]})
    got = adapter.prepare(marked)[0].numpy().transpose(1, 2, 0)
    assert np.abs(got.astype(int) - picture[256:320, 320:384]).mean() < 4
    assert adapter.read(record, np.random.default_rng(0)).pixels.shape[2] == 3


def test_ome_without_a_scale_needs_the_catalogue(tmp_path: Path, picture: np.ndarray) -> None:
    write_ome(tmp_path / "a.ome.tif", picture, mpp=None)
    (found,) = HistologyAdapter(**SMALL).scan(tmp_path)
    assert getattr(found, "reason", "") == "mpp missing"


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
