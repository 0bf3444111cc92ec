"""compare: rows, draws, verdicts and notes, on real tiny runs."""

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from data_adapters import create
from data_adapters.catalog import Catalog
from data_adapters.errors import UserError
from data_adapters.scan import scan_archive
from lejepa_med.cli import main
from lejepa_med.models.folder import record_formation
from lejepa_med.probes.target import ClassTarget
from lejepa_med.study import compare as study
from lejepa_med.study.compare import Gain, Study, compare, gain, sentence
from lejepa_med.study.labelled import sides
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.models.test_warm_start import timm_folder
from tests.lejepa_med.runs import tiny

FEW: Any = {"shots": (2, 5), "draws": 3}


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the split train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEJEPA_SALT", "test")
        out = tmp_path_factory.mktemp("runs") / "mine"
        pretrain(tiny(pictures, out, data={"catalog": pictures / "labels.csv", "split": "train"}))
    return out


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rows whose vectors were made."""
    names: list[str] = []
    real = Study._probes
    monkeypatch.setattr(Study, "_probes", lambda self, name, encoder: names.append(name) or real(self, name, encoder))
    return names


def test_every_row_learns_from_the_same_labels_and_the_verdict_is_in_words(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    measured: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    weights, out = timm_folder(tmp_path / "imagenet"), tmp_path / "out"
    flags = ["--weights", str(weights), "--methods", "simclr", "--supervised", "--out", str(out)]
    flags += ["--shots", "1,5", "--draws", "3"]
    monkeypatch.setattr(study, "STEPS", 30)
    main(["compare", str(run), *flags])
    said = capsys.readouterr().out
    rows = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    names = ["your encoder", "imagenet (frozen)", "an encoder trained by simclr"]
    names += [study.SUPERVISED, "random weights", "8 x 8 pixels"]
    assert [row["encoder"] for row in rows] == names
    assert measured == [name for name in names if name != study.SUPERVISED]
    measured.clear()
    assert all(0 <= float(row["all labels"]) <= 1 for row in rows)
    assert [row["encoder"] for row in rows if row["5 labels"] == row["20-NN"] == ""] == [study.SUPERVISED]
    assert {row["dimensions"] for row in rows} == {"512", "192", ""}
    for name in names[1:]:
        assert f"Your encoder and {name} cannot be ranked: 6 scored groups prove nothing." in said
    assert "scored on val, 12 images" in said and "pretrained on" not in said
    assert "Only 6 groups are scored" in said
    page = (out / "compare.html").read_text()
    assert page.count("<svg") == 1 and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert all(name in page for name in names)

    (kept,) = (out / "rows").glob("random-weights-*.npz")
    kept.unlink()
    main(["compare", str(run), *flags])
    assert measured.pop() == "random weights" and not measured, "finished rows are kept"
    again = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    timeless = [[{k: v for k, v in row.items() if k != "ms an image"} for row in table] for table in (rows, again)]
    assert timeless[0] == timeless[1]


def test_what_has_changed_is_measured_anew(run: Path, tmp_path: Path, measured: list[str]) -> None:
    mine, out = shutil.copytree(run, tmp_path / "mine"), tmp_path / "out"
    both = [str(timm_folder(tmp_path / place / "weights", seed=n)) for n, place in enumerate(("one", "other"))]
    first = compare(mine, out, weights=both, **FEW)
    assert [row.name for row in first.rows[1:3]] == [f"{name} (frozen)" for name in both], "equal names are told apart"
    assert not np.array_equal(first.rows[1].answers["all"], first.rows[2].answers["all"])
    measured.clear()
    compare(mine, out, weights=both, **FEW)
    assert measured == []
    save_file(load_file(f"{both[0]}/model.safetensors"), f"{both[0]}/model.safetensors")
    compare(mine, out, weights=both, **FEW)
    assert measured == [f"{both[0]} (frozen)"], "weights that were replaced"
    measured.clear()
    record_formation(mine, layers=1, views=2)
    compare(mine, out, weights=both, **FEW)
    assert measured == [row.name for row in first.rows], "another way to form vectors"
    assert len(list((out / "runs").iterdir())) == 3


def test_a_stop_is_no_traceback(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "vectors_of", stop)
    with pytest.raises(SystemExit) as end:
        main(["compare", str(run), "--out", str(tmp_path / "out"), "--shots", "2", "--draws", "2"])
    assert end.value.code == 3


def test_numbers_and_several_labels_are_compared_too(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = ["path,group,split,brightness,seen"]
    for row in csv.DictReader((pictures / "labels.csv").read_text().splitlines()):
        light = float(np.asarray(Image.open(pictures / row["path"])).mean())
        seen = [row["label"], *(["bright"] if light > 80 else [])]
        lines.append(f"{row['path']},{row['group']},{row['split']},{light:.3f},{';'.join(seen)}")
    (catalog := tmp_path / "labels.csv").write_text("\n".join(lines))
    flags = ["compare", str(run), "--catalog", str(catalog), "--shots", "2,10", "--draws", "3"]
    main([*flags, "--label-column", "brightness", "--kind", "regression", "--out", str(tmp_path / "numbers")])
    said = capsys.readouterr().out
    assert "R2 by number of labelled images" in said and "Left out: 2 labels" in said
    rows = {row["encoder"]: row for row in csv.DictReader((tmp_path / "numbers/compare.csv").read_text().splitlines())}
    assert float(rows["8 x 8 pixels"]["all labels"]) > 0.9, "the mean of the pixels is the brightness"
    main([*flags, "--label-column", "seen", "--kind", "multilabel", "--out", str(tmp_path / "several")])
    said = capsys.readouterr().out
    assert "macro AUROC by number of labelled images" in said
    rows = {row["encoder"]: row for row in csv.DictReader((tmp_path / "several/compare.csv").read_text().splitlines())}
    assert 0.5 < float(rows["8 x 8 pixels"]["all labels"]) <= 1
    with pytest.raises(SystemExit):
        main([*flags, "--label-column", "seen", "--kind", "regression", "--out", str(tmp_path / "wrong")])
    assert "is no number" in capsys.readouterr().err


def test_without_splits_whole_groups_are_scored(run: Path, pictures: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "labels.csv"
    lines = (pictures / "labels.csv").read_text().splitlines()
    catalog.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    found = compare(run, tmp_path / "out", catalog=catalog, **FEW)
    notes = " ".join(found.notes)
    assert "names no splits" in notes and "chosen at random" in notes
    assert "pretrained on" in notes and "without their labels" in notes


def test_both_sides_have_groups_of_their_own(pictures: Path) -> None:
    manifest = scan_archive(create("images"), pictures, catalog=Catalog(pictures / "labels.csv")).manifest
    found = sides(manifest, on=None, allow_leak=False)
    assert not set(found.learn.column("group")) & set(found.test.column("group"))
    assert len(found.learn) == 36 and set(found.test.column("label")) == {"stripes", "rings"}


@pytest.mark.parametrize(
    ("rewrite", "flags", "cause", "remedy"),
    [
        (lambda text: text.replace("rings", "stripes"), [], "1 different label", "--label-column"),
        (lambda text: text.replace(",val", ",holdout"), [], "holdout, train", "--on"),
        (lambda text: re.sub(r"g3,\w+", "g3,train", text, count=1), [], "LEAK", "--allow-leak"),
        (lambda text: text, ["--on", "tset"], "'tset'", "--on"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Path,
    pictures: Path,
    tmp_path: Path,
    rewrite: object,
    flags: list[str],
    cause: str,
    remedy: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalog = tmp_path / "labels.csv"
    catalog.write_text(rewrite((pictures / "labels.csv").read_text()))  # type: ignore[operator]
    with pytest.raises(SystemExit) as end:
        main(["compare", str(run), "--catalog", str(catalog), "--out", str(tmp_path / "out"), *flags])
    said = capsys.readouterr().err
    assert end.value.code == 2 and cause in said and remedy in said


def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "encoder", tmp_path / "encoder")
    with pytest.raises(UserError, match="no run folder"):
        compare(tmp_path / "encoder", tmp_path / "out", **FEW)


def answers(target: ClassTarget, hits: np.ndarray) -> np.ndarray:
    """Probabilities (draws, n, 2) of answers that are right where hits (draws, n) say so."""
    return np.eye(2)[np.where(hits, target.truth, 1 - target.truth)]


def test_the_interval_is_over_groups_and_draws() -> None:
    rng = np.random.default_rng(0)
    target, groups = ClassTarget(["a", "a", "b", "b"], ["a"] * 200 + ["b"] * 200), np.tile(np.arange(40), 10)
    own = rng.random((10, 400)) < 0.9

    def found(rival: np.ndarray) -> Gain:
        return gain(target, answers(target, own), answers(target, rival), groups)

    better = found(rng.random((10, 400)) < 0.8)
    assert better.verdict == 1 and better.low < 10 < better.high and better.mean == pytest.approx(10, abs=3)
    none = found(own)
    assert (none.mean, none.low, none.high, none.verdict) == (0, 0, 0, 0)
    # one group carries the whole difference: over images it would be certain, over groups it is not
    rival = own.copy()
    rival[:, groups == 7] = False
    assert found(rival).verdict == 0
    # one draw of labels carries it
    rival = own.copy()
    rival[3] = False
    assert found(rival).verdict == 0


def test_unbalanced_classes_count_alike() -> None:
    target, groups = ClassTarget(["a", "a", "b", "b"], ["a"] * 90 + ["b"] * 10), np.arange(100)
    own, rival = np.ones((2, 100), bool), np.ones((2, 100), bool)
    rival[:, 90:] = False
    assert gain(target, answers(target, own), answers(target, rival), groups).mean == pytest.approx(50)


def of(**verdicts: int) -> dict[str, Gain]:
    """Gains of 6, 5, ... points up or down, or within chance."""
    points = {1: (6.0, 1.0, 9.0), -1: (-6.0, -9.0, -1.0), 0: (1.0, -2.0, 4.0)}
    return {key.removeprefix("n"): Gain(*points[value]) for key, value in verdicts.items()}


@pytest.mark.parametrize(
    ("gains", "text"),
    [
        (of(n1=1, n10=1, all=1), "With every number of labels your encoder is better than X, by 6 points."),
        (
            of(n10=0, n50=1, all=1),
            "From 50 labels per class on your encoder is better than X, by 6 points; with 10 labels per class the "
            "difference is within chance.",
        ),
        (of(n10=0, all=0), "Your encoder and X differ by no more than chance, whatever the number of labels."),
        (
            of(n1=1, n10=0, all=-1),
            "With 1 label per class your encoder is better than X, by 6 points; with all labels your encoder is worse "
            "than X, by 6 points; with 10 labels per class the difference is within chance.",
        ),
        (of(n5=-1, all=-1), "With every number of labels your encoder is worse than X, by 6 points."),
    ],
)
def test_the_verdict_in_words(gains: dict[str, Gain], text: str) -> None:
    assert sentence("X", gains) == text
