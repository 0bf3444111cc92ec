"""Checks of the records' pixels and content: by the pool, or from memory; what they find goes into the journal."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from data_adapters.base import Record, Rejected
from data_adapters.record import files_of
from data_adapters.scan.journal import Journal
from data_adapters.scan.looks import AHEAD, NO_TEXT, RENAME, full, storable
from data_adapters.scan.meter import Meter
from data_adapters.scan.pool import Lost, Pool, Task
from data_adapters.scan.words import Checked
from data_adapters.scan.worker import describe, facts, relative, with_content


class Checks:
    """Turns the records that an adapter yields into rows and refusals."""

    def __init__(self, memory: Journal, base: Path, meter: Meter, *, verify: bool) -> None:
        self.memory, self.base, self.meter, self.verify = memory, base, meter, verify

    def run(self, found: Iterator[Record | Rejected], pool: Pool) -> None:
        """Check every record that is `found`, and enter it."""
        under_way: deque[Task] = deque()
        task = Task("check")
        for one in found:
            if isinstance(one, Rejected):
                self.refuse(one)
            elif not storable(one.uri):
                self.refuse(Rejected(uri=one.uri, reason=NO_TEXT, remedy=RENAME))
            elif not self._known(one):
                task.units.append(one)
                task.weight += self.memory.file(relative(one.uri, self.base))[1]
                if full(task):
                    pool.submit(task)
                    under_way.append(task)
                    task = Task("check")
            self._take(under_way, pool, most=AHEAD * pool.workers)
        if task.units:
            pool.submit(task)
            under_way.append(task)
        self._take(under_way, pool, most=0)

    def _take(self, under_way: deque[Task], pool: Pool, *, most: int) -> None:
        """Enter finished checks into the journal; wait while more than `most` are under way."""
        while under_way and (under_way[0].done or len(under_way) > most):
            if not under_way[0].done:
                pool.step(block=True)
                continue
            task = under_way.popleft()
            for record, result in zip(task.units, task.results, strict=True):
                self._enter(record, result)

    def _enter(self, record: Record, result: Checked | Rejected | Lost) -> None:
        if isinstance(result, Checked):
            self.memory.keep_row(result.row, facts=result.facts, verified=self.verify)
            self.meter.checked(len(files_of(record)))
        elif isinstance(result, Lost) and not result.lasting:
            self.memory.keep_lost(relative(record.uri, self.base))
            self._put(result.rejected(record.uri), record.item)
        else:
            refusal = result.rejected(record.uri) if isinstance(result, Lost) else result
            self._put(refusal, record.item, facts=self._facts(record))

    def _known(self, record: Record) -> bool:
        """Whether an earlier scan checked the unchanged record; then its row is entered anew, without reading."""
        before = self.memory.item(relative(record.uri, self.base), record.item)
        if before is None or (self.verify and not before["verified"]):
            return False
        try:
            row = describe(record, self.base)
            now = facts([os.stat(name) for name in files_of(record)], row["meta"])
        except (OSError, TypeError, ValueError):
            return False  # the check will say what is wrong
        if now != before["facts"]:
            return False
        if before["refused"]:
            known = Rejected(uri=record.uri, reason=before["reason"], remedy=before["remedy"])
            self._put(known, record.item, facts=now)
        else:
            kept = {name: before[name] for name in ("bytes", "mtime_ns", "digest")}
            self.memory.keep_row(with_content(row, **kept), facts=now, verified=bool(before["verified"]))
            self.meter.checked(len(files_of(record)))
        return True

    def refuse(self, found: Rejected) -> None:
        """Enter a file that is refused before any check."""
        self._put(found, "")

    def _put(self, found: Rejected, item: str, *, facts: str = "") -> None:
        """Enter a refusal; of a record that was refused for its pixels, with the facts to know it by."""
        path = relative(found.uri, self.base).encode("utf-8", "backslashreplace").decode()
        self.memory.keep_refusal(path, item, reason=found.reason, remedy=found.remedy, facts=facts)
        self.meter.checked()

    def _facts(self, record: Record) -> str:
        try:
            return facts([os.stat(name) for name in files_of(record)], describe(record, self.base)["meta"])
        except (OSError, TypeError, ValueError):
            return ""
