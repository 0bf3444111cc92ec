"""From ids back to files, for every table that has ids."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

import data_adapters
from data_adapters.manifest import Manifest
from lejepa_med.cli import main
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import save_encoder
from tests.conftest import write_pictures

Capture = pytest.CaptureFixture[str]


def encoder(folder: Path, modality: str) -> Path:
    adapter = data_adapters.create(modality, global_size=32, n_global=2, n_local=0)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of pictures in two wards, its scan, embeddings and a probe."""
    folder = tmp_path_factory.mktemp("names")
    root = write_pictures(folder / "archive", count=12)
    (root / "Müller, 7").mkdir()
    for number in range(6):
        (root / f"000{number}.png").rename(root / "Müller, 7" / f"000{number}.png")
    lines = [line.split(",") for line in (root / "labels.csv").read_text().splitlines()[1:]]
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for number, line in enumerate(lines):
            writer.writerow([f"Müller, 7/{line[0]}" if number < 6 else line[0], line[1]])
    main(["scan", str(root), "--modality", "images", "--out", str(folder / "scan")])
    run = encoder(folder / "run", "images")
    main(["embed", str(run), str(root), "--out", str(folder / "table"), "--workers", "0"])
    labels = ["probe", str(folder / "table"), str(folder / "labels.csv"), "--archive", str(root)]
    main([*labels, "--folds", "2", "--out", str(folder / "probe")])
    return folder


def named(work: Path, table: Path, capsys: Capture, *further: str) -> tuple[list[dict[str, str]], str]:
    """The rows that the command prints, and what it says."""
    capsys.readouterr()
    main(["names", str(table), "--scan", str(work / "scan"), *further])
    shown = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(shown.out))), shown.err


