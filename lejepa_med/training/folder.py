"""The run folder: which files it holds, and who may write into it.

config.yaml metrics.jsonl online.jsonl events.out.tfevents* checkpoints/ encoder/ report.html
local.yaml manifest.parquet rejected.csv   paths of this machine, see docs/privacy.md: never to be shared
bad_files.jsonl                            the same, and only when reads failed during training
.scan/                                     the same, until the first session ends
encoder-average/                           only with --optim.average
.lock                                      while a process trains here
.dry-run/                                  while `pretrain --dry-run` measures; never read, removed by the next start
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_adapters.atomic import recover, write_text
from lejepa_med.archive import JOURNAL
from lejepa_med.config import PretrainConfig, continued, differences, load_config, short_name, with_own_code
from lejepa_med.errors import ConfigError
from lejepa_med.training.checkpoint import checkpoints
from lejepa_med.training.settings import RunConfig, of_run

LOCK, DRAFT = ".lock", ".dry-run"
EVENTS = "events.out.tfevents"
# what a run writes before its first checkpoint
EARLY = ("config.yaml", "local.yaml", "manifest.parquet", "rejected.csv", "metrics.jsonl", "online.jsonl",
         "bad_files.jsonl", "checkpoints", "encoder", "encoder-average", JOURNAL, LOCK)  # fmt: skip


class RunFolder:
    """Paths of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.manifest = root / "manifest.parquet"
        self.metrics = root / "metrics.jsonl"
        self.online = root / "online.jsonl"
        self.bad_files = root / "bad_files.jsonl"
        self.checkpoints = root / "checkpoints"
        self.encoder = root / "encoder"
        self.averaged = root / "encoder-average"
        self.report = root / "report.html"
        self.journal = root / JOURNAL
        self._started = False
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep other processes from training in this folder until `release`, or the end of this process.

        Raises:
            ConfigError: another one does.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # not flock: workers that this process forks would hold it on after a kill -9
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(
                f"Another command is at work in the run folder {self.root}.",
                remedy="Wait until it ends, or give another --out.",
            ) from error
        except OSError:  # a drive without locks
            pass
        self._lock = handle

    def release(self) -> None:
        """Let others train here, and remove an empty folder that `lock` made."""
        if self._lock is not None:
            (self.root / LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
        if self.root.is_dir() and not any(self.root.iterdir()):
            self.root.rmdir()

    def start(self, *, overwrite: bool) -> bool:
        """Make the folder for a new run; what a scan for a run without steps has found out is kept for the next scan.

        Returns:
            Whether the leftovers of a run without a checkpoint, after `kill -9` say, were removed.

        Raises:
            ConfigError: it is not empty and `overwrite` is not given, or it holds something that is no run.
        """
        there, leftovers = self.content(overwrite=overwrite)
        self._clear(journal=bool(there) and not leftovers)
        self.root.mkdir(parents=True, exist_ok=True)
        self._started = True
        return leftovers

    def content(self, *, overwrite: bool) -> tuple[set[str], bool]:
        """What a new run would replace here, and whether it is only the leftovers of a run without a checkpoint.

        Raises:
            ConfigError: as `start`.
        """
        there = {path.name for path in self.root.iterdir()} - {JOURNAL, LOCK, DRAFT} if self.root.is_dir() else set()
        # local.yaml comes first, and only runs have one: a manifest alone may be that of a scan
        leftovers = "local.yaml" in there and all(map(_early, there)) and not checkpoints(self.checkpoints)
        if there and not leftovers and not overwrite:
            raise self._in_use(there)
        if there and not leftovers and not self.config.is_file():
            raise ConfigError(
                f"{self.root} is not empty and holds no run, so --overwrite will not delete it.",
                remedy="Give another --out, or delete what lies in that folder.",
            )
        return there, leftovers

    def _in_use(self, there: set[str]) -> ConfigError:
        if self.config.is_file():
            cause = f"The run folder {self.root} is not empty."
            return ConfigError(
                cause, remedy="Continue that run with --resume, replace it with --overwrite, or give another --out."
            )
        what = "a scan" if self.manifest.name in there else "something that is no run"
        return ConfigError(f"The folder {self.root} holds {what}.", remedy="Give the run an --out of its own.")

    def withdraw(self) -> None:
        """Remove what `start` began, after an error before the first step, so that the corrected command can start.

        The scan's journal stays: the next scan reads only what is new.
        """
        if self._started and not self.checkpoints.exists():
            self._clear()

    def _clear(self, *, journal: bool = False) -> None:
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.name == LOCK or (path == self.journal and not journal):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def reopen(self, given: PretrainConfig) -> RunConfig:
        """The saved settings of a run to resume; where and how fast it runs may be given anew (`MAY_CHANGE`).

        Raises:
            ConfigError: there is no run, or other settings given now differ from it.
        """
        if not self.config.is_file():
            raise ConfigError(
                f"{self.root} holds no run to resume (no config.yaml).", remedy="Start it without --resume."
            )
        saved = load_config(self.config).model_copy(update={"out": given.out})  # the folder may have been renamed
        changed = differences(given, saved)
        if changed:
            raise ConfigError(
                f"A resumed run keeps its settings, but these differ: {'; '.join(changed)}.",
                remedy=f"{_as_saved(changed, saved)}, or start a new run with another --out.",
            )
        recover(self.encoder)
        recover(self.averaged)
        return of_run(with_own_code(continued(given, saved), self._copy_of))

    def _copy_of(self, section: str, name: str) -> str | None:
        """The encoder folder's copy of a backbone's file that was moved; its hash is compared as that of any other."""
        copy = str(self.encoder / short_name(name))
        moved = section == "model" and not _file_of(name).exists() and _file_of(copy).is_file()
        return copy if moved else None

    def last_threads(self) -> int | None:
        """CPU threads at the last record of metrics.jsonl; None where there is no record."""
        records = read_lines(self.metrics)
        return records[-1].get("threads") if records else None

    def truncate_metrics(self, step: int) -> None:
        """Drop records after `step`: the interrupted part will be run again."""
        for file in (self.metrics, self.online, self.bad_files):
            if file.is_file():
                kept = [line for line in read_lines(file) if line["step"] <= step]
                write_text(file, "".join(json.dumps(line) + "\n" for line in kept))


class DraftFolder(RunFolder):
    """Where a dry run writes what a run would, inside of the folder of that `run`, whose own files it leaves alone."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run.root / DRAFT)
        self.run = run

    def start(self, *, overwrite: bool) -> bool:
        """Refuse what a run would refuse here. The scan is remembered where a run that fails early would leave it."""
        there, leftovers = self.run.content(overwrite=overwrite)
        if not there or leftovers:
            self.journal = self.run.journal
        self.open()
        return False

    def open(self) -> None:
        """Make the folder, empty."""
        self.withdraw()
        self.root.mkdir(parents=True)

    def withdraw(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.root, ignore_errors=True)


def weight(root: Path) -> dict[str, int]:
    """Bytes of what lies in a run folder, by its files and folders, the largest first."""
    sizes = {
        path.name: sum(part.stat().st_size for part in (path.rglob("*") if path.is_dir() else [path]) if part.is_file())
        for path in root.iterdir()
    }
    return dict(sorted(sizes.items(), key=lambda one: -one[1]))


def weight_text(root: Path, *, without: str = "") -> str:
    """'96 MB: checkpoints 50 MB, encoder 45 MB, the rest 1 MB', in units of 10^6 bytes as `ls` and shops use."""
    return sizes_text({name: size for name, size in weight(root).items() if name != without})


def sizes_text(sizes: Mapping[str, int]) -> str:
    """`weight_text` of sizes in bytes, by name."""
    total = sum(sizes.values())
    large = {name: size for name, size in sizes.items() if size >= 0.02 * total}
    parts = [f"{name} {size / 1e6:,.1f} MB" for name, size in large.items()]
    rest = total - sum(large.values())
    return f"{total / 1e6:,.1f} MB ({', '.join([*parts, *([f'the rest {rest / 1e6:,.1f} MB'] if rest else [])])})"


def _early(name: str) -> bool:
    """Whether a run may write a file of this name before its first checkpoint; drafts included."""
    return name in EARLY or name.startswith((EVENTS, *(f".{known}." for known in EARLY)))


def _file_of(own: str) -> Path:
    """The file of a backbone `./file.py:Class`."""
    return Path(own.rpartition(":")[0])


def _as_saved(changed: list[str], saved: PretrainConfig) -> str:
    """What to change in a command that resumes: two settings are required, so they cannot be left out."""
    names = [line.partition(":")[0] for line in changed]
    required = {
        "archive": f"give the run's archive {saved.archive} (if it has moved, link that path to the new place)",
        "modality": f"give --modality {saved.modality}",
    }
    flags = [f"--{name.replace('_', '-')}" for name in names if name not in required]
    steps = [required[name] for name in names if name in required]
    if flags:
        steps.append(f"leave out {', '.join(flags)}")
    return f"To resume, {' and '.join(steps)}"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file; a last line cut off by a kill is passed over."""
    records: list[dict[str, Any]] = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records
