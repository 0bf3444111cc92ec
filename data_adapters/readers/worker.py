"""The loop of a reader process, and what it can be asked. Requests and answers are frames; the last answer has "end".

For a scan, many files at once; the body is a JSON list, and each file is answered as soon as it is done, so that the
answers tell at which file the process is at work:

- build (adapter, salt): makes the adapter, so that whatever fails later is a file's fault
- inspect (adapter, method, arguments, memory), body: paths -> for each one, the method's result as JSON in the body
- check (adapter, base, verify, memory), body: records -> for each one, `Checked` or `Rejected` as "result"

For a service, one file or item at a time, within its `Limits`; {"beat"} in between says that the work goes on:

- screen (path, whole) -> refused: the files that must not be given to a reader, as Rejected
- complete (adapter, record, whole) -> found: the Record of a lone file with what its headers say, once it was screened
- scan (adapter, path) -> found: a Record, or rejected: a Rejected, for each item
- prepare (adapter, record) -> dtype, shape, and the pixels as the frame's body
- read (adapter, path, whole, pixels) -> all of it for one file: screened, then scanned, then, where pixels are wanted
  and it is a single item, prepared. What fails in preparing is told under "failed", as it is the item's own fault

Whatever fails is {"error": kind, "cause", "remedy"}; a foreign exception's own words never leave the process.
"""

import json
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image
from pydantic import TypeAdapter

from data_adapters import raster
from data_adapters.base import Adapter, BaseAdapter, Record
from data_adapters.errors import BadFileError, MissingExtraError, UserError
from data_adapters.files import Files, walk
from data_adapters.quiet import quiet_readers
from data_adapters.readers import screen
from data_adapters.readers.frames import BrokenFrameError, Channel
from data_adapters.readers.limits import BASE_BYTES, Limits, address_space, memory_limit
from data_adapters.readers.records import check_record, encode, inspect_file
from data_adapters.registry import from_description

RECORD = TypeAdapter(Record)
MAX_REQUEST = 1 << 30  # bytes of the body; the records of 64 slides with their tissue maps take some 10 MiB
KEPT_ADAPTERS = 4
BEAT_SECONDS = 0.5
# A process whose memory stays larger than this part of its limit ends after its answer, and a fresh one follows.
MOST_KEPT = 1 / 4
OUT_OF_MEMORY = re.compile(r"insufficient memory|out of memory|not enough memory|cannot allocate|bad_alloc", re.I)
Answer = tuple[dict[str, Any], memoryview | None]


