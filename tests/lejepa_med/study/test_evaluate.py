"""evaluate: every protocol on a real tiny run, finished parts kept, and the articles' probe against its equations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from data_adapters.manifest import Manifest
from lejepa_med.cli import main
from lejepa_med.errors import ConfigError
from lejepa_med.models.folder import load_encoder, record_formation
from lejepa_med.probes.target import ClassTarget
from lejepa_med.study import evaluate as study
from lejepa_med.study.articles import LEAST_STEPS, articles_probe
from lejepa_med.study.labelled import Sides
from lejepa_med.study.supervised import Tuned
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import tiny


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the split train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEJEPA_SALT", "test")
        out = tmp_path_factory.mktemp("runs") / "mine"
        pretrain(tiny(pictures, out, data={"catalog": pictures / "labels.csv", "split": "train"}))
    return out


def test_every_protocol_is_scored_and_finished_parts_are_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    flags = ["evaluate", str(run), "--out", str(out), "--shots", "2,5,50", "--draws", "3"]
    flags += ["--fine-tune", "both", "--minutes", ".01"]
    main(flags)
    said = capsys.readouterr().out
    found = json.loads((out / "evaluate.json").read_text())
    (one,) = found["encoders"]
    methods = ["logistic regression", study.ARTICLES, study.NEAREST, study.SIMILAR]
    tuned = ["fine-tuned, last 2 blocks", "fine-tuned, all layers"]
    assert list(one["scores"]) == methods + tuned and all(name in said for name in methods + tuned)
    for name, scores in one["scores"].items():
        assert list(scores) == (["all"] if name in tuned else ["2", "5", "all"])
        low, high = scores["all"]["balanced accuracy"]["interval"]
        assert 0 <= low <= scores["all"]["balanced accuracy"]["mean"] <= high <= 1
        assert {"macro F1", "AUROC", "ECE", "Brier"} < set(scores["all"])
    assert len(one["scores"][study.ARTICLES]["5"]["balanced accuracy"]["draws"]) == 3
    receipt = one["receipt"]
    assert receipt["groups_disjoint"] and (receipt["learn"], receipt["test"]) == (36, 12)
    assert np.sum(one["all_labels"]["confusion_matrix"]) == 12 and one["all_labels"]["roc"]["positive"] == "stripes"
    assert "too few images to learn from 50" in said and "prove nothing" in said
    page = (out / "evaluate.html").read_text()
    assert page.count("<svg") == 3 and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert ".png" not in page and ".png" not in json.dumps(found), "no name of an image leaves"

    card = (run / "encoder" / "README.md").read_text()
    assert "| 20-NN |" in card and "36 images of 18 groups to learn from" in card and "prove nothing" in card
    assert "| epoch | loss |" in card and "Intended use" in card and "hash of ids and contents" in card
    assert load_encoder(run).fingerprint == one["fingerprint"], "the encoder is the same one"
    views = load_encoder(run).formation.views
    record_formation(run, views=3 - min(views, 2))
    assert "| 20-NN |" not in (run / "encoder" / "README.md").read_text(), "results of another formation"
    record_formation(run, views=views)
    assert (run / "encoder" / "README.md").read_text() == card

    before = {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    (gone,) = (out / "parts").glob("mine-articles-5-*")
    gone.unlink()
    (out / "parts" / ".mine-vectors-0.npz.1-1.draft").write_bytes(b"what a killed process left")
    main(flags)
    after = {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    assert [file for file, when in before.items() if after[file] != when] == [gone], "the other parts are kept"
    again = json.loads((out / "evaluate.json").read_text())
    assert again == found


def test_an_encoder_without_its_run_needs_an_archive(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lone").mkdir()
    for file in (run / "encoder").iterdir():
        (tmp_path / "lone" / file.name).write_bytes(file.read_bytes())
    flags = [
        "evaluate",
        str(tmp_path / "lone"),
        str(run),
        "--out",
        str(tmp_path / "out"),
        "--shots",
        "5",
        "--draws",
        "2",
    ]
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and "--archive" in capsys.readouterr().err
    main([*flags, "--archive", str(pictures), "--catalog", str(pictures / "labels.csv")])
    one, other = json.loads((tmp_path / "out" / "evaluate.json").read_text())["encoders"]
    assert (one["name"], other["name"]) == ("lone", "mine") and one["scores"] == other["scores"]
    assert "side by side" in (tmp_path / "out" / "evaluate.html").read_text()


def test_the_last_blocks_alone_are_trained(run: Path) -> None:
    model = Tuned(load_encoder(run).module, 2, depth="last", blocks=2)
    trained = {name.split(".")[2] for name, value in model.named_parameters() if value.requires_grad and "enc" in name}
    assert trained == {"layer3", "layer4"}
    model.train()
    assert not model.encoder.backbone.bn1.training and model.encoder.backbone.layer4[0].bn1.training
    encoder = load_encoder(run).module
    encoder.backbone = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="does not say what its layers are"):
        Tuned(encoder, 2, depth="last", blocks=2)


def test_a_shared_group_is_no_receipt(run: Path) -> None:
    manifest = Manifest.read(run / "manifest.parquet")
    with pytest.raises(RuntimeError, match="on both sides"):
        Sides(manifest, manifest, ()).receipt()
    assert Sides(manifest, manifest, (), leak=True).receipt()["groups_disjoint"] is False


def test_the_articles_probe_equals_its_equations() -> None:
    """LayerNorm, affine map, softmax cross-entropy, AdamW with decoupled decay 1e-6, warm-up and cosine from 1e-3."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    vectors = (3 + rng.normal(size=(120, 16)) + 2 * np.eye(3, 16)[labels]).astype(np.float32)
    scored = (3 + rng.normal(size=(90, 16)) + 2 * np.eye(3, 16)[np.repeat([0, 1, 2], 30)]).astype(np.float32)
    target = ClassTarget([f"c{k}" for k in labels], [f"c{k}" for k in np.repeat([0, 1, 2], 30)])
    given = articles_probe(target, vectors, np.arange(120), scored, seed=4)
    expected = direct(vectors.astype(np.float64), labels, scored.astype(np.float64), seed=4)
    np.testing.assert_allclose(given, expected, atol=2e-3)
    assert balanced_accuracy_score(target.truth, given.argmax(1)) == balanced_accuracy_score(
        target.truth, expected.argmax(1)
    )
    assert 0.6 < balanced_accuracy_score(target.truth, given.argmax(1)) < 1


