"""Evaluations during training: a fixed sample split by group, within their share of time, and without a trace."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import data_adapters
from data_adapters.catalog import Catalog
from data_adapters.manifest import Manifest
from data_adapters.scan import scan_archive
from lejepa_med.config import MonitorConfig
from lejepa_med.models.encoder import create_encoder, lay_out
from lejepa_med.models.folder import load_encoder
from lejepa_med.study.runs import read_run
from lejepa_med.study.select import _labelled
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from lejepa_med.training.monitor import EvaluationTimer
from lejepa_med.training.sample import QUERY, REFERENCE, FixedSample, evaluate, evaluating, thinned
from lejepa_med.training.verdict import judge
from tests.lejepa_med.runs import losses, tiny, weights

CACHE = 64 * 2**20


@pytest.fixture(scope="module")
def adapter() -> data_adapters.Adapter:
    return data_adapters.create("images", n_global=2, n_local=0, global_size=32)


@pytest.fixture(scope="module")
def labelled(pictures: Path, adapter: data_adapters.Adapter) -> Manifest:
    return scan_archive(adapter, pictures, catalog=Catalog(pictures / "labels.csv"), verify=False).manifest


def sample_of(manifest: Manifest, adapter: data_adapters.Adapter, **changes: int) -> FixedSample:
    return FixedSample(manifest, adapter, **{"size": 40, "seed": 0, "cache_bytes": CACHE, **changes})


def test_halves_share_no_group_and_hold_every_class(labelled: Manifest, adapter: data_adapters.Adapter) -> None:
    sample = sample_of(labelled, adapter)
    groups = np.array(labelled.column("group"))[sample.rows]
    assert len(sample) == len(set(sample.rows)) == 40 and sample.classes == ("rings", "stripes")
    assert not set(groups[sample.sides == REFERENCE]) & set(groups[sample.sides == QUERY])
    for side in (REFERENCE, QUERY):
        assert set(sample.labels[sample.sides == side]) == {0, 1}
    named = [labelled.value("label", row) for row in sample.rows]
    assert [sample.classes[code] for code in sample.labels] == named
    assert sample_of(labelled, adapter).rows == sample.rows  # the same for every run
    assert abs(int((sample.sides[:20] == REFERENCE).sum()) - 10) <= 2  # cut short, it is still even


def test_without_labels_there_are_figures_but_no_accuracies(pictures: Path, adapter: data_adapters.Adapter) -> None:
    manifest = scan_archive(adapter, pictures, verify=False).manifest
    sample = sample_of(manifest, adapter, size=12)
    sample.fill(12)
    found = evaluate(sample, create_encoder("resnet10t", adapter.spec), None, device="cpu")
    assert found["records"] == 12 and found["knn"] is None and found["backbone/rankme"] > 1
    assert "projector/rankme" not in found


def test_the_cache_bounds_the_sample(labelled: Manifest, adapter: data_adapters.Adapter) -> None:
    sample = sample_of(labelled, adapter, cache_bytes=7 * 3 * 32 * 32)
    sample.fill(100)
    assert len(sample.tensors) == len(sample) == 7 and sample.progress == 1
    assert all(tensor.dtype == torch.uint8 for tensor in sample.tensors)


def test_vectors_are_those_of_embed_and_separate_classes(
    labelled: Manifest, adapter: data_adapters.Adapter, tmp_path: Path
) -> None:
    from lejepa_med.models.folder import save_encoder

    encoder = lay_out(create_encoder("resnet10t", adapter.spec))
    save_encoder(encoder, adapter, tmp_path / "encoder")
    sample = sample_of(labelled, adapter)
    sample.fill(40)
    vectors = sample.embed(encoder.train(), device="cpu")
    assert encoder.training
    np.testing.assert_array_equal(vectors, load_encoder(tmp_path / "encoder").embed(sample.tensors))
    told = np.eye(2, 8)[sample.labels].astype(np.float32)
    told += np.random.default_rng(0).normal(0, 0.1, told.shape).astype(np.float32)
    found = sample.accuracies(told)
    assert found["knn"] == found["linear"] == 1.0 and found["chance"] == 0.5
    shuffled = told[np.random.default_rng(1).permutation(len(told))]
    assert sample.accuracies(shuffled)["linear"] < 0.9  # type: ignore[operator]


def test_unreadable_records_are_passed_over(tmp_path: Path, adapter: data_adapters.Adapter) -> None:
    from tests.conftest import write_pictures

    root = write_pictures(tmp_path / "a", count=12)
    manifest = scan_archive(adapter, root, catalog=Catalog(root / "labels.csv"), verify=False).manifest
    (root / "0003.png").write_bytes(b"no picture")
    sample = sample_of(manifest, adapter)
    sample.fill(12)
    assert len(sample.tensors) == 11 and sample.accuracies(np.eye(11, dtype=np.float32))["queries"] in (5, 6)


def test_every_part_gets_its_mode_back() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    net[1].eval()
    with evaluating(net):
        assert not any(part.training for part in net.modules())
        net(torch.ones(4, 2))
    assert [part.training for part in net.modules()] == [True, True, False]
    assert torch.equal(net[0].running_mean, torch.zeros(2))


def test_thinned_spectrum() -> None:
    table = np.random.default_rng(0).standard_normal((3000, 100)) * np.geomspace(1, 0.1, 100)
    found = thinned(table)
    assert found[0][0] == 1 and found[-1][0] == 100 and len(found) <= 32
    eigenvalues = np.linalg.eigvalsh(np.cov(table.T))[::-1]
    assert found[0][1] == pytest.approx(eigenvalues[0] / eigenvalues.sum(), rel=1e-3)
    assert thinned(np.ones((5, 3))) == []


@pytest.mark.parametrize(("share", "cost"), [(0.03, 5.0), (0.2, 0.5), (1.0, 2.0)])
def test_evaluations_keep_their_share_of_the_time(share: float, cost: float) -> None:
    now = [0.0]
    spacing = EvaluationTimer(MonitorConfig(share=share), clock=lambda: now[0])
    assert not spacing.due(0.0)  # its cost is not known yet
    now[0] += 0.1
    spacing.estimate(0.1, share=0.1)
    count = 0
    for step in range(4000):
        now[0] += 0.25
        if spacing.due(step / 100):
            now[0] += cost
            spacing.done(cost, epoch=step / 100)
            count += 1
            assert count == 1 or spacing.spent <= share * now[0] + 1e-9
    assert spacing.spent >= 0.8 * share * now[0]  # and they use it


def test_intervals_in_epochs_and_minutes() -> None:
    now = [0.0]
    by_epoch = EvaluationTimer(MonitorConfig(share=1, every_epochs=2), clock=lambda: now[0])
    by_minute = EvaluationTimer(MonitorConfig(share=1, every_minutes=1), clock=lambda: now[0])
    for spacing in (by_epoch, by_minute):
        spacing.estimate(0.0, share=1)
    now[0] = 30.0
    assert by_epoch.due(2.0) and not by_epoch.due(1.9) and not by_minute.due(9.0)
    now[0] = 60.0
    assert by_minute.due(9.0)
    by_epoch.done(0.0, epoch=2.0)
    assert not by_epoch.due(3.9) and by_epoch.due(4.0)
    off = EvaluationTimer(MonitorConfig(online=False), clock=lambda: now[0])
    off.estimate(0.0, share=1)
    assert not off.due(100.0)


@pytest.fixture(scope="module")
def watched(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that evaluates whenever it may."""
    os.environ["LEJEPA_SALT"] = "test"  # module-wide fixtures run before the per-test ones
    out = tmp_path_factory.mktemp("observe") / "watched"
    catalog = {"workers": 0, "catalog": pictures / "labels.csv"}
    pretrain(tiny(pictures, out, data=catalog, monitor={"share": 1.0}, model={"drop_path": 0.1}))
    return out


