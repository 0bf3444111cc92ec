"""The walk over an archive: links are followed, every walk ends, and all that is left out is told."""

import os
import shutil
import socket
from collections import Counter
from pathlib import Path

import pytest

import data_adapters
from data_adapters import files
from data_adapters.base import Adapter, Rejected, walk
from data_adapters.scan import scan_archive
from tests.conftest import write_pictures
from tests.data.mri import phantom, write_nifti


def below(root: Path, **options: Path) -> tuple[list[str], dict[str, str]]:
    """Paths of the files below `root`, and the reason of everything that is left out."""
    left: list[Rejected] = []
    found = [path.relative_to(root).as_posix() for path in walk(root, left_out=left.append, **options)]
    return found, {Path(one.uri).relative_to(root).as_posix(): one.reason for one in left}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_linked_folders_are_walked_under_their_own_names_and_cycles_end(tmp_path: Path) -> None:
    root = tmp_path / "a"
    touch(root / "p0" / "0.png", *(tmp_path / "store" / f"p{p}" / "0.png" for p in (1, 2)))
    (root / "p2").symlink_to(tmp_path / "store" / "p2")
    (root / "also-p1").symlink_to(tmp_path / "store" / "p1")  # a diamond: two names of one folder
    (root / "p1").symlink_to("../store/p1")
    (tmp_path / "store" / "p1" / "back").symlink_to(root)  # from outside into the archive again
    (root / "p0" / "up").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "whole-disk").symlink_to("/")
    found, left = below(root)
    assert found == ["also-p1/0.png", "p0/0.png", "p1/0.png", "p2/0.png"]
    assert left == {
        "also-p1/back": "link to a folder that holds it",
        "p1/back": "link to a folder that holds it",
        "p0/up": "link to a folder that holds it",
        "self": "link that cannot be followed",
        "whole-disk": "link to a folder that holds the archive",
    }
    (tmp_path / "b").symlink_to(root)
    assert below(tmp_path / "b") == (found, left), "an archive that is itself a link"


def test_a_maze_of_links_ends(tmp_path: Path) -> None:
    for depth in range(40):  # 2 ** 40 ways
        (tmp_path / "rooms" / str(depth)).mkdir(parents=True)
        for door in "ab":
            (tmp_path / "rooms" / str(depth) / door).symlink_to(f"../{depth + 1}")
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "door").symlink_to(tmp_path / "rooms" / "0")
    _, left = below(tmp_path / "entry")
    assert set(left.values()) == {f"more than {files.MOST_LINKS} linked folders inside of each other"}
    assert len(left) == 2**files.MOST_LINKS


def test_whatever_is_no_image_is_told_or_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / ".b.png", tmp_path / ".old" / "c.png", tmp_path / "closed" / "d.png")
    touch(*(tmp_path / name for name in ("._a.png", ".DS_Store", "Thumbs.db", "t.csv", ".t.json", "note.TXT")))
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "annex.nii.gz").symlink_to(".git/annex/objects/f8/MD5E-s9--a.nii.gz/MD5E-s9--a.nii.gz")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
    passed: Counter[str] = Counter()
    left: list[Rejected] = []
    found = [path.name for path in walk(tmp_path, left_out=left.append, passed=passed)]
    assert found == ["a.png", "d.png"] and all(one.remedy for one in left)
    assert {Path(one.uri).name: (one.reason, one.remedy) for one in left} == {
        ".b.png": files.HIDDEN_FILE,
        ".old": files.HIDDEN_FOLDER,
        "gone.png": files.BROKEN,
        "annex.nii.gz": files.ANNEX,
        "pipe.png": files.SPECIAL,
        "device.png": files.SPECIAL,
        "socket": files.SPECIAL,
    }
    assert "datalad get" in files.ANNEX[1] and "git annex get" in files.ANNEX[1]
    assert passed == {"system files": 3, ".csv": 1, ".json": 1, ".txt": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_folders_are_told(tmp_path: Path) -> None:
    touch(tmp_path / "closed" / "a.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert below(tmp_path) == ([], {"closed": files.CLOSED[0]})
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_links_may_be_kept_inside_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "archives" / "a"
    touch(root / "0.png", tmp_path / "archives" / "b" / "1.png", tmp_path / "secret" / "2.png")
    (root / "b").symlink_to("../b")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "out.png").symlink_to(tmp_path / "secret" / "2.png")
    (root / "b" / "out").symlink_to("../../secret")
    found, left = below(root, inside=tmp_path / "archives")
    assert found == ["0.png", "b/1.png"]
    assert left == dict.fromkeys(("out", "out.png", "b/out"), "a link to a place outside of the archives")
    result = scan_archive(data_adapters.create("images"), root, inside=tmp_path / "archives")
    assert {one.reason for one in result.refused if "out" in one.uri} == {"a link to a place outside of the archives"}


@pytest.mark.parametrize(
    "adapter", [data_adapters.create("images"), data_adapters.create("images", group_by="folder:1")]
)
def test_scan_reads_what_links_lead_to_and_tells_copies(adapter: Adapter, tmp_path: Path) -> None:
    store = write_pictures(tmp_path / "store" / "p1", count=3).parent
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "p1").symlink_to(store / "p1")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    journal = tmp_path / "journal"
    found = scan_archive(adapter, tmp_path / "a", journal=journal, workers=0)
    assert found.manifest.column("path") == ["p1/0000.png", "p1/0001.png", "p1/0002.png"]
    assert (found.reasons(), found.passed) == ([(files.SPECIAL[0], 1)], {".csv": 1})
    found.write(tmp_path / "out")
    assert files.SPECIAL[1] in (tmp_path / "out" / "rejected.csv").read_text()
    assert not (tmp_path / "out" / "duplicates.csv").exists()

    shutil.copy(store / "p1" / "0001.png", store / "p1" / "0000.png")  # the link is as before, its target is not
    found = scan_archive(adapter, tmp_path / "a", journal=journal, workers=0)
    assert (found.changes.changed, found.changes.same) == (1, 2)
    in_one_group = adapter.options.group_by == "folder:1"  # type: ignore[attr-defined]
    assert (found.copied.contents, found.copied.within) == ((0, 1) if in_one_group else (1, 0))

    (tmp_path / "a" / "p2").symlink_to("p1")  # another name of what is read already
    found = scan_archive(adapter, tmp_path / "a", journal=journal, workers=0)
    assert len(found) == 6 and (found.copied.contents, found.copied.within) == (2, 0)
    found.write(tmp_path / "out")
    assert (tmp_path / "out" / "duplicates.csv").read_text().count("p2/") == 3


def test_linked_patients_of_mri_are_patients(tmp_path: Path) -> None:
    for patient in ("ann", "bob"):
        (tmp_path / "store" / patient).mkdir(parents=True)
        write_nifti(tmp_path / "store" / patient / "scan.nii.gz", phantom())
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"linked-{patient}").symlink_to(tmp_path / "store" / patient)
    found = scan_archive(data_adapters.create("mri"), tmp_path / "a", verify=False)
    assert found.manifest.column("path") == ["linked-ann/scan.nii.gz", "linked-bob/scan.nii.gz"]
    assert len(set(found.manifest.column("group"))) == 2
