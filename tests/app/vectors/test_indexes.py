"""Approximate indexes on a real PostgreSQL and on LanceDB: whole or absent, measured, and never in the way."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from app.core.settings import Settings
from app.encoders.library import Library
from app.store.database import database_url, make_engine
from app.vectors import Backend, Base, Indexes, Report
from app.vectors import indexes as indexes_module
from app.vectors.backend import exact, measure, rank
from app.vectors.lance import Lance
from app.vectors.pgvector import PgVector
from data_adapters.errors import UserError
from harness.postgres import NewDatabase
from harness.tables import clusters, conditions, facts, query, write_table
from lejepa_med.search.base import build_base
from tests.app.helpers import eventually
from tests.app.vectors.test_vectors import CASES

ROWS = 1500


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("indexes")
    build_base(write_table(folder / "table", clusters(ROWS), **facts(ROWS)), folder / "base")
    return Base(folder / "base")


@pytest.fixture(scope="module")
def engine(new_postgres: NewDatabase) -> Iterator[Engine]:
    engine = make_engine(database_url(new_postgres(), data=Path()))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module", params=["pgvector", "lancedb"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    if request.param == "lancedb":
        pytest.importorskip("lancedb", reason="needs the extra 'lance'")
        return Lance(tmp_path_factory.mktemp("lance"))
    return PgVector(request.getfixturevalue("engine"))


@pytest.fixture(scope="module")
def built(backend: Backend, base: Base) -> Report:
    return backend.build(base)


def test_recall_is_measured_and_found_again(backend: Backend, base: Base, built: Report) -> None:
    assert (built.rows, built.sample) == (ROWS, 200) and built.seconds > 0
    assert built.recall >= 0.95  # of this size; the figures of large tables are in benchmarks/results
    assert backend.find(base.key) == built and backend.find("0" * 32) is None
    assert measure(base, lambda asked: backend.nearest(base, asked))[0] == pytest.approx(built.recall, abs=0.01)


@pytest.mark.parametrize("given", CASES, ids=str)
def test_a_filtered_answer_holds_only_what_meets_it(
    backend: Backend, base: Base, built: Report, given: list[dict[str, Any]]
) -> None:
    """All rows that an index gives meet the filter, and an index asked for few gives those of the exact answer."""
    keep = base.meets(conditions(*given))
    asked = query(
        np.array(base.vectors[:3]), 5, own_rows=[0, 1, 2], own_groups=[0, -1, 0], conditions=conditions(*given)
    )
    found = backend.nearest(base, asked)
    assert all(keep[rows].all() for rows in found)
    assert not (base.groups[found[0]] == 0).any() and not (base.groups[found[2]] == 0).any()
    wanted = exact(base, query(asked.vectors, 5, own_rows=[0, 1, 2], own_groups=[0, -1, 0], rows=np.flatnonzero(keep)))
    got = [rank(base, asked, index, rows) for index, rows in enumerate(found)]
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(got, wanted, strict=True))
    assert hits >= 0.9 * sum(map(len, wanted))


def test_a_build_that_fails_leaves_nothing(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_base(write_table(tmp_path / "t", clusters(300, seed=5)), tmp_path / "b")
    other = Base(tmp_path / "b")
    other.key = "1" * 32
    module = "app.vectors.lance" if backend.name == "lancedb" else "app.vectors.pgvector"
    seen: list[Any] = []

    def fail(*_: Any) -> Any:
        seen.append(backend.find(other.key))
        raise OSError("full")

    monkeypatch.setattr(f"{module}.measure", fail)  # the last thing before it becomes visible
    with pytest.raises(OSError, match="full"):
        backend.build(other)
    assert seen == [None] and backend.find(other.key) is None
    monkeypatch.undo()
    assert backend.build(other).rows == 300, "what the failed one left is not in the way"
    backend.drop(frozenset({other.key}))
    assert backend.find(other.key) is not None
    backend.drop(frozenset())
    assert backend.find(other.key) is None
    with pytest.raises(Exception, match=r"."):
        backend.nearest(other, query(np.array(other.vectors[:1]), 3))


def test_one_build_at_a_time_and_none_seen_before_its_end(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two services on one database; and a server that ends the build's connection, as kill -9 of a service does."""
    build_base(write_table(tmp_path / "t", clusters(300, seed=6)), tmp_path / "b")
    other = Base(tmp_path / "b")
    other.key = "2" * 32
    one = PgVector(engine)
    arrived, go_on = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def wait_and_measure(*given: Any) -> Any:
        arrived.set()
        assert go_on.wait(30)
        return measure(*given)

    def build() -> None:
        try:
            one.build(other)
        except Exception as error:
            failed.append(error)

    monkeypatch.setattr("app.vectors.pgvector.measure", wait_and_measure)
    thread = threading.Thread(target=build)
    thread.start()
    assert arrived.wait(30)
    with pytest.raises(UserError, match="Another process"):
        PgVector(engine).build(other)
    assert one.find(other.key) is None
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE state = 'idle in transaction' AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    go_on.set()
    thread.join(30)
    assert len(failed) == 1 and one.find(other.key) is None
    monkeypatch.undo()
    assert one.build(other).rows == 300, "the lock went with the connection, and no table is in the way"
    one.drop(frozenset())


