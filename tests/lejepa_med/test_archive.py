"""What a scan prints: by which rule groups were made, and what is likely to be wrong about them."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.archive import summary
from tests.conftest import write_pictures
from tests.data.mri import write_nifti


def printed(root: Path, modality: str, *, catalog: Path | None = None, **options: Any) -> str:
    """The summary of a scan in one line."""
    table = Catalog(catalog) if catalog is not None else None
    found = scan_archive(data_adapters.create(modality, **options), root, catalog=table, verify=False)
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(summary(found))
    return " ".join(console.export_text().replace("│", " ").split())


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Forty pictures in two folders, and their labels.csv beside them."""
    for name in ("spiral", "elliptical"):
        write_pictures(tmp_path / "a" / name, count=20, seed=len(name))
        (tmp_path / "a" / name / "labels.csv").unlink()
    return tmp_path / "a"


def test_each_rule_is_named_with_its_groups(folders: Path, tmp_path: Path) -> None:
    own = "each file its own, as nothing says which belong together"
    for modality in ("images", "galaxy", "mri", "histology"):
        shown = printed(folders, modality, group_by="file")
        assert "40 in 40 groups" in shown and f"groups 40 {own}" in shown and "were taken for" not in shown
    table = tmp_path / "c.csv"
    table.write_text("path,group\n" + "".join(f"a/spiral/{n:04d}.png,p{n // 2}\n" for n in range(20)))
    by_file = printed(folders, "images", group_by="file", catalog=table)
    assert f"groups 10 by catalogue (20 items); 20 {own}" in by_file


def test_few_groups_of_folders_are_doubted(folders: Path) -> None:
    for modality in ("images", "galaxy", "mri", "histology"):
        shown = printed(folders, modality)
        assert "groups 40 files in 2 folders were taken for 2 groups, by folder (folder:1)" in shown
        assert "few, by folder" in shown and "catalogue with a column 'group'" in shown
        assert "group_by: folder:2 takes the folders below, file each file by itself" in shown
    shutil.rmtree(folders / "spiral")
    assert "all items are one group, so none can be held out" in printed(folders, "mri", group_by="folder:1")


def test_a_catalogue_that_agrees_with_the_folders_counts_as_one(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    files = [path.relative_to(folders) for path in sorted(folders.rglob("*.png"))]
    table.write_text("path,group\n" + "".join(f"{path},{path.parent}\n" for path in files))
    shown = printed(folders, "images", catalog=table)
    assert "groups 2 by catalogue" in shown and "few, by folder" not in shown


def test_equal_names_of_folders_are_told(tmp_path: Path) -> None:
    for place in ("train/p1/s1", "train/p1/s2", "test/p1/s1", "test/p2/s1"):
        write_pictures(tmp_path / place, count=1)
    assert "groups 1 group has items in several folders (by folder:2)" in printed(tmp_path, "images")
    assert "in several folders" not in printed(tmp_path, "images", group_by="folder:1")


def test_sites_of_mri_are_doubted(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(100, 20, (24, 24, 24)).astype(np.float32)
    for site in "ab":
        for patient in range(5):
            (tmp_path / site / f"p{patient}").mkdir(parents=True)
            write_nifti(tmp_path / site / f"p{patient}" / "T1.nii", volume)
    assert "10 files in 10 folders were taken for 2 groups" in printed(tmp_path, "mri")


def test_equal_subjects_of_two_data_sets_are_told(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(100, 20, (24, 24, 24)).astype(np.float32)
    for place in ("ds1/sub-01/anat", "ds1/sub-01/dwi", "ds1/sub-02/anat", "ds2/sub-01/anat"):
        (tmp_path / place).mkdir(parents=True)
        write_nifti(tmp_path / place / f"{place.split('/')[1]}_T1w.nii", volume)
    shown = printed(tmp_path, "mri")
    assert "groups 2 by BIDS subject (4 items)" in shown
    assert "1 group has items in several folders (by BIDS subject)" in shown


def test_what_stands_beside_images_is_counted(folders: Path) -> None:
    for name in ("notes.txt", "more.txt", "table.csv", ".DS_Store", "._a.png"):
        (folders / name).touch()
    assert "2 .txt, 2 system files, 1 .csv (not read)" in printed(folders, "images")


def test_names_of_splits_that_look_alike_are_told(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "c.csv"
    rows = [f"a/spiral/{n:04d}.png,p{n // 2},{('Train', 'train')[n % 2]}\n" for n in range(4)]
    table.write_text("path,group,split\n" + "".join(rows))
    shown = printed(folders, "images", catalog=table)
    assert "'Train', 'train' are taken as different splits, as they are written" in shown
    assert "LEAK 2 groups lie in several splits (4 images)" in shown
