"""The base of every search: exact neighbours, conditions, and files that are whole or absent."""

import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.encoders.library import Library
from app.vectors.indexes import Bases
from harness.tables import clusters, conditions, facts, query, write_table
from lejepa_med.errors import UserError
from lejepa_med.search import base as base_module
from lejepa_med.search.base import Base, build_base, normalised, table_key
from lejepa_med.search.conditions import ConditionError
from lejepa_med.search.filters import Condition

ROWS = 2500  # two shards and a half


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("vectors")
    build_base(write_table(folder / "table", clusters(ROWS), **facts(ROWS)), folder / "base")
    return Base(folder / "base")


def by_hand(vectors: np.ndarray, k: int, keep: np.ndarray) -> list[int]:
    """Neighbours of one vector (the first) by a loop in double precision."""
    one = vectors[0] / np.linalg.norm(vectors[0])
    scores = {row: float(vectors[row] @ one / np.linalg.norm(vectors[row])) for row in np.flatnonzero(keep)}
    return sorted(scores, key=lambda row: (-scores[row], row))[:k]


@pytest.mark.parametrize("block", [1 << 22, 1 << 12], ids=["one block", "many blocks"])
def test_neighbours_are_those_of_a_loop(base: Base, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(base_module, "BLOCK", block)
    vectors = clusters(ROWS).astype(np.float64)
    everything = np.ones(ROWS, bool)
    first = base.vectors[:1]
    assert base.nearest(first, 7, own_rows=[-1], own_groups=[-1])[0].tolist() == by_hand(vectors, 7, everything)
    others = everything.copy()
    others[0] = False
    assert base.nearest(first, 7, own_rows=[0], own_groups=[-1])[0].tolist() == by_hand(vectors, 7, others)
    strangers = np.array([row // 4 != 0 for row in range(ROWS)])
    assert base.nearest(first, 7, own_rows=[0], own_groups=[0])[0].tolist() == by_hand(vectors, 7, strangers)
    odd = np.arange(ROWS) % 2 == 1
    found = base.nearest(first, 7, rows=np.flatnonzero(odd), own_rows=[0], own_groups=[0])[0]
    assert found.tolist() == by_hand(vectors, 7, odd & strangers)
    many = base.nearest(base.vectors[:130], 3, own_rows=np.arange(130), own_groups=np.full(130, -1))
    alone = [base.nearest(base.vectors[i : i + 1], 3, own_rows=[i], own_groups=[-1])[0] for i in range(130)]
    assert [a.tolist() for a in many] == [b.tolist() for b in alone], "a batch answers as each alone"


def test_fewer_rows_than_wanted_and_none(base: Base) -> None:
    (few,) = base.nearest(base.vectors[:1], 10, rows=np.array([5, 9]), own_rows=[5], own_groups=[-1])
    assert few.tolist() == [9]
    (none,) = base.nearest(base.vectors[:1], 10, rows=np.array([], int), own_rows=[-1], own_groups=[-1])
    assert none.tolist() == []


def test_equal_vectors_come_in_the_order_of_the_table(tmp_path: Path) -> None:
    build_base(write_table(tmp_path / "t", np.tile([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]], (50, 1))), tmp_path / "b")
    same = Base(tmp_path / "b")
    (found,) = same.nearest(same.vectors[:1], 100, own_rows=[-1], own_groups=[-1])
    assert found.tolist() == [row for row in range(150) if row % 3 != 2]
    assert not same.vectors[2].any(), "a vector of zeros has no direction, and is no NaN"


def meets(row: dict[str, Any], one: dict[str, Any]) -> bool:
    """A condition in plain Python."""
    value = row[one["column"]]
    if "not_in" in one:
        return value not in one["not_in"]
    if value is None:
        return False
    if "equals" in one or "in" in one:
        return value in one.get("in", [one.get("equals")])
    return one.get("min", -1e99) <= value <= one.get("max", 1e99)


CASES: list[list[dict[str, Any]]] = [
    [{"column": "label", "equals": "o'clock"}],
    [{"column": "label", "not_in": ["spiral"]}],
    [{"column": "stain", "in": ["it's", 'a "b" \\', "", "absent"]}],
    [{"column": "stain", "equals": "50%"}, {"column": "mpp", "min": 0.5}],
    [{"column": "mpp", "min": 0.25, "max": 1}],
    [{"column": "mpp", "not_in": [0.25, 1]}],
    [{"column": "mpp", "equals": 1}],
    [{"column": "objid", "equals": 587722952767439457}],
    [{"column": "objid", "in": [587722952767439451, 587722952767439453, 0.5, 1e300]}],
    [{"column": "objid", "not_in": [587722952767439452]}],
    [{"column": "objid", "min": 587722952767439461, "max": 587722952767439465}],
    [{"column": "objid", "min": 0.5, "max": 1e30}],
    [{"column": "flat", "equals": False}],
    [{"column": "flat", "not_in": [True]}, {"column": "label", "in": ["spiral"]}],
    [{"column": "group", "in": ["g0", "g7", "absent"]}],
    [{"column": "group", "not_in": ["g0", "absent"]}, {"column": "flat", "equals": True}],
    [{"column": "group", "not_in": ["absent"]}],
    [{"column": "group", "equals": "absent"}],
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_conditions_mean_what_they_say(base: Base, given: list[dict[str, Any]]) -> None:
    rows = base.table.to_pylist()
    wanted = [all(meets(row, one) for one in given) for row in rows]
    assert base.meets(conditions(*given)).tolist() == wanted


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"column": "path", "equals": "x"}, "no column"),
        ({"column": "id", "equals": "x"}, "no column"),
        ({"column": "vector", "equals": 1}, "no column"),
        ({"column": "mpp", "equals": "0.5"}, "holds numbers"),
        ({"column": "mpp", "in": [0.5, True]}, "holds numbers"),
        ({"column": "stain", "equals": 1}, "holds texts"),
        ({"column": "stain", "min": 1}, "holds texts"),
        ({"column": "flat", "equals": 1}, "holds true and false"),
    ],
    ids=str,
)
def test_conditions_that_do_not_fit_the_table(base: Base, given: dict[str, Any], kind: str) -> None:
    with pytest.raises(ConditionError, match=kind) as found:
        base.meets(conditions(given))
    assert (found.value.index, found.value.is_unknown) == (0, kind == "no column")


