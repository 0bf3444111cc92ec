"""The two passes of a scan: headers file by file, then pixels and content record by record.

Both read files in batches, take from the journal what an earlier scan found in unchanged ones, and count progress.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter, Record, Rejected, rejected
from data_adapters.readers.records import Checked, decoder, describe, encode, facts, relative, with_content
from data_adapters.record import files_of
from data_adapters.scan.batches import NO_RESULT, Batch, GivenUp, Readers, check, inspection
from data_adapters.scan.journal import Journal

AHEAD = 8  # batches a process that may be under way
ORDERED = 4096  # files that may wait for one before them
NO_TEXT = "file name that is not UTF-8"
RENAME = "Rename the file so that its name is UTF-8 text."
Progress = Callable[[int, int], None]


def storable(name: str) -> bool:
    """Whether the journal and the manifest, which are UTF-8, can hold the name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class FileCount:
    """Counts how often files were inspected and checked, each once, and reports it to `progress`."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.total = self._inspected = self._checked = 0

    def inspected(self) -> None:
        """One more file was inspected."""
        self._inspected += 1
        self._report()

    def checked(self, files: int = 1) -> None:
        """A record of so many files was checked, or a file refused."""
        self._checked += files
        self._report()

    def _report(self) -> None:
        if self.progress is not None:  # many items of one file count once
            done = min(self._inspected, self.total) + min(self._checked, self.total)
            self.progress(min(self.total, done // 2), self.total)


class _Slot:
    """One file's place in the order of headers: its remembered answer, or where the answer will be."""

    __slots__ = ("answer", "batch", "key", "name", "path", "place")

    def __init__(self, path: Path, name: str, key: str, answer: str | None) -> None:
        self.path, self.name, self.key, self.answer = path, name, key, answer
        self.batch: Batch | None = None
        self.place = 0

    @property
    def is_ready(self) -> bool:
        return self.batch is None or self.batch.future.done()


class Headers:
    """The first pass. Its `each` is that of `Files` for the adapter's scan."""

    def __init__(self, adapter: Adapter, journal: Journal, base: Path, readers: Readers, count: FileCount) -> None:
        self.adapter, self.journal, self.base, self.readers, self.count = adapter, journal, base, readers, count

    def each(self, function: Callable[..., Any], paths: Iterable[Path], *arguments: Any) -> Iterator[Any]:
        """`Files.each` with a journal and processes: results in the order of `paths`."""
        method = function.__name__
        asked = json.dumps([str(argument) for argument in arguments])
        decode = decoder(function)
        slots: deque[_Slot] = deque()
        under_way = 0  # batches
        batch = inspection(self.adapter, method, arguments)

        def send() -> None:
            nonlocal under_way, batch
            self.readers.read(batch)
            under_way, batch = under_way + 1, inspection(self.adapter, method, arguments)

        def take() -> Any:
            nonlocal under_way
            slot = slots.popleft()
            if slot.batch is None:
                found = decode(str(slot.answer))
            else:
                if slot.batch is batch:
                    send()
                found = self._remember(slot, method, slot.batch.future.result()[slot.place], decode)
                under_way -= slot.place == len(slot.batch.units) - 1
            self.count.inspected()
            return found

        for path in paths:
            name = relative(str(path), self.base)
            if not storable(name):
                yield [Rejected(uri=str(path), reason=NO_TEXT, remedy=RENAME)]
                continue
            known, size = self.journal.file(name)
            key = hashlib.blake2b(f"{known}\n{asked}".encode(), digest_size=12).hexdigest()
            slot = _Slot(path, name, key, self.journal.answer(name, method, key) if known else None)
            if slot.answer is None:
                slot.batch, slot.place = batch, len(batch.units)
                batch.add(str(path), size)
                if batch.is_full:
                    send()
            slots.append(slot)
            while slots and (slots[0].is_ready or under_way > AHEAD * self.readers.processes or len(slots) > ORDERED):
                yield take()
        while slots:
            yield take()

    def _remember(self, slot: _Slot, method: str, result: str | GivenUp, decode: Callable[[str], Any]) -> Any:
        """Write a result into the journal and return what it says."""
        if isinstance(result, str):
            try:
                found = decode(result)
            except (ValueError, RecursionError):  # the process has been taken over by a file
                result = NO_RESULT
            else:
                self.journal.keep_answer(slot.name, method, slot.key, result)
                return found
        answer = encode([result.rejected(str(slot.path))])
        if result.lasting:
            self.journal.keep_answer(slot.name, method, slot.key, answer)
        else:
            self.journal.keep_lost(slot.name)
        return decode(answer)


