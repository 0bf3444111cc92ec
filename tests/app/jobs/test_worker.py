"""The threads that run jobs, with a kind of job that is quick: when it starts, what is repeated, and how it ends."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.datadir import this_process
from app.core.errors import ProblemError
from app.core.settings import Settings
from app.jobs.base import JobKind, Step
from app.jobs.worker import POLL_SECONDS, Worker
from app.store import Store, database_url
from data_adapters.errors import UserError
from tests.app.helpers import eventually


class CountToThree(JobKind):
    """Three steps, each a file; `faults` are raised where a test put them."""

    kind, results = "count", "counts"

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__(settings, store)
        self.written: list[int] = []
        self.faults: dict[str, list[Exception]] = {}
        self.gate = threading.Event()
        self.gate.set()

    def steps(self, job_id: str) -> Iterator[Step]:
        for number in range(3):
            self._raise(f"before {number}")
            yield self._step(job_id, number)

    def _step(self, job_id: str, number: int) -> Callable[[], None]:
        def step() -> None:
            file = self.folder(job_id) / f"{number}"
            if not file.exists():
                self.note_progress(job_id, number / 3, f"step {number}")
                self._raise(f"in {number}")
                self.gate.wait(30)
                file.write_text("")
                self.written.append(number)

        return step

    def _raise(self, place: str) -> None:
        if self.faults.get(place):
            raise self.faults[place].pop()

    def finish(self, job_id: str) -> None:
        self.succeed(job_id, "/v1/counts", ())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(database_url(None, data=tmp_path))
    yield store
    store.close()


@pytest.fixture
def kind(tmp_path: Path, store: Store) -> CountToThree:
    return CountToThree(Settings(data_dir=tmp_path), store)


@pytest.fixture
def worker(store: Store, kind: CountToThree) -> Iterator[Worker]:
    worker = Worker(store, {"count": kind}, threads=1, retries=1)
    worker.start()
    yield worker
    kind.gate.set()
    worker.stop()


def send(store: Store, kind: CountToThree, worker: Worker | None = None, job: str = "j") -> str:
    kind.folder(job).mkdir(parents=True)
    store.add_job(job, "count")
    if worker is not None:
        worker.wake()
    return job


def ended(store: Store, job: str) -> str:
    """The state of a job once it has an outcome."""
    eventually(lambda: store.job_states([job])[job][1] not in ("queued", "running"), seconds=30)
    return store.job_states([job])[job][1]


def messages(store: Store, job: str) -> list[str]:
    return [event.message for event in store.events(job)]


def test_a_job_that_was_accepted_here_starts_at_once(store: Store, kind: CountToThree, worker: Worker) -> None:
    waits = []
    for number in range(5):
        time.sleep(POLL_SECONDS * 1.3)
        job = send(store, kind, worker, f"j{number}")
        assert ended(store, job) == "succeeded"
        row = store.job(job)
        assert row is not None and row.started is not None
        waits.append(row.started - row.created)
    assert sorted(waits)[2] < POLL_SECONDS / 2
    eventually(lambda: not any((kind.folder(f"j{number}")).exists() for number in range(5)))


def test_a_job_that_another_process_accepted_is_found(store: Store, kind: CountToThree, worker: Worker) -> None:
    assert ended(store, send(store, kind)) == "succeeded"
    assert messages(store, "j") == ["accepted", "started", "step 0", "step 1", "step 2", "succeeded"]


@pytest.mark.parametrize("place", ["before 1", "in 1"])
def test_a_passing_fault_repeats_no_finished_step(store: Store, kind: CountToThree, worker: Worker, place: str) -> None:
    kind.faults[place] = [OSError(5, "Input/output error")]
    assert ended(store, send(store, kind, worker)) == "succeeded"
    assert kind.written == [0, 1, 2]
    assert "Input/output error: trying again in 1 s (1 of 1)" in messages(store, "j")
    row = store.job("j")
    assert row is not None and row.attempts == 1


@pytest.mark.parametrize(
    ("faults", "state"), [([OSError(5, "x")] * 2, "dead"), ([UserError("x")], "failed"), ([ValueError("x")], "failed")]
)
def test_a_fault_that_does_not_pass(
    store: Store, kind: CountToThree, worker: Worker, faults: list[Exception], state: str
) -> None:
    kind.faults["in 1"] = faults
    assert ended(store, send(store, kind, worker)) == state
    assert kind.written == [0]
    if state == "dead":
        eventually(lambda: not worker.running())
        assert store.retry_job("j")
        assert ended(store, "j") == "succeeded" and kind.written == [0, 1, 2], "what is done is kept"


def test_a_cancelled_job_stops_after_its_step_and_is_no_error_in_the_log(
    store: Store, kind: CountToThree, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    kind.gate.clear()
    job = send(store, kind, worker)
    eventually(lambda: "step 0" in messages(store, job))
    assert store.cancel_job(job) == ("count", "running")
    kind.gate.set()
    eventually(lambda: not worker.running() and not kind.folder(job).exists())
    assert kind.written == [0] and messages(store, job)[-1] == "cancelled"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_worker_that_stops_gives_its_job_back(store: Store, kind: CountToThree, worker: Worker) -> None:
    kind.gate.clear()
    job = send(store, kind, worker)
    eventually(lambda: "step 0" in messages(store, job))
    assert worker.stop()
    kind.gate.set()
    row = store.job(job)
    assert row is not None and (row.state, row.worker, row.losses) == ("queued", None, 0)
    eventually(lambda: not worker.running())
    second = Worker(store, {"count": kind}, threads=1, retries=0)
    second.start()
    assert ended(store, job) == "succeeded" and kind.written == [0, 1, 2]
    eventually(lambda: not second.running())  # the row ends before the thread puts the job away
    assert not second.stop() and messages(store, job).count("succeeded") == 1


def test_a_job_that_came_back_waits_for_its_earlier_attempt(store: Store, kind: CountToThree) -> None:
    """This process stood still and was taken for dead; its thread is still in a step of the job."""
    worker = Worker(store, {"count": kind}, threads=2, retries=0)
    kind.gate.clear()
    job = send(store, kind)
    worker.start()
    eventually(lambda: "step 0" in messages(store, job))
    assert store.lose_job(job, worker=this_process(), most=5, error={}) is not None
    time.sleep(3 * POLL_SECONDS)
    assert store.job_states([job])[job][1] == "queued", "the other thread does not begin what this one is at"
    kind.gate.set()
    assert ended(store, job) == "succeeded" and kind.written == [0, 1, 2]
    worker.stop()


def test_a_job_that_takes_its_workers_down_is_given_up(store: Store, kind: CountToThree, tmp_path: Path) -> None:
    from app.core.datadir import make
    from app.jobs.worker import MOST_LOSSES, Processes

    make(tmp_path)
    job = send(store, kind)
    for number in range(MOST_LOSSES):
        assert store.claim_job(worker=f"gone-{number}-00000000", kinds=["count"]) is not None
        Processes(tmp_path, store).look()
    row = store.job(job)
    assert row is not None and (row.state, row.losses) == ("dead", MOST_LOSSES) and row.error is not None
    assert row.error["type"].endswith("gave-up") and "/v1/jobs/{id}/retry" in row.error["remedy"]
    assert kind.folder(job).is_dir(), "its inputs stay"


def test_a_store_that_is_away_ends_no_thread(store: Store, kind: CountToThree, worker: Worker) -> None:
    claim = store.claim_job

    def away(**_: object) -> None:
        raise ProblemError(503, "store-unavailable", "away")

    store.claim_job = away  # type: ignore[method-assign]
    job = send(store, kind, worker)
    time.sleep(2 * POLL_SECONDS)
    store.claim_job = claim  # type: ignore[method-assign]
    assert ended(store, job) == "succeeded"