@pytest.mark.parametrize(
    "given",
    [
        {"column": "a"},
        {"column": "a", "equals": 1, "min": 1},
        {"column": "a", "in": []},
        {"column": "a", "min": "1"},
        {"column": "a", "equals": float("nan")},
        {"column": "a", "equals": [1]},
        {"column": "a", "any_of": [1]},
    ],
    ids=str,
)
def test_conditions_that_say_nothing_or_two_things(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Condition.model_validate(given)


def test_ids_and_groups_are_found(base: Base) -> None:
    assert base.rows_of([f"{7:032x}", "absent", f"{0:032x}", f"{7:032x}"]) == [7, None, 0, 7]
    codes = base.codes_of(["g3", "absent"])
    assert codes == {"g3": 3} and (base.groups == 3).nonzero()[0].tolist() == [12, 13, 14, 15]


def test_only_columns_that_the_table_names_are_shown(tmp_path: Path) -> None:
    """Whatever else lies in its files: a shard of another program may hold paths."""
    folder = write_table(tmp_path / "t", clusters(10), path=["/home/doe/a.png"] * 10, mpp=[1.0] * 10, boxes=[[1]] * 10)
    info = json.loads((folder / "embedding.json").read_text())
    (folder / "embedding.json").write_text(json.dumps({**info, "columns": ["mpp", "boxes"]}))
    build_base(folder, tmp_path / "b")
    assert list(Base(tmp_path / "b").columns) == ["label", "mpp"]
    assert b"doe" not in b"".join(file.read_bytes() for file in (tmp_path / "b").iterdir())


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    write_table(tmp_path / "runs" / "table", clusters(100))
    return Bases(Library(Settings(runs_dir=tmp_path / "runs")), tmp_path / "search")


def test_a_base_is_made_once_and_anew_when_the_table_changes(bases: Bases, tmp_path: Path) -> None:
    first, is_new = bases.open("table")
    assert is_new and not bases.open("table")[1]
    again = Bases(Library(Settings(runs_dir=tmp_path / "runs")), tmp_path / "search")
    assert not again.open("table")[1], "a restart finds it"
    before = np.array(first.vectors)
    time.sleep(0.01)  # another mtime
    folder = tmp_path / "runs" / "table"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_table(folder, clusters(100, seed=1))
    second, is_new = bases.open("table")
    assert is_new and second.key != first.key
    np.testing.assert_allclose(second.vectors, normalised(clusters(100, seed=1)))
    (tmp_path / "search" / f".{second.key}.123.draft").mkdir()  # of a killed build
    assert bases.sweep() == {second.key}
    assert [entry.name for entry in (tmp_path / "search").iterdir()] == [second.key]
    assert np.array_equal(first.vectors, before), "who reads the old one goes on"
    key = first.key
    del first, again
    maps = Path("/proc/self/maps").read_text()
    assert second.key in maps and key not in maps, "and nobody else holds the space of the removed file"


def test_the_key_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    one = write_table(tmp_path / "a" / "t", clusters(50))
    two = write_table(tmp_path / "b" / "u", clusters(50))
    assert table_key(one) == table_key(two)
    changed = clusters(50)
    changed[3, 3] += 1
    assert table_key(write_table(tmp_path / "c", changed)) != table_key(one)


def test_an_older_table_is_known_by_its_times(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "t", clusters(50))
    info = json.loads((folder / "embedding.json").read_text())
    del info["content"]
    (folder / "embedding.json").write_text(json.dumps(info))
    before = table_key(folder)
    assert table_key(folder) == before
    os.utime(folder / "part-00000.parquet", ns=(1, 1))
    assert table_key(folder) != before


def test_tables_that_cannot_be_searched(bases: Bases, tmp_path: Path) -> None:
    bad = clusters(100)
    bad[50, 3] = np.nan
    write_table(tmp_path / "runs" / "nan", bad)
    (write_table(tmp_path / "runs" / "cut", clusters(100)) / "part-00000.parquet").write_bytes(b"PAR1")
    for name in ("nan", "cut"):
        with pytest.raises(ProblemError) as found:
            bases.open(name)
        assert found.value.problem.status == 422 and found.value.problem.type.endswith("archive-unusable")
        assert str(tmp_path) not in found.value.problem.model_dump_json()
    assert list((tmp_path / "search").iterdir()) == [], "nothing half"
    with pytest.raises(ProblemError, match="not-found"):
        bases.open("absent")
    with pytest.raises(UserError):
        build_base(tmp_path, tmp_path / "b")


def open_with_little_room(root: Path, answer: Any) -> None:
    """In a process of its own, whose files may have 20 kB: that stands for a full disk, the same write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        Bases(Library(Settings(runs_dir=root / "runs")), root / "search").open("table")
    except ProblemError as error:
        answer.send((error.problem.status, error.problem.type))
    answer.close()


def test_no_room_is_an_answer_and_leaves_nothing(tmp_path: Path) -> None:
    write_table(tmp_path / "runs" / "table", clusters(1000))
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=open_with_little_room, args=(tmp_path, theirs))
    child.start()
    assert ours.poll(30) and ours.recv() == (507, "urn:lejepa-med:problem:no-room")
    child.join(30)
    assert list((tmp_path / "search").iterdir()) == []


def test_exact_answers_for_a_query_of_conditions(base: Base) -> None:
    from app.vectors.backend import exact, measure, rank

    rows = np.flatnonzero(base.meets(conditions({"column": "label", "equals": "spiral"})))
    one = query(np.array(base.vectors[:2]), 5, own_rows=[0, 1], own_groups=[0, -1], rows=rows)
    first, second = exact(base, one)
    assert set(first) <= set(rows) and 0 not in first and not {0, 1, 2, 3} & set(first) and len(second) == 5
    assert rank(base, one, 0, np.concatenate([first[::-1], [0, 1]])).tolist() == first.tolist()
    assert measure(base, lambda asked: exact(base, asked)) == (1.0, 200)
    assert measure(base, lambda asked: [found[:5] for found in exact(base, asked)]) == (0.5, 200)
