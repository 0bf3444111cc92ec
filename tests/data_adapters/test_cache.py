"""The volume cache: complete files only, whatever writers and disks do."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from data_adapters.cache import ArrayCache, cache_key, default_folder

KEY = "ab" + "0" * 62


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


def test_key_changes_with_everything_that_matters(tmp_path):
    file = tmp_path / "a.nii"
    file.write_bytes(b"one")
    names = [str(file)]
    base = cache_key(files=names, recipe={"plane": "axial"})
    assert base == cache_key(files=names, recipe={"plane": "axial"})
    assert base != cache_key(files=names, recipe={"plane": "coronal"})
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    touched = cache_key(files=names, recipe={"plane": "axial"})
    assert touched != base
    file.write_bytes(b"longer")
    assert cache_key(files=names, recipe={"plane": "axial"}) not in (base, touched)
    with pytest.raises(FileNotFoundError):
        cache_key(files=[str(tmp_path / "gone")], recipe={})


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


def test_drafts_of_killed_writers_are_swept(tmp_path):
    (tmp_path / "ab").mkdir()
    old, fresh = tmp_path / "ab" / ".draft-old", tmp_path / "ab" / ".draft-fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (0, 0))
    ArrayCache(tmp_path).write(KEY, arrays(), meta={})
    assert not old.exists() and fresh.exists()


def test_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = ArrayCache(tmp_path / "file" / "cache")
    for _ in range(3):
        store.write(KEY, arrays(), meta={})
    assert len(caplog.records) == 1
    assert "LEJEPA_CACHE" in caplog.text