def main(descriptor: int, limits: Limits | None = None) -> None:
    """Answer requests over the socket `descriptor` until its other end is closed; with `limits`, those of a service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; it closes the socket
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    quiet_readers()  # their warnings quote names
    torch.set_num_threads(1)  # each process has one core; threads for every core would get in each other's way
    if limits is not None:
        Image.MAX_IMAGE_PIXELS = raster.MAX_PIXELS
        warnings.simplefilter("error", Image.DecompressionBombWarning)
    reader = Reader(Channel(socket.socket(fileno=descriptor)), limits)
    try:
        while reader.answer():
            pass
    except (BrokenFrameError, OSError):  # the other side has hung up
        return


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent, also in the middle of a file that takes for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class Reader:
    """What one process keeps between requests: its channel, and the adapters that it has made."""

    def __init__(self, channel: Channel, limits: Limits | None) -> None:
        self.channel, self._limits = channel, limits
        self._adapters: dict[str, Adapter] = {}
        self._most = limits.max_decode_bytes if limits is not None else None
        self._began = address_space()
        self._spoke = time.monotonic()

    @property
    def limits(self) -> Limits:
        """The service's limits.

        Raises:
            RuntimeError: this process has none, so it must not be asked what needs them.
        """
        if self._limits is None:
            raise RuntimeError("a reader without limits")
        return self._limits

    def answer(self) -> bool:
        """Take a request and answer it; False when this process ends with it, as the answer says.

        Raises:
            BrokenFrameError, OSError: the other side has ended.
        """
        frame = self.channel.receive(max_body=MAX_REQUEST)
        request, body = frame.header, None
        try:
            answer, body = getattr(self, f"do_{request['do']}")(request, frame.body)
        except (SystemError, Exception) as error:
            answer = describe(error)
        retires = self._most is not None and address_space() - self._began > MOST_KEPT * self._most
        self._say({**answer, "end": True, "retires": retires}, body)
        return not retires

    # --- for a scan -------------------------------------------------------------------------------------------------

    def do_build(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Make the adapter, and take over the salt of pseudonyms: this process may not know where it is kept."""
        os.environ["LEJEPA_SALT"] = request["salt"]
        self._adapter(request["adapter"])
        return {}, None

    def do_inspect(self, request: dict[str, Any], paths: bytearray) -> Answer:
        """Call one method of the adapter on many files."""
        adapter, method = self._adapter(request["adapter"]), request["method"]
        arguments = [Path(one["path"]) if isinstance(one, dict) else one for one in request["arguments"]]
        with self._grown(request["memory"]):
            for path in json.loads(paths):
                self._say({}, inspect_file(adapter, path, method, arguments).encode())
        return {}, None

    def do_check(self, request: dict[str, Any], records: bytearray) -> Answer:
        """Check the pixels of many records, and make their rows."""
        adapter, base = self._adapter(request["adapter"]), Path(request["base"])
        with self._grown(request["memory"]):
            for plain in json.loads(records):
                record = RECORD.validate_python(plain)
                self._say({"result": vars(check_record(adapter, record, base, verify=request["verify"]))})
        return {}, None

    def _grown(self, memory: int | None) -> AbstractContextManager[None]:
        """The memory that the files of one request may take; the process keeps a part of it at most."""
        self._most = memory
        return memory_limit(memory)

    # --- for a service ----------------------------------------------------------------------------------------------

    def do_screen(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Check every file below a folder before a reader sees it."""
        refused = []
        root = Path(request["path"])
        for path in walk(root, inside=root.resolve()):
            self._beat()
            try:
                self._screen(path, whole=request["whole"])
            except BadFileError as error:
                refused.append({"uri": str(path), "reason": error.cause, "remedy": error.remedy})
        return {"refused": refused}, None

    def do_complete(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Add to a record what the headers of its file say."""
        adapter, record = self._adapter(request["adapter"]), RECORD.validate_python(request["record"])
        path = Path(record.uri)
        self._screen(path, whole=request["whole"])
        with self._allowance(path.stat().st_size + screen.listing_bytes(path)):
            found = adapter.complete(record) if isinstance(adapter, BaseAdapter) else record
        return {"found": json.loads(encode(found))}, None

    def do_scan(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Find the items in a file or folder."""
        for _found in self._scanned(self._adapter(request["adapter"]), Path(request["path"])):
            pass
        return {}, None

    def do_prepare(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Decode one item."""
        return self._pixels(self._adapter(request["adapter"]), request["record"])

    def do_read(self, request: dict[str, Any], _: bytearray | None) -> Answer:
        """Screen, scan and decode one file."""
        adapter, path = self._adapter(request["adapter"]), Path(request["path"])
        self._screen(path, whole=request["whole"])
        found = list(self._scanned(adapter, path))
        if not request["pixels"] or len(found) != 1 or "found" not in found[0]:
            return {}, None
        try:
            return self._pixels(adapter, found[0]["found"])
        except (SystemError, Exception) as error:
            return {"failed": describe(error)}, None

    def _screen(self, path: Path, *, whole: bool) -> None:
        with self._allowance(path.stat().st_size):
            screen.check(path, self.limits, whole=whole)

    def _scanned(self, adapter: Adapter, root: Path) -> Iterator[dict[str, Any]]:
        """What a scan finds, sent as it is found."""
        files = Files(root.resolve(), inside=root.resolve(), each=self._each)
        size = sum(path.stat().st_size for path in files)
        with self._allowance(size):
            scanned = adapter.scan_files(files) if isinstance(adapter, BaseAdapter) else adapter.scan(root)
            for count, found in enumerate(scanned, start=1):
                if count > self.limits.max_items:
                    raise screen.too_many_items(self.limits)
                said = {"found" if isinstance(found, Record) else "rejected": json.loads(encode(found))}
                self._say(said)
                yield said

    def _each(self, function: Callable[..., Any], paths: Iterable[Path], *arguments: Any) -> Iterator[Any]:
        """`Files.each` with a sign of life and an allowance for each file."""
        for path in paths:
            self._beat()
            with self._allowance(path.stat().st_size + screen.listing_bytes(path)):
                found = function(path, *arguments)
            yield found

    def _pixels(self, adapter: Adapter, plain: dict[str, Any]) -> Answer:
        record = RECORD.validate_python(plain)
        extra = screen.whole_bytes(record, self.limits) if screen.is_whole(adapter) else screen.tile_bytes(adapter)
        with self._allowance(extra):
            tensor = adapter.prepare(record).contiguous()
        if len(tensor) > self.limits.max_tiles:
            raise screen.too_many_tiles(self.limits)
        pixels = tensor.numpy()
        body = pixels.reshape(-1).view("uint8").data
        return {"dtype": str(pixels.dtype), "shape": list(pixels.shape)}, body

    def _allowance(self, extra: int) -> AbstractContextManager[None]:
        """Memory for one piece of work: BASE_BYTES and `extra`, up to the service's limit.

        `extra` is in proportion to what the item's header declares. So a file cannot take more than its size excuses: a
        small image whose stream swells to gigabytes fails at the base.
        """
        return memory_limit(min(self.limits.max_decode_bytes, BASE_BYTES + extra))

    # --- for both ---------------------------------------------------------------------------------------------------

    def _adapter(self, description: dict[str, Any]) -> Adapter:
        """The adapter that is described, made once."""
        key = json.dumps(description, sort_keys=True)
        if key not in self._adapters:
            while len(self._adapters) >= KEPT_ADAPTERS:
                self._adapters.pop(next(iter(self._adapters)))
            self._adapters[key] = from_description(description["describe"], local=description["local"])
        return self._adapters[key]

    def _beat(self) -> None:
        if time.monotonic() - self._spoke > BEAT_SECONDS:
            self._say({"beat": True})

    def _say(self, header: dict[str, Any], body: memoryview | bytes | None = None) -> None:
        self.channel.send(header, body)
        self._spoke = time.monotonic()


def describe(error: BaseException) -> dict[str, Any]:
    """What the other side is told of a failure."""
    if _is_memory(error):
        return {"error": "memory"}
    if isinstance(error, MissingExtraError):
        return {"error": "missing-extra", "cause": error.cause, "remedy": error.remedy}
    if isinstance(error, BadFileError):
        return {"error": "bad-file", "cause": error.cause, "remedy": error.remedy}
    if isinstance(error, UserError):
        return {"error": "user", "cause": error.cause, "remedy": error.remedy}
    return {"error": "foreign", "cause": type(error).__name__}


def _is_memory(error: BaseException | None) -> bool:
    """Whether a failed allocation is behind it, under whatever name the reader passed it on."""
    while error is not None:
        if isinstance(error, MemoryError) or "(MemoryError)" in str(getattr(error, "cause", "")):
            return True
        if isinstance(error, (cv2.error, RuntimeError, OSError)) and OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
