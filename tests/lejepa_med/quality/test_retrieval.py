"""Recall@k and mAP against scikit-learn and a plain loop, and the command on a table."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lejepa_med.cli import main
from lejepa_med.quality.retrieval import measure_retrieval, whiten


def test_scores_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 90), rng.integers(0, 25, 90)
    vectors = rng.normal(size=(90, 6)) + np.eye(6)[labels]
    report = measure_retrieval(vectors, [f"c{k}" for k in labels], [f"g{k}" for k in groups])
    for distance in ("cosine", "euclidean"):
        precision: dict[int, list[float]] = {0: [], 1: [], 2: []}
        hit: dict[int, list[bool]] = {0: [], 1: [], 2: []}
        for row in range(90):
            others = np.flatnonzero(groups != groups[row])
            near = -np.linalg.norm(vectors[others] - vectors[row], axis=1)
            if distance == "cosine":
                lengths = np.linalg.norm(vectors[others], axis=1) * np.linalg.norm(vectors[row])
                near = vectors[others] @ vectors[row] / lengths
            same = labels[others] == labels[row]
            precision[labels[row]].append(average_precision_score(same, near))
            hit[labels[row]].append(bool(same[np.argsort(-near)[:5]].any()))
        found = report["by_label"][distance]
        assert found["map"] == pytest.approx(np.mean([np.mean(one) for one in precision.values()]), abs=1e-6)
        assert found["recall"]["5"] == pytest.approx(np.mean([np.mean(one) for one in hit.values()]), abs=1e-6)
        assert found["interval"][0] < found["map"] < found["interval"][1]
    assert np.allclose(np.cov(whiten(vectors).T), np.eye(6), atol=1e-8)


def test_whitening_wins_where_one_direction_drowns_the_label() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 2
    vectors = rng.normal(size=(200, 4)) * [30, 1, 1, 1]
    vectors[:, 1] += 5 * labels
    report = measure_retrieval(vectors, [f"c{k}" for k in labels], [f"g{k}" for k in range(200)])
    assert report["best"] == "whitened"
    assert report["by_label"]["whitened"]["map"] > report["by_label"]["euclidean"]["map"] + 0.1
    assert report["by_group"]["cosine"]["map"] is None


def test_the_command_prints_and_writes(confounded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["retrieval", str(confounded / "table"), "--out", str(tmp_path / "r.json")])
    assert "Best by label" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["by_label"]["cosine"]["map"] > report["chance"] + 0.1
