"""Groups and labels from the columns that a lab's table has: options, hints, BIDS participants, the run's own table."""

import csv
import shutil
from pathlib import Path
from shlex import quote

import numpy as np
import pytest

import data_adapters
from data_adapters.identity import group_id
from data_adapters.manifest import Manifest
from lejepa_med.cli import main
from lejepa_med.config import load_config
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import save_encoder
from lejepa_med.probes.probe import Probe
from tests.conftest import write_pictures
from tests.data.mri import write_nifti
from tests.lejepa_med.cli.test_path import TINY

Capture = pytest.CaptureFixture[str]
AGES = [31, 47, 47, 64, 52, 70]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of 6 patients, an encoder, and a table with a lab's own columns."""
    folder = tmp_path_factory.mktemp("columns")
    root = write_pictures(folder / "archive", count=24)
    (root / "labels.csv").unlink()
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["path", "Patient_ID", "age", "sex"])
        writer.writerows([f"{n:04d}.png", f"00{n // 4}", AGES[n // 4], "fm"[n // 4 % 2]] for n in range(24))
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, folder / "encoder" / "encoder")
    return folder


def said(capsys: Capture, *arguments: object, fails: bool = False) -> str:
    """What a command prints, in one line; with `fails`, one that ends with status 2."""
    capsys.readouterr()
    if fails:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        assert ended.value.code == 2
    else:
        main(list(map(str, arguments)))
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).replace("│", " ").split())


