"""Planted faults are listed first, and what a person marks is left out by embed, probe and pretrain."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_adapters.manifest import Manifest
from lejepa_med.cli import main
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Probe
from lejepa_med.quality.outliers import describe_pictures, find_copies, find_doubtful_labels, find_layouts, find_odd
from tests.lejepa_med.quality.conftest import DIM, IMAGES, write_archive, write_table
from tests.lejepa_med.runs import tiny

ODD, COPY, EMPTY, WRONG = 7, 11, 13, 20


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Image 11 is image 50 turned, smaller and JPEG; 13 is blank; 7 lies far away; the label of 20 is wrong."""
    rows = write_archive(tmp_path / "archive")
    for row in rows:
        row["scanner"] = "s1"
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(IMAGES, DIM))
    vectors[:, 0] += [8.0 * (row["label"] == "b") for row in rows]
    vectors[:, 2] += 6
    vectors[ODD, 2] = -6
    rows[WRONG]["label"] = "b" if rows[WRONG]["label"] == "a" else "a"
    images = tmp_path / "archive" / "img"
    other = cv2.resize(cv2.imread(str(images / "050.png")), (44, 44), interpolation=cv2.INTER_AREA)
    noise = cv2.imencode(".jpg", np.rot90(other), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    cv2.imwrite(str(images / f"{COPY:03d}.png"), cv2.imdecode(noise, cv2.IMREAD_COLOR))
    cv2.imwrite(str(images / f"{EMPTY:03d}.png"), np.full((32, 32, 3), (200, 190, 210), np.uint8))
    with (tmp_path / "archive" / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_table(tmp_path / "archive", tmp_path / "table", vectors)
    return tmp_path


def test_planted_faults_come_first_and_marked_ones_are_left_out(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, archive, out = planted / "table", planted / "archive", planted / "out"
    main(["probe", str(table), str(archive / "labels.csv"), "--out", str(planted / "probe")])
    probe = ["--probe", str(planted / "probe")]
    main(["outliers", str(table), *probe, "--scan", str(planted / "manifest.parquet"), "--out", str(out)])
    assert "1 copies across groups" in capsys.readouterr().out
    with (out / "outliers.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    first = {row["kind"]: row for row in found if row["rank"] == "1"}
    assert first["odd"]["path"] == f"img/{ODD:03d}.png"
    assert first["empty"]["path"] == f"img/{EMPTY:03d}.png"
    assert first["label"]["path"] == f"img/{WRONG:03d}.png" and first["label"]["suggested"] != first["label"]["label"]
    manifest = Manifest.read(planted / "manifest.parquet")
    paths = dict(zip(manifest.column("id"), manifest.column("path"), strict=True))
    assert {paths[first["copy"]["id"]], paths[first["copy"]["other"]]} == {f"img/{COPY:03d}.png", "img/050.png"}
    assert sum(row["kind"] == "copy" for row in found) == 1 and "layout" not in first
    page = (out / "outliers.html").read_text()
    assert page.count("data:image/webp") >= 5 and "<script" not in page

    for row in found:
        row["exclude"] = "yes" if row["kind"] == "empty" else ""
    with (out / "outliers.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    gone = ["--exclude", str(out / "outliers.csv")]
    main(["probe", str(table), str(archive / "labels.csv"), *gone, "--out", str(planted / "less")])
    less = Probe.load(planted / "less")
    assert first["empty"]["id"] not in less.examples.ids and less.metrics["table"]["excluded"] == 1
    config = tiny(archive, planted / "run", data={"exclude": str(out / "outliers.csv"), "workers": 0})
    assert config.data.exclude == [first["empty"]["id"]]
    from lejepa_med.training.loop import pretrain

    pretrain(config)
    assert len(Manifest.read(planted / "run" / "manifest.parquet")) == IMAGES - 1
    main(["embed", str(planted / "run"), str(archive), *gone, "--workers", "0", "--out", str(planted / "again")])
    made = EmbeddingTable.open(planted / "again")
    assert len(made.ids) == IMAGES - 1 and made.info["excluded"] == [first["empty"]["id"]]
    assert "excluded: 1 of 96" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["outliers", str(table), "--probe", str(planted / "nothing"), "--out", str(out)])
    (out / "none.csv").write_text("id,exclude\nabc,\n")
    with pytest.raises(SystemExit):
        main(["embed", str(planted / "run"), str(archive), "--exclude", str(out / "none.csv"), "--out", str(out / "x")])
    assert "marks no image to exclude" in capsys.readouterr().err


def test_odd_images_have_ranks_without_ties_and_a_large_patient_does_not_set_the_scale() -> None:
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.zeros(300, np.int64), np.arange(1, 101)])
    vectors = rng.normal(size=(400, 8)) + np.eye(8)[0] * 5
    distance, p = find_odd(vectors, groups)
    assert len(np.unique(distance)) == 400 and np.array_equal(np.argsort(-distance), np.argsort(p))
    assert p[0] > 0 and p.max() == pytest.approx(1.0)
    small = np.sort(p[1:300])  # 300 images of one patient count as one
    assert np.diff(small).min() < 2 / 101 / 100


def test_doubtful_labels_are_those_of_confident_learning() -> None:
    """The worked rule: thresholds are mean self-confidence, and only classes that reach theirs count."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.25, 0.75], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # thresholds: class 0 (0.9 + 0.8 + 0.25) / 3 = 0.65, class 1 (0.8 + 0.9 + 0.4) / 3 = 0.7
    wrong, other, margin = find_doubtful_labels(probabilities, labels)
    assert wrong.tolist() == [False, False, True, False, False, False]  # the last reaches no threshold
    assert other[2] == 1 and margin[2] == pytest.approx(0.5) and margin.argmax() == 2


def test_pens_layouts_and_turned_copies_are_seen_in_pictures() -> None:
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(30):
        tile = np.full((96, 96, 3), (190, 120, 200), np.uint8)
        for x, y in rng.integers(0, 96, (40, 2)).tolist():
            cv2.circle(tile, (x, y), 4, (130, 40, 90), -1)
        tiles.append(tile)
    cv2.line(tiles[3], (0, 10), (95, 80), (40, 140, 30), 8)
    cv2.line(tiles[4], (0, 10), (95, 80), (20, 20, 20), 8)
    tiles[9] = np.rot90(cv2.resize(tiles[8], (60, 60), interpolation=cv2.INTER_AREA))
    found = describe_pictures([cv2.imencode(".png", tile)[1].tobytes() for tile in tiles])
    assert set(np.argsort(-found.ink)[:2].tolist()) == {3, 4} and np.sort(found.ink)[-3] < 0.02
    assert [(row, other) for row, other, _ in find_copies(found, np.arange(30))] == [(9, 8)]
    flat = describe_pictures([cv2.imencode(".png", np.full((40, 40, 3), 9, np.uint8))[1].tobytes()] * 3)
    assert find_copies(flat, np.arange(3)) == []
    heads = []
    for number in range(60):
        head = np.zeros((96, 96), np.uint8)
        wide, high = (20, 34) if number != 17 else (34, 20)
        place = (48 + int(rng.integers(-6, 7)), 48 + int(rng.integers(-6, 7)))
        cv2.ellipse(head, place, (wide, high), 0, 0, 360, 160, -1)
        cv2.ellipse(head, (place[0], place[1] - high // 2), (8, 5), 0, 0, 360, 40, -1)
        if number == 17:
            head = cv2.flip(head, 0)
        heads.append(cv2.imencode(".png", head)[1].tobytes())
    distance, is_one = find_layouts(describe_pictures(heads).layouts, np.arange(60))
    assert is_one and distance.argmax() == 17
