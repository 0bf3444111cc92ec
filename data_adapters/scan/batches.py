"""Files that one process reads one after the other; and who reads them: this process, or others that may die or hang.

A file at which a process dies or hangs is given up, and costs the scan nothing else.
"""

import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_adapters.base import Adapter, Record, Rejected
from data_adapters.errors import BadFileError, UserError
from data_adapters.identity import salt
from data_adapters.readers.frames import Frame
from data_adapters.readers.process import LostError, Pool, ReaderProcess, StartError, described
from data_adapters.readers.records import Checked, check_record, encode, inspect_file

BATCH_FILES, BATCH_BYTES = 64, 4 << 20  # enough to make its sending cheap, little enough to share out
TINY_FILES, TINY_BYTES = 256, 256 << 20  # below this, starting processes costs more than they save
FILE_SECONDS = 300.0  # large slides and volumes on slow network drives take one or two minutes
MAX_ANSWER = 256 << 20  # bytes of what is found in one file; the rows of a large HDF5 file take some 100 MiB
RESULT = TypeAdapter[Checked | Rejected](Checked | Rejected)
CRASHED = "The program that decodes it ended abnormally. Copy the file again; if memory was short, use fewer --workers."
SLOW = "See whether another program opens it. If it is only large, or on a slow drive, give a larger --file-seconds."


@dataclass(frozen=True)
class GivenUp:
    """The result of a file that no process could read. `lasting`: a later scan does not try the unchanged file."""

    reason: str
    remedy: str
    lasting: bool

    def rejected(self, uri: str) -> Rejected:
        """The refusal of the file `uri`."""
        return Rejected(uri=uri, reason=self.reason, remedy=self.remedy)


NO_RESULT = GivenUp("crashes its reader (its answer is no result)", CRASHED, lasting=True)


@dataclass
class Batch:
    """Paths or records that are read one after the other.

    Attributes:
        request: what a reader process is asked; see `data_adapters.readers.worker`.
        read_here: reads one of them in this process.
        parse: makes a result of an answer; raises ValueError for anything else.
        weight: bytes of the files.
        future: the results, one for each unit, once `Readers.read` has taken the batch.
    """

    request: dict[str, Any]
    read_here: Callable[[Any], Any]
    parse: Callable[[Frame], Any]
    units: list[Any] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    weight: int = 0
    future: "Future[list[Any]]" = field(default_factory=Future)

    def add(self, unit: "str | Record", weight: int) -> None:
        """Add a path or record.

        Raises:
            TypeError: the record's meta holds a value that JSON does not know.
        """
        self.encoded.append(encode(unit))
        self.units.append(unit)
        self.weight += weight

    @property
    def is_full(self) -> bool:
        """Whether it should be read now."""
        return len(self.units) == BATCH_FILES or self.weight >= BATCH_BYTES


def inspection(adapter: Adapter, method: str, arguments: tuple[Any, ...]) -> Batch:
    """A batch of paths whose headers a method of the adapter inspects; a result is JSON text."""
    plain = [{"path": str(one)} if isinstance(one, Path) else one for one in arguments]
    return Batch(
        {"do": "inspect", "method": method, "arguments": plain},
        lambda path: inspect_file(adapter, path, method, arguments),
        lambda frame: (frame.body or b"").decode("ascii"),
    )


def check(adapter: Adapter, base: Path, *, verify: bool) -> Batch:
    """A batch of records whose pixels are checked; a result is `Checked` or `Rejected`."""
    return Batch(
        {"do": "check", "base": str(base), "verify": verify},
        lambda record: check_record(adapter, record, base, verify=verify),
        lambda frame: RESULT.validate_python(frame.header.get("result")),
    )


class Readers:
    """Reads batches: the first files in this process, as far as these are few and small, the others in processes."""

    def __init__(
        self,
        adapter: Adapter,
        *,
        processes: int,
        files_here: float = 0,
        bytes_here: float = 0,
        file_seconds: float = FILE_SECONDS,
        memory: int | None = None,
        start: Callable[[], ReaderProcess],
    ) -> None:
        """Start nothing yet.

        Args:
            adapter: the modality.
            processes: how many there may be.
            files_here: how many files are read in this process.
            bytes_here: and how many bytes of them.
            file_seconds: how long a process may be at work on one file.
            memory: bytes by which a batch may make a process grow; None: any number.
            start: starts a process.
        """
        self.processes = max(1, processes)
        self._file_seconds = file_seconds
        self._common = {"adapter": described(adapter), "memory": memory}
        self._files_here, self._bytes_here = files_here, bytes_here
        self._pool = Pool(self.processes, start, first={"do": "build", "salt": salt().decode(), **self._common})
        self._threads = ThreadPoolExecutor(self.processes, thread_name_prefix="scan")

    def read(self, batch: Batch) -> None:
        """Read the files of a batch; its future gets a result for each, `GivenUp` for one that no process could read.

        Raises:
            MissingExtraError: a library that reads these files is not installed. The future raises it, too, and
                UserError where no process can be started.
        """
        self._files_here -= len(batch.units)
        self._bytes_here -= batch.weight
        if min(self._files_here, self._bytes_here) < 0:
            batch.future = self._threads.submit(self._read, batch)
        else:
            batch.future.set_result([batch.read_here(unit) for unit in batch.units])

    def close(self) -> None:
        """Kill all processes."""
        self._pool.close()
        self._threads.shutdown(cancel_futures=True)

    def _read(self, batch: Batch) -> list[Any]:
        results: list[Any] = []
        suspect = -1  # the file at which a process has died
        while len(results) < len(batch.units):
            try:
                self._ask(batch, results)
            except LostError as lost:
                if lost.kind == "time":  # not lasting: the drive may have been at fault
                    slow = f"takes longer than {self._file_seconds:g} s to read"
                    results.append(GivenUp(slow, SLOW, lasting=False))
                elif suspect == len(results):
                    results.append(GivenUp(f"crashes its reader ({_name(lost)})", CRASHED, lasting=True))
                else:  # it may have been killed for the memory of others: once more
                    suspect = len(results)
            except StartError as error:
                raise UserError(
                    f"The processes that scan the archive cannot be started ({error}).",
                    remedy="Read the messages above, or scan in one process: lejepa-med scan ARCHIVE --workers 0",
                ) from None
        return results

    def _ask(self, batch: Batch, results: list[Any]) -> None:
        """Ask a process for the results that are missing.

        Raises:
            LostError: it was lost at the first file that has no result then.
        """
        body = f"[{','.join(batch.encoded[len(results) :])}]".encode()
        with self._pool.process() as process:
            try:
                request = batch.request | self._common
                for frame in process.ask(request, body, seconds=self._file_seconds, max_body=MAX_ANSWER):
                    is_last, is_whole = "end" in frame.header, len(results) == len(batch.units)
                    if is_last is not is_whole:  # it has said too little or too much
                        raise LostError("died")
                    if not is_last:
                        results.append(batch.parse(frame))
            except (BadFileError, ValueError):  # it has failed, or been taken over by a file
                raise LostError("died") from None


def _name(lost: LostError) -> str:
    status = lost.status
    if status is None:
        return "out of memory"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
