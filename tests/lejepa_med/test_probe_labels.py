import csv

import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.cli import main
from lejepa_med.embed import EmbeddingTable
from lejepa_med.evaluation.fit import fit_probe
from lejepa_med.evaluation.labels import join, read_labels, write_predictions
from lejepa_med.evaluation.show import print_probe


@pytest.fixture
def table():
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    ids = [f"id{k}" for k in range(12)]
    return EmbeddingTable(name="t", ids=ids, groups=ids, labels=[None] * 12, vectors=vectors, encoder="e")


COLUMNS = {
    "classification": (["a", "b"], ["id", "label", "knn_label", "novelty", "uncertainty", "p(a)", "p(b)"]),
    "multilabel": (["a; b", "-"], ["id", "labels", "knn_labels", "novelty", "uncertainty", "p(a)", "p(b)"]),
    "regression": (["1.5", "-2e1"], ["id", "value", "low", "high", "knn_value", "novelty", "uncertainty"]),
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
    with pytest.raises(UserError, match="'two' is no number"):
        join(table, read_labels(file), archive=tmp_path, kind="regression")


def test_the_help_of_the_command_tells_the_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    assert "classification,multilabel,regression" in capsys.readouterr().out.replace(" ", "")
