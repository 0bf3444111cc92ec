"""Which file a row of a catalogue means, whatever system its path was written on."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from data_adapters.catalog import Catalog, below, fold, spellings, tidy
from data_adapters.errors import UserError
from data_adapters.identity import place_id
from data_adapters.registry import create
from data_adapters.scan import scan_archive
from tests.data.images import scene, write_image

NAME = "ward 1/Müller.png"
NFC, NFD = unicodedata.normalize("NFC", NAME), unicodedata.normalize("NFD", NAME)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An archive with one picture in a folder, named as a Mac does, and one beside it."""
    (tmp_path / "archive" / "ward 1").mkdir(parents=True)
    write_image(tmp_path / "archive" / NFD, scene())
    write_image(tmp_path / "archive" / "root.png", scene(seed=1))
    return tmp_path / "archive"


def scan(root: Path, path: str, *, place: str = ".") -> tuple[list[str | None], list[str]]:
    """Labels of the scanned items, and notes, for a catalogue of one row in the folder `place` beside the archive."""
    folder = root.parent / place
    folder.mkdir(exist_ok=True)
    (folder / "c.csv").write_text(f"path,label\n{path},x\n")
    found = scan_archive(create("images"), root, catalog=Catalog(folder / "c.csv"), verify=False)
    return found.manifest.column("label"), found.catalog_notes


@pytest.mark.parametrize(
    "path",
    [
        NFC,
        NFD,
        f"./{NFC}",
        f"archive/{NFC}",
        f"../archive/{NFD}",
        NFC.replace("/", "\\"),
        ".\\" + NFC.replace("/", "\\"),
        "ward 1//x/../Müller.png",
        NFC.replace(".png", ".PNG"),
        "D:\\Studien\\Köln\\" + NFC.replace("/", "\\"),
        "c:/data/" + NFC,
        "\\\\server\\share\\" + NFC.replace("/", "\\"),
    ],
)
def test_a_path_finds_its_file(root: Path, path: str) -> None:
    labels, notes = scan(root, path, place="labels")
    assert labels == [None, "x"], notes
    assert any("1 item has no row" in note and place_id("root.png", "") in note for note in notes)
    assert not any("root.png" in note for note in notes)


def test_absolute_paths_and_links_to_the_archive(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    for base in (root, tmp_path / "link"):
        assert scan(root, f"{base}/{NFC}", place="labels")[0] == [None, "x"]
    labels, notes = scan(root, f"/elsewhere/{NFC}", place="labels")
    assert labels == [None, None] and any("1 of 1 row matches no readable file" in note for note in notes)


def test_rows_without_files_are_named_by_row(root: Path) -> None:
    rows = ",x\n".join(f"gone/{number}.png" for number in range(7))
    _, notes = scan(root, f"{NFC},x\n\n{rows}")
    (said,) = [note for note in notes if "no readable file" in note]
    assert "7 of 8 rows" in said and said.endswith("The first: row 4, row 5, row 6, row 7, row 8 of c.csv")
    assert "gone" not in said, "what a scan prints may be shared"


def test_files_that_differ_only_in_spelling(root: Path) -> None:
    shutil.copy(root / NFD, root / NFC)
    try:
        labels, notes = scan(root, NFC)
        assert sorted(labels, key=str) == [None, None, "x"] and any("differs only in" in note for note in notes)
        with pytest.raises(UserError, match="fits two files whose names differ only in"):
            scan(root, NFC.replace(".png", ".PNG"))
    finally:
        (root / NFC).unlink()
    (root / "root.png").rename(root / "root.PNG")
    write_image(root / "root.png", scene(seed=2))
    labels, notes = scan(root, "root.PNG")
    assert labels == ["x", None, None] and any("differs only in" in note for note in notes)


def test_two_rows_for_one_file(root: Path) -> None:
    assert scan(root, f"{NFC},x\n{NFD},x\n./{NFC}")[0] == [None, "x"]
    with pytest.raises(UserError, match=r"rows 2 and 3"):
        scan(root, f"root.png,x\n.\\root.png,y\n{NFC}")
    with pytest.raises(UserError, match=r"different rows for the file .*rows 2, 3"):
        scan(root, f"root.PNG,x\nroot.Png,y\n{NFC}")


def test_groups_classes_and_numbers_of_a_catalogue(root: Path) -> None:
    text = f'path;label;group;mpp;site\n{NFC};1.0;012;"0,5";01\nroot.png;1;12;1;02\n'
    (root.parent / "c.csv").write_text(text)
    catalog = Catalog(root.parent / "c.csv")
    root_record, record = create("images").scan(root, catalog=catalog)
    assert (record.label, record.group, record.meta["mpp"], record.meta["site"]) == ("1", "012", 0.5, "01")
    assert (root_record.label, root_record.group, root_record.meta["mpp"]) == ("1", "12", 1.0)


def test_spellings_fold_to_one_key() -> None:
    for path in (NFC, "a/b.NII.gz", "é/ö/ü.PNG", "noext", ".hidden", "a.b/c"):
        assert path in set(spellings(path)) and {fold(one) for one in spellings(path)} == {fold(path)}
    assert fold("a/Scan.NII.GZ") == "a/Scan.nii.gz" != fold("a/scan.nii.gz")
    assert len(set(spellings("/".join(["é"] * 20) + ".png"))) < 20
    mixed = unicodedata.normalize("NFD", "é") + "/" + unicodedata.normalize("NFC", "ü") + ".png"
    assert mixed in set(spellings("é/ü.png"))


def test_tidy_and_below(tmp_path: Path) -> None:
    assert tidy("./a\\..\\b//c.png") == "b/c.png" and tidy("..\\x") == "../x" and tidy("/a/../../b") == "/b"
    (tmp_path / "t").mkdir()
    root = tmp_path / "archive"
    assert below("a.png", root=root, folder=root)[0] == "a.png"
    assert below("../archive/a.png", root=root, folder=tmp_path / "t") == ["a.png"]
    assert below(f"{root}/a/b.png", root=root, folder=tmp_path / "t") == ["a/b.png"]
    assert below("/other/a.png", root=root, folder=tmp_path / "t") == []
