import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lejepa_med.cpu import Choice, Threads, choices, loader_workers
from tests.data_adapters.test_machine import Kernel

ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """A controller on a machine of two cores whose load and speed are given; each unit lets time pass."""

    def __init__(self, folder, monkeypatch, *, torch_threads=2, **options):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        self.now, self.set = 0.0, torch_threads
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.set)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "set", count))
        self.kernel = Kernel(folder, cpus=2)
        self.threads = Threads(machine=self.kernel.machine(), clock=lambda: self.now, **options)
        # no second team of real threads: the choice is what is tested
        self.threads._team.set = lambda there: None
        self.seen, self.said = [], []

    def work(self, units, *, others, seconds, size=1):
        """`others`: cores used by other processes; `seconds`: a unit's time by choice."""
        for _ in range(units):
            took = seconds[self.threads.choice]
            self.now += took
            busy = min(2.0, others + 0.5)
            self.kernel.run(took, busy=[busy / 2] * 2, own=busy - others)
            if said := self.threads.step(size):
                self.said.append(said)
            self.seen.append(self.threads.choice)


ALL, ASLEEP, ONE = Choice(2), Choice(2, sleep=True), Choice(1)
QUIET = {ALL: 0.3, ASLEEP: 0.35, ONE: 0.5}
BESIDE_ONE = {ALL: 0.8, ASLEEP: 0.7, ONE: 0.55}  # one busy loop
BESIDE_MANY = {ALL: 2.0, ASLEEP: 0.6, ONE: 0.8}  # another training


def test_a_quiet_machine_keeps_all_threads_and_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(500, others=0.1, seconds=QUIET)
    assert set(lab.seen) == {ALL} and lab.said == []


@pytest.mark.parametrize(("seconds", "best"), [(BESIDE_ONE, ONE), (BESIDE_MANY, ASLEEP)])
def test_under_load_the_fastest_choice_holds_and_the_end_of_the_load_is_seen(
    tmp_path: Path, monkeypatch, seconds, best
) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(30, others=1.0, seconds=seconds)
    assert lab.threads.choice == best and {ASLEEP, ONE} <= set(lab.seen)
    assert lab.said == (
        [] if best.threads == 2 else ["CPU threads: 1 instead of 2, the fastest beside what else runs on this machine."]
    )
    lab.seen.clear()
    lab.work(60, others=1.0, seconds=seconds)  # half a minute under the same load: nothing is tried
    assert set(lab.seen) == {best}
    lab.work(15, others=0.0, seconds=QUIET)
    assert lab.threads.choice == ALL
    assert best.threads == 2 or lab.said[1:] == ["CPU threads: 2 instead of 1, since the cores are free again."]


def test_the_choices_are_compared_again_after_a_minute_and_when_the_load_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(30, others=1.0, seconds=BESIDE_ONE)
    lab.seen.clear()
    lab.work(25, others=1.8, seconds=BESIDE_MANY)
    assert lab.threads.choice == ASLEEP and ONE in lab.seen
    lab.seen.clear()
    lab.work(60, others=1.8, seconds=BESIDE_MANY)
    assert set(lab.seen) == {ASLEEP}
    lab.work(80, others=1.8, seconds=BESIDE_ONE)
    assert lab.threads.choice == ONE


def test_loader_workers_that_the_threads_can_bear_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(60, others=0.6, seconds={ALL: 0.36, ASLEEP: 0.42, ONE: 0.5})
    assert lab.threads.choice == ALL and {ASLEEP, ONE} <= set(lab.seen)
    lab.seen.clear()
    lab.work(100, others=0.3, seconds={ALL: 0.33, ASLEEP: 0.42, ONE: 0.5})
    assert set(lab.seen) == {ALL}


def test_a_small_gain_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(30, others=1.0, seconds={ALL: 1.0, ASLEEP: 0.6, ONE: 0.61})
    assert lab.threads.choice == ASLEEP
    lab.work(200, others=1.0, seconds={ALL: 1.0, ASLEEP: 0.6, ONE: 0.58})
    assert lab.threads.choice == ASLEEP
    lab.work(200, others=1.0, seconds={ALL: 1.0, ASLEEP: 0.6, ONE: 0.5})
    assert lab.threads.choice == ONE


def test_units_of_other_sizes_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch)
    lab.work(3, others=1.0, seconds=BESIDE_ONE, size=64)
    assert lab.threads.choice == ASLEEP  # the first that is tried
    lab.work(40, others=1.0, seconds=BESIDE_MANY, size=1)
    assert lab.threads.choice == ASLEEP and ONE not in lab.seen
    lab.work(30, others=1.0, seconds=BESIDE_ONE, size=60)
    assert lab.threads.choice == ONE


def test_ranks_share_the_cores_and_compare_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch, ranks=2)
    assert lab.threads.count == 1
    (tmp_path / "four").mkdir()
    lab = Lab(tmp_path / "four", monkeypatch, ranks=1)
    lab.threads._compare = False
    lab.work(30, others=1.0, seconds=BESIDE_ONE)
    assert lab.threads.choice == ASLEEP and ONE not in lab.seen


def test_a_count_that_the_program_has_set_is_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch, torch_threads=1)
    lab.work(30, others=1.0, seconds=BESIDE_ONE)
    assert set(lab.seen) == {ONE}


def test_a_given_count_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch, given=2)
    lab.work(30, others=1.5, seconds=BESIDE_ONE)
    assert set(lab.seen) == {ALL} and lab.threads.started(None) == ""
    assert lab.threads.started(1).endswith("ended with 1, so results agree with it only up to float rounding.")


def test_the_threads_of_the_caller_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, monkeypatch)
    with lab.threads:
        lab.work(30, others=1.0, seconds=BESIDE_ONE)
        assert lab.set == 1
    assert lab.set == 2


def test_choices_fit_the_free_cores() -> None:
    assert choices(2, 1.0) == [ASLEEP, ONE]
    assert choices(2, 1.6) == [ASLEEP, ALL]
    assert choices(2, 1.4) == [ASLEEP, ONE, ALL]
    assert choices(16, 15.1) == [Choice(16, sleep=True), Choice(15), Choice(15, sleep=True)]
    assert choices(2, 0.0) == [ASLEEP, ONE]


def test_loader_workers_come_from_the_free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader_workers(0) == 0 and loader_workers(5, on_gpu=True) == 5
    for free, cpu, gpu in ((1, 1, 1), (2, 1, 1), (4, 2, 3), (16, 8, 8), (64, 8, 8)):
        monkeypatch.setattr("lejepa_med.cpu.free_cores", lambda free=free: free)
        assert (loader_workers(None), loader_workers(None, on_gpu=True)) == (cpu, gpu)
    assert loader_workers(None, on_gpu=True, ranks=16) == 3


REAL = """
import torch
from lejepa_med.cpu import Threads, Choice
with Threads() as threads:
    assert not threads.automatic and threads.count == 2
    for _ in range(3):
        threads._looked = -1e9  # a reading is due
        torch.ones(1 << 20).sum()
        assert threads.step() == "" and torch.get_num_threads() == 2
threads = Threads(3)
with threads:
    assert torch.get_num_threads() == 3
assert torch.get_num_threads() == 2
"""


def test_omp_num_threads_fixes_the_count() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", REAL], env=environment, check=True, timeout=120)


def test_an_idle_team_comes_and_goes_and_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    threads = Threads(2)
    with threads:
        before = x @ x.T
        threads._team.set(True)
        assert torch.get_num_threads() == 2
        assert torch.equal(x @ x.T, before)
        threads._team.set(False)
        assert torch.equal(x @ x.T, before)
