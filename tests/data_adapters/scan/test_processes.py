"""A scan in several processes: the same files byte for byte, and a reader that dies costs one file."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data_adapters
from data_adapters.base import Files, walk
from data_adapters.catalog import Catalog
from data_adapters.errors import MissingExtraError
from data_adapters.scan import Scan, scan_archive
from tests.conftest import write_pictures
from tests.data.galaxy import write_hdf5
from tests.data.histology import he_picture, write_dicom_slide, write_pyramid, write_tiles
from tests.data.mri import phantom, write_enhanced, write_nifti, write_series

PLUGIN = """
import os, signal
from pathlib import Path
import torch
from data_adapters import BaseAdapter, Record, BadFileError
from data_adapters.errors import MissingExtraError

class Blobs(BaseAdapter):
    name = "blobs"
    suffixes = (".blob",)

    def inspect(self, path: Path, root: Path):
        self._note("inspect", path)
        text = path.read_text()
        if text == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "extra":
            raise MissingExtraError("no reader", remedy="pip install it")
        yield Record(uri=str(path), group=path.stem[:2], meta={"size": [len(text)]})

    def prepare(self, record):
        self._note("verify", Path(record.uri))
        if Path(record.uri).read_text() == "bad pixels":
            raise BadFileError("bad pixels", remedy="none")
        return torch.zeros(1, 3, 16, 16)

    def _note(self, what, path):
        if "BLOB_LOG" in os.environ:
            with open(os.environ["BLOB_LOG"], "a") as stream:
                stream.write(f"{what} {path.name}\\n")