def direct(
    x: NDArray[np.float64], labels: NDArray[np.int64], y: NDArray[np.float64], *, seed: int
) -> NDArray[np.float64]:
    """Probabilities (n, classes), by the equations in NumPy. All 120 vectors are one batch, so no order matters."""
    torch.manual_seed(seed)
    start = nn.Linear(x.shape[1], 3)  # weights from U(-1/sqrt(dim), 1/sqrt(dim)), as PyTorch draws them
    w, b = start.weight.detach().double().numpy(), start.bias.detach().double().numpy()
    gain, shift = np.ones(x.shape[1]), np.zeros(x.shape[1])
    values = [w, b, gain, shift]
    first, second = ([np.zeros_like(v) for v in values] for _ in range(2))
    warm = round(0.05 * LEAST_STEPS)
    unit, wanted = normed(x), np.eye(3)[labels]
    for step in range(LEAST_STEPS):
        h = unit * gain + shift
        error = (softmax(h @ w.T + b) - wanted) / len(x)  # gradient of the mean cross-entropy by the logits
        back = error @ w
        gradients = [error.T @ h, error.sum(0), (back * unit).sum(0), back.sum(0)]
        done = (step - warm) / (LEAST_STEPS - 1 - warm)
        rate = 1e-3 * ((step + 1) / warm if step < warm else (1 + np.cos(np.pi * done)) / 2)
        for n, g in enumerate(gradients):
            values[n] = values[n] * (1 - rate * 1e-6)
            first[n] = 0.9 * first[n] + 0.1 * g
            second[n] = 0.999 * second[n] + 0.001 * g**2
            m, v = first[n] / (1 - 0.9 ** (step + 1)), second[n] / (1 - 0.999 ** (step + 1))
            values[n] = values[n] - rate * m / (np.sqrt(v) + 1e-8)
        w, b, gain, shift = values
    return softmax((normed(y) * gain + shift) @ w.T + b)


def normed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = x - x.mean(1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5))


def softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))
