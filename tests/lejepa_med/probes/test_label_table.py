import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from data_adapters.errors import UserError
from data_adapters.identity import pseudonym
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.label_table import clean_labels, join, read_labels
from lejepa_med.probes.output import print_probe, write_predictions
from lejepa_med.probes.probe import Probe, fit_probe


@pytest.fixture
def table():
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    ids = [f"id{k}" for k in range(12)]
    return EmbeddingTable(name="t", ids=ids, groups=ids, labels=[None] * 12, vectors=vectors, encoder="e")


CHANCES = ["probability a", "probability b"]
COLUMNS = {
    "classification": (
        ["a", "b"],
        ["id", "label", "knn_label", "seen", "in_sample", "novelty", "uncertainty", *CHANCES],
    ),
    "multilabel": (
        ["a; b", "[]"],
        ["id", "labels", "knn_labels", "seen", "in_sample", "novelty", "uncertainty", *CHANCES],
    ),
    "regression": (
        ["1.5", "-2e1"],
        ["id", "value", "low", "high", "knn_value", "seen", "in_sample", "novelty", "uncertainty"],
    ),
}
PARSED = {"classification": ["a", "b"], "multilabel": [("a", "b"), ()], "regression": [1.5, -20.0]}


@pytest.mark.parametrize("kind", COLUMNS)
def test_each_kind_from_labels_csv_to_predictions_csv(kind, table, tmp_path, capsys):
    given, header = COLUMNS[kind]
    file = tmp_path / "labels.csv"
    file.write_text("id,label\n" + "".join(f"{name},{given[k % 2]}\n" for k, name in enumerate(table.ids)))
    found = join(table, read_labels(file), archive=tmp_path, kind=kind)
    assert found.labels[:2] == PARSED[kind] and found.ids == table.ids
    probe = fit_probe(table.vectors, found.labels, found.groups, ids=found.ids)
    assert probe.kind == kind
    print_probe(probe.metrics)
    assert "12 labelled items in 12 groups" in capsys.readouterr().out
    write_predictions(tmp_path / "p.csv", table.ids, probe.predict(table.vectors), probe)
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == header and len(rows) == 13
    assert all(0 <= float(row[header.index("novelty")]) <= 1 for row in rows[1:])


