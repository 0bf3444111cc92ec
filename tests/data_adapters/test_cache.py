"""The volume cache: complete files only, whatever writers and disks do."""

import logging
import mmap
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_adapters import cache
from data_adapters.cache import ArrayCache, cache_key, default_folder

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62


def arrays(value: float = 1.0, n: int = 50) -> dict[str, np.ndarray]:
    return {"slices": np.full((n, 32, 32), value, np.float16), "area": np.arange(n, dtype=np.float32)}


def entry_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.safetensors")
    return file


def test_round_trip(tmp_path):
    store = ArrayCache(tmp_path)
    assert store.find(KEY) is None
    store.write(KEY, arrays(), meta={"step": "2.0"})
    entry = store.find(KEY)
    np.testing.assert_array_equal(entry.array("area"), np.arange(50, dtype=np.float32))
    rows = entry.rows("slices")[3:7]
    assert rows.shape == (4, 32, 32) and rows.dtype == np.float16 and (rows == 1).all()
    assert entry.meta == {"step": "2.0"}


def test_files_are_for_the_owner_only(tmp_path):
    store = ArrayCache(tmp_path / "new")
    store.write(KEY, arrays(), meta={})
    assert entry_file(tmp_path).stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LEJEPA_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("LEJEPA_CACHE", "off")
    assert default_folder() is None
    monkeypatch.delenv("LEJEPA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lejepa-med" / "volumes"


def test_no_folder_means_no_cache():
    store = ArrayCache(None)
    store.write(KEY, arrays(), meta={})
    assert store.find(KEY) is None


def test_key_is_made_of_content_order_and_recipe(tmp_path):
    file, other = tmp_path / "a.nii", tmp_path / "b.nii"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    names = [str(file)]
    base = cache_key(files=names, recipe={"plane": "axial"})
    assert base == cache_key(files=names, recipe={"plane": "axial"})
    assert base != cache_key(files=names, recipe={"plane": "coronal"})
    assert base != cache_key(files=[str(other)], recipe={"plane": "axial"})
    both = [str(file), str(other)]
    assert cache_key(files=both, recipe={}) != cache_key(files=both[::-1], recipe={})
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    assert cache_key(files=names, recipe={"plane": "axial"}) == base  # touched, not changed
    moved = file.rename(tmp_path / "c.nii")
    assert cache_key(files=[str(moved)], recipe={"plane": "axial"}) == base
    moved.write_bytes(b"One")
    os.utime(moved, ns=(1, 1))
    assert cache_key(files=[str(moved)], recipe={"plane": "axial"}) != base  # of the same length
    with pytest.raises(FileNotFoundError):
        cache_key(files=[str(tmp_path / "gone")], recipe={})


def test_a_border_between_files_matters(tmp_path):
    for name, content in (("a", b"12"), ("b", b"3"), ("c", b"1"), ("d", b"23")):
        (tmp_path / name).write_bytes(content)
    one, two = ([str(tmp_path / n) for n in names] for names in ("ab", "cd"))
    assert cache_key(files=one, recipe={}) != cache_key(files=two, recipe={})


def test_noted_hash_saves_reading_and_tells_no_path(tmp_path):
    file, folder = tmp_path / "Doe.nii", tmp_path / "cache"
    file.write_bytes(b"one")
    stat = file.stat()
    base = cache_key(files=[str(file)], recipe={}, folder=folder)
    (note,) = folder.rglob("*.digest")
    assert "Doe" not in note.name + note.read_text() and note.stat().st_mode & 0o077 == 0
    cache._digest.cache_clear()  # another process
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache_key(files=[str(file)], recipe={}, folder=folder) == base  # not read again
    for damage in (b"", b"\0" * 64, b"\xff" * 64):
        note.write_bytes(damage)
        cache._digest.cache_clear()
        assert cache_key(files=[str(file)], recipe={}, folder=folder) != base


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damaged_file_is_never_read_and_is_replaced(tmp_path, damage):
    store = ArrayCache(tmp_path)
    store.write(KEY, arrays(), meta={})
    file = entry_file(tmp_path)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-100], "empty": b"", "garbage": b"\xff" * 4000}[damage])
    assert store.find(KEY) is None
    assert not file.exists()
    store.write(KEY, arrays(2.0), meta={})
    assert (store.find(KEY).rows("slices")[0:1] == 2).all()


