"""The run folder: which files it holds, and who may write into it.

config.yaml metrics.jsonl online.jsonl events.out.tfevents* checkpoints/ encoder/ report.html
local.yaml manifest.parquet rejected.csv   paths of this machine, see docs/privacy.md: never to be shared
bad_files.jsonl                            the same, and only when reads failed during training
.scan/                                     the same, until the first session ends
encoder-average/                           only with --optim.average
"""

import json
import shutil
from pathlib import Path
from typing import Any

from lejepa_med.atomic import recover
from lejepa_med.config import PretrainConfig, continued, differences, load_config
from lejepa_med.errors import ConfigError
from lejepa_med.training.archive import JOURNAL


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

    def start(self, *, overwrite: bool) -> None:
        """Make the folder for a new run; what a scan for a run without steps has found out is kept for the next scan.

        Raises:
            ConfigError: it is not empty and `overwrite` is not given, or it holds something that is no run.
        """
        if self.root.exists() and any(path != self.journal for path in self.root.iterdir()):
            if not overwrite:
                raise ConfigError(
                    f"The run folder {self.root} is not empty.",
                    remedy="Continue that run with --resume, replace it with --overwrite, or give another --out.",
                )
            if not self.config.is_file() and not self.manifest.is_file():
                raise ConfigError(
                    f"{self.root} is not empty and holds no run, so --overwrite will not delete it.",
                    remedy="Give another --out, or delete what lies in that folder.",
                )
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._started = True

    def withdraw(self) -> None:
        """Remove what `start` began, after an error before the first step, so that the corrected command can start.

        The scan's journal stays: the next scan reads only what is new.
        """
        if self._started and not self.checkpoints.exists():
            for path in self.root.iterdir():
                if path.is_dir() and path != self.journal:
                    shutil.rmtree(path)
                elif path != self.journal:
                    path.unlink()

    def reopen(self, given: PretrainConfig) -> PretrainConfig:
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
        return continued(given, saved)

    def last_threads(self) -> int | None:
        """CPU threads at the last record of metrics.jsonl; None where there is no record."""
        records = read_lines(self.metrics)
        return records[-1].get("threads") if records else None

    def truncate_metrics(self, step: int) -> None:
        """Drop records after `step`: the interrupted part will be run again."""
        for file in (self.metrics, self.online, self.bad_files):
            if file.is_file():
                kept = [line for line in read_lines(file) if line["step"] <= step]
                draft = file.with_name(f".{file.name}.draft")
                draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
                draft.replace(file)


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
