"""Work in processes: killed, hung and failing workers, small shared memory, and nobody left behind."""

import errno
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lejepa_med.data import loader
from lejepa_med.data.loader import Ahead, Parcel
from lejepa_med.errors import TrainingError
from tests.namespaces import in_namespace


def facts(parcel: Parcel) -> Any:
    return parcel.facts


def squares(task: int) -> Parcel:
    return Parcel(task**2, [torch.full((task, 3), task, dtype=torch.float32), torch.tensor(task), torch.empty(0, 2)])


def ahead(work: Callable[[Any], Parcel], *, tasks: int = 4, workers: int = 2) -> Ahead[Parcel]:
    return Ahead(work, range(tasks), build=lambda parcel: parcel, workers=workers)


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """The processes that this one has started since the test began; those of other tests may still end."""
    others = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in others]


@pytest.mark.parametrize("workers", [0, 1, 3, 9])
def test_results_come_in_order_and_whole(workers: int) -> None:
    found = list(ahead(squares, tasks=7, workers=workers))
    assert [parcel.facts for parcel in found] == [task**2 for task in range(7)]
    for task, parcel in enumerate(found):
        for tensor, expected in zip(parcel.tensors, squares(task).tensors, strict=True):
            assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)


def test_nothing_starts_again_after_the_end(children: Callable[[], list[psutil.Process]]) -> None:
    results = ahead(squares, tasks=2)
    assert len(list(results)) == 2
    assert next(results, None) is None and not children()


def test_a_large_result_needs_no_shared_memory() -> None:
    """30 MB a result, more than any pipe holds, with workers that are ahead of a slow consumer."""
    results = ahead(lambda task: Parcel(task, [torch.full((30_000_000,), task, dtype=torch.uint8)]), tasks=5)
    for task, parcel in enumerate(results):
        time.sleep(0.05)
        assert parcel.facts == task and int(parcel.tensors[0][::999].float().mean()) == task


def test_the_tasks_stay_in_the_main_process_until_a_worker_is_free() -> None:
    """A plan that changes while it runs is followed after the few tasks that are under way."""
    taken = []
    results = Ahead(squares, (taken.append(t) or t for t in range(100)), build=facts, workers=2)
    next(results)
    assert len(taken) <= 2 * loader.AHEAD + 1
    results.close()


def test_a_killed_worker_is_named_at_once(children: Callable[[], list[psutil.Process]]) -> None:
    results = ahead(lambda task: time.sleep(60) or Parcel(task))
    started = time.monotonic()

    def kill(*_: Any) -> None:
        os.kill(children()[0].pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    timer = signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(TrainingError, match=r"signal 9 \(SIGKILL\), usually because memory ran out\. Use fewer"):
            next(results)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 15
    assert not children()


def test_a_killed_worker_is_an_error_before_its_turn() -> None:
    """A slow training step takes one result a minute, and should not go on for minutes."""
    others = set(threading.enumerate())
    results = ahead(lambda task: os.kill(os.getpid(), signal.SIGKILL) if task == 3 else Parcel(task), tasks=40)
    assert next(results).facts == 0
    until = time.monotonic() + 60
    # of the two threads that receive, one ends with the news of the death
    while sum(thread.name == "loader" and thread not in others for thread in threading.enumerate()) > 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(TrainingError, match="SIGKILL"):
        next(results)


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_worker_killed_in_the_middle_of_its_answer(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the answer never comes; a shared queue would wait for it for ever."""

    def half(pipe: Any, data: memoryview) -> None:
        os.write(pipe.fileno(), data[: max(1, len(data) // 2)])
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loader, "_write", half)
    with pytest.raises(TrainingError, match="memory"):
        next(ahead(lambda task: Parcel(task, [torch.zeros(size)])))


def test_a_crash_names_the_signal_and_how_to_find_the_file() -> None:
    def crash(_: int) -> Parcel:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    with pytest.raises(TrainingError, match=r"signal 11 \(SIGSEGV\).*lejepa-med scan"):
        next(ahead(crash))


def test_an_error_in_a_worker_is_the_error_of_the_run() -> None:
    def work(kind: int) -> Parcel:
        raise (
            TrainingError("16 files cannot be read.", remedy="Mount the drive."),
            MemoryError(),
            OSError(errno.EMFILE, "Too many open files"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
            KeyError("missing"),
        )[kind]

    def raised(kind: int) -> BaseException:
        with pytest.raises(Exception) as found:
            next(Ahead(work, [kind], build=facts, workers=1))
        return found.value

    assert str(raised(0)) == "16 files cannot be read. Mount the drive."
    assert str(raised(1)).startswith("Memory ran out. Use a smaller --batch-size")
    assert "ulimit -n" in str(raised(2))
    assert "smaller --batch-size" in str(raised(3))
    fault = raised(4)
    assert isinstance(fault, RuntimeError) and "KeyError: 'missing'" in str(fault)


def test_workers_that_hang_end_with_their_loader(children: Callable[[], list[psutil.Process]]) -> None:
    results = ahead(lambda task: Parcel(task) if task == 0 else time.sleep(600) or Parcel(task))
    assert next(results).facts == 0
    workers = children()
    assert len(workers) == 2
    started = time.monotonic()
    del results
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in workers)
    assert time.monotonic() - started < loader.END_SECONDS


def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    """Both the idle one and the one that waits for ever in the middle of its work."""
    script = (
        "import time, psutil\n"
        "from lejepa_med.data.loader import Ahead, Parcel\n"
        "work = lambda task: Parcel(task) if task == 0 else time.sleep(600)\n"
        "results = Ahead(work, [0, 1], build=lambda p: p, workers=2)\n"
        "next(results)\n"
        "print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    psutil.wait_procs(workers, timeout=15)
    assert not any(worker.is_running() for worker in workers)


def test_batches_are_the_same_without_any_shared_memory(pictures: Path) -> None:
    """/dev/shm without one free byte, where torch's own loader waits for ever."""
    script = (
        "import hashlib, sys, pathlib, data_adapters\n"
        "from data_adapters.scan import scan_archive\n"
        "from lejepa_med.data.dataset import ViewDataset\n"
        "from lejepa_med.data.loader import make_loader\n"
        "from lejepa_med.data.dataset import EpochBatches\n"
        "adapter = data_adapters.create('images', n_global=2, n_local=2, global_size=64, local_size=32)\n"
        "manifest = scan_archive(adapter, pathlib.Path(sys.argv[1])).manifest\n"
        "for workers in (0, 2):\n"
        "    plan = EpochBatches([1] * len(manifest), batch_size=16, epochs=1, seed=5)\n"
        "    digest = hashlib.sha256()\n"
        "    for batch in make_loader(ViewDataset(manifest, adapter, seed=5), plan, workers=workers):\n"
        "        for part in (batch.rows, batch.global_views, batch.local_views):\n"
        "            digest.update(part.numpy().tobytes())\n"
        "    print(digest.hexdigest())\n"
    )
    full = "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && "
    done = in_namespace(f'{full}exec "$0" -c "$1" "$2"', sys.executable, script, str(pictures))
    assert done.returncode == 0, done.stderr
    alone, two = done.stdout.split()
    assert alone == two
