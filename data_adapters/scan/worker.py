"""What is done with one file: look at its headers, check its pixels, hash its content. Runs in a worker process."""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from mmap import mmap
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data_adapters.base import Adapter, Record, Rejected, rejected
from data_adapters.errors import MissingExtraError
from data_adapters.identity import group_id, item_id
from data_adapters.quiet import quiet_readers
from data_adapters.readers.codec import encode
from data_adapters.registry import from_description
from data_adapters.scan.words import Checked, Missing, Ready, Result, pack

HASH_WHOLE = 64 << 20  # bytes; of larger files the size, the head, the middle and the tail are hashed (4 MiB each)
BEAT_BYTES = 8  # of the count of units begun, little-endian
META = json.JSONEncoder(sort_keys=True)  # json.dumps would build one at each call


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know of the scan."""

    adapter: dict[str, Any]
    local: dict[str, Any]
    base: Path
    verify: bool
    memory: int | None = None
    salt: str = ""
    """Of this installation; a process that was not told its place has it from here. Empty: as in any process."""


class Bench:
    """The work on single files, the same in a worker and in the scanning process itself."""

    def __init__(self, adapter: Adapter, base: Path, *, verify: bool) -> None:
        self.adapter, self.base, self.verify = adapter, base, verify
        self._last: tuple[Any, str] = (None, "")

    def run(self, kind: str, unit: Any, *common: Any) -> Any:
        """Do one piece of work: "look" at a path, or "check" a record."""
        return self.look(unit, *common) if kind == "look" else self.check(unit)

    def look(self, name: str, method: str, arguments: tuple[Any, ...]) -> str:
        """The adapter's `method` on one file, encoded. Only a missing library is an error."""
        path = Path(name)
        try:
            return encode(getattr(self.adapter, method)(path, *arguments))
        except Exception as error:  # a reader may raise anything; `rejected` lets real faults through
            return encode([rejected(path, error)])

    def check(self, record: Record) -> Checked | Rejected:
        """Decode the record if asked to, and make its row."""
        try:
            files = files_of(record)
            stats = [os.stat(name) for name in files]
            row = describe(record, self.base)
            if self.verify:
                self.adapter.verify(record)
            digest = self._hash(files, stats)
        except Exception as error:  # as above
            return rejected(record.uri, error)
        size, mtime = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return Checked(with_content(row, bytes=size, mtime_ns=mtime, digest=digest), facts(stats, row["meta"]))

    def _hash(self, files: Sequence[str], stats: Sequence[os.stat_result]) -> str:
        """The content hash; the items of one file follow each other, so the last one is kept."""
        key = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(files, stats, strict=True)]
        if self._last[0] != key:
            self._last = (key, content_hash(files))
        return self._last[1]


def files_of(record: Record) -> list[str]:
    """Absolute paths of all files that make up a record."""
    return list(record.meta.get("files", [record.uri]))


def facts(stats: Iterable[os.stat_result], meta: str) -> str:
    """By what an unchanged record is known: sizes and times of its files, and what `verify` is told of it."""
    text = f"{[(s.st_size, s.st_mtime_ns) for s in stats]}{meta}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def describe(record: Record, base: Path) -> dict[str, Any]:
    """The columns of a record's row that need no look at the file."""
    path = relative(record.uri, base)
    meta = dict(record.meta)
    if "files" in meta:
        meta["files"] = [relative(name, base) for name in meta["files"]]
    return {
        "group": group_id(record.group),
        "path": path,
        "item": record.item,
        "label": record.label,
        "split": record.split,
        "samples": record.samples,
        "meta": META.encode(meta),
        "grouped_by": record.grouped_by,
    }


def with_content(row: dict[str, Any], **content: Any) -> dict[str, Any]:
    """A record's whole row: what `describe` gave, with bytes, mtime_ns and digest, and the id that follows."""
    return {"id": item_id(row["path"], row["item"], content["digest"]), **row, **content}


def content_hash(files: Iterable[str]) -> str:
    """BLAKE2b-128 of the files' content; of files beyond 64 MiB, of their size, head, middle and tail."""
    digest = hashlib.blake2b(digest_size=16)
    for name in files:
        with open(name, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= HASH_WHOLE:
                digest.update(stream.read())
                continue
            digest.update(size.to_bytes(8, "little"))
            for start in (0, size // 2, size - (4 << 20)):
                stream.seek(start)
                digest.update(stream.read(4 << 20))
    return digest.hexdigest()


def relative(path: str, base: Path) -> str:
    """`path` below `base` with forward slashes; a path elsewhere as it is."""
    prefix = f"{base}{os.sep}" if base != base.parent else str(base)
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else path


def main(descriptor: int, beat: int) -> None:
    """Serve one scan over the pipe `descriptor`, until its other end is closed.

    The number of units begun so far stands in the file `beat`, so that the scan knows which one takes too long. It is
    mapped, as a process that may write no files can change it then, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the scanning process's; it closes the pipe
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    pipe: Connection[Any, Any] = Connection(descriptor)
    numbers, shared = count(1), mmap(beat, BEAT_BYTES)

    def run(kind: str, unit: Any, common: tuple[Any, ...]) -> Any:
        shared[:] = next(numbers).to_bytes(BEAT_BYTES, "little")
        return bench.run(kind, unit, *common)

    try:
        setup: Setup = pipe.recv()  # pickled by the scan, which reads no file itself and may be believed
        if setup.salt:
            os.environ["LEJEPA_SALT"] = setup.salt
        quiet_readers()  # what they would say holds names
        bench = Bench(from_description(setup.adapter, local=setup.local), setup.base, verify=setup.verify)
        _one_thread()
        _limit_memory(setup.memory)
        pipe.send_bytes(pack(Ready()))
        while True:
            kind, units, common = pipe.recv()
            try:
                answer: list[Result] | Missing = [run(kind, unit, common) for unit in units]
            except MissingExtraError as error:
                answer = Missing(error.cause, error.remedy)
            pipe.send_bytes(pack(answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the scan has ended, or was killed
        return


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent, also in the middle of a file that takes for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _one_thread() -> None:
    """Each worker has one core; libraries that start a thread for every core would only get in each other's way."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _limit_memory(more: int | None) -> None:
    """Let this process grow by `more` bytes of address space; where /proc does not tell its size, without a limit."""
    statm = Path("/proc/self/statm")
    if more is None or not statm.is_file():
        return
    import resource

    used = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
