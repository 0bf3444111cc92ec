"""The commands of the README, one after the other, as a user runs them."""

import csv
from pathlib import Path

import pytest

from lejepa_med.cli import Cli, main

TINY = (
    "--views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t "
    "--model.projector-hidden 32 --model.projector-dim 8 --objective.slices 16 "
    "--batch-size 8 --train.accelerator cpu --data.workers 0"
)


def test_scan_pretrain_embed_probe_predict(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, run = pictures / "labels.csv", tmp_path / "runs" / "shapes"
    main(["scan", str(pictures), "--modality", "images", "--out", str(tmp_path / "scan"), "--catalog", str(labels)])
    assert "stripes (24), rings (24)" in capsys.readouterr().err
    command = ["pretrain", str(pictures), "--modality", "images", "--out", str(run), "--epochs", "1"]
    main([*command, "--catalog", str(labels), "--split", "train", *TINY.split()])
    assert f"{run}/report.html" in capsys.readouterr().out
    table = tmp_path / "runs" / "shapes-archive"
    main(["embed", str(run), str(pictures), "--out", str(table), "--workers", "0"])
    assert "48 vectors of 512" in capsys.readouterr().out
    main(["embed", str(run), str(tmp_path / "scan" / "manifest.parquet"), "--out", str(tmp_path / "r"), "--random"])
    main(["probe", str(table), str(labels), "--out", str(tmp_path / "probe"), "--split", "train", "--folds", "3"])
    shown = capsys.readouterr().out
    assert "36 labelled items in 18 groups, 3-fold" in shown and "confusion" in shown
    main(["predict", str(tmp_path / "probe"), str(table), "--out", str(tmp_path / "predictions.csv")])
    with (tmp_path / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 48 and {row["label"] for row in rows} <= {"stripes", "rings"}
    # two images of each group; three groups of four were learnt from
    assert [sum(row["seen"] == value for row in rows) for value in ("record", "group", "no")] == [36, 0, 12]
    assert {row["in_sample"] for row in rows} == {"false"}
    shown = capsys.readouterr().out
    assert "learnt from 36 of these images" in shown and "36 predictions are made by the parts" in shown
    known = [row for row in rows if row["seen"] == "record"]
    assert sum(float(row["novelty"]) for row in known) / 36 > 0.3
    # one image of each group has a label; the other one's row says whose it is
    given = list(csv.DictReader(labels.open(newline="")))
    some = [
        "path,label,group",
        *(f"{r['path']},{r['label'] * (k % 4 in (0, 3))},{r['group']}" for k, r in enumerate(given)),
    ]
    (tmp_path / "some.csv").write_text("\n".join(some))
    main(["probe", str(table), str(tmp_path / "some.csv"), "--archive", str(pictures), "--out", str(tmp_path / "some")])
    main(["predict", str(tmp_path / "some"), str(table), "--out", str(tmp_path / "some-predictions.csv")])
    assert "24 other images are of groups that it learnt from (seen: group)" in capsys.readouterr().out
    with (tmp_path / "some-predictions.csv").open(newline="") as stream:
        assert sorted(row["seen"] for row in csv.DictReader(stream)) == ["group"] * 24 + ["record"] * 24
    assert all(abs(float(row["probability rings"]) + float(row["probability stripes"]) - 1) < 1e-5 for row in rows)
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "probe"), str(tmp_path / "r"), "--out", str(tmp_path / "x.csv")])
    assert "another encoder" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("command", ["", *(command.replace("_", "-") for command in Cli.model_fields), "key create"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert f"usage: lejepa-med {command}".strip() in shown and len(shown.splitlines()) > 5
    if not command:
        assert all(name in shown for name in Cli.model_fields)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code in (0, None) and "pretrain" in capsys.readouterr().out
