"""The verdict on histories whose answer is known."""

from typing import Any

import numpy as np
import pytest

from lejepa_med.training.verdict import judge

HEALTHY = {
    "sigreg_per_sample": 0.01, "projector/effective_rank": 55.0, "projector/dim": 64, "projector/rows": 256,
    "projector/std": 0.9, "projector/norm": 7.5, "backbone/effective_rank": 120.0, "backbone/dim": 512,
}  # fmt: skip


def history(loss: Any, **changes: Any) -> list[dict[str, Any]]:
    """One record an epoch."""
    return [{"step": 10 * k, "epoch": float(k), "loss": float(v), **HEALTHY, **changes} for k, v in enumerate(loss)]


def noise(count: int, size: float = 0.01, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, count)


@pytest.mark.parametrize("count", [20, 100, 1000])
@pytest.mark.parametrize("size", [0.0, 0.01])
def test_a_falling_loss_is_improving(count: int, size: float) -> None:
    verdict = judge(history(np.linspace(2, 0.4, count) + noise(count, size)))
    assert verdict.state == verdict.text == "improving" and not verdict.alarming


@pytest.mark.parametrize("seed", range(5))
def test_a_plateau_is_dated(seed: int) -> None:
    loss = np.concatenate([np.linspace(2, 0.5, 40), np.full(60, 0.5)]) + noise(100, 0.005, seed)
    verdict = judge(history(loss))
    assert verdict.state == "plateau"
    since = float(verdict.text.removeprefix("plateau since epoch "))
    assert since == pytest.approx(40, abs=6)


def test_a_level_within_one_epoch_is_no_plateau() -> None:
    rows = history(np.concatenate([np.linspace(2, 0.5, 40), np.full(60, 0.5)]))
    short = [{**row, "epoch": row["epoch"] / 100} for row in rows]
    assert judge(rows).state == "plateau" and judge(short).state == "improving"
    long = history(np.concatenate([np.linspace(2, 0.5, 40), np.full(250, 0.5)]))
    assert judge([{**row, "epoch": row["epoch"] / 1000} for row in long]).state == "plateau"


def test_a_new_fall_ends_the_plateau() -> None:
    loss = np.concatenate([np.linspace(2, 0.5, 40), np.full(60, 0.5), np.linspace(0.5, 0.3, 30)])
    assert judge(history(loss[:100])).state == "plateau" and judge(history(loss)).state == "improving"


def test_a_rising_loss_is_diverging_and_a_spike_is_not() -> None:
    loss = np.linspace(2, 0.5, 60) + noise(60)
    risen = judge(history(np.concatenate([loss, np.linspace(0.5, 0.9, 20)])))
    assert risen.state == "diverging" and "loss 0.8" in risen.text and "--optim.lr" in risen.advice
    loss[40] = loss[-1] = 30.0
    assert judge(history(loss)).state == "improving"
    loss[-1] = np.nan
    assert "no longer a number" in judge(history(loss)).text


def test_a_noisy_level_is_neither_progress_nor_divergence() -> None:
    states = {judge(history(1 + noise(200, 0.2, seed))).state for seed in range(20)}
    assert states <= {"plateau", "improving"} and "plateau" in states


def test_few_records_say_nothing() -> None:
    assert judge([]).state == judge(history(np.linspace(2, 1, 9))).state == "early"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"projector/effective_rank": 3.1}, "collapsing: effective rank 3.1 of 64"),
        ({"backbone/effective_rank": 1.2}, "backbone 1.2 of 512"),
        ({"sigreg_per_sample": 0.38, "projector/std": 0.1}, "SIGReg is 0.38 of the batch"),
        ({"projector/std": 0.001, "projector/norm": 7.0}, "nearly one vector"),
    ],
)
def test_each_sign_of_collapse_is_named(changes: dict[str, Any], text: str) -> None:
    rows = history(np.linspace(2, 1, 30))
    assert judge([*rows, *history(np.full(4, 1.0), **changes)]).state == "improving"  # not yet 5 records
    found = judge([*rows, *history(np.full(5, 1.0), **changes)])
    assert found.state == "collapsing" and text in found.text and "--objective.lamb" in found.advice
    # early in a run, too
    assert judge(history(np.full(5, 1.0), **changes)).state == "collapsing"


def test_a_narrow_start_that_recovers_is_no_collapse() -> None:
    rows = [{**row, "sigreg_per_sample": 0.39 - 0.01 * k} for k, row in enumerate(history(np.full(8, 1.0)))]
    assert judge(rows).state == "early"
    assert judge([{**row, "sigreg_per_sample": 0.39} for row in rows]).state == "collapsing"


def test_small_batches_and_projectors_are_not_taken_for_a_collapse() -> None:
    rows = history(
        np.linspace(2, 1, 30),
        **{"sigreg_per_sample": 1.06 / 3, "projector/rows": 3, "projector/dim": 4, "projector/effective_rank": 1.4},
    )
    assert judge(rows).state == "improving"
    unknown = [{"step": k, "epoch": k, "loss": 2 - k / 30} for k in range(30)]  # another method, without these figures
    assert judge(unknown).state == "improving"
    assert (
        judge([{**row, "projector/effective_rank": None, "projector/std": None} for row in rows]).state == "improving"
    )


def test_an_accuracy_past_its_best_is_told() -> None:
    rows = history(np.linspace(2, 1, 30))
    scores = [0.6, 0.9, 0.7]
    online = [{"epoch": 10.0 * k, "knn": s, "linear": 0.8, "queries": 500} for k, s in enumerate(scores, 1)]
    (note,) = judge(rows, online).notes
    assert note == "k-NN accuracy was best at epoch 20 (0.900) and is now 0.700"
    assert judge(rows, [{**row, "queries": 8} for row in online]).notes == ()  # eight queries cannot tell
