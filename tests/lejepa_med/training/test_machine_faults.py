"""Full and read-only disks, limits and short memory: one sentence with a remedy, and exit status 2."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data_adapters.cache import default_folder
from data_adapters.errors import naming
from data_adapters.identity import salt
from lejepa_med.cli import main
from lejepa_med.errors import ConfigError, UserError, explained, is_shortage
from tests.namespaces import in_namespace


@contextmanager
def no_large_files() -> Iterator[None]:
    """RLIMIT_FSIZE is a full disk without a mount."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_way_to_write_names_the_place(tmp_path: Path) -> None:
    """Python, Parquet, safetensors and SQLite each have an error of their own for the same fault."""

    def sqlite() -> None:
        database = sqlite3.connect(tmp_path / "journal.sqlite")
        database.execute("PRAGMA max_page_count = 2")
        database.execute("CREATE TABLE t (value TEXT)")
        database.execute("INSERT INTO t VALUES (?)", ("x" * 100_000,))

    for number, write in (
        (errno.EFBIG, lambda: (tmp_path / "a").write_text("x" * 10_000)),
        (errno.EFBIG, lambda: pq.write_table(pa.table({"a": np.arange(10_000)}), tmp_path / "b")),
        (errno.EFBIG, lambda: save_file({"a": torch.ones(100_000)}, tmp_path / "c")),
        (errno.ENOSPC, sqlite),
    ):
        limit = no_large_files() if number == errno.EFBIG else nullcontext()
        with pytest.raises(OSError) as found, naming("runs/mine"), limit:
            write()
        assert (found.value.errno, found.value.filename) == (number, "runs/mine")
        said = str(explained(found.value))
        assert "runs/mine" in said and "--resume" in said


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (OSError(errno.EROFS, "", "out"), "out is on a read-only file system", "Give a folder"),
        (OSError(errno.EACCES, "", "out"), "Access to out is denied", "chmod"),
        (OSError(errno.EDQUOT, "", "out"), "quota on the disk of out", "Delete files"),
        (OSError(errno.EMFILE, ""), "Too many files are open", "ulimit -n"),
        (OSError(errno.EAGAIN, ""), "No further process or thread can be started", "fewer workers"),
        (RuntimeError("can't start new thread"), "No further process or thread can be started", "ulimit -u"),
        (OSError(errno.EIO, "", "/archive/a.dcm"), "/archive/a.dcm: Input/output error", "mounted"),
        (OSError(errno.ENOTDIR, "", "a/b"), "a/b: Not a directory", "path is right"),
        (MemoryError(), "Memory ran out", "smaller --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Memory ran out", "batch-size"),
        (ConfigError("No.", remedy="Yes."), "No.", "Yes."),
    ],
)
def test_faults_of_the_machine_have_a_remedy(error: Exception, cause: str, remedy: str) -> None:
    found = explained(error)
    assert found is not None and cause in found.cause and remedy in found.remedy


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), OSError("no number"), TypeError()])
def test_a_fault_of_the_program_is_none_of_the_machine(error: Exception) -> None:
    assert explained(error) is None


def test_a_shortage_is_no_fault_of_the_file_that_was_being_read() -> None:
    assert is_shortage(OSError(errno.EMFILE, "")) and is_shortage(MemoryError())
    assert not is_shortage(OSError(errno.EIO, "")) and not is_shortage(ValueError())


def test_a_salt_that_cannot_be_made_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("LEJEPA_SALT")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be read or made: Not a directory\. Set LEJEPA_SALT"):
        salt()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "empty"))
    (tmp_path / "empty" / "lejepa-med").mkdir(parents=True)
    (tmp_path / "empty" / "lejepa-med" / "salt").touch()
    with pytest.raises(UserError, match="the file is empty"):
        salt()


