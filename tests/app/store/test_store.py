"""The store on SQLite and on a real PostgreSQL: migrations both ways, outcomes, and a database that goes away."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from app.errors import ProblemError
from app.store import ArchiveRow, ProbeRow, Store, database_url, now, patience, schema
from app.store.database import make_engine
from app.store.tables import Base
from data_adapters.errors import UserError
from tests.app.postgres import postgres


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


def test_migrations_go_down_and_up_and_keep_what_the_older_schema_can_hold(store: Store) -> None:
    store.add_job("j1", "train-probe", key_id="k")
    store.finish_job("j1", "succeeded", result="/v1/probes/p1", made=a_probe(1))
    store.add_job("j2", "train-probe")
    store.finish_job("j2", "succeeded", made=a_probe(2, version=2))
    with store.engine.begin() as connection:
        command.downgrade(schema.config_for(connection), "0001")
    with store.engine.begin() as connection:
        assert set(inspect(connection).get_table_names()) == {"jobs", "events", "probes", "alembic_version"}
        assert connection.execute(text("SELECT id FROM probes")).scalars().all() == ["p1"]
        command.upgrade(schema.config_for(connection), "head")
    probe = store.probe("p1")
    assert probe is not None
    assert (probe.series, probe.version, probe.kind, probe.metrics) == ("p1", 1, "classification", {"a": 1.5})
    with store.engine.begin() as connection:
        command.downgrade(schema.config_for(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_database_from_before_migrations_is_taken_over(url: str) -> None:
    engine = make_engine(url)
    with engine.begin() as connection:
        command.upgrade(schema.config_for(connection), "0001")
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(
            text(
                "INSERT INTO probes (id, name, encoder, fingerprint, labels, count, created, metrics, receipt) "
                "VALUES ('old', 'n', 'e', 'f', '[\"a\"]', 4, 1.0, '{}', '{}')"
            )
        )
    engine.dispose()
    store = Store(url)
    found = store.probe("old")
    assert found is not None and (found.series, found.version, found.labels) == ("old", 1, ["a"])
    store.close()


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


def test_a_job_has_one_outcome_and_what_it_made_comes_with_it(store: Store) -> None:
    store.add_job("j1", "train-probe")
    store.add_job("j1", "train-probe")  # the answer to the first was lost
    assert [event.message for event in store.events("j1")] == ["accepted"]
    outcomes = []

    def finish(state: str) -> None:
        outcomes.append(store.finish_job("j1", state, made=a_probe(1) if state == "succeeded" else ()))

    threads = [threading.Thread(target=finish, args=(state,)) for state in ("succeeded", "cancelled", "failed")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job = store.job("j1")
    assert sorted(outcomes) == [False, False, True] and job is not None
    assert (store.probe("p1") is not None) == (job.state == "succeeded")
    assert store.start_job("j1") is None and not store.advance("j1", stage="x", progress=0.5)
    (found,) = store.job_statistics()
    assert (found.kind, found.state, found.count, found.attempts) == ("train-probe", job.state, 1, 0)


def test_a_failed_registration_leaves_the_job_unfinished(store: Store) -> None:
    row = {"encoder": "e", "fingerprint": "f", "count": 1, "dim": 2, "created": 1.0}
    for job in ("j1", "j2"):
        store.add_job(job, "embed-archive")
        store.start_job(job)
    assert store.finish_job("j1", "succeeded", made=ArchiveRow(id="j1", name="same", **row))
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.finish_job("j2", "succeeded", made=ArchiveRow(id="j2", name="same", **row))
    job = store.job("j2")
    assert job is not None and job.state == "running"
    assert [archive.id for archive in store.archives()] == ["j1"]


def test_progress_never_falls_and_a_dead_job_can_be_opened_again(store: Store) -> None:
    store.add_job("j1", "train-probe")
    store.start_job("j1", executor="w")
    assert store.advance("j1", stage="embedding", progress=0.5)
    assert store.advance("j1", stage="embedding", progress=0.2)
    job = store.job("j1")
    assert job is not None and (job.progress, job.executor, job.attempts) == (0.5, "w", 1)
    assert not store.reopen_job("j1")
    store.finish_job("j1", "dead", error={"status": 500})
    assert store.reopen_job("j1")
    assert [row.id for row in store.unfinished()] == ["j1"]


def test_statistics_of_jobs(store: Store) -> None:
    for job in ("j1", "j2", "j3"):
        store.add_job(job, "train-probe")
        store.start_job(job)
    store.start_job("j2")
    store.finish_job("j1", "succeeded")
    store.finish_job("j2", "succeeded")
    running, succeeded = sorted(store.job_statistics((0.0, 60.0)), key=lambda found: found.state)
    assert (running.state, running.count, running.timed, running.within) == ("running", 1, 0, (0, 0))
    assert (succeeded.count, succeeded.attempts, succeeded.timed, succeeded.within[1]) == (2, 3, 2, 2)
    assert 0 <= succeeded.seconds < 60


def test_a_job_is_taken_over_once_and_its_old_worker_is_not_heard(store: Store) -> None:
    store.add_job("j1", "train-probe")
    store.start_job("j1", executor="a")
    assert store.take_over("j1", holder="b", by="c") is None
    taken = [store.take_over("j1", holder="a", by=by, is_lost=True) for by in ("c", "d")]
    assert [row.losses for row in taken if row is not None] == [1]
    store.start_job("j1", executor="d")
    assert not store.advance("j1", stage="x", progress=0.5, executor="a")
    assert not store.finish_job("j1", "failed", executor="a")
    assert store.advance("j1", stage="x", progress=0.5, executor="d")
    row = store.take_over("j1", holder="d", by="c", is_lost=True)
    assert row is not None and (row.losses, row.state) == (1, "queued"), "it got further, so counting begins anew"
    store.start_job("j1", executor="e")
    row = store.take_over("j1", holder="e", by="c", is_lost=True)
    assert row is not None and row.losses == 2
    assert store.finish_job("j1", "dead", executor="c") and store.take_over("j1", holder="c", by="d") is None
    assert [row.id for row in store.jobs(limit=9, state="dead", kind="train-probe")] == ["j1"]
    assert store.jobs(limit=9, state="dead", kind="other") == store.jobs(limit=9, state="queued") == []
    assert store.job_states(["j1", "none"]) == {"j1": ("train-probe", "dead")}
    assert store.discard_job("j1") and not store.discard_job("j1") and not store.reopen_job("j1")


def test_workers_beat(store: Store) -> None:
    store.beat("a")
    store.beat("a")
    store.beat("b")
    assert {row.executor: row.beat for row in store.workers()} == {"a": 2, "b": 1}
    store.remove_worker("a")
    assert [row.executor for row in store.workers()] == ["b"]


def test_a_restarting_postgres_is_waited_for(tmp_path: Path) -> None:
    """A server of its own, since the others' tests run on the shared one."""
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
