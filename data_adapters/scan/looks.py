"""Looks at the headers of files: by the pool, or from memory where a file has not changed."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_adapters.base import Rejected
from data_adapters.readers.codec import decoder, encode
from data_adapters.scan.journal import Journal
from data_adapters.scan.meter import Meter
from data_adapters.scan.pool import Lost, Pool, Task
from data_adapters.scan.worker import relative

TASK_UNITS, TASK_BYTES = 64, 4 << 20  # of one task: enough to make its sending cheap, little enough to share out
AHEAD = 8  # tasks a worker that may be under way
ORDERED = 4096  # files that may wait for one before them
NO_TEXT = "file name that is not UTF-8"
RENAME = "Rename the file so that its name is UTF-8 text."


def storable(name: str) -> bool:
    """Whether the journal and the manifest, which are UTF-8, can hold the name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def full(task: Task) -> bool:
    """Whether a task should be sent."""
    return len(task.units) == TASK_UNITS or task.weight >= TASK_BYTES


class _Look:
    """One file's place in the order of looks: its answer, or where the answer will be."""

    __slots__ = ("answer", "key", "name", "path", "place", "task")

    def __init__(self, path: Path, name: str, key: str, answer: str | None) -> None:
        self.path, self.name, self.key, self.answer = path, name, key, answer
        self.task: Task | None = None
        self.place = 0

    @property
    def ready(self) -> bool:
        return self.answer is not None or (self.task is not None and self.task.done)


class Looks:
    """What an adapter's `each` calls during a scan."""

    def __init__(self, memory: Journal, base: Path, pool: Pool, meter: Meter) -> None:
        self.memory, self.base, self.pool, self.meter = memory, base, pool, meter

    def each(self, look: Callable[..., Any], paths: Iterable[Path], *arguments: Any) -> Iterator[Any]:
        """`BaseAdapter.each` with memory and processes: results in the order of `paths`."""
        method = look.__name__
        asked = json.dumps([str(argument) for argument in arguments])
        decode = decoder(look)
        pending: deque[_Look] = deque()
        tasks = 0  # submitted, and not yet taken
        task = Task("look", (method, arguments))

        def send() -> None:
            nonlocal tasks, task
            self.pool.submit(task)
            tasks, task = tasks + 1, Task("look", (method, arguments))

        def taken() -> Any:
            nonlocal tasks
            slot = pending[0]
            if slot.task is task and not slot.ready:  # it is not under way yet
                send()
            while not slot.ready:
                self.pool.step(block=True)
            pending.popleft()
            if slot.task is not None:
                tasks -= slot.place == len(slot.task.units) - 1
                slot.answer = self._keep(slot, method, slot.task.results[slot.place])
            self.meter.looked()
            return decode(str(slot.answer))

        for path in paths:
            name = relative(str(path), self.base)
            if not storable(name):
                yield [Rejected(uri=str(path), reason=NO_TEXT, remedy=RENAME)]
                continue
            known, size = self.memory.file(name)
            key = hashlib.blake2b(f"{known}\n{asked}".encode(), digest_size=12).hexdigest()
            slot = _Look(path, name, key, self.memory.answer(name, method, key) if known else None)
            if slot.answer is None:
                slot.task, slot.place = task, len(task.units)
                task.units.append(str(path))
                task.weight += size
                if full(task):
                    send()
            pending.append(slot)
            while pending and (pending[0].ready or tasks > AHEAD * self.pool.workers or len(pending) > ORDERED):
                yield taken()
        while pending:
            yield taken()

    def _keep(self, slot: _Look, method: str, result: Any) -> str:
        """Remember a look; its answer, encoded."""
        answer = encode([result.rejected(str(slot.path))]) if isinstance(result, Lost) else str(result)
        if isinstance(result, Lost) and not result.lasting:
            self.memory.keep_lost(slot.name)
        else:
            self.memory.keep_answer(slot.name, method, slot.key, answer)
        return answer