def test_a_watched_run_equals_an_unwatched_one(watched: Path, pictures: Path, tmp_path: Path) -> None:
    """Losses, figures, weights and running statistics, bit for bit."""
    catalog = {"workers": 0, "catalog": pictures / "labels.csv"}
    out = tmp_path / "alone"
    pretrain(tiny(pictures, out, data=catalog, monitor={"online": False}, model={"drop_path": 0.1}))
    assert losses(out) == losses(watched) and weights(out) == weights(watched)
    assert not (out / "online.jsonl").exists()


def test_what_a_watched_run_writes(watched: Path) -> None:
    rows = read_lines(watched / "online.jsonl")
    assert len(rows) > 2 and rows[-1]["step"] == 12 and rows[-1]["records"] == 48
    assert all(0 <= row["knn"] <= 1 and 0 <= row["linear"] <= 1 and row["chance"] == 0.5 for row in rows)
    assert {"backbone/spectrum", "projector/spectrum", "projector/rankme", "backbone/condition"} <= rows[-1].keys()
    records = read_lines(watched / "metrics.jsonl")
    for row in records:
        assert row["sigreg_per_sample"] == row["sigreg"] / 8
        assert row["sigreg"] - row["sigreg_above_floor"] == pytest.approx(1.06, abs=0.01)
        assert row["projector/dim"] == 8 and row["projector/lidar"] > 1
    assert "NaN" not in (watched / "metrics.jsonl").read_text()
    assert not judge(records, rows).alarming
    page = (watched / "report.html").read_text()
    assert "Accuracy on the catalogue" in page and "Spectrum of the projector" in page and "The curves say" in page


def test_labels_that_come_later_give_the_same_accuracies(watched: Path, pictures: Path) -> None:
    """`select --labels` measures what a run with these labels in its manifest measured at its end."""
    run = read_run(watched)
    assert run.finished and run.lamb == 0.2 and run.number("backbone/rankme") == run.online["backbone/rankme"]
    blank = replace(run, online={})
    again = _labelled(blank, Catalog(pictures / "labels.csv"), device="cpu")
    for key in ("knn", "linear", "chance", "queries"):
        assert again.online[key] == pytest.approx(run.online[key], abs=1e-5)


def test_a_run_without_regularisation_is_called_collapsing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "collapse"
    changes = {"objective": {"lamb": 1e-6}, "train": {"epochs": 4, "batch_size": 16}, "monitor": {"online": False}}
    pretrain(tiny(pictures, out, **changes))
    verdict = judge(read_lines(out / "metrics.jsonl"))
    assert verdict.state == "collapsing"
    assert verdict.text in (out / "report.html").read_text() and "alarm" in (out / "report.html").read_text()
    shown = capsys.readouterr().err.replace("\n", " ")
    assert "collapsing: " in shown and "--objective.lamb" in shown
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["sigreg_per_sample"] > 0.3
