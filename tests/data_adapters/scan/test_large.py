"""What an archive of a million files goes through: folders sorted on disk, catalogues and manifests not in memory."""

import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_adapters
from data_adapters.base import walk
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.manifest import ROW_GROUP, SCHEMA, Manifest, parquet_writer
from data_adapters.scan import scan_archive
from data_adapters.scan.result import BATCH
from tests.conftest import write_pictures

NAMES = [
    "b.png",
    "a0.png",
    "a/z.png",
    "a-b/y.png",
    "Z.png",
    "\u00e9.png",
    "\uffee.png",
    "\U0001f30c.png",
    "a.png",
    "x.csv",
]


def held(work: Callable[[], object], *, below: float = 0, times: int = 3) -> int:
    """Peak bytes of Python objects while working: the least of a few times, or the first that is `below`.

    Other threads of a process that runs many tests allocate, too, now and then.
    """
    peaks: list[int] = []
    while len(peaks) < times and not (peaks and peaks[-1] < below):
        tracemalloc.start()
        try:
            work()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


def test_a_folder_sorted_on_disk_gives_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    in_memory = list(walk(tmp_path))
    monkeypatch.setattr("data_adapters.files.HELD", 3)
    assert list(walk(tmp_path)) == in_memory
    found = [path.relative_to(tmp_path).as_posix() for path in in_memory]
    linked = [name.replace("a/", "link/", 1) for name in NAMES if name.startswith("a/")]
    assert found == sorted(name for name in [*NAMES, *linked] if not name.endswith(".csv"))


def test_a_walk_over_one_large_folder_holds_no_list_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_adapters.files.HELD", 100)
    for number in range(20_000):
        (tmp_path / f"{number:040d}.png").touch()

    def go() -> None:
        assert sum(1 for _ in walk(tmp_path)) == 20_000

    assert held(go, below=500_000) < 500_000  # a list of the names alone would be 20,000 * 93 bytes


def write_catalog(file: Path, rows: int) -> Catalog:
    with file.open("w") as stream:
        stream.write("path,group,label,mpp\n")
        stream.writelines(f"{number:07d}.png,g{number // 9},,0.{number}\n" for number in range(rows))
    return Catalog(file)


def test_a_catalogue_does_not_lie_in_memory(tmp_path: Path) -> None:
    small = held(lambda: write_catalog(tmp_path / "small.csv", 20_000), times=1)
    most = 1.5 * small + 1_000_000
    assert (
        held(lambda: write_catalog(tmp_path / "large.csv", 60_000), below=most) < most
    )  # three times as many rows; one row as a dict is some 600 bytes
    catalog = Catalog(tmp_path / "large.csv")
    found = catalog.lookup(str(tmp_path / "0000041.png"), "", tmp_path)
    assert found == {"path": "0000041.png", "group": "g4", "label": "", "mpp": "0.41"}
    assert (len(catalog), catalog.unused_rows(), len(catalog.unused())) == (60_000, 59_999, 59_999)
    assert catalog.lookup(str(tmp_path / "caf\udce9.png"), "", tmp_path) is None


def test_a_row_of_an_item_comes_before_the_row_of_its_file(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"path": ["t.h5", "./t.h5", "u.h5"], "item": [None, "3", "1"], "ra": [1.5, 2.5, None]}),
        tmp_path / "c.parquet",
    )
    catalog = Catalog(tmp_path / "c.parquet")
    file, other = str(tmp_path / "t.h5"), str(tmp_path / "u.h5")
    assert [catalog.lookup(file, item, tmp_path)["ra"] for item in ("3", "4", "")] == ["2.5", "1.5", "1.5"]  # type: ignore[index]
    assert catalog.lookup(other, "2", tmp_path) is None and catalog.unused() == ["u.h5"]


def test_a_cut_off_catalogue_and_two_different_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("path,label\na.png,x\na.png,x\n./b.png,x\nb.png,y\n")
    with pytest.raises(UserError, match=r"two different rows for the path 'b\.png'"):
        Catalog(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("path,label\n" + "a.png,x\n" * 200_000 + "a.png\n")  # beyond the first block
    with pytest.raises(UserError, match="cannot be read"):
        Catalog(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes("path,Größe\na.png,x\n".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read") as caught:
        Catalog(tmp_path / "c.csv")
    assert "UTF-8" in caught.value.remedy


def manifest_of(rows: int, file: Path) -> Manifest:
    numbers = range(rows)
    text = [f"{number:032x}" for number in numbers]
    table = pa.table([text, text, text, text, text, text, [1] * rows, numbers, numbers, text, ["{}"] * rows], SCHEMA)
    with parquet_writer(file, root=Path("/archive"), adapter={"adapter": "images"}) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
    return Manifest(root=Path("/archive"), adapter={"adapter": "images"}, rows=table)


def test_a_large_manifest_is_mapped_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.parquet"
    made = manifest_of(2 * ROW_GROUP + 5, file)
    plain = Manifest.read(file)
    monkeypatch.setattr("data_adapters.manifest.LARGE", 2)
    before = pa.total_allocated_bytes()
    mapped = Manifest.read(file)
    assert pa.total_allocated_bytes() - before < plain.rows.nbytes / 10
    assert mapped.rows.equals(made.rows) and mapped.rows.equals(plain.rows) and mapped.digest() == plain.digest()
    for row in (0, ROW_GROUP, len(mapped) - 1):
        assert mapped.record(row) == plain.record(row)
    assert pickle.loads(pickle.dumps(mapped.select([7, 3]))).rows.equals(plain.select([7, 3]).rows)
    mapped.write(tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()


def test_row_groups_are_made_of_whole_batches() -> None:
    assert ROW_GROUP % BATCH == 0  # else the last rows of each would be a small group of their own


def test_without_room_for_temporary_files_a_manifest_lies_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest_of(20, tmp_path / "manifest.parquet")
    monkeypatch.setattr("data_adapters.manifest.LARGE", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert Manifest.read(tmp_path / "manifest.parquet").rows.equals(made.rows)


def test_memory_of_a_scan_does_not_grow_with_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scan.engine.BATCH", "scan.result.BATCH", "files.HELD"):  # both archives have many of them
        monkeypatch.setattr(f"data_adapters.{name}", 64)
    root = write_pictures(tmp_path / "a", count=8)
    picture = (root / "0000.png").read_bytes()

    def grow(until: int) -> None:
        for number in range(len(list(root.glob("*.png"))), until):
            (root / f"{number:04d}.png").write_bytes(picture)

    def go() -> None:
        found = scan_archive(data_adapters.create("images"), root, workers=0, verify=False)
        found.figures(["size"])
        found.write(tmp_path / "out")

    grow(600)
    go()  # what is imported and cached once
    small = held(go, times=1)
    grow(2400)
    most = small + 100 * 1800
    assert held(go, below=most) < most  # bytes; the path alone, as a Path in a list, is some 300