def test_scan_takes_the_columns_and_names_the_one_left_out(work: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["scan", work / "archive", "--modality", "images", "--catalog", work / "table.csv", "--out"]
    shown = said(capsys, *command, tmp_path / "a")
    assert "24 each file its own" in shown and "the column 'Patient_ID' looks like the group" in shown
    assert "give --group-column Patient_ID" in shown
    shown = said(capsys, *command, tmp_path / "b", "--group-column", "patient_id", "--label-column", "age")
    assert "6 by catalogue, column Patient_ID (24 items)" in shown and "looks like" not in shown
    manifest = Manifest.read(tmp_path / "b" / "manifest.parquet")
    assert manifest.column("group") == [group_id(f"00{n // 4}") for n in range(24)]  # 000 is no number
    assert manifest.column("label") == [str(AGES[n // 4]) for n in range(24)]
    shown = said(capsys, *command, tmp_path / "c", "--label-column", "weight", fails=True)
    assert "no column 'weight' (it has: path, Patient_ID, age, sex)" in shown
    shown = said(capsys, *command[:4], "--out", tmp_path / "d", "--group-column", "x", fails=True)
    assert "--catalog FILE" in shown


@pytest.mark.parametrize(
    ("column", "is_likely"),
    [
        *((name, True) for name in ("patient", "PatientID", "patient id", "SUBJECT", "subject_id", "participant_id")),
        *(
            (name, True)
            for name in ("Case", "case_submitter_id", "bcr_patient_barcode", "slide", "slide-name", "field")
        ),
        *((name, False) for name in ("site", "patient_age", "identity", "fieldstrength", "casein", "label2", "id2")),
    ],
)
def test_columns_that_look_like_groups(
    work: Path, tmp_path: Path, capsys: Capture, column: str, is_likely: bool
) -> None:
    (tmp_path / "t.csv").write_text(f"path,{column},group\n0000.png,a,\n")  # a group that nobody filled in
    command = ["scan", work / "archive", "--modality", "images", "--no-verify", "--catalog", tmp_path / "t.csv"]
    shown = said(capsys, *command, "--out", tmp_path / "s")
    assert (f"--group-column {quote(column)} to keep" in shown) is is_likely


def test_a_run_keeps_the_columns_and_embed_the_runs_catalogue(work: Path, tmp_path: Path, capsys: Capture) -> None:
    run, columns = tmp_path / "run", ["--group-column", "Patient_ID", "--label-column", "sex"]
    table = ["--catalog", work / "table.csv", *columns]
    short = ["--epochs", "1", *TINY.split()]
    said(capsys, "pretrain", work / "archive", "--modality", "images", "--out", run, *table, *short)
    config = load_config(run / "config.yaml")
    assert (config.data.group_column, config.data.label_column) == ("Patient_ID", "sex")
    shown = said(capsys, "embed", run, work / "archive", "--out", tmp_path / "t", "--workers", "0")
    assert f"catalogue: {work}/table.csv, the run's own" in shown
    found = EmbeddingTable.open(tmp_path / "t")
    assert found.groups == [group_id(f"00{n // 4}") for n in range(24)]
    assert found.labels == ["fm"[n // 4 % 2] for n in range(24)]
    age = ["--label-column", "age", "--out", tmp_path / "u"]
    said(capsys, "embed", run / "encoder", work / "archive", "--workers", "0", *age)
    assert EmbeddingTable.open(tmp_path / "u").labels[0] == "31"
    other = write_pictures(tmp_path / "other", count=4)
    shown = said(capsys, "embed", run, other, "--out", tmp_path / "v", "--workers", "0")
    assert "the run's own" not in shown and len(set(EmbeddingTable.open(tmp_path / "v").groups)) == 4
    shown = said(capsys, "embed", run, run / "manifest.parquet", "--out", tmp_path / "w", *columns, fails=True)
    assert "a manifest has been scanned with its own" in shown
    (work / "table.csv").rename(tmp_path / "moved.csv")
    shown = said(capsys, "embed", run, work / "archive", "--out", tmp_path / "x", fails=True)
    (tmp_path / "moved.csv").rename(work / "table.csv")
    assert "is not there any more" in shown and "--catalog" in shown and "run/manifest.parquet" in shown


def test_probe_takes_several_labels_from_one_table(work: Path, tmp_path: Path, capsys: Capture) -> None:
    embed = ["embed", work / "encoder", work / "archive", "--workers", "0", "--catalog", work / "table.csv"]
    shown = said(capsys, *embed, "--out", tmp_path / "t", "--columns", "age")
    assert "the column 'Patient_ID' looks like the group" in shown
    probe = ["probe", tmp_path / "t", work / "table.csv", "--archive", work / "archive", "--folds", "2"]
    shown = said(capsys, *probe, "--out", tmp_path / "none", fails=True)
    assert "no column 'label'" in shown and "--label-column" in shown
    shown = said(capsys, *probe, "--label-column", "sex", "--out", tmp_path / "sex")
    assert "24 labelled items in 24 groups" in shown and "give --group-column Patient_ID" in shown
    assert "images of one Patient_ID lie in several groups (6 of 6 values)" in shown
    columns = ["--group-column", "Patient_ID", "--label-column"]
    shown = said(capsys, *probe, *columns, "sex", "--out", tmp_path / "sex")
    assert "24 labelled items in 6 groups" in shown and "looks like" not in shown
    assert Probe.load(tmp_path / "sex").classes == ("f", "m")
    said(capsys, *probe, *columns, "age", "--kind", "regression", "--out", tmp_path / "age")
    learnt = Probe.load(tmp_path / "age").examples
    assert set(learnt.labels) == set(map(float, AGES)) and len(set(learnt.groups)) == 6
    said(capsys, *embed, "--out", tmp_path / "u", "--group-column", "Patient_ID")
    shown = said(capsys, "probe", tmp_path / "u", *probe[2:], "--label-column", "sex", "--out", tmp_path / "q")
    assert "'Patient_ID' is not used as the group: each of its values lies in one group" in shown


def test_a_literal_label_gives_way_and_missing_words_name_the_column(
    work: Path, tmp_path: Path, capsys: Capture
) -> None:
    embed = ["embed", work / "encoder", work / "archive", "--workers", "0"]
    said(capsys, *embed, "--out", tmp_path / "t")
    rows = [f"{n:04d}.png,x,{'NA' if n == 0 else 'ab'[n % 2]}\n" for n in range(24)]
    (tmp_path / "l.csv").write_text("path,label,grade\n" + "".join(rows))
    probe = ["probe", tmp_path / "t", tmp_path / "l.csv", "--archive", work / "archive", "--folds", "2"]
    shown = said(capsys, *probe, "--label-column", "grade", "--out", tmp_path / "p")
    assert "1 row with 'NA' in the column 'grade' taken as missing" in shown
    assert Probe.load(tmp_path / "p").classes == ("a", "b")


def test_split_and_inspect_take_the_columns(work: Path, tmp_path: Path, capsys: Capture) -> None:
    columns = ["--catalog", work / "table.csv", "--group-column", "Patient_ID", "--label-column", "sex"]
    parts = ["--fractions", "train=.5", "test=.5"]
    said(capsys, "split", work / "archive", "--modality", "images", "--out", tmp_path / "s.csv", *columns, *parts)
    with (tmp_path / "s.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows} == {"f", "m"}
    sides = {(row["group"], row["split"]) for row in rows}
    assert len(sides) == 6 == len({group for group, _ in sides})
    shown = said(
        capsys, "inspect", work / "archive", "--modality", "images", "--out", tmp_path / "i", "-n", "2", *columns
    )
    assert "6 by catalogue, column Patient_ID" in shown


# --- BIDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six participants with two sessions each; participants.tsv, whose `group` is a diagnosis."""
    root = tmp_path_factory.mktemp("bids") / "ds"
    rng = np.random.default_rng(0)
    rows = ["participant_id\tage\tgroup"]
    for number in range(1, 7):
        name = f"sub-{number:02d}"
        rows.append(f"{name if number > 1 else '01'}\t{20 + number if number != 3 else 'n/a'}\t{'cp'[number % 2]}")
        for session in ("ses-1", "ses-2"):
            place = root / name / session / "anat"
            place.mkdir(parents=True)
            volume = rng.normal(100 + 40 * (number % 2), 20, (24, 24, 24)).astype(np.float32)
            write_nifti(place / f"{name}_{session}_T1w.nii", volume)
    (root / "participants.tsv").write_text("\n".join([*rows, "sub-99\t50\tc", ""]))
    return root


@pytest.mark.parametrize("modality", ["mri", "mri3d"])
def test_participants_are_a_catalogue(bids: Path, tmp_path: Path, capsys: Capture, modality: str) -> None:
    command = ["scan", bids, "--modality", modality, "--no-verify", "--out"]
    shown = said(capsys, *command, tmp_path / "a")
    assert f"a participants.tsv, which is not used: --catalog {bids}/participants.tsv --label-column COLUMN" in shown
    table = ["--catalog", bids / "participants.tsv", "--label-column", "group"]
    shown = said(capsys, *command, tmp_path / "b", *table)
    assert "12 items in 6 groups" in shown or "12 in 6 groups" in shown
    assert "1 of 7 rows match no readable file; a participant's files have sub-XX" in shown
    manifest = Manifest.read(tmp_path / "b" / "manifest.parquet")
    assert manifest.column("group") == [group_id(f"sub-{n // 2 + 1:02d}") for n in range(12)]
    assert manifest.column("label") == [f"{'cp'[(n // 2 + 1) % 2]}" for n in range(12)]


def test_participants_label_an_embedding_table(bids: Path, tmp_path: Path, capsys: Capture) -> None:
    adapter = data_adapters.create("mri", global_size=32, n_global=2, n_local=0, slices=2)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, tmp_path / "run" / "encoder")
    said(capsys, "embed", tmp_path / "run", bids, "--out", tmp_path / "t", "--workers", "0")
    probe = ["probe", tmp_path / "t", bids / "participants.tsv", "--folds", "2", "--out"]
    shown = said(capsys, *probe, tmp_path / "p", "--label-column", "group")
    assert "12 labelled items in 6 groups" in shown and "1 labelled row matches no embedded item" in shown
    shown = said(capsys, *probe, tmp_path / "age", "--label-column", "age", "--kind", "regression")
    assert "10 labelled items in 5 groups" in shown and "1 row with 'n/a' in the column 'age'" in shown


def test_participants_of_other_modalities(work: Path, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "a"
    for number in range(4):
        write_pictures(root / f"sub-{number}" / "micr", count=2, seed=number)
        (root / f"sub-{number}" / "micr" / "labels.csv").unlink()
    (root / "participants.tsv").write_text(
        "participant_id\tsex\n" + "".join(f"sub-{n}\t{'fm'[n % 2]}\n" for n in range(4))
    )
    table = ["--catalog", root / "participants.tsv", "--label-column", "sex"]
    shown = said(capsys, "scan", root, "--modality", "images", "--out", tmp_path / "s", *table)
    assert "4 by catalogue, column participant_id (8 items)" in shown
    manifest = Manifest.read(tmp_path / "s" / "manifest.parquet")
    assert manifest.column("label") == ["f", "f", "m", "m", "f", "f", "m", "m"]
    encoder = work / "encoder"
    for number in range(4):  # in folders of sites, which are then taken for the groups
        shutil.copytree(root / f"sub-{number}", tmp_path / "b" / f"site-{number // 2}" / f"sub-{number}")
    said(capsys, "embed", encoder, tmp_path / "b", "--out", tmp_path / "bare", "--workers", "0")
    shown = said(
        capsys, "probe", tmp_path / "bare", root / "participants.tsv", *table[2:], "--out", tmp_path / "p", fails=True
    )
    assert "Embed with --catalog" in shown and "participants.tsv" in shown
    said(capsys, "embed", encoder, root, "--out", tmp_path / "t", "--workers", "0", *table)
    shown = said(
        capsys, "probe", tmp_path / "t", root / "participants.tsv", *table[2:], "--folds", "2", "--out", tmp_path / "p"
    )
    assert "8 labelled items in 4 groups" in shown