"""


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> data_adapters.Adapter:
    """A plug-in given as ./file.py:Class; BLOB_LOG lists what it reads."""
    (tmp_path / "blobs.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOB_LOG", str(tmp_path / "log"))
    return data_adapters.create("./blobs.py:Blobs")


def written(found: Scan, folder: Path) -> dict[str, bytes]:
    found.write(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_pictures_give_equal_files_with_any_number_of_workers(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=150)
    (root / "0003.png").write_bytes((root / "0003.png").read_bytes()[:300])
    (root / "z.docx").write_bytes(b"x")
    shutil.copy(root / "0000.png", root / "0149.png")
    seen: list[tuple[int, int]] = []

    def scan(workers: int) -> Scan:
        catalog, adapter = Catalog(root / "labels.csv"), data_adapters.create("images")
        note = lambda done, total: seen.append((done, total))  # noqa: E731
        return scan_archive(adapter, root, catalog=catalog, workers=workers, progress=note)

    alone = written(scan(0), tmp_path / "alone")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (151, 151)
    assert written(scan(2), tmp_path / "two") == alone
    assert set(alone) == {"duplicates.csv", "manifest.parquet", "rejected.csv"}


def write_mri(root: Path) -> None:
    write_series(root / "p1", phantom(seed=1), series=1, patient="SECRET1")
    write_series(root / "p2", phantom(seed=2), series=2, patient="SECRET2", suffix="")
    write_enhanced(root / "p3" / "enhanced", phantom(seed=3))
    write_nifti(root / "sub-04" / "t1.nii.gz", phantom(seed=4))
    write_nifti(root / "sub-05" / "t1.img", phantom(seed=5))
    shutil.copy(root / "p1" / "IM0000.dcm", root / "copy.dcm")
    (root / "p1" / "broken.dcm").write_bytes(b"no DICOM")


def write_histology(root: Path) -> None:
    picture, _ = he_picture(width=700, height=600, seed=4)
    write_tiles(root, slides=["s1", "s2"], per_slide=2)
    write_pyramid(root / "a.tif", picture, mpp=0.5)
    (root / "wsi").mkdir()
    write_dicom_slide(root / "wsi", picture)


def write_galaxy(root: Path) -> None:
    root.mkdir()
    write_hdf5(root / "table.h5", rows=70)


ROOMS = {
    "mri": (write_mri, {}, 5),
    "histology": (write_histology, {"global_size": 64, "local_size": 32}, 6),
    "galaxy": (write_galaxy, {}, 70),
}


@pytest.mark.parametrize("modality", list(ROOMS))
def test_files_that_are_grouped_are_grouped_over_all_workers(modality: str, tmp_path: Path) -> None:
    write, options, items = ROOMS[modality]
    write(tmp_path / "a")
    adapter = data_adapters.create(modality, **options)
    alone = scan_archive(adapter, tmp_path / "a", workers=0)
    journal = tmp_path / "j"
    before = written(alone, tmp_path / "0")
    assert written(scan_archive(adapter, tmp_path / "a", workers=1, journal=journal), tmp_path / "1") == before
    again = scan_archive(adapter, tmp_path / "a", workers=0, journal=journal)
    assert again.changes.new == again.changes.changed == 0 and again.changes.same > 0
    assert written(again, tmp_path / "2") == before
    plain = [f for f in adapter.scan(tmp_path / "a") if not hasattr(f, "reason")]
    assert len(plain) == len(alone) and len(alone) == items
    assert b"SECRET" not in (journal / "journal.sqlite").read_bytes()


def test_a_reader_that_dies_costs_its_own_file(tmp_path: Path, blobs: data_adapters.Adapter) -> None:
    root = tmp_path / "a"
    root.mkdir()
    for number in range(12):
        (root / f"p{number:02d}.blob").write_text("fine")
    (root / "p05.blob").write_text("segfault")
    found = scan_archive(blobs, root, workers=1, journal=tmp_path / "j")
    assert len(found) == 11
    (refused,) = found.refused
    assert (Path(refused.uri).name, refused.reason) == ("p05.blob", "crashes its reader (SIGSEGV)") and refused.remedy
    rows = found.manifest.rows
    again = scan_archive(blobs, root, workers=0, journal=tmp_path / "j")  # it would kill this very process
    assert again.refused == [refused] and again.manifest.rows.equals(rows)


def test_a_missing_library_stops_the_scan_with_its_command(tmp_path: Path, blobs: data_adapters.Adapter) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.blob").write_text("extra")
    for workers in (0, 1):
        with pytest.raises(MissingExtraError, match="pip install it"):
            scan_archive(blobs, tmp_path / "a", workers=workers)


def test_an_adapter_that_no_process_can_build_is_scanned_in_this_one(tmp_path: Path) -> None:
    from data_adapters.images.adapter import ImagesAdapter

    class Local(ImagesAdapter):
        """Cannot be imported by name."""

    root = write_pictures(tmp_path / "a", count=3)
    assert len(scan_archive(Local(), root, workers=2)) == 3


def test_tiny_archives_start_no_process(tmp_path: Path) -> None:
    root, adapter = write_pictures(tmp_path / "a", count=4), data_adapters.create("images")
    assert len(scan_archive(adapter, root, start=lambda: pytest.fail("a process is started"))) == 4


def test_an_adapter_with_a_scan_of_its_own_works_as_before(tmp_path: Path) -> None:
    from data_adapters.images.adapter import ImagesAdapter

    class Reversed(ImagesAdapter):
        def inspect_all(self, files):  # type: ignore[no-untyped-def]
            for path in sorted(files, reverse=True):
                yield from self.try_inspect(path, files.root)

    root = write_pictures(tmp_path / "a", count=5)
    found = scan_archive(Reversed(), root, journal=tmp_path / "j")
    assert found.manifest.column("path") == [f"000{i}.png" for i in range(5)]
    assert scan_archive(Reversed(), root, journal=tmp_path / "j").changes.same == 5


def test_facts_that_are_no_json_refuse_their_record_only(tmp_path: Path) -> None:
    from data_adapters.images.adapter import ImagesAdapter

    class Odd(ImagesAdapter):
        def combine(self, found):  # type: ignore[no-untyped-def]
            for one in found:
                yield replace(one, meta={**one.meta, "odd": object()}) if one.uri.endswith("0001.png") else one

    found = scan_archive(Odd(), write_pictures(tmp_path / "a", count=3))
    assert len(found) == 2 and found.reasons() == [("unreadable (TypeError)", 1)]


def test_walk_goes_in_the_order_of_paths_as_text(tmp_path: Path) -> None:
    names = ["b.png", "a/x.png", "a.png", "a-b/y.png", "a/b/z.png", "a0.png", "Z.png", "a/labels.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)]
    assert found == sorted(name for name in names if not name.endswith(".csv"))
    files = Files(tmp_path)
    assert list(files) == list(files) == list(walk(tmp_path))


def test_a_name_that_is_no_text_is_refused_with_a_word(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=2)
    try:
        (root / "caf\udce9.png").write_bytes((root / "0000.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found = scan_archive(data_adapters.create("images"), root)
    assert found.reasons() == [("file name that is not UTF-8", 1)] and len(found) == 2
    found.write(tmp_path / "out")
    assert "caf\\udce9.png" in (tmp_path / "out" / "rejected.csv").read_text(encoding="utf-8")


def test_batches_of_the_manifest_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_adapters.scan.result.BATCH", 2)
    root = write_pictures(tmp_path / "a", count=5)
    found = scan_archive(data_adapters.create("images"), root)
    assert found.manifest.column("path") == [f"000{i}.png" for i in range(5)]
    records = found.manifest.records()
    assert len(records) == 5 and records[-1] == found.manifest.record(4) and records[1:3] == [records[1], records[2]]
    with pytest.raises(IndexError):
        records[5]
    assert np.array_equal([r.meta["size"] for r in records], [[48, 48]] * 5)
