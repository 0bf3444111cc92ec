"""latency: rows of a run with several numbers of views, with accuracy where labels are known."""

import csv
from pathlib import Path

import pytest

import data_adapters
from lejepa_med.cli import main
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import save_encoder


def test_rows_cost_and_accuracy(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = data_adapters.create("images", global_size=32, n_global=2, n_local=0)
    save_encoder(create_encoder("resnet10t", adapter.spec), adapter, tmp_path / "run" / "encoder")
    labels = ["--archive", str(pictures), "--catalog", str(pictures / "labels.csv")]
    out = tmp_path / "latency.csv"
    main(["latency", str(tmp_path / "run"), *labels, "--views", "1,2", "--no-onnx", "--out", str(out)])
    with out.open() as stream:
        one, two = csv.DictReader(stream)
    assert (one["views"], two["views"]) == ("1", "2") and float(two["pytorch_ms"]) > float(one["pytorch_ms"]) > 0
    assert float(one["low"]) <= float(one["accuracy"]) <= float(one["high"]) and one["onnx_ms"] == ""
    page = tmp_path / "latency.html"
    unlabelled = ["--archive", str(pictures), "--views", "1", "--backbones", "resnet10t"]
    main(["latency", str(tmp_path / "run"), *unlabelled, "--out", str(page)])
    text = page.read_text()
    assert "resnet10t, untrained" in text and "no labels of two classes" in text and "What time buys" not in text
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["latency", str(tmp_path / "run"), "--out", str(tmp_path / "latency.txt")])
    assert "--out latency.csv" in capsys.readouterr().err
