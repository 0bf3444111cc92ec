"""What a worker does with a file: screen it, find the items in it, prepare one of them. It answers in frames.

Requests and their answers, of which the last has "end"; {"beat"} in between says that the work goes on:

- screen (path, whole) -> refused: the files that must not be given to a reader, as Rejected
- complete (adapter, record, whole) -> found: the Record of a lone file with what its headers say, once it was screened
- scan (adapter, path) -> found: a Record, or rejected: a Rejected, for each item
- prepare (adapter, record) -> dtype, shape, and the pixels as the frame's body
- read (adapter, path, whole, pixels) -> all of it for one file: screened, then scanned, then, where pixels are wanted
  and it is a single item, prepared. What fails in preparing is told under "failed", as it is the item's own fault

Whatever fails is {"error": kind, "cause", "remedy"}; a foreign exception's own words never leave the process.
"""

import json
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
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
from data_adapters.readers import frames, refusals, screen
from data_adapters.readers.codec import encode
from data_adapters.readers.limits import Limits, address_space, allowance, confine
from data_adapters.registry import from_description

RECORD = TypeAdapter(Record)
KEPT_ADAPTERS = 4
BEAT_SECONDS = 0.5
# A worker whose memory stays larger than this part of max_decode_bytes ends after its item, and a fresh one follows.
MOST_KEPT = 1 / 4
OUT_OF_MEMORY = re.compile(r"insufficient memory|out of memory|not enough memory|cannot allocate|bad_alloc", re.I)
Answer = tuple[dict[str, Any], memoryview | None]


def main(sock: socket.socket, limits: Limits) -> None:
    """Answer requests until the service hangs up."""
    confine()
    torch.set_num_threads(1)
    Image.MAX_IMAGE_PIXELS = raster.MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    desk = Desk(sock, limits)
    try:
        while desk.answer(frames.receive(sock).header):
            pass
    except (frames.BrokenFrameError, OSError):  # the service has hung up
        return


class Desk:
    """One worker's state: where it answers, and the adapters that it has made."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self.sock, self.limits = sock, limits
        self._adapters: dict[str, Adapter] = {}
        self._began = address_space()
        self._spoke = time.monotonic()
        self._work = {
            "screen": self._screen,
            "complete": self._complete,
            "scan": self._scan,
            "prepare": self._prepare,
            "read": self._read,
        }

    @property
    def tired(self) -> bool:
        """Whether readers have left so much memory behind that a fresh process should take over."""
        return address_space() - self._began > MOST_KEPT * self.limits.max_decode_bytes

    def answer(self, request: dict[str, Any]) -> bool:
        """Do what is asked, and send the answer. False when this worker ends with it, as the answer says."""
        body: memoryview | None = None
        try:
            said, body = self._work[request["do"]](request)
        except (SystemError, Exception) as error:
            said = describe(error)
        tired = self.tired
        self._say({**said, "end": True, "tired": tired}, body)
        return not tired

    def _screen(self, request: dict[str, Any]) -> Answer:
        refused = []
        root = Path(request["path"])
        for path in walk(root, inside=root.resolve()):
            self._beat()
            try:
                self._check(path, whole=request["whole"])
            except BadFileError as error:
                refused.append({"uri": str(path), "reason": error.cause, "remedy": error.remedy})
        return {"refused": refused}, None

    def _check(self, path: Path, *, whole: bool) -> None:
        with allowance(path.stat().st_size, self.limits.max_decode_bytes):
            screen.check(path, self.limits, whole=whole)

    def _complete(self, request: dict[str, Any]) -> Answer:
        adapter, record = self._adapter(request["adapter"]), RECORD.validate_python(request["record"])
        path = Path(record.uri)
        self._check(path, whole=request["whole"])
        with allowance(path.stat().st_size + screen.listing_bytes(path), self.limits.max_decode_bytes):
            found = adapter.complete(record) if isinstance(adapter, BaseAdapter) else record
        return {"found": json.loads(encode(found))}, None

    def _scan(self, request: dict[str, Any]) -> Answer:
        for _ in self._found(self._adapter(request["adapter"]), Path(request["path"])):
            pass
        return {}, None

    def _read(self, request: dict[str, Any]) -> Answer:
        adapter, path = self._adapter(request["adapter"]), Path(request["path"])
        self._check(path, whole=request["whole"])
        found = list(self._found(adapter, path))
        if not request["pixels"] or len(found) != 1 or "found" not in found[0]:
            return {}, None
        try:
            return self._pixels(adapter, found[0]["found"])
        except (SystemError, Exception) as error:
            return {"failed": describe(error)}, None

    def _found(self, adapter: Adapter, root: Path) -> Iterator[dict[str, Any]]:
        """What a scan finds, told as it is found."""
        files = Files(root.resolve(), inside=root.resolve(), each=self._each)
        size = sum(path.stat().st_size for path in walk(root, inside=root.resolve()))
        with allowance(size, self.limits.max_decode_bytes):
            scanned = adapter.scan_files(files) if isinstance(adapter, BaseAdapter) else adapter.scan(root)
            for count, found in enumerate(scanned, start=1):
                if count > self.limits.max_items:
                    raise refusals.too_many_items(self.limits)
                key = "found" if isinstance(found, Record) else "rejected"
                said = {key: json.loads(encode(found))}
                self._say(said)
                yield said

    def _prepare(self, request: dict[str, Any]) -> Answer:
        return self._pixels(self._adapter(request["adapter"]), request["record"])

    def _pixels(self, adapter: Adapter, plain: dict[str, Any]) -> Answer:
        record = RECORD.validate_python(plain)
        extra = screen.whole_bytes(record, self.limits) if screen.is_whole(adapter) else screen.tile_bytes(adapter)
        with allowance(extra, self.limits.max_decode_bytes):
            tensor = adapter.prepare(record).contiguous()
        if len(tensor) > self.limits.max_tiles:
            raise refusals.too_many_tiles(self.limits)
        pixels = tensor.numpy()
        body = pixels.reshape(-1).view("uint8").data
        return {"dtype": str(pixels.dtype), "shape": list(pixels.shape)}, body

    def _adapter(self, description: dict[str, Any]) -> Adapter:
        """The encoder's adapter, made once."""
        key = json.dumps(description, sort_keys=True)
        if key not in self._adapters:
            while len(self._adapters) >= KEPT_ADAPTERS:
                self._adapters.pop(next(iter(self._adapters)))
            self._adapters[key] = from_description(description["describe"], local=description["local"])
        return self._adapters[key]

    def _each(self, look: Callable[..., Any], paths: Iterable[Path], *arguments: Any) -> Iterator[Any]:
        """The adapter's per-file work, with a beat and an allowance for each file."""
        for path in paths:
            self._beat()
            extra = path.stat().st_size + screen.listing_bytes(path)
            with allowance(extra, self.limits.max_decode_bytes):
                found = look(path, *arguments)
            yield found

    def _beat(self) -> None:
        if time.monotonic() - self._spoke > BEAT_SECONDS:
            self._say({"beat": True})

    def _say(self, header: dict[str, Any], body: memoryview | None = None) -> None:
        frames.send(self.sock, header, body)
        self._spoke = time.monotonic()


def describe(error: BaseException) -> dict[str, Any]:
    """What the service is told of a failure."""
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