def test_commands_explain_a_file_that_may_not_grow(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with no_large_files(), pytest.raises(SystemExit) as ended:
        main(["scan", str(pictures), "--modality", "images", "--out", str(tmp_path / "out"), "--workers", "0"])
    lines = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert lines[-1].startswith("lejepa-med: ") and str(tmp_path / "out") in lines[-1] and "Traceback" not in str(lines)


@pytest.mark.parametrize("unbuffered", ["", "1"])  # Python writes at the end, or at once
def test_output_to_a_full_disk_or_a_closed_pipe(
    unbuffered: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "lejepa_med.cli", "scan", str(pictures), "--modality", "images"]
    command += ["--out", str(tmp_path), "--workers", "0"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("lejepa-med: No space is left")
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 141 and "Broken" not in done.stderr


COMMANDS = """
import os, sys
from pathlib import Path
from lejepa_med.cli import main

archive, whole, small = map(Path, sys.argv[1:4])
tiny = ("--modality images --views.n-global 2 --views.n-local 0 --views.global-size 32 --backbone resnet10t "
        "--model.projector-hidden 32 --model.projector-dim 8 --batch-size 8 --train.log-every 1 "
        "--no-monitor.online --data.workers 0 --train.precision 32-true").split()

def run(name, *arguments):
    print("==", name, file=sys.stderr, flush=True)
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as error:
        status = error.code
    print("status", status, file=sys.stderr, flush=True)

def fill(keep):
    with open(small / "fill", "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(1 << 14))
        except OSError:
            stream.truncate(max(0, stream.tell() - keep))

run("pretrain", "pretrain", archive, "--out", small / "run", "--epochs", 1, *tiny)
run("embed", "embed", small / "run", archive, "--out", whole / "table", "--workers", 0)
config = (small / "run" / "config.yaml").read_text()
(small / "run" / "config.yaml").write_text(config.replace("epochs: 1", "epochs: 2"))
fill(1 << 20)
run("full resume", "pretrain", archive, "--out", small / "run", "--epochs", 2, *tiny, "--resume")
names = sorted(path.name for path in (small / "run" / "checkpoints").iterdir())
print("checkpoints", *names, file=sys.stderr)
fill(1 << 14)
run("full embed", "embed", small / "run", archive, "--out", small / "table", "--workers", 0)
run("full scan", "scan", archive, "--modality", "images", "--out", small / "scan", "--workers", 0)
run("full probe", "probe", whole / "table", archive / "labels.csv", "--archive", archive, "--out", small / "probe")
run("full serve", "serve", whole, "--data-dir", small / "data", "--port", 0)
os.unlink(small / "fill")
run("resume", "pretrain", archive, "--out", small / "run", "--epochs", 2, *tiny, "--resume")
"""


def test_commands_on_a_full_disk(pictures: Path, tmp_path: Path) -> None:
    """A real one: the last checkpoint survives, and the run goes on from it once there is space again."""
    for name in ("whole", "small"):
        (tmp_path / name).mkdir()
    places = (str(pictures), str(tmp_path / "whole"), str(tmp_path / "small"))
    done = in_namespace(
        'mount -t tmpfs -o size=200m tmpfs "$4" && exec "$0" -c "$1" "$2" "$3" "$4"', sys.executable, COMMANDS, *places
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    parts = {part.split("\n", 1)[0]: part for part in done.stderr.split("== ")[1:]}
    assert {name for name, part in parts.items() if "status 0" in part} == {"pretrain", "embed", "resume"}
    for name, part in parts.items():
        if name.startswith("full"):
            said = [line for line in part.splitlines() if line.startswith("lejepa-med: ")]
            assert "status 2" in part and len(said) == 1, part
            assert f"No space is left on the disk of {places[2]}/" in said[0], part
    assert "checkpoints step-00000006\n" in done.stderr


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under any number: neither HOME nor an entry in the list of users."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for name in ("LEJEPA_SALT", "LEJEPA_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_folder() is None
    with pytest.raises(UserError, match=r"this user has no home folder\. Set LEJEPA_SALT"):
        salt()
