"""The rule for groups by folder: one for all modalities, and what goes before it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_adapters
from data_adapters.base import Record
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.images.adapter import ImagesAdapter
from data_adapters.scan import scan_archive
from tests.data.mri import SPACING, phantom, write_nifti, write_series

MODALITIES = ("images", "galaxy", "histology", "mri")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(str(path).encode()[-6:])
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (256, 256, 3), np.uint8)).convert("L").convert(
        "RGB"
    ).save(path)


def groups(modality: str, root: Path, *names: str, catalog: Path | None = None, **options: object) -> list[str]:
    """The groups of pictures of these names, in the same order."""
    for name in names:
        picture(root / name)
    table = Catalog(catalog) if catalog is not None else None
    found = {
        Path(item.uri).relative_to(root.resolve()).as_posix(): item
        for item in data_adapters.create(modality, **options).scan(root, catalog=table)
    }
    assert all(isinstance(item, Record) for item in found.values()), found
    return [found[name].group for name in names]  # type: ignore[union-attr]


TREES = {
    "patients with sessions": (("p1/s1/a.png", "p1/s2/b.png", "p2/s1/a.png"), ["p1", "p1", "p2"]),
    "all in one folder above": (("export/raw/p1/s1/a.png", "export/raw/p2/a.png"), ["p1", "p2"]),
    "cases": (("case1/a.png", "case1/b.png", "case2/a.png"), ["case1", "case1", "case2"]),
    "nights with fields": (("n1/f1/a.png", "n2/f1/a.png", "n2/f2/a.png"), ["n1", "n2", "n2"]),
    "splits on top": (("train/p1/a.png", "train/p2/a.png", "Val/p3/s/a.png"), ["p1", "p2", "p3"]),
    "one case in two splits": (("train/p1/a.png", "test/p1/b.png", "test/p2/b.png"), ["p1", "p1", "p2"]),
    "splits with a folder in each": (("train/img/p1/a.png", "test/img/p2/a.png"), ["p1", "p2"]),
    "a case with a split's name": (("test/a.png", "p1/a.png"), ["test", "p1"]),
    "a file beside the splits": (("train/p1/a.png", "val/p2/a.png", "x.png"), ["train", "val", "x"]),
}


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("tree", TREES)
def test_the_first_folder_that_differs_is_the_group(modality: str, tree: str, tmp_path: Path) -> None:
    names, wanted = TREES[tree]
    assert groups(modality, tmp_path, *names) == wanted


@pytest.mark.parametrize("modality", MODALITIES)
def test_files_in_no_folder_are_groups_of_their_own(modality: str, tmp_path: Path) -> None:
    whole = modality != "mri"  # where the name without a contrast joins what differs in nothing else
    assert groups(modality, tmp_path / "a", "x/b.png", "x/c.png") == (["x/b", "x/c"] if whole else ["b", "c"])
    split = groups(modality, tmp_path / "b", "train/b.png", "val/c.png")
    assert split == (["train/b", "val/c"] if whole else ["b", "c"])


@pytest.mark.parametrize("modality", MODALITIES)
def test_another_level_is_chosen_by_one_option(modality: str, tmp_path: Path) -> None:
    names = ("tumor/case1/a.png", "tumor/case2/a.png", "normal/case1/b.png", "normal/c.png", "d.png")
    assert groups(modality, tmp_path, *names) == ["tumor", "tumor", "normal", "normal", "d"]
    # case1 has tissue of both classes; what lies less deep is in the last folder that it has
    assert groups(modality, tmp_path, *names, group_by="folder:2") == ["case1", "case2", "case1", "normal", "d"]
    own = [name.removesuffix(".png") for name in names]
    assert groups(modality, tmp_path, *names, group_by="file") == own
    for wrong in ("folder:0", "folder:x", "patient", ""):
        with pytest.raises(UserError, match=r"group_by: .*folder:2 for the second folder"):
            data_adapters.create(modality, group_by=wrong)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_level_that_is_chosen_counts_from_the_archive(modality: str, tmp_path: Path) -> None:
    # a part of the archive, or one more folder, changes what differs first, but not what was chosen
    assert groups(modality, tmp_path, "tumor/case1/a.png", "tumor/case1/b.png", group_by="folder:2") == ["case1"] * 2


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_catalogue_goes_before_folders(modality: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,group\np1/a.png,someone\n")
    found = groups(modality, tmp_path / "a", "p1/a.png", "p1/b.png", "p2/a.png", catalog=table)
    assert found == ["someone", "p1", "p2"]


@pytest.mark.parametrize("group_by", ["folder", "folder:2", "file"])
def test_what_is_known_goes_before_folders(group_by: str, tmp_path: Path) -> None:
    root = tmp_path / "mri"
    for number, place in enumerate(("x/1", "y/2")):
        write_series(root / place, phantom(seed=number), series=number + 1, patient="P-7", spacing=SPACING)
    write_nifti(root / "x" / "sub-01_T1w.nii", phantom(seed=5))
    found = data_adapters.create("mri", group_by=group_by).scan(root)
    assert [item.group for item in found if isinstance(item, Record)] == ["sub-01", "P-7", "P-7"]
    named = ("a/TCGA-A1-B2C3-01Z_1.png", "b/TCGA-A1-B2C3-01Z_2.png")
    assert groups("histology", tmp_path / "tiles", *named, group_by=group_by) == ["TCGA-A1-B2C3"] * 2
    placed = ("a/150.1000_2.2000.png", "b/150.1001_2.2001.png")
    assert len(set(groups("galaxy", tmp_path / "sky", *placed, group_by=group_by))) == 1


def test_options_of_earlier_encoders_are_read(tmp_path: Path) -> None:
    for modality, earlier, now in (
        ("histology", {"tile_group": "file"}, "file"),
        ("histology", {"tile_group": "folder"}, "folder"),
        ("mri", {"group_by": "auto"}, "folder"),
        ("mri3d", {"group_by": "auto"}, "folder"),
    ):
        described = data_adapters.create(modality).describe()  # type: ignore[attr-defined]
        del described["options"]["group_by"]
        described["options"].update(earlier)
        again = data_adapters.from_description(described)
        assert again.describe()["options"]["group_by"] == now
    with pytest.raises(UserError, match="tile_group"):
        data_adapters.create("images", tile_group="file", group_by="file")


def test_a_scan_with_another_rule_reads_its_groups_anew(tmp_path: Path) -> None:
    for name in ("p1/s1/a.png", "p1/s2/a.png", "p2/s1/a.png"):
        picture(tmp_path / "a" / name)
    journal = tmp_path / "journal"
    found = []
    for option in ("folder", "folder:2", "folder"):
        adapter = data_adapters.create("images", group_by=option)
        found.append(scan_archive(adapter, tmp_path / "a", journal=journal, workers=0).manifest.column("group"))
    assert found[0] == found[2] and len(set(found[0])) == len(set(found[1])) == 2 and found[0] != found[1]
    # files that are remembered, and a new one that changes at which level folders differ
    one, journal = tmp_path / "b", tmp_path / "journal-b"
    for name in ("p1/s1/a.png", "p1/s2/a.png"):
        picture(one / name)
    adapter = data_adapters.create("images")
    assert len(set(scan_archive(adapter, one, journal=journal, workers=0).manifest.column("group"))) == 2
    picture(one / "p2/s1/a.png")
    again = scan_archive(adapter, one, journal=journal, workers=0)
    assert again.changes.same == 2 and [g.groups for g in again.grouping()] == [2]
    first, second, third = again.manifest.column("group")
    assert first == second != third


class Named(ImagesAdapter):
    """As a user writes one whose file names tell the group."""

    def group_of_name(self, name: str) -> str:
        return name.partition("_")[0] if "_" in name else ""


def test_names_and_folders_are_those_before_a_copy(tmp_path: Path) -> None:
    """Files that a service stored as 0.png, 1.png, ... are grouped as they were where they came from."""
    originals = ["wing/doe_1.png", "ward/doe_2.png", "wing/roe.png", "wing/poe.png", "ward/loe.png"]
    for number in range(len(originals)):
        picture(tmp_path / f"{number}.png")
    origins = {tmp_path / f"{number}.png": tmp_path / name for number, name in enumerate(originals)}
    found = scan_archive(Named(), tmp_path, origins=origins, workers=0)
    assert found.manifest.column("path") == [f"{number}.png" for number in range(5)]
    doe, again, roe, poe, loe = found.manifest.column("group")
    assert doe == again and roe == poe and len({doe, roe, loe}) == 3
    assert found.by_folder == "3 files in 2 folders were taken for 2 groups, by folder (folder:1)"
    assert len(set(scan_archive(Named(), tmp_path, workers=0).manifest.column("group"))) == 5
