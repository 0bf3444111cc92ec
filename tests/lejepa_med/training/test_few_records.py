"""Verdicts on few records: they say so, and how many they need."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lejepa_med.cli import main
from lejepa_med.spectrum import below, effective_rank, eigen_spectrum, most_directions, records_for, too_few
from lejepa_med.training.report import Spread
from lejepa_med.training.verdict import judge, online_text
from tests.conftest import write_pictures
from tests.data.histology import he_picture, write_pyramid
from tests.lejepa_med.training.test_small_archives import SMALL

COLLAPSE = "close to collapse"


def power_law(rank: float, dim: int) -> np.ndarray:
    """Standard deviations k^-a of `dim` directions whose effective rank is `rank`."""
    low, high = 0.0, 20.0
    places = np.arange(1, dim + 1)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective_rank(places**-middle) > rank else (low, middle)
    return np.asarray(places**-low)


@pytest.mark.parametrize("records", [2, 3, 5, 10, 20, 42, 104, 300])
@pytest.mark.parametrize(("dim", "times"), [(64, 2.0), (192, 2.0), (512, 3.0)])
def test_a_healthy_encoder_is_never_called_collapsed_for_its_few_records(records: int, dim: int, times: float) -> None:
    limit = max(3.0, 0.02 * dim)
    scale = power_law(times * limit, dim)
    for seed in range(10):
        vectors = np.random.default_rng(seed).standard_normal((records, dim)) * scale
        assert below(eigen_spectrum(vectors)[1], limit, records=records) is not True


@pytest.mark.parametrize("records", [104, 300])
def test_a_collapsed_encoder_is_called_so_with_enough_records(records: int) -> None:
    limit = 0.02 * 512
    assert records_for(limit) == 104
    for seed in range(10):
        vectors = np.random.default_rng(seed).standard_normal((records, 512)) * power_law(0.3 * limit, 512)
        assert below(eigen_spectrum(vectors)[1], limit, records=records) is True


def test_the_rule() -> None:
    assert (most_directions(1, 512), most_directions(42, 512), most_directions(1000, 512)) == (0, 41, 512)
    assert below(20.0, 10.0, records=22) is False  # more records only show more
    assert below(1.0, 10.0, records=10) is None and below(1.0, 10.0, records=11) is True  # all vectors are equal
    assert too_few(1, 104, tell="that") == "1 record is too few to tell that; 104 are needed"
    one = Spread(rank=0.0, control=0.0, dim=512, records=1).sentences()
    assert one == ["1 record is too few to tell whether the encoder is close to collapse; 104 are needed."]
    few = " ".join(Spread(rank=7.0, control=6.0, dim=512, records=42).sentences())
    assert "of at most 41" in few and "42 records are too few" in few and "That is" not in few
    many = " ".join(Spread(rank=2.0, control=6.0, dim=512, records=42).sentences())
    assert "That is close to collapse." in many


def test_small_batches_say_that_they_show_no_collapse() -> None:
    row = {"loss": 1.0, "projector/rows": 2, "projector/dim": 64, "projector/effective_rank": 1.0,
           "projector/std": 1e-9, "projector/norm": 1.0, "backbone/rows": 2, "backbone/dim": 512,
           "backbone/effective_rank": 1.0, "sigreg_per_sample": 0.4}  # fmt: skip
    found = judge([{**row, "epoch": float(k), "step": k} for k in range(9)])
    assert found.state == "early" and found.text == "too few log records to tell (9 of 10)"
    assert found.notes == ("a batch of 2 is too small to show a collapse; 8 samples are needed",)


def test_an_accuracy_of_few_queries_is_rough_and_falls_from_nowhere() -> None:
    row = {"knn": 1.0, "linear": 0.5, "chance": 0.5, "queries": 3, "query_groups": 3, "fewest": 1, "records": 6,
           "backbone/dim": 512, "backbone/effective_rank": 3.2}  # fmt: skip
    text = online_text(row)
    assert "rough, from 3 images in 3 groups; of the rarest class, 1 image is too few to tell; 10 are needed" in text
    assert "effective rank 3.2 of at most 5" in text
    sure = online_text({**row, "fewest": 20, "queries": 40, "knn_interval": [0.8, 1.0], "linear_interval": [0.4, 0.6]})
    assert "k-NN 1.000 (0.80 to 1.00)" in sure and "95 % intervals from 40 images in 3 groups" in sure
    history = [{"loss": 2 - k / 30, "epoch": float(k), "step": k} for k in range(30)]
    fall = [{**row, "epoch": float(k), "knn": value} for k, value in enumerate((1.0, 1.0, 0.5))]
    assert judge(history, fall).notes == ()


def sentences(run: Path) -> str:
    """The verdict of a report."""
    page = (run / "report.html").read_text()
    found = re.search(r'<div class="verdict.*?</div>', page, re.S)
    assert found is not None
    return re.sub(r"\s+", " ", re.sub("<.*?>", " ", found[0]))


def test_a_run_on_one_slide_is_not_called_collapsed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    picture, _ = he_picture(width=768, height=768, blobs=12)
    write_pyramid(tmp_path / "a" / "slide.tif", picture)
    out = tmp_path / "run"
    main(["pretrain", str(tmp_path / "a"), "--modality", "histology", "--out", str(out), "--epochs", "2", *SMALL])
    said = sentences(out)
    assert COLLAPSE not in said.replace(f"whether the encoder is {COLLAPSE}", "")
    assert "1 record is too few to tell whether the encoder is close to collapse; 104 are needed" in said
    assert "of 10)" in said
    assert "1 in 1 group," in capsys.readouterr().err


def test_a_run_on_few_labels_says_so_in_log_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pictures(tmp_path / "a", count=16)
    out = tmp_path / "run"
    flags = [flag for flag in SMALL if flag != "--no-monitor.online"]
    main(["pretrain", str(root), "--modality", "images", "--out", str(out), "--epochs", "2", *flags,
          "--catalog", str(root / "labels.csv")])  # fmt: skip
    shown = " ".join(capsys.readouterr().err.split())
    assert "rough, from 8 images in 4 groups" in shown and "4 images are too few to tell; 10 are needed" in shown
    said = sentences(out)
    assert "The embeddings of 16 records use" in said and "of at most 15 (" in said and "(95 % intervals)" in said
    assert "Few labels: &#39;stripes&#39; 8" in said or "Few labels: &#39;rings&#39; 8" in said
    record = json.loads((out / "online.jsonl").read_text().splitlines()[-1])
    assert record["fewest"] == 4 and record["query_groups"] == 4 and record["knn_interval"] is None
