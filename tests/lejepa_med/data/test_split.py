"""lejepa-med split: groups and equal images stay together, labels keep their mix; the file is a catalogue."""

import csv
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.data.split import assign
from lejepa_med.errors import UserError
from tests.conftest import write_pictures

THREE = {"train": 0.7, "val": 0.15, "test": 0.15}


def sides(keys: list[str], splits: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key, split in zip(keys, splits, strict=True):
        found[key].add(split)
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(12, 60), st.integers(1, 4))
def test_groups_and_contents_are_whole_and_labels_balanced(seed: int, n_groups: int, n_labels: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, n_groups, 10 * n_groups))
    label = (group % n_labels).astype(str)  # one diagnosis a patient
    content = np.arange(len(group))
    content[rng.integers(0, len(group), 4)] = 0  # some images occur in several groups
    groups, labels, contents = [[str(v) for v in a] for a in (group, label, content)]
    try:
        splits, units = assign(groups, labels, contents, fractions=THREE, seed=seed)
    except UserError as error:
        assert "separate groups" in str(error)
        return
    assert all(len(where) == 1 for keys in (groups, contents) for where in sides(keys, splits).values())
    assert units <= len(set(groups)) and set(splits) == set(THREE)
    assert all(set(pair) for pair in sides(labels, splits).values())
    assert all(where == set(THREE) for where in sides(labels, splits).values())
    largest = Counter(groups).most_common(5)
    room = sum(count for _, count in largest)  # a joined unit and the rounding of small units
    for name, part in THREE.items():
        assert abs(splits.count(name) - part * len(splits)) <= room


def test_many_small_groups_meet_the_fractions_label_by_label() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3000), rng.integers(1, 6, 3000))
    label = np.where(group % 10 == 0, "rare", np.where(group % 3 == 0, "", "common"))
    contents = [str(i) for i in range(len(group))]
    splits, units = assign([str(g) for g in group], list(label), contents, fractions=THREE, seed=1)
    assert units == 3000
    for name in ("rare", "common", ""):
        chosen = [split for split, given in zip(splits, label, strict=True) if given == name]
        for split, part in THREE.items():
            assert chosen.count(split) / len(chosen) == pytest.approx(part, abs=0.005)


def test_the_seed_decides_and_nothing_else_does() -> None:
    groups = [str(i) for i in range(40)]
    one, two, other = (
        assign(groups, [None] * 40, groups, fractions={"a": 0.5, "b": 0.5}, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("labels", "fractions", "message"),
    [
        (["x"] * 2, THREE, "2 separate groups, fewer than the 3 splits"),
        (["x"] * 8 + ["y"] * 2, THREE, "The label 'y' lies in 2 separate groups"),
        (["x"] * 8, {"train": 0.7, "test": 0.2}, "sum to 1"),
        (["x"] * 8, {"train": 1.0}, "two or more"),
        (["x"] * 8, {"train": 1.5, "test": -0.5}, "above 0"),
    ],
)
def test_what_cannot_be_split_is_said(labels: list[str], fractions: dict[str, float], message: str) -> None:
    groups = [str(i) for i in range(len(labels))]
    with pytest.raises(UserError, match=message):
        assign(groups, labels, groups, fractions=fractions, seed=0)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = write_pictures(tmp_path / "pictures", count=48)
    shutil.copy(root / "0000.png", root / "0046.png")  # the first and the last group share an image
    return root


def test_the_command_writes_a_catalogue_and_its_receipt(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scan = tmp_path / "splits" / "s.csv", tmp_path / "scan"
    catalog = ["--catalog", str(archive / "labels.csv")]
    main(["scan", str(archive), "--modality", "images", "--out", str(scan), *catalog])
    assert "LEAK" in " ".join(capsys.readouterr().err.split())  # the given split has the image on both sides
    command = ["split", str(scan / "manifest.parquet"), "--out", str(out), "--seed", "3"]
    main([*command, "--fractions", "train=.5", "test=.5"])
    shown = capsys.readouterr().out
    assert "train: 24 items" in shown and "no equal image lies in two splits" in shown
    receipt = (tmp_path / "splits" / "s.receipt.txt").read_text().splitlines()
    assert receipt[0].startswith("Split s.csv, made by lejepa-med ") and receipt[0].endswith(" with seed 3")
    assert "48 items in 24 groups" in receipt and "groups kept together because of equal images: 1" in receipt
    assert "test: 24 items in 12 groups (50.0%, wanted 50.0%); labels: rings 12, stripes 12" in receipt
    assert "Checked in the written file: no group and no equal image lies in two splits." in receipt

    adapter = data_adapters.create("images")
    before = scan_archive(adapter, archive, catalog=Catalog(archive / "labels.csv")).manifest
    found = scan_archive(adapter, archive, catalog=Catalog(out))
    assert found.unused == [] and found.copied.across_splits == 0 and found.copied.contents == 1
    assert found.manifest.column("group") == before.column("group")  # sealed groups are the groups they were
    assert found.manifest.column("label") == before.column("label")
    assert len(found.manifest.of_split("train")) == 24
    split = dict(zip(found.manifest.column("path"), found.manifest.column("split"), strict=True))
    assert split["0000.png"] == split["0046.png"] == split["0001.png"] == split["0047.png"]
    assert f"digest of the manifest: {before.digest()}" in receipt

    with pytest.raises(SystemExit):
        main(command)
    assert "--overwrite" in capsys.readouterr().err
    kept = out.read_bytes()
    main([*command, "--overwrite", "--fractions", "train=.8,test=.2"])
    assert out.read_bytes() != kept and sorted(p.name for p in out.parent.iterdir()) == ["s.csv", "s.receipt.txt"]


def test_a_folder_is_scanned_first(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["split", str(archive), "--out", str(tmp_path / "s.csv")]
    with pytest.raises(SystemExit):
        main(command)
    assert "--modality" in capsys.readouterr().err
    main([*command, "--modality", "images", "--catalog", str(archive / "labels.csv")])
    with (tmp_path / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["split"] for row in rows).keys() == THREE.keys() and len(rows) == 48
    assert not any("g1" in row["group"] for row in rows)  # groups leave the scan as hashes
    for wrong in (["--modality", "images"], ["--out", str(tmp_path / "s.txt")]):
        with pytest.raises(SystemExit):
            main(["split", str(tmp_path / "m.parquet"), "--out", str(tmp_path / "t.csv"), *wrong])


def test_items_of_one_file_are_split_by_their_groups(tmp_path: Path) -> None:
    from lejepa_med.data.split import write_split
    from tests.data.galaxy import write_hdf5

    write_hdf5(tmp_path / "table.h5", rows=12)
    adapter = data_adapters.create("galaxy")
    manifest = scan_archive(adapter, tmp_path / "table.h5").manifest
    write_split(manifest, tmp_path / "s.csv", fractions={"a": 0.5, "b": 0.5}, seed=0)
    found = scan_archive(adapter, tmp_path / "table.h5", catalog=Catalog(tmp_path / "s.csv")).manifest
    assert all(len(where) == 1 for where in sides(found.column("group"), found.column("split")).values())
    assert set(found.column("split")) == {"a", "b"} and found.column("id") == manifest.column("id")
