"""scan: nothing is lost without a word, ids are pseudonyms, a catalogue joins, files are written whole."""

import csv
import shutil
from pathlib import Path

import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.identity import item_id, place_id, salt, salt_file
from data_adapters.manifest import Manifest
from data_adapters.scan import content_hash, scan_archive
from tests.conftest import write_pictures


def images(**options: object) -> data_adapters.Adapter:
    return data_adapters.create("images", **options)


def test_every_file_is_a_row_or_refused(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=6)
    (root / "sub").mkdir()
    shutil.copy(root / "0000.png", root / "sub" / "copy.png")
    (root / "sub" / "letter.docx").write_bytes(b"x")
    (root / "0003.png").write_bytes((root / "0003.png").read_bytes()[:300])
    (root / ".cache").mkdir()
    (root / ".cache" / "hidden.png").write_bytes(b"x")
    found = scan_archive(images(), root, catalog=Catalog(root / "labels.csv"))
    names = [*found.manifest.column("path"), *(Path(r.uri).relative_to(root).as_posix() for r in found.refused)]
    assert sorted(names) == sorted([*(f"000{i}.png" for i in range(6)), "sub/copy.png", "sub/letter.docx", ".cache"])
    assert found.manifest.column("path") == sorted(found.manifest.column("path"))
    reasons = dict(found.reasons())
    assert len(found.refused) == 3 and "not a format that the images adapter reads" in reasons
    found.write(tmp_path / "out")
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["duplicates.csv", "manifest.parquet", "rejected.csv"]
    with (tmp_path / "out" / "rejected.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["path"] for row in rows} == {"0003.png", "sub/letter.docx", ".cache"}
    assert all(row["reason"] and row["remedy"] for row in rows)


def test_damage_behind_a_good_header_is_found(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=4)
    data = bytearray((root / "0001.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (root / "0001.png").write_bytes(data)
    assert [Path(r.uri).name for r in scan_archive(images(), root).refused] == ["0001.png"]


def test_catalogue_gives_group_label_split_and_reports_strangers(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=8)
    with (root / "labels.csv").open("a") as stream:
        stream.write("gone.png,rings,g99,train\n")
    found = scan_archive(images(), root, catalog=Catalog(root / "labels.csv"))
    assert found.unused == ["gone.png"]
    manifest = found.manifest
    assert manifest.column("label")[:2] == ["stripes", "rings"]
    assert len(set(manifest.column("group"))) == 4
    assert len(manifest.of_split("val")) == 2
    with pytest.raises(UserError, match="train, val"):
        manifest.of_split("test")


def test_write_and_read_are_inverse(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=5)
    adapter = images(global_size=48)
    manifest = scan_archive(adapter, root).manifest
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.rows.equals(manifest.rows) and again.root == root and again.adapter == adapter.describe()
    assert again.records() == manifest.records()
    rebuilt = data_adapters.from_description(again.adapter)
    assert rebuilt.prepare(again.record(0)).equal(adapter.prepare(manifest.record(0)))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="not a manifest"):
        Manifest.read(tmp_path / "x.parquet")


def test_duplicates_across_groups_only(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "a", count=4)
    shutil.copy(root / "0000.png", root / "0001.png")  # same group g0
    shutil.copy(root / "0000.png", root / "0002.png")  # group g1
    manifest = scan_archive(images(), root, catalog=Catalog(root / "labels.csv")).manifest
    assert manifest.duplicates() == [[0, 1, 2]]
    assert content_hash([str(root / "0000.png")]) == content_hash([str(root / "0002.png")])


def test_ids_are_salted_and_stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pictures(tmp_path / "a", count=3)
    first = scan_archive(images(), root).manifest
    assert scan_archive(images(), root).manifest.column("id") == first.column("id")
    content = content_hash([str(root / "0000.png")])
    assert first.column("id")[0] == item_id("0000.png", "", content) and len(first.column("id")[0]) == 32
    monkeypatch.setenv("LEJEPA_SALT", "another")
    assert not set(scan_archive(images(), root).manifest.column("id")) & set(first.column("id"))


def test_two_archives_with_equal_paths_have_different_ids_and_a_moved_one_keeps_its_own(tmp_path: Path) -> None:
    one, two = write_pictures(tmp_path / "a", count=3), write_pictures(tmp_path / "b", count=3)
    for number in range(3):
        shutil.copy(one / f"000{(number + 1) % 3}.png", two / f"000{number}.png")
    first, second = (scan_archive(images(), root).manifest for root in (one, two))
    assert first.column("path") == second.column("path")
    assert not set(first.column("id")) & set(second.column("id"))
    starts = [place_id(path, "") for path in first.column("path")]  # by which labels find items by path
    assert [name[: len(start)] for name, start in zip(second.column("id"), starts, strict=True)] == starts
    one.rename(tmp_path / "mounted elsewhere")
    journal = tmp_path / "journal"
    for _ in range(2):  # also from what a scan remembers
        moved = scan_archive(images(), tmp_path / "mounted elsewhere", journal=journal).manifest
        assert moved.column("id") == first.column("id")


def test_the_salt_is_made_once_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEJEPA_SALT")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first = salt()
    assert len(first) == 64 and salt() == first
    assert salt_file().stat().st_mode & 0o077 == 0
    assert [p.name for p in salt_file().parent.iterdir()] == ["salt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "no column 'path'"),
        ("path,label\na.png,x\na.png,y\n", "two different rows"),
    ],
)
def test_catalogues_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        Catalog(tmp_path / "c.csv")
    with pytest.raises(UserError, match="does not exist"):
        Catalog(tmp_path / "none.csv")


def test_catalogue_keeps_long_numbers_and_leading_zeros(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("path,group,label,mpp\n587722952767439450.jpg,007,1,0.25\n")
    row = Catalog(tmp_path / "c.csv").lookup(str(tmp_path / "587722952767439450.jpg"), "", tmp_path)
    assert row is not None and (row["group"], row["label"], row["mpp"]) == ("007", "1", "0.25")


def test_an_empty_or_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        scan_archive(images(), tmp_path / "none")
    assert len(scan_archive(images(), tmp_path).manifest) == 0


def test_options_are_checked_with_the_list_of_names() -> None:
    with pytest.raises(UserError, match=r"global_size"):
        images(size=3)
    with pytest.raises(UserError, match="galaxy, histology, images, mri"):
        data_adapters.create("xray")