def test_a_role_without_rights_is_told_what_a_superuser_does(new_postgres: NewDatabase, base: Base) -> None:
    url = new_postgres()
    name = url.split("?")[0].rsplit("/", 1)[1]
    new_postgres.server.psql("DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN;")
    engine = make_engine(database_url(url.replace("//postgres:", "//weak:"), data=Path()))
    one = PgVector(engine)
    assert one.available()
    with pytest.raises(UserError, match="may not") as found:
        one.build(base)
    assert "CREATE EXTENSION vector; GRANT CREATE" in found.value.remedy
    superuser = make_engine(database_url(url, data=Path()))
    with superuser.begin() as connection:
        connection.execute(text("CREATE EXTENSION vector"))
        connection.execute(text(f"GRANT CREATE ON DATABASE {name} TO weak"))
    assert one.build(base).rows == ROWS
    engine.dispose()
    superuser.dispose()


def test_an_older_pgvector_is_asked_without_iterative_scans(
    engine: Engine, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = PgVector(engine)
    if one.find(base.key) is None:
        one.build(base)
    monkeypatch.setattr("app.vectors.pgvector.ITERATIVE", (99, 0))
    (found,) = one.nearest(base, query(np.array(base.vectors[:1]), 5))
    assert found[0] == 0


# --- which one answers ------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Indexes]]:
    write_table(tmp_path / "runs" / "small", clusters(200))
    write_table(tmp_path / "runs" / "large", clusters(ROWS), **facts(ROWS))
    made: list[Indexes] = []

    def make(wanted: str = "auto", engine: Engine | None = None, exact_rows: int = 1000) -> Indexes:
        settings = Settings(runs_dir=tmp_path / "runs", data_dir=tmp_path / "data", search_index=wanted)  # type: ignore[arg-type]
        made.append(Indexes(settings, Library(settings), engine=engine, exact_rows=exact_rows))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ready(indexes: Indexes, name: str = "large", rows: int = ROWS) -> bool:
    return indexes.state(name, rows).state == "ready"


def test_auto_is_exact_for_small_tables_and_an_index_for_large_ones(
    make: Callable[..., Indexes], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes_module, "FEW_ROWS", 100)
    indexes = make(engine=engine)
    assert indexes.state("large", ROWS).state == "absent"
    assert (indexes.state("small", 200).backend, indexes.state("small", 200).state) == ("exact", "absent")
    small, large = indexes.base("small"), indexes.base("large")
    asked = query(np.array(large.vectors[:2]), 5, own_rows=[0, 1])
    first = indexes.search(large, asked)
    assert (first.backend, first.recall) == ("exact", 1.0) and "being built" in first.note
    assert indexes.search(small, query(np.array(small.vectors[:1]), 5)).note == ""
    eventually(lambda: ready(indexes), seconds=120)
    second = indexes.search(large, asked)
    assert (second.backend, second.note) == ("pgvector", "") and 0.9 <= second.recall <= 1
    assert [a.tolist() for a in second.rows] == [b.tolist() for b in first.rows]
    np.testing.assert_allclose(second.scores[0], first.scores[0], atol=1e-6)
    few = conditions({"column": "group", "in": ["g3", "g4"]})
    assert indexes.search(large, query(asked.vectors, 5, conditions=few)).backend == "exact"
    assert indexes.search(large, query(asked.vectors, ROWS - 1, own_rows=[0, 1])).backend == "exact", "all of them"
    again = make(engine=engine)
    assert ready(again) and again.search(again.base("large"), asked).backend == "pgvector", "a restart finds it"


def test_a_table_that_is_gone_takes_its_index_along(
    make: Callable[..., Indexes], engine: Engine, tmp_path: Path
) -> None:
    indexes = make(engine=engine)
    key = indexes.base("large").key
    indexes.search(indexes.base("large"), query(np.array(indexes.base("large").vectors[:1]), 5))
    eventually(lambda: ready(indexes), seconds=120)
    for file in (tmp_path / "runs" / "large").iterdir():
        file.unlink()
    indexes.base("small")
    eventually(lambda: PgVector(engine).find(key) is None)
    eventually(lambda: len(list((tmp_path / "data" / "search" / "exact").iterdir())) == 1)


def test_without_the_database_the_base_answers(
    make: Callable[..., Indexes], new_postgres: NewDatabase, tmp_path: Path
) -> None:
    url = new_postgres()
    engine = make_engine(database_url(url, data=tmp_path))
    indexes = make("pgvector", engine=engine)
    large = indexes.base("large")
    asked = query(np.array(large.vectors[:1]), 5)
    indexes.search(large, asked)
    eventually(lambda: ready(indexes), seconds=120)
    assert indexes.search(large, asked).backend == "pgvector"
    engine.dispose()
    name = url.split("?")[0].rsplit("/", 1)[1]
    new_postgres.server.psql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;")
    away = indexes.search(large, asked)
    assert away.backend == "exact" and "cannot be asked" in away.note and len(away.rows[0]) == 5
    assert indexes.state("large", ROWS).state == "ready" and indexes.state("large", ROWS).backend == "exact"
    new_postgres.server.psql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true;")
    assert indexes.search(large, asked).backend == "pgvector"
    engine.dispose()


def test_a_build_that_cannot_work_says_so_and_is_tried_again_later(
    make: Callable[..., Indexes], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.vectors.pgvector.MAX_DIM", 8)
    indexes = make("pgvector", engine=engine)
    small = indexes.base("small")
    asked = query(np.array(small.vectors[:1]), 5)
    indexes.search(small, asked)
    eventually(lambda: indexes.state("small", 200).state == "failed")
    found = indexes.search(small, asked)
    assert found.backend == "exact" and "at most 8 numbers" in found.note
    monkeypatch.undo()
    assert indexes.state("small", 200).state == "failed", "not at once"
    later = time.monotonic() + indexes_module.RETRY_SECONDS + 1
    monkeypatch.setattr(indexes_module.time, "monotonic", lambda: later)
    indexes.search(small, asked)
    monkeypatch.undo()
    eventually(lambda: ready(indexes, "small", 200), seconds=120)


def test_lancedb_is_taken_where_no_postgres_is(make: Callable[..., Indexes]) -> None:
    pytest.importorskip("lancedb", reason="needs the extra 'lance'")
    indexes = make()
    large = indexes.base("large")
    asked = query(np.array(large.vectors[:1]), 5)
    indexes.search(large, asked)
    eventually(lambda: ready(indexes), seconds=120)
    assert indexes.search(large, asked).backend == "lancedb"
    assert make("exact").search(large, asked).backend == "exact"


def test_what_is_demanded_but_not_there(
    make: Callable[..., Indexes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="PostgreSQL"):
        make("pgvector")
    monkeypatch.setattr("app.vectors.lance.find_spec", lambda name: None)
    with pytest.raises(UserError, match="lancedb") as found:
        make("lancedb")
    assert "lejepa-med[lance]" in found.value.remedy
    indexes = make()
    large = indexes.base("large")
    answer = indexes.search(large, query(np.array(large.vectors[:1]), 5))
    assert answer.backend == "exact" and "larger than" in answer.note
    assert "without an index" in caplog.text