def test_predictions_meet_the_labels_of_their_files(work: Path, tmp_path: Path, capsys: Capture) -> None:
    truth = {row["path"]: row["label"] for row in csv.DictReader((work / "labels.csv").open(encoding="utf-8"))}
    command = ["predict", str(work / "probe"), str(work / "table"), "--out"]
    main([*command, str(tmp_path / "bare.csv")])
    rows, said = named(work, tmp_path / "bare.csv", capsys)
    assert "12 of 12 ids found" in said and list(rows[0])[:3] == ["id", "path", "label"]
    assert {row["path"] for row in rows} == set(truth) and len(rows) == 12
    main([*command, str(tmp_path / "named.csv"), "--names", str(work / "scan")])
    with (tmp_path / "named.csv").open(newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == rows
    manifest = Manifest.read(work / "scan" / "manifest.parquet")
    known = dict(zip(manifest.column("id"), manifest.column("path"), strict=True))
    assert all(known[row["id"]] == row["path"] for row in rows)


def test_a_users_own_table_keeps_its_cells(work: Path, tmp_path: Path, capsys: Capture) -> None:
    ids = Manifest.read(work / "scan" / "manifest.parquet").column("id")
    table = tmp_path / "mine.csv"
    table.write_text(f"code;ID;share\n007;{ids[3]};0,50\nNA;{'0' * 32};1,0\n008;{ids[0]};-\n")
    main(["names", str(table), "--scan", str(work / "scan" / "manifest.parquet"), "--out", str(tmp_path / "n.csv")])
    written = (tmp_path / "n.csv").read_text(encoding="utf-8").splitlines()
    assert written[0] == "code;ID;path;share" and written[1] == f"007;{ids[3]};0009.png;0,50"
    assert written[2] == f"NA;{'0' * 32};;1,0" and written[3] == f"008;{ids[0]};0006.png;-"
    shown = capsys.readouterr()
    assert "2 of 3 ids found" in shown.err and "1 row has no path" in shown.err
    with pytest.raises(SystemExit):
        main(["names", str(tmp_path / "n.csv"), "--scan", str(work / "scan")])
    assert "a column 'path' already" in capsys.readouterr().err


def test_embedding_tables_and_probes(work: Path, tmp_path: Path, capsys: Capture) -> None:
    rows, said = named(work, work / "table", capsys)
    assert list(rows[0]) == ["id", "path", "group", "label"] and "'vector' is left out" in said
    probe, _ = named(work, work / "probe", capsys)
    truth = {row["path"]: row["label"] for row in csv.DictReader((work / "labels.csv").open(encoding="utf-8"))}
    assert {row["path"]: row["label"] for row in probe} == truth
    out = tmp_path / "named.parquet"
    main(["names", str(work / "table"), "--scan", str(work / "scan"), "--out", str(out)])
    table = pq.read_table(out)
    assert table.column_names == ["id", "group", "label", "vector", "path"] and set(table["path"].to_pylist()) == set(
        truth
    )
    again, _ = named(work, work / "table" / "part-00000.parquet", capsys)
    assert again == rows
    assert not any("Müller".encode() in file.read_bytes() for file in (work / "table").rglob("*.*"))


def test_answers_of_the_service(work: Path, tmp_path: Path, capsys: Capture) -> None:
    """Search answers have hits inside of items; streams are lines."""
    ids = Manifest.read(work / "scan" / "manifest.parquet").column("id")
    answer = {"items": [{"index": 0, "id": ids[0], "hits": [{"id": ids[1], "score": 0.5}]}], "note": None}
    (tmp_path / "a.json").write_text(json.dumps(answer))
    main(["names", str(tmp_path / "a.json"), "--scan", str(work / "scan")])
    found = json.loads(capsys.readouterr().out)["items"][0]
    assert found["path"] == "0006.png" and found["hits"] == [{"id": ids[1], "score": 0.5, "path": "0007.png"}]
    (tmp_path / "a.ndjson").write_text("".join(json.dumps({"id": name}) + "\n" for name in ids))
    main(["names", str(tmp_path / "a.ndjson"), "--scan", str(work / "scan")])
    assert len({json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()}) == 12


def test_rows_of_one_file_are_told_apart(tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (11, 69, 69, 3), dtype=np.uint8)
    for name in ("a.h5", "b.h5"):
        with h5py.File(root / name, "w") as file:
            file["images"] = pixels if name == "a.h5" else pixels[::-1]
    main(["scan", str(root), "--modality", "galaxy", "--out", str(tmp_path / "scan")])
    run = encoder(tmp_path / "run", "galaxy")
    main(["embed", str(run), str(root), "--out", str(tmp_path / "table"), "--workers", "0"])
    rows, said = named(tmp_path, tmp_path / "table", capsys)
    assert "22 of 22 ids found" in said
    assert {(row["path"], row["item"]) for row in rows} == {(f, str(k)) for f in ("a.h5", "b.h5") for k in range(11)}
    vectors = {
        (row["path"], row["item"]): vector
        for row, vector in zip(rows, pq.read_table(tmp_path / "table")["vector"].to_pylist(), strict=True)
    }
    assert np.allclose(vectors["a.h5", "10"], vectors["b.h5", "0"], atol=1e-5)  # the same pixels, at the other end


def test_what_cannot_be_named_is_an_error_with_a_remedy(work: Path, tmp_path: Path, capsys: Capture) -> None:
    ids = Manifest.read(work / "scan" / "manifest.parquet").column("id")
    (tmp_path / "other.csv").write_text(f"id\n{ids[0][:20]}{'0' * 12}\n")
    (tmp_path / "no.csv").write_text("name,x\na,1\n")
    (tmp_path / "no.json").write_text('{"a": 1}')
    cases = {
        "other.csv": "Not one of the 1 id is in",
        "no.csv": "no column 'id'",
        "no.json": "no object with an 'id'",
        "gone.csv": "does not exist",
        ".": "no folder of an embedding table or probe",
    }
    for name, message in cases.items():
        with pytest.raises(SystemExit) as ended:
            main(["names", str(tmp_path / name), "--scan", str(work / "scan")])
        assert ended.value.code == 2 and message in capsys.readouterr().err, name
    with pytest.raises(SystemExit):
        main(["names", str(work / "table"), "--scan", str(work / "table")])
    assert "holds no manifest.parquet" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text(f"id\n{ids[0][:20]}{'0' * 12}\n{ids[1]}\n")
    _, said = named(work, tmp_path / "other.csv", capsys)
    assert "1 row has no path, 1 of them because the file's content has changed" in said


def test_the_recipe_of_the_docs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[3] / "docs" / "archive.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.*?)```", document.partition("## From an id back")[2].partition("\n## ")[0], re.S
    )
    monkeypatch.chdir(work)
    code = code.replace("scans/mri", "scan").replace("runs/mri-archive", "table")
    found: dict[str, Any] = {}
    exec(code, found)  # the page's own lines
    known = Manifest.read(work / "scan" / "manifest.parquet")
    paths = dict(zip(known.column("id"), known.column("path"), strict=True))
    rows = found["table"].to_pylist()
    assert len(rows) == 12 and all(paths[row["id"]] == row["path"] for row in rows)
