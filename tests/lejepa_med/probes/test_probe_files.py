import json
import os
import signal

import numpy as np
import pytest

from data_adapters.errors import UserError
from lejepa_med.probes.probe import Probe, fit_probe, read_folder, write_folder
from tests.lejepa_med.probes.test_multilabel import mark_probe  # noqa: F401 (a fixture)
from tests.lejepa_med.probes.test_regression import number_probe  # noqa: F401


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    vectors = rng.normal(size=(90, 24)).astype(np.float32) + np.eye(3, 24, dtype=np.float32)[labels] * 2
    return vectors, [f"Größe {k}" for k in labels], [f"g{i // 3}" for i in range(90)]


@pytest.fixture(scope="module")
def probe(data):
    return fit_probe(*data, encoder="abc123")


def test_a_loaded_probe_predicts_the_same_bits(probe, data, tmp_path):
    probe.save(tmp_path / "deep" / "p")
    loaded = Probe.load(tmp_path / "deep" / "p")
    queries = np.concatenate([data[0], np.random.default_rng(9).normal(size=(40, 24)) * 10])
    assert loaded.predict(queries) == probe.predict(queries)
    assert loaded.metrics == probe.metrics
    assert (loaded.classes, loaded.dim, loaded.encoder) == (probe.classes, 24, "abc123")
    assert sorted(os.listdir(tmp_path / "deep")) == ["p"]
    assert sorted(os.listdir(tmp_path / "deep" / "p")) == ["probe.json", "probe.safetensors"]


def test_saving_again_replaces_a_probe_and_nothing_else(probe, data, tmp_path):
    other = fit_probe(data[0], data[1], data[2], encoder="other")
    probe.save(tmp_path / "p")
    other.save(tmp_path / "p")
    assert Probe.load(tmp_path / "p").encoder == "other"
    assert os.listdir(tmp_path) == ["p"]
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="is not a probe"):
        probe.save(tmp_path / "images")
    assert os.listdir(tmp_path / "images") == []


def test_missing_and_damaged_probes_are_told_apart(probe, tmp_path):
    with pytest.raises(UserError, match="There is no probe"):
        Probe.load(tmp_path / "none")
    probe.save(tmp_path / "p")
    weights = tmp_path / "p" / "probe.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(UserError, match="does not match"):
        Probe.load(tmp_path / "p")
    weights.write_bytes(original)
    document = tmp_path / "p" / "probe.json"
    text = document.read_text(encoding="utf-8")
    document.write_text(text.replace('"format": 2', '"format": 1'), encoding="utf-8")
    with pytest.raises(UserError, match="not in format 2"):
        Probe.load(tmp_path / "p")
    document.write_text(text[:100], encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        Probe.load(tmp_path / "p")
    lacking = {k: v for k, v in json.loads(text).items() if k != "examples"}
    document.write_text(json.dumps(lacking), encoding="utf-8")
    with pytest.raises(UserError, match="lacks 'examples'"):
        Probe.load(tmp_path / "p")


def killed_at(call, number, folder):
    """Write to `folder` in a child that dies by SIGKILL instead of its `number`-th call of os.`call`."""
    child = os.fork()
    if child == 0:
        real, calls = getattr(os, call), []

        def deadly(*args):
            calls.append(args)
            if len(calls) > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        setattr(os, call, deadly)
        write_folder(folder, {}, {"a": np.zeros(1000)})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(("call", "number"), [("fsync", 0), ("fsync", 1), ("fsync", 2), ("rename", 0), ("fsync", 3)])
def test_a_killed_save_leaves_no_half_probe(call, number, tmp_path):
    folder = tmp_path / "p"
    killed_at(call, number, folder)
    assert folder.exists() == ((call, number) == ("fsync", 3))  # that one is after the rename
    write_folder(folder, {}, {"a": np.ones(3)})
    assert read_folder(folder)[1]["a"].tolist() == [1, 1, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(("call", "number"), [("fsync", 0), ("fsync", 2), ("rename", 0)])
def test_a_killed_replacement_keeps_the_old_probe(call, number, tmp_path):
    folder = tmp_path / "p"
    write_folder(folder, {}, {"a": np.ones(3)})
    killed_at(call, number, folder)
    assert read_folder(folder)[1]["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["number_probe", "mark_probe"])
def test_saved_probes_predict_the_same_bits_and_keep_their_examples(kind, request, tmp_path):
    probe = request.getfixturevalue(kind)
    probe.save(tmp_path / "p")
    loaded = Probe.load(tmp_path / "p")
    queries = np.random.default_rng(1).normal(size=(30, probe.dim)).astype(np.float32) + 2
    assert loaded.predict(queries) == probe.predict(queries)
    assert loaded.examples.ids == probe.examples.ids and loaded.examples.groups == probe.examples.groups
    assert loaded.examples.labels == probe.examples.labels
    np.testing.assert_array_equal(loaded.examples.vectors, probe.examples.vectors)
