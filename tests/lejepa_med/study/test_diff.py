"""diff: what differs between two runs; on real tiny runs, also unfinished, damaged and earlier ones."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lejepa_med.cli import main
from lejepa_med.config import setting_text
from lejepa_med.study.diff import diff
from lejepa_med.training.folder import read_lines
from lejepa_med.training.loop import pretrain
from tests.lejepa_med.runs import interrupted, tiny
from tests.lejepa_med.training.test_small_archives import failed


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One without labels on all pictures; one with labels, of a split, with another rate, batch and option."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEJEPA_SALT", "test")  # module-wide fixtures run before the per-test ones
        one, other = (tmp_path_factory.mktemp("secret-place") / name for name in ("plain", "b<i>[red]"))
        pretrain(tiny(pictures, one))
        data = {"catalog": pictures / "labels.csv", "split": "train", "options": {"hflip": 0.0}}
        changes = {"optim": {"lr": 1e-3}, "objective": {"lamb": 0.1}, "train": {"batch_size": 12, "epochs": 4}}
        pretrain(tiny(pictures, other, data=data, **changes))
    return one, other


def compare(one: Path, other: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    main(["diff", str(one), str(other), *flags])
    return capsys.readouterr().out


def test_what_differs_is_shown_and_nothing_else(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = diff(*runs)
    settings = {name: (one, other) for name, one, other in found.settings}
    assert settings.keys() == {
        *("data.catalog", "data.split", "objective.lamb", "optim.lr", "train.batch_size", "train.epochs"),
    }
    assert settings["optim.lr"] == ("0.002 (chosen for this machine)", "0.001 (given)")
    assert settings["data.catalog"] == ("– (built-in default)", "(a place, not shown) (given)")
    data = {name: (one, other) for name, one, other in found.data}
    assert data["items"] == ("48", "36") and data["groups"] == ("48", "18") and data["splits"] == ("none", "train 36")
    assert data["data.options.hflip"] == ("0.5 (modality's default)", "0 (given)")
    assert "data.options.recipe" not in data and "adapter version" not in data and not found.software
    shown = compare(*runs, capsys)
    assert "B: b<i>[red]" in shown and "36 items with equal content in both runs, of 48 and 36" in shown
    assert "the batches are 8 and 12" in shown and "Lambda differs" in shown
    assert "software and machine that differ: nothing" in shown
    same = re.search(r"settings that differ \((\d+) are the same\)", shown)
    assert same and int(same[1]) > 50


def test_curves_are_compared_at_equal_steps_and_at_the_end(runs: tuple[Path, Path]) -> None:
    found = diff(*runs)
    assert [step for step, _ in found.equal_steps] == [3, 6, 9, 12]  # quarters of the shorter run, which has 12 steps
    records = [read_lines(run / "metrics.jsonl") for run in runs]
    for step, rows in found.equal_steps:
        at = {name: values for name, *values in rows}
        for name in ("loss", "invariance", "sigreg"):
            assert at[name] == [f"{lines[step - 1][name]:.4g}" for lines in records]
        assert at["effective rank, backbone"] == [f"{r[step - 1]['backbone/effective_rank']:.4g}" for r in records]
    end = {name: values for name, *values in found.end}
    assert end["loss"] == [f"{sum(line['loss'] for line in lines[-3:]) / 3:.4g}" for lines in records]
    last = read_lines(runs[1] / "online.jsonl")[-1]
    assert end["k-NN accuracy"][0] == "–" and end["k-NN accuracy"][1] == f"{last['knn']:.4g}"
    course = {name: values for name, *values in found.course}
    assert course["steps"] == ["finished: 12", "finished: 12"] and course["epochs"] == ["2", "4"]
    assert all(float(value) > 0 for value in course["images per second"])


def test_a_run_differs_from_its_copy_in_nothing(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    found = diff(runs[0], copy)
    assert not found.settings and not found.data and not found.software
    assert all(one == other for _, rows in found.equal_steps for _, one, other in rows)
    assert "are the same): nothing" in compare(runs[0], copy, capsys)


def test_the_page_has_the_curves_and_no_place_or_file_name(
    runs: tuple[Path, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "diff.html"
    assert f"wrote {page}" in compare(*runs, capsys, "--out", str(page))
    text = page.read_text()
    assert text.count("<svg") >= 14 and "A: plain" in text and "b&lt;i&gt;[red]" in text and "<i>" not in text
    assert "Accuracy on the catalogue" in text and "At equal steps" in text
    for word in ("secret-place", str(pictures), pictures.name, "labels.csv", "0001.png", str(tmp_path)):
        assert word not in text, word
    assert "Name the page --out diff.html" in failed(
        ["diff", *map(str, runs), "--out", str(tmp_path / "x.txt")], capsys
    )


def test_an_unfinished_run_says_so(
    runs: tuple[Path, Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = tmp_path / "stopped"
    interrupted(tiny(pictures, stopped, train={"checkpoint_minutes": 0}), monkeypatch, step=7)
    found = diff(runs[0], stopped)
    assert any("not finished: stopped at 7 of 12" in note for note in found.notes)
    assert [step for step, _ in found.equal_steps] == [2, 4, 6, 7]
    before = tmp_path / "before"  # its first checkpoint
    interrupted(tiny(pictures, before, train={"checkpoint_minutes": 60}), monkeypatch, step=4)
    shown = " ".join(compare(before, runs[0], capsys).split())
    assert "encoder/ is missing" in shown and "not finished: at least 4 done" in shown


def test_missing_damaged_and_earlier_files_get_a_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("encoder", "manifest.parquet", "metrics.jsonl", "online.jsonl", "rejected.csv", "local.yaml"):
        broken = shutil.copytree(runs[1], tmp_path / f"without-{name}")
        shutil.rmtree(broken / name) if (broken / name).is_dir() else (broken / name).unlink()
        shown = compare(runs[0], broken, capsys, "--out", str(tmp_path / "page.html"))
        assert name.split(".")[0] in shown or name in ("rejected.csv", "local.yaml")
    for name, damage in (
        ("config.yaml", b"{: ["),
        ("config.yaml", b"- 1\n"),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("metrics.jsonl", b'[1]\n{"loss": 1}\n{"step": 3}\n'),
        ("online.jsonl", b'{"step": "x"}\n'),
        ("manifest.parquet", b"PAR1"),
        ("encoder/lejepa_med.json", b'{"format": 99}'),
        ("rejected.csv", b"\xff"),
    ):
        broken = shutil.copytree(runs[1], tmp_path / "damaged", dirs_exist_ok=True)
        (broken / name).write_bytes(damage)
        shown = compare(broken, runs[0], capsys, "--out", str(tmp_path / "page.html"))
        assert "note: A (damaged):" in shown, name
        shutil.rmtree(broken)
    earlier = shutil.copytree(runs[1], tmp_path / "earlier")
    tree = yaml.safe_load((earlier / "config.yaml").read_text())
    del tree["origins"], tree["monitor"]
    (earlier / "config.yaml").write_text(yaml.safe_dump({**tree, "renamed": 1}))
    lines = [{"step": row["step"], "loss": row["loss"], "lr": 1.0} for row in read_lines(earlier / "metrics.jsonl")]
    (earlier / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((earlier / "encoder" / "lejepa_med.json").read_text())
    del info["software"]
    (earlier / "encoder" / "lejepa_med.json").write_text(json.dumps(info))
    found = diff(runs[0], earlier)
    settings = {name: (one, other) for name, one, other in found.settings}
    assert settings["renamed"] == ("(not there)", "1") and settings["optim.lr"][1] == "0.001"
    assert settings["monitor.share"] == ("0.03 (built-in default)", "(not there)")
    assert sum("of a release that did not record" in note for note in found.notes) == 2


def test_what_is_no_run_is_refused(
    runs: tuple[Path, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in (tmp_path / "nowhere", pictures):
        said = failed(["diff", str(runs[0]), str(other)], capsys)
        assert "holds no run. Give two run folders of: lejepa-med pretrain" in said


def test_a_name_of_the_hub_is_no_place() -> None:
    assert setting_text("model.init", Path("timm:resnet18.a1_in1k")) == "timm:resnet18.a1_in1k"
    assert setting_text("model.init", Path("runs/heads")) == "(a place, not shown)"