def test_abort_while_writing_leaves_nothing(tmp_path, monkeypatch):
    store = ArrayCache(tmp_path)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(KEY, arrays(), meta={})
    assert store.find(KEY) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _write_forever(folder: str) -> None:
    store, value = ArrayCache(Path(folder)), float(os.getpid() % 500)
    while True:
        store.write(KEY, arrays(value, n=400), meta={})


def test_concurrent_writers_that_are_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_forever, args=(str(tmp_path),), daemon=True) for _ in range(3)]
    for writer in writers:
        writer.start()
    store, seen, deadline = ArrayCache(tmp_path), 0, time.monotonic() + 20
    while seen < 100 and time.monotonic() < deadline:
        entry = store.find(KEY)
        if entry is not None:
            slices = entry.rows("slices")[0:400]
            assert slices.min() == slices.max()  # one writer's array, whole
            seen += 1
    for writer in writers:
        writer.kill()
        writer.join()
    assert seen == 100
    assert store.find(KEY) is not None


def _write_once(folder: str, value: float, barrier) -> None:
    barrier.wait()
    for _ in range(20):
        ArrayCache(Path(folder)).write(KEY, arrays(value), meta={"writer": str(value)})


def test_two_processes_that_write_the_same_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write_once, args=(str(tmp_path), value, barrier)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    entry = ArrayCache(tmp_path).find(KEY)
    assert (entry.rows("slices")[0:50] == float(entry.meta["writer"])).all()  # one writer's, arrays and meta alike
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{KEY}.safetensors"]


def _die_while_writing(folder: str) -> None:
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    ArrayCache(Path(folder)).write(KEY, arrays(9.0), meta={})


@pytest.mark.parametrize("before", [False, True])
def test_killed_while_writing(tmp_path, before):
    store = ArrayCache(tmp_path)
    if before:
        store.write(KEY, arrays(1.0), meta={})
    writer = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(str(tmp_path),))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    (draft,) = tmp_path.rglob(".draft-*")  # what the dead writer leaves ...
    entry = store.find(KEY)
    assert (entry is not None) == before  # ... never stands under an entry's name
    if entry is not None:
        assert (entry.rows("slices")[0:1] == 1).all()
    os.utime(draft, (0, 0))
    ArrayCache(tmp_path).write(KEY, arrays(2.0), meta={})
    assert not draft.exists() and (store.find(KEY).rows("slices")[0:1] == 2).all()


def test_an_open_entry_outlives_its_replacement(tmp_path):
    store = ArrayCache(tmp_path)
    store.write(KEY, arrays(1.0), meta={})
    entry = store.find(KEY)
    store.write(KEY, arrays(2.0), meta={})
    assert (entry.rows("slices")[0:50] == 1).all()


def test_drafts_of_killed_writers_are_swept(tmp_path):
    (tmp_path / "ab").mkdir()
    old, fresh = tmp_path / "ab" / ".draft-old", tmp_path / "ab" / ".draft-fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    ArrayCache(tmp_path).write(KEY, arrays(), meta={})
    assert not old.exists() and fresh.exists()


def test_folder_that_cannot_be_written_costs_one_warning_of_all_processes(tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setattr(cache, "_warned", mmap.mmap(-1, 1))
    (tmp_path / "file").write_text("in the way")
    store = ArrayCache(tmp_path / "file" / "cache")

    def write():
        logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
        store.write(KEY, arrays(), meta={})

    worker = multiprocessing.get_context("fork").Process(target=write)
    worker.start()
    worker.join(30)
    assert capfd.readouterr().err.count("LEJEPA_CACHE") == 1
    for _ in range(3):
        store.write(KEY, arrays(), meta={})
    assert not caplog.records


def test_a_full_disk_ends_writing_and_not_reading(tmp_path):
    """Trying again at every sample would write most of a volume each time."""
    store = ArrayCache(tmp_path)
    store.write(KEY, arrays(), meta={})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        store.write(OTHER, arrays(), meta={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.write(OTHER, arrays(), meta={})
    assert store.find(KEY) is not None and store.find(OTHER) is None
    assert not list(tmp_path.rglob(".draft-*"))
