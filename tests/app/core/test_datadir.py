"""The data directory: which of its processes live, and which database and services it belongs to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.core import datadir
from app.core.datadir import ProcessLock, forget, has_ended, owners, temporary, this_process
from app.store import Store, database_url
from data_adapters.errors import UserError

OTHER = """
import sys, time
from pathlib import Path
from app.core.datadir import ProcessLock
from app.core.datadir import temporary
lock = ProcessLock(Path(sys.argv[1]))
lock.acquire()
temporary(Path(sys.argv[1]), "upload").mkdir(parents=True)
print(lock.process, flush=True)
time.sleep(60)
"""


def test_a_process_is_known_to_have_ended_as_soon_as_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        process = other.stdout.readline().strip()
        assert process != this_process() and owners(tmp_path) == {process}
        assert not has_ended(tmp_path, process)
        os.kill(other.pid, signal.SIGSTOP)
        assert not has_ended(tmp_path, process), "one that stands still may go on"
    finally:
        other.kill()
        other.wait()
    assert has_ended(tmp_path, process)
    mine = temporary(tmp_path, "upload")
    mine.mkdir()
    forget(tmp_path, process)
    assert list((tmp_path / "tmp").iterdir()) == [mine]
    assert not has_ended(tmp_path, process), "of one without a lock file only the heartbeats tell"


def test_a_lock_of_another_machine_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "elsewhere-1-00000000").write_text("another kernel")
    assert not has_ended(tmp_path, "elsewhere-1-00000000")
    lock = ProcessLock(tmp_path)
    lock.acquire()
    assert not has_ended(tmp_path, lock.process)
    lock.release()
    assert owners(tmp_path) == {"elsewhere-1-00000000"}


def test_a_data_directory_is_used_with_its_own_database_only(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    stores = []
    for folder in folders:
        datadir.make(folder)
        store = Store(database_url(None, data=folder))
        datadir.check_database(folder, store.belongs_to)
        datadir.check_database(folder, store.belongs_to)
        stores.append(store)
    with pytest.raises(UserError, match="another database"):
        datadir.check_database(folders[0], stores[1].belongs_to)
    new = tmp_path / "new"
    datadir.make(new)
    with pytest.raises(UserError, match="another database"):
        datadir.check_database(new, stores[0].belongs_to)
    assert not (new / datadir.NAME).exists(), "a refusal leaves no name behind"
    for store in stores:
        store.close()


def test_services_share_a_data_directory_only_where_a_server_keeps_the_rows(tmp_path: Path) -> None:
    with datadir.take(tmp_path, shared=True), datadir.take(tmp_path, shared=True):
        with pytest.raises(UserError, match="Another service"):
            datadir.take(tmp_path, shared=False)
    with datadir.take(tmp_path, shared=False):
        with pytest.raises(UserError, match="lejepa-med work"):
            datadir.take(tmp_path, shared=True)
