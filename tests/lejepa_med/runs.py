"""Tiny runs for the tests: 48 pictures, a narrow encoder, a few steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from lejepa_med.config import PretrainConfig
from lejepa_med.training import loop, report
from lejepa_med.training.folder import read_lines

report.PATCH_SIDE = 128  # a third of the time of so short a run goes into enlarged pictures otherwise
TIMINGS = {"images_per_second", "data_wait", "session_steps"}


def tiny(archive: Path, out: Path, *, modality: str = "images", **sections: dict[str, Any]) -> PretrainConfig:
    """Settings of a run of 2 epochs of 6 steps; `sections` override."""
    base: dict[str, dict[str, Any]] = {
        "data": {"workers": 0},
        "views": {"n_global": 2, "n_local": 0, "global_size": 32},
        "model": {"backbone": "resnet10t", "projector_hidden": 32, "projector_dim": 8},
        "objective": {"slices": 16},
        "train": {"epochs": 2, "batch_size": 8, "log_every": 1, "accelerator": "cpu"},
    }
    for name, values in sections.items():
        base[name] = {**base[name], **values} if name in base else values
    return PretrainConfig(archive=archive, out=out, modality=modality, **base)


def losses(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_lines(run / "metrics.jsonl")]


def interrupted(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Run until `step` steps are done, then stop as if at the keyboard."""
    real = loop.train_step

    def die(fabric: Any, settings: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if state.step == step:
            raise KeyboardInterrupt
        return real(fabric, settings, state, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_step", die)
        loop.pretrain(config)


def weights(run: Path) -> str:
    """The SHA-256 of the encoder's weights, as its folder states it."""
    return str(json.loads((run / "encoder" / "lejepa_med.json").read_text())["weights_sha256"])
