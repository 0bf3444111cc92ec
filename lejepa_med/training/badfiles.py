"""Reads that failed during training: written down, counted, and a reason to stop when they are many."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_adapters.manifest import Manifest
from lejepa_med.data.dataset import BadRead
from lejepa_med.errors import TrainingError

MIN_READS = 200  # below this a fraction says nothing


class BadFiles:
    """Appends to bad_files.jsonl (step, path, reason) and watches the fraction of failed reads."""

    def __init__(self, file: Path, manifest: Manifest, *, limit: float) -> None:
        self.file, self.manifest, self.limit = file, manifest, limit
        self.reads = 0
        self.failed = 0

    def add(self, bad: Sequence[BadRead], *, step: int, reads: int) -> None:
        """Note the failed reads of a step.

        Raises:
            TrainingError: more than `limit` of all reads failed.
        """
        self.reads += reads + len(bad)
        self.failed += len(bad)
        if not bad:
            return
        with self.file.open("a", encoding="utf-8") as stream:
            for read in bad:
                path = self.manifest.value("path", read.row)
                stream.write(json.dumps({"step": step, "path": path, "reason": read.reason}) + "\n")
        if self.reads >= MIN_READS and self.failed > self.limit * self.reads:
            raise TrainingError(
                f"{self.failed} of {self.reads} reads failed, more than {self.limit:.1%}; the last: {bad[-1].reason}.",
                remedy=f"See {self.file}. Repair or remove those files and scan again, or raise --data.bad-limit.",
            )