def test_a_text_is_no_number(table, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("id,label\nid0,1.5\nid1,two\n")
    with pytest.raises(UserError, match=r"'two' in row 3 .* is no number"):
        join(table, read_labels(file), archive=tmp_path, kind="regression")


@pytest.mark.parametrize(("values", "said"), [(range(30, 42), True), ([0, 1, 2] * 4, False), ("abcdefghijkl", False)])
def test_ages_are_not_taken_for_classes_without_a_word(values, said, table, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("id,label\n" + "".join(f"id{k},{value}\n" for k, value in enumerate(values)))
    notes = join(table, read_labels(file), archive=tmp_path).notes
    assert any("12 different numbers" in note and "--kind regression" in note for note in notes) == said


def embedded(paths: Sequence[str]) -> EmbeddingTable:
    """A table of the files with these paths, one group each."""
    vectors = np.random.default_rng(0).normal(size=(len(paths), 4)).astype(np.float32)
    ids = [pseudonym("id", path, "") for path in paths]
    groups = [pseudonym("group", path) for path in paths]
    return EmbeddingTable(name="t", ids=ids, groups=groups, labels=[None] * len(ids), vectors=vectors, encoder="e")


PATHS = [unicodedata.normalize("NFD", f"ward {k % 2}/Müller {k}.png") for k in range(6)]
SPELLINGS = {
    "as it is": str,
    "NFC": lambda path: unicodedata.normalize("NFC", path),
    "Windows": lambda path: path.replace("/", "\\"),
    "a drive": lambda path: "C:\\Daten\\archive\\" + path.replace("/", "\\"),
    "a share": lambda path: "\\\\server\\x\\" + path.replace("/", "\\"),
    "from the table's folder": lambda path: "../archive/" + path,
    "from the parent folder": lambda path: "archive/" + path,
    "another suffix": lambda path: path.replace(".png", ".PNG"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_paths_find_their_embedding(spelling, separator, tmp_path):
    (tmp_path / "labels").mkdir()
    file = tmp_path / "labels" / "labels.csv"
    lines = [f"{SPELLINGS[spelling](path)}{separator}{k % 2}" for k, path in enumerate(PATHS)]
    file.write_text("\r\n".join([f"Path{separator}Label", *lines]), encoding="utf-16")
    found = join(embedded(PATHS), read_labels(file), archive=tmp_path / "archive")
    assert found.labels == ["0", "1"] * 3 and found.rows == list(range(6)) and not found.unmatched


def test_what_is_not_used_is_counted_and_named_by_row(tmp_path):
    file = tmp_path / "labels.csv"
    rows = [
        f"{path},{label},g{k},train"
        for k, (path, label) in enumerate(zip(PATHS, ["1", "1.0", "0", "NA", "-", ""], strict=True))
    ]
    gone = [f"gone/{k}.png,1,g,train" for k in range(7)]
    file.write_text("\n".join(["path,label,group,split", *rows, "", *gone, f"{PATHS[0]},1,g0,test"]))
    labels = read_labels(file, split="train")
    found = join(embedded(PATHS), labels, archive=tmp_path)
    assert found.labels == ["1", "1", "0"] and found.groups[0] == pseudonym("group", "g0")
    assert [row.number for row in found.unmatched] == list(range(9, 16))
    assert found.report == {
        "rows": 14,
        "other_splits": 1,
        "missing": {"NA": 1, "-": 1, "": 1},
        "unmatched": 7,
        "unmatched_rows": [9, 10, 11, 12, 13],
        "used": 3,
        "items": 3,
        "items_without_label": 3,
    }
    notes = "\n".join(found.notes)
    assert "7 labelled rows match no embedded item. The first: row 9, row 10, row 11, row 12, row 13 of" in notes
    assert "gone" not in notes, "what a command prints may be shared"
    assert "1 row with 'NA' in the column 'label'" in notes and "3 embedded items have no label" in notes
    assert [(row.split, row.number) for row in labels.others] == [("test", 16)]
    with pytest.raises(UserError, match=r"no labelled row in the split 'val'.*splits with labels are: test, train"):
        read_labels(file, split="val")


@pytest.mark.parametrize(
    ("kind", "cells", "labels"),
    [
        ("classification", ["01", "1", "none", "\\NA"], ["01", "1", "none", "NA"]),
        ("regression", ['"0,5"', '"1,25"', "3", "nan"], [0.5, 1.25, 3.0]),
        ("regression", ["NA", "1e3", "-2", "."], [1000.0, -2.0]),
        ("multilabel", ["a;b", "[]", "-", "b; a"], [("a", "b"), (), ("b", "a")]),
        ("multilabel", ["NaN", "a", "b;", "null"], [("a",), ("b",)]),
    ],
)
def test_missing_means_one_thing_in_every_kind(kind, cells, labels, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n" + "".join(f"{path},{cell}\n" for path, cell in zip(PATHS, cells, strict=False)))
    assert join(embedded(PATHS), read_labels(file), archive=tmp_path, kind=kind).labels == labels


@pytest.mark.parametrize(
    ("kind", "cells", "cause"),
    [
        ("regression", ["1", "inf"], "'inf' in row 3 .* not a finite number"),
        ("regression", ["1", "1_000"], "'1_000' in row 3 .* no number"),
        ("regression", ['"1,500"', '"2,250"'], "decimal comma or thousands"),
        ("multilabel", ["a;NA", "b"], "'a;NA' in row 2 .* word for a missing value"),
    ],
)
def test_labels_that_cannot_be_read_are_named_by_row(kind, cells, cause, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n" + "".join(f"{path},{cell}\n" for path, cell in zip(PATHS, cells, strict=False)))
    with pytest.raises(UserError, match=cause):
        join(embedded(PATHS), read_labels(file), archive=tmp_path, kind=kind)


def test_one_item_with_two_labels_and_two_files_with_one_name(tmp_path):
    file = tmp_path / "labels.csv"
    nfc = unicodedata.normalize("NFC", PATHS[0])
    file.write_text(f"path,label\n{PATHS[0]},a\n{PATHS[1]},b\n{nfc},b\n")
    with pytest.raises(UserError, match="rows 2 and 4"):
        join(embedded(PATHS), read_labels(file), archive=tmp_path)
    file.write_text(f"path,label\n{nfc},a\n{PATHS[1]},b\n")
    assert join(embedded([*PATHS, nfc]), read_labels(file), archive=tmp_path).rows == [1, 6]
    file.write_text(f"path,label\n{nfc.replace('.png', '.PNG')},a\n{PATHS[1]},b\n")
    with pytest.raises(UserError, match=r"row 2 .* fits 2 embedded items"):
        join(embedded([*PATHS, nfc]), read_labels(file), archive=tmp_path)


def test_a_row_without_an_item_stands_for_all_of_its_file_but_those_with_a_row(tmp_path):
    ids = [pseudonym("id", "t.h5", str(k)) for k in (0, 1, 2, 50)] + [pseudonym("id", "a.png", "")]
    table = replace(embedded(["x"] * 5), ids=ids)
    (tmp_path / "labels.csv").write_text("path;item;label\nt.h5;;a\nt.h5;1.0;b\na.png;NaN;c\n")
    assert join(table, read_labels(tmp_path / "labels.csv"), archive=tmp_path).labels == ["a", "b", "a", "a", "c"]


def test_the_probe_command_tells_what_it_used_and_keeps_it(tmp_path, capsys, monkeypatch):
    table = embedded([f"{k}.png" for k in range(12)])
    monkeypatch.setattr(EmbeddingTable, "open", classmethod(lambda cls, folder: table))
    lines = [f"{k}.{'png' if k < 8 else 'jpg'},{k % 2}{'.0' if k % 3 else ''}" for k in range(12)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join([*lines, "3.png,NA"]))
    main(["probe", str(tmp_path), str(tmp_path / "labels.csv"), "--out", str(tmp_path / "probe")])
    out = capsys.readouterr().out
    assert "labels: 8 of 13 rows used, for 8 items" in out
    assert "4 labelled rows match no embedded item. The first: row 10, row 11, row 12, row 13 of labels.csv" in out
    assert "1 row with 'NA'" in out and "4 embedded items have no label" in out
    metrics = Probe.load(tmp_path / "probe").metrics
    assert metrics["classes"] == ["0", "1"] and metrics["table"]["unmatched_rows"] == [10, 11, 12, 13]
    assert ".jpg" not in (tmp_path / "probe" / "probe.json").read_text()


def test_labels_given_one_by_one_are_read_by_the_same_rules():
    places, labels, missing = clean_labels(["1.0", None, " 1 ", "NA", "0", "-"])
    assert (places, labels, dict(missing)) == ([0, 2, 4], ["1", "1", "0"], {"": 1, "NA": 1, "-": 1})
    assert clean_labels([["a"], [], None])[:2] == ([0, 1], [["a"], []])
    assert clean_labels([1.0, 0.5])[1] == [1.0, 0.5]
    with pytest.raises(UserError, match="position 1"):
        clean_labels([["a"], ["a", "NA"]])


def test_the_help_of_the_command_tells_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    assert "classification,multilabel,regression" in capsys.readouterr().out.replace(" ", "")