class Checks:
    """The second pass: turns the records that an adapter yields into rows and refusals."""

    def __init__(self, adapter: Adapter, journal: Journal, base: Path, count: FileCount, *, verify: bool) -> None:
        self.adapter, self.journal, self.base, self.count, self.verify = adapter, journal, base, count, verify

    def run(self, found: Iterator[Record | Rejected], readers: Readers) -> None:
        """Check every record that is `found`, and enter it."""
        under_way: deque[Batch] = deque()
        batch = self._batch()
        for one in found:
            if isinstance(one, Rejected):
                self.refuse(one)
            elif not storable(one.uri):
                self.refuse(Rejected(uri=one.uri, reason=NO_TEXT, remedy=RENAME))
            elif not self._known(one):
                self._add(one, batch)
                if batch.is_full:
                    readers.read(batch)
                    under_way.append(batch)
                    batch = self._batch()
            self._take(under_way, most=AHEAD * readers.processes)
        if batch.units:
            readers.read(batch)
            under_way.append(batch)
        self._take(under_way, most=0)

    def _batch(self) -> Batch:
        return check(self.adapter, self.base, verify=self.verify)

    def _add(self, record: Record, batch: Batch) -> None:
        try:
            batch.add(record, self.journal.file(relative(record.uri, self.base))[1])
        except TypeError as error:  # the adapter has put something into meta that is no JSON
            self.refuse(rejected(record.uri, error))

    def _take(self, under_way: deque[Batch], *, most: int) -> None:
        """Enter finished checks into the journal; wait while more than `most` are under way."""
        while under_way and (len(under_way) > most or under_way[0].future.done()):
            batch = under_way.popleft()
            for record, result in zip(batch.units, batch.future.result(), strict=True):
                self._enter(record, result)

    def _enter(self, record: Record, result: Checked | Rejected | GivenUp) -> None:
        if isinstance(result, Checked):
            self.journal.keep_row(result.row, facts=result.facts, verified=self.verify)
            self.count.checked(len(files_of(record)))
        elif isinstance(result, GivenUp) and not result.lasting:
            self.journal.keep_lost(relative(record.uri, self.base))
            self._put(result.rejected(record.uri), record.item)
        else:
            refusal = result.rejected(record.uri) if isinstance(result, GivenUp) else result
            self._put(refusal, record.item, facts=self._facts(record))

    def _known(self, record: Record) -> bool:
        """Whether an earlier scan checked the unchanged record; then its row is entered anew, without reading."""
        before = self.journal.item(relative(record.uri, self.base), record.item)
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
            self.journal.keep_row(with_content(row, **kept), facts=now, verified=bool(before["verified"]))
            self.count.checked(len(files_of(record)))
        return True

    def refuse(self, found: Rejected) -> None:
        """Enter a file that is refused before any check."""
        self._put(found, "")

    def _put(self, found: Rejected, item: str, *, facts: str = "") -> None:
        """Enter a refusal; `facts` of a record that was refused for its pixels, so that a later scan knows it again."""
        path = relative(found.uri, self.base).encode("utf-8", "backslashreplace").decode()
        self.journal.keep_refusal(path, item, reason=found.reason, remedy=found.remedy, facts=facts)
        self.count.checked()

    def _facts(self, record: Record) -> str:
        try:
            return facts([os.stat(name) for name in files_of(record)], describe(record, self.base)["meta"])
        except (OSError, TypeError, ValueError):
            return ""
