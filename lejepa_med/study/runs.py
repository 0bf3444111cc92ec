"""What a study reads of a run folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lejepa_med.config import load_config, short_name
from lejepa_med.errors import ConfigError
from lejepa_med.methods.registry import own_settings
from lejepa_med.models.folder import read_info
from lejepa_med.training.folder import RunFolder, read_lines, weight
from lejepa_med.training.verdict import Verdict, judge

FINAL = 0.1  # part of the records whose mean stands for the end of a run
FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The end of one run.

    Attributes:
        folder: the run folder.
        archive: fingerprint of the records that it was trained on.
        architecture: of the backbone.
        objective: its settings but for lambda and the number of slices, as JSON: equal texts give comparable losses.
        lamb: lambda; None of a method without it (the baselines).
        final: means of the numbers in metrics.jsonl over its last tenth.
        online: the last record of online.jsonl; empty where there is none.
        verdict: on the whole run.
        finished: whether all steps were done.
        bytes: of the run folder.
    """

    folder: Path
    archive: str
    architecture: str
    objective: str
    lamb: float | None
    final: Mapping[str, float]
    online: Mapping[str, Any]
    verdict: Verdict
    finished: bool
    bytes: int

    def number(self, key: str) -> float | None:
        """A figure of the last evaluation, or else of the last batches; None where neither has it."""
        value = self.online.get(key, self.final.get(key))
        return None if value is None else float(value)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Run folders among `folders`, and up to two levels below those that are none; each once, sorted.

    Raises:
        ConfigError: a folder that holds no run.
    """
    found: set[Path] = set()
    for folder in folders:
        inside = {file.parent for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}config.yaml")}
        runs = {folder} if folder in inside else inside
        if not runs:
            raise ConfigError(
                f"{folder} holds no run (no config.yaml).", remedy="Give run folders of: lejepa-med pretrain"
            )
        found |= runs
    return sorted(found)


def read_run(folder: Path) -> RunSummary:
    """Read a run folder.

    Raises:
        ConfigError: settings that cannot be read, or a run without a single record.
        EncoderError: no encoder yet.
    """
    run = RunFolder(folder)
    config = load_config(run.config)
    history, online = read_lines(run.metrics), read_lines(run.online)
    if not history:
        raise ConfigError(
            f"{folder} has no record in metrics.jsonl.", remedy="Leave it out, or continue it with --resume."
        )
    info = read_info(run.encoder)
    settings = own_settings(config.objective)
    objective = {k: v for k, v in settings.items() if k not in ("lamb", "slices")}
    training = info["training"]
    return RunSummary(
        folder=folder,
        archive=str(info["data"]["fingerprint"]),
        architecture=short_name(config.model.backbone),
        objective=json.dumps(objective, sort_keys=True),
        lamb=settings.get("lamb"),
        final=final_means(history),
        online=online[-1] if online else {},
        verdict=judge(history, online),
        finished=training["step"] == training["steps"],
        bytes=sum(weight(folder).values()),
    )


def final_means(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of every number over the last tenth of the records, at least 3 of them; undefined values are left out."""
    last = history[-max(FEWEST, round(FINAL * len(history))) :]
    names = sorted({name for row in last for name, value in row.items() if isinstance(value, int | float)})
    return {name: float(np.mean([row[name] for row in last if row.get(name) is not None])) for name in names}
