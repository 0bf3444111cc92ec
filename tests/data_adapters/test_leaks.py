"""Leaks: a group, or an equal image, in two splits."""

import csv
import shutil
from pathlib import Path

import pytest

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.leaks import Leak, Placed, alike, find_leak
from data_adapters.manifest import Manifest
from data_adapters.scan import Scan, scan_archive
from tests.conftest import write_pictures


def placed(*rows: str, used: str = "") -> Leak | None:
    """Items as `group content split`, - for an empty one; of the split `used` alone where given."""
    cells = [["" if cell == "-" else cell for cell in row.split()] for row in rows]
    return find_leak(Placed(*three, name=f"item{n}", used=used in ("", three[2])) for n, three in enumerate(cells))


def test_groups_and_equal_images_in_two_splits_are_counted() -> None:
    assert placed("a x train", "a y train", "b z test", "c - -") is None
    leak = placed("a 1 train", "a 2 test", "a 3 test", "b 4 train", "b 5 val", "c 6 train", "d 6 test")
    assert leak is not None and leak.report() == {"groups": 2, "images": 5, "copies": 1}
    assert leak.first == ("a", "b", "c")
    assert leak.examples[0] == "item0 (train) and item1 (test)"
    assert str(leak) == (
        "2 groups lie in several splits (5 images) and 1 image lies in different splits as exact copies "
        "under other groups"
    )


@pytest.mark.parametrize(
    ("rows", "used", "expected"),
    [
        (("a 1 train", "a 2 -"), "", None),  # without a split it is on no side
        (("a 1 train", "b 1 -"), "", None),
        (("a 1 train", "a 1 test"), "", (1, 2, 0)),  # one patient, one image: counted by its group
        (("a 1 val", "a 2 test"), "train", None),  # does no harm to who uses train
        (("a 1 val", "a 2 test"), "val", (1, 2, 0)),
        (("a 1 val", "b 1 test"), "train", None),
        (("a - train", "b - test"), "", None),  # contents that are not known are not equal
        (("a 1 Train", "a 2 train"), "", (1, 2, 0)),  # as written
    ],
)
def test_which_items_leak(rows: tuple[str, ...], used: str, expected: tuple[int, int, int] | None) -> None:
    leak = placed(*rows, used=used)
    assert (leak and tuple(leak.report().values())) == expected


def test_names_that_differ_in_case_or_spaces_only() -> None:
    assert alike(["train", "Train", "test", "t r a i n", "", "val"]) == [["Train", "t r a i n", "train"]]


def leaking(root: Path) -> Path:
    """Twelve pictures of six groups; g1 lies in two splits, and a picture of g0 (train) is copied to g3 (val)."""
    write_pictures(root, count=12)
    text = (root / "labels.csv").read_text().replace("0003.png,rings,g1,train", "0003.png,rings,g1,val")
    (root / "labels.csv").write_text(text)
    shutil.copy(root / "0000.png", root / "0006.png")
    return root


@pytest.fixture
def found(tmp_path: Path) -> Scan:
    root = leaking(tmp_path / "a")
    return scan_archive(data_adapters.create("images"), root, catalog=Catalog(root / "labels.csv"))


def test_a_scan_and_its_manifest_tell_the_same_leak(found: Scan, tmp_path: Path) -> None:
    assert found.leak is not None and found.leak.report() == {"groups": 1, "images": 2, "copies": 1}
    assert found.leak.examples == (
        "0002.png (train) and 0003.png (val)",
        "0000.png (train) and 0006.png (val)",
    )
    assert found.manifest.leak() == found.leak == found.manifest.leak(of="train")
    assert found.manifest.leak(of="nowhere") is None
    found.write(tmp_path / "out")
    assert Manifest.read(tmp_path / "out" / "manifest.parquet").leak() == found.leak
    with (tmp_path / "out" / "leaks.csv").open(newline="") as stream:
        rows = [(row["path"], row["split"]) for row in csv.DictReader(stream)]
    assert rows == [("0000.png", "train"), ("0002.png", "train"), ("0003.png", "val"), ("0006.png", "val")]
    with pytest.raises(UserError, match=r"LEAK: 1 group lies .*0003\.png \(val\).*lejepa-med split.*--allow-leak"):
        found.leak.check(allow=False, flag="--allow-leak")
    found.leak.check(allow=True, flag="--allow-leak")


def test_a_corrected_catalogue_leaves_no_word_of_the_leak(found: Scan, tmp_path: Path) -> None:
    root = tmp_path / "a"
    found.write(tmp_path / "out")
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace(",val", ",train"))
    again = scan_archive(data_adapters.create("images"), root, catalog=Catalog(root / "labels.csv"))
    assert again.leak is None and again.manifest.leak() is None
    again.write(tmp_path / "out")
    assert not (tmp_path / "out" / "leaks.csv").exists()


def test_groups_of_folders_leak_as_those_of_a_catalogue(tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        write_pictures(tmp_path / name, count=2, seed=ord(name[1]))
        (tmp_path / name / "labels.csv").unlink()
    table = tmp_path / "t.csv"
    table.write_text("path,split\np0/0000.png,train\np0/0001.png,test\np1/0000.png,train\np1/0001.png,train\n")
    leak = scan_archive(data_adapters.create("images"), tmp_path, catalog=Catalog(table)).leak
    assert leak is not None and leak.report() == {"groups": 1, "images": 2, "copies": 0}
    by_file = data_adapters.create("images", group_by="file")
    assert scan_archive(by_file, tmp_path, catalog=Catalog(table)).leak is None
