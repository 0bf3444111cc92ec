"""The clock, the sides and the page of benchmarks.train; our own sides run for real on eight small pictures."""

import json
import time

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.peers.lightly_train_run import transform
from benchmarks.train import PEERS, link_files, make_files, measure
from benchmarks.train_ours import SIDES
from benchmarks.train_report import page
from benchmarks.train_window import SPARE_STEPS, Settings, Window
from lejepa_med.data.loader import Ahead, Parcel


def settings_for(tmp_path, **changes):
    values = {
        "archive": str(tmp_path / "files"),
        "out": str(tmp_path / "out"),
        "modality": "images",
        "options": {"recipe": "natural"},
        "backbone": "resnet10t",
        "drop_path": 0.0,
        "n_global": 2,
        "n_local": 0,
        "size": 32,
        "local_size": 32,
        "global_area": (0.3, 1.0),
        "local_area": (0.05, 0.3),
        "hidden": 16,
        "dim": 8,
        "slices": 8,
        "batch": 2,
        "workers": 0,
        "precision": "32-true",
        "accelerator": "cpu",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "warmup": 1,
        "steps": 2,
    }
    return Settings(**{**values, **changes})


class SlowItems(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.ones(1)


def prepared(_: int) -> Parcel:
    time.sleep(0.04)
    return Parcel(None, [torch.ones(2)])


LOADERS = {
    "torch's": lambda: DataLoader(SlowItems(), batch_size=2),
    "ours": lambda: Ahead(prepared, range(6), build=lambda parcel: parcel.tensors[0], workers=0),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_window_counts_steps_of_any_optimiser_and_the_wait_for_data(loader, tmp_path):
    settings = settings_for(tmp_path, warmup=2, steps=3)
    window = Window(settings, tmp_path / "result.json")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with window.follow():
        for batch in LOADERS[loader]():
            (weight * batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    figures = json.loads(window.result.read_text())
    assert figures["seconds"] >= 3 * 2 * 0.02, "three steps of two items that take 20 ms each"
    assert figures["images_per_second"] == pytest.approx(3 * 2 / figures["seconds"])
    assert 0.5 < figures["data_wait"] <= 1
    before = window._steps
    optimizer.step()
    assert window._steps == before, "nothing is counted after the block"


def test_our_sides_measure_a_window_on_links_that_outlast_it(tmp_path):
    settings = settings_for(tmp_path)
    made = make_files(tmp_path / "made", count=8, side=48)
    images = settings.all_steps * settings.batch
    link_files(made, tmp_path / "files", modality="images", images=images)
    assert len(list((tmp_path / "files").iterdir())) == images
    for side in ("bare", "views", "ours"):
        window = Window(settings, tmp_path / f"{side}.json")
        SIDES[side](settings, window)
        figures = json.loads(window.result.read_text())
        # the views of these pictures can take less than one tick of the clock that counts the CPU time of processes
        assert figures["images_per_second"] > 0 and figures["cpu_ms_per_image"] >= 0, side
        assert figures["cpu_ms_per_image"] > 0 or side == "views"
    last = (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == settings.warmup + settings.steps + SPARE_STEPS, "one epoch outlasts the window"


def test_failed_side_is_reported_with_its_last_line(tmp_path):
    settings = settings_for(tmp_path, archive=str(tmp_path / "nothing"))
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first\necho the reason >&2\nexit 3\n")
    broken.chmod(0o755)
    found = measure("lightly", settings, python=str(broken), scratch=tmp_path, limit=60)
    assert found == {"side": "lightly", "failed": "the reason"}


def test_page_pairs_windows_by_round_and_names_what_is_missing(tmp_path):
    def window(side, number, speed, cpu, wait=0.0):
        return {"side": side, "round": number, "images_per_second": speed, "cpu_ms_per_image": cpu, "data_wait": wait}

    windows = [
        *(window("bare-encoder", k, 110.0 * busy, 18.0) for k, busy in enumerate((1, 0.5))),
        *(window("bare", k, 100.0 * busy, 20.0) for k, busy in enumerate((1, 0.5))),
        *(window("views", k, 400.0, 5.0) for k in range(2)),
        *(window("ours", k, 99.0 * busy, 27.0, 0.01) for k, busy in enumerate((1, 0.5))),
        *(window("lightly", k, 33.0 * busy, 81.0, 0.4) for k, busy in enumerate((1, 0.5))),
        {"side": "lightly-train", "round": 0, "missing": "lightly-train"},
        {"side": "stable-pretraining", "round": 0, "failed": "a | b"},
    ]
    text = page(settings_for(tmp_path), windows, archive=None, made=(8, 48), rounds=2)
    assert "reaches 0.90 of the images per second of the bare encoder" in text
    assert "waits for data 1.0%" in text
    assert "Limiting stage: compute. Alone, views reach 400 and the bare step 75" in text
    assert "encoder and projector 20.0, views 5.0, objective, optimiser, logs and all else 2.0" in text
    assert "Fastest other library: lightly; ours is 3.00x as fast" in text
    assert "| lightly | 24.8 (16.5 to 33.0) | 81.0 | 40.0% | 3.00x | 3.00x |" in text
    assert "| lightly-train | | | | | | not installed |" in text
    assert "failed: a / b" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1, "every row has as many cells as the head"


@pytest.mark.parametrize(("n_global", "n_local", "others"), [(2, 0, None), (4, 0, 2), (2, 6, 6)])
def test_every_peer_gets_as_many_views(tmp_path, n_global, n_local, others):
    settings = settings_for(tmp_path, n_global=n_global, n_local=n_local, local_size=16)
    local = transform(settings).get("local_view")
    assert (local and local["num_views"]) == others
    assert not local or local["view_size"][0] == (16 if n_local else 32)
    assert len(settings.sizes) == n_global + n_local
    assert set(PEERS) == {"lightly", "lightly-train", "stable-pretraining"}
