"""Bodies of requests: multipart, streamed to files below the data directory, or JSON.

A client's file name is never used as a path.
"""

import asyncio
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any, TypeVar

import python_multipart
from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import BaseModel, TypeAdapter, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from app.core.errors import ProblemError, as_error, invalid, nul
from app.core.settings import Settings

M = TypeVar("M", bound=BaseModel)
HOP = 1 << 20  # bytes to collect before a thread parses and writes them
LEAST_RATE = 1 << 10  # bytes a second; a slower client only occupies a connection and a file
MAX_FIELDS = 50
MAX_HEADER_BYTES = 16 << 10  # of one part; names of fields and files
COMPRESSED = ("gz", "bz2", "xz", "fz")
INSIDE_COMPRESSED = ("nii", "fits", "fit", "fts", "dcm")


@dataclass(frozen=True)
class ReceivedFile:
    """One received file; `index` is its place among the request's files.

    `name` is what the client calls it: it joins a catalogue's rows while the request lasts, and is never stored.
    """

    index: int
    path: Path
    size: int
    name: str = ""


@dataclass
class Form:
    """A received multipart request. `folder` holds its files and is removed with the request unless it was moved."""

    folder: Path
    fields: dict[str, str] = field(default_factory=dict)
    uploads: list[ReceivedFile] = field(default_factory=list)
    catalog: Path | None = None
    is_removed: bool = False

    def remove(self) -> None:
        """Remove the files. Blocks on the disk: on a thread."""
        try:
            for upload in self.uploads:
                upload.path.unlink()
            self.folder.rmdir()  # some files cost half of what rmtree takes, which looks for them
        except OSError:  # moved, never made, cut off in the middle of a file, or a zip was unpacked
            shutil.rmtree(self.folder, ignore_errors=True)
        self.is_removed = True


def safe_suffix(name: str) -> str:
    """The suffix of a client's file name, as far as a reader needs it: '.nii.gz', '.dcm', or nothing.

    At most 16 characters of [a-z0-9.]; '1.2.840.5' has none, and 'smith.nii' keeps only '.nii'.
    """
    parts = re.split(r"[/\\]", name)[-1].lower().split(".")[1:]
    if not parts or not re.fullmatch(r"(?=.*[a-z])[a-z0-9]{1,8}", parts[-1]):
        return ""
    if parts[-1] in COMPRESSED and len(parts) > 1 and parts[-2] in INSIDE_COMPRESSED:
        return f".{parts[-2]}.{parts[-1]}"
    return f".{parts[-1]}"


def too_large(limit: int, what: str) -> ProblemError:
    """413 with the limit in it."""
    return ProblemError(
        413,
        "too-large",
        f"{what} is larger than the limit of {limit} bytes.",
        remedy="Send fewer or smaller files in one request; the operator sets the limit "
        "(LEJEPA_MAX_UPLOAD_BYTES, LEJEPA_MAX_JSON_BYTES).",
        headers={"Connection": "close"},
    )


def check_declared(request: Request, limit: int) -> None:
    """Refuse by Content-Length before a byte is read; the bytes that arrive are counted as well."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit, "The request")


async def read_json(request: Request, settings: Settings) -> bytes:
    """The body of a JSON request, counted."""
    check_declared(request, settings.max_json_bytes)
    body = bytearray()
    async for chunk in _steady(request, settings.upload_idle_seconds):
        body += chunk
        if len(body) > settings.max_json_bytes:
            raise too_large(settings.max_json_bytes, "The request")
    return bytes(body)


@asynccontextmanager
async def receive(request: Request, settings: Settings, *, catalog: bool = False) -> AsyncIterator[Form]:
    """Stream a multipart request into a new folder; the folder goes when the block ends, if it was not removed before.

    With `catalog`, one file may come in a field of that name.

    Raises:
        ProblemError: 415 for another content type, 413 beyond a limit, 400 for a broken or cut-off body.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ProblemError(
            415,
            "not-multipart",
            "Files are sent as multipart/form-data.",
            remedy="With curl: -F files=@FILE (curl then sets the content type with its boundary).",
        )
    check_declared(request, settings.max_upload_bytes)
    folder = settings.temporary(secrets.token_hex(8))
    form = Form(folder=folder)
    try:
        sink = _Sink(form, settings, boundary, catalog=catalog)
        try:
            async for chunk, is_last in _gathered(request, settings):
                await run_sync(sink.write, chunk, is_last)
        finally:
            sink.close()
        yield form
    except ClientDisconnect:
        raise _broken() from None
    finally:
        with CancelScope(shield=True):  # a client that leaves in the middle of an answer must not leave its files
            if not form.is_removed:
                await run_sync(form.remove)


async def _gathered(request: Request, settings: Settings) -> AsyncIterator[tuple[bytes, bool]]:
    """The body in pieces of about HOP bytes, so that one thread hop serves many network reads; which is the last."""
    total, limit = 0, settings.max_upload_bytes
    waiting = bytearray()
    async for chunk in _steady(request, settings.upload_idle_seconds):
        total += len(chunk)
        if total > limit:
            raise too_large(limit, "The request")
        waiting += chunk
        if len(waiting) >= HOP:
            yield bytes(waiting), False
            waiting.clear()
    yield bytes(waiting), True


async def _steady(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes, from a client that sends at least LEAST_RATE over each stretch of `seconds`.

    Only waiting for the client counts, not what is done with a piece before the next one is asked for.

    Raises:
        ProblemError: 408, the client stalls or trickles.
    """
    stream = request.stream()
    left, received = seconds, 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(left):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise ProblemError(
                408,
                "too-slow",
                f"The body arrives too slowly: less than {LEAST_RATE} bytes a second over {seconds:g} s.",
                remedy="Send it again over a steady connection; the operator sets the time "
                "(LEJEPA_UPLOAD_IDLE_SECONDS).",
                headers={"Connection": "close"},
            ) from None
        if chunk is None:
            return
        left -= time.monotonic() - began
        received += len(chunk)
        if received >= LEAST_RATE * seconds:
            left, received = seconds, 0
        yield chunk


class _Sink:
    """Callbacks of the multipart parser: it writes files to disk and keeps fields in memory."""

    def __init__(self, form: Form, settings: Settings, boundary: bytes, *, catalog: bool) -> None:
        self.form, self.settings, self.catalog = form, settings, catalog
        self.ended = False
        self.file: BufferedWriter | None = None
        self.parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self.on_part_begin,
                "on_part_data": self.on_part_data,
                "on_part_end": self.on_part_end,
                "on_header_field": self.on_header_field,
                "on_header_value": self.on_header_value,
                "on_header_end": self.on_header_end,
                "on_headers_finished": self.on_headers_finished,
                "on_end": self.on_end,
            },
        )

    def write(self, chunk: bytes, is_last: bool) -> None:
        """Parse a piece of the body, and after the last one check that it is whole. Blocks on the disk: on a thread."""
        self.form.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.parser.write(chunk)
            if is_last:
                self.parser.finalize()
        except FormParserError:
            raise _broken() from None
        if is_last and not self.ended:
            raise _broken()

    def close(self) -> None:
        """Close a file that a failure left open."""
        if self.file is not None:
            self.file.close()

    def on_part_begin(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.header, self.value, self.data = b"", b"", bytearray()
        self.size = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]
        self._check_header()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self.header) + len(self.value) > MAX_HEADER_BYTES:
            raise _broken()

    def on_header_end(self) -> None:
        self.headers[self.header.lower()] = self.value
        self.header, self.value = b"", b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        self.name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            if len(self.form.fields) >= MAX_FIELDS:
                raise ProblemError(
                    422,
                    "too-many-fields",
                    f"The form has more than {MAX_FIELDS} fields.",
                    remedy="Send each field once; lists such as 'labels' are one field with a JSON list.",
                )
            return
        self.file_name = options[b"filename"].decode("utf-8", "replace")
        if self.catalog and self.name == "catalog" and self.form.catalog is None:
            self.path = self.form.folder / "catalog"
            self.file = self.path.open("xb")
            return
        if self.name != "files":
            raise ProblemError(
                422,
                "invalid-request",
                "A file came in a form field of another name than 'files'.",
                remedy="Send every file in a field 'files', with curl: -F files=@FILE. A catalogue goes with "
                "POST /v1/uploads alone, in a field 'catalog'.",
            )
        index = len(self.form.uploads)
        if index >= self.settings.max_files:
            raise ProblemError(
                413,
                "too-many-files",
                f"A request has at most {self.settings.max_files} files.",
                remedy="Send the files in several requests.",
            )
        suffix = safe_suffix(self.file_name)
        self.path = self.form.folder / f"{index:05d}{suffix}"
        self.file = self.path.open("xb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.file is not None:
            self.file.write(memoryview(data)[start:end])
            return
        if self.size > self.settings.max_json_bytes:
            raise too_large(self.settings.max_json_bytes, "A form field")
        self.data += data[start:end]

    def on_part_end(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
            if self.name == "catalog":
                self.form.catalog = self.path
                return
            upload = ReceivedFile(index=len(self.form.uploads), path=self.path, size=self.size, name=self.file_name)
            self.form.uploads.append(upload)
            return
        if self.name in self.form.fields:
            raise ProblemError(422, "invalid-request", "A form field is given twice.", remedy="Send each field once.")
        if b"\0" in self.data:
            raise nul("A form field")
        self.form.fields[self.name] = self.data.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True


def _broken() -> ProblemError:
    return ProblemError(
        400,
        "broken-multipart",
        "The multipart body is broken or ends too early.",
        remedy="Send the request again; do not set the content type's boundary by hand.",
        headers={"Connection": "close"},
    )


def is_json(request: Request) -> bool:
    """Return whether the Content-Type is JSON."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


async def json_body(request: Request, model: type[M], settings: Settings) -> M:
    """Return the JSON body as `model`.

    Raises:
        ProblemError: 413 beyond the limit, 422 where it does not fit.
    """
    body = await read_json(request, settings)
    try:
        found = model.model_validate_json(body)
        if b"\\u0000" in body and holds_nul(found.model_dump()):
            raise nul("A text in the body")
        return found
    except ValidationError as error:
        raise as_error(invalid(error.errors(include_input=False, include_url=False))) from None


def holds_nul(value: Any) -> bool:
    """Return whether any text in a value from JSON holds a NUL."""
    if isinstance(value, dict):
        return any(map(holds_nul, value.values()))
    if isinstance(value, list):
        return any(map(holds_nul, value))
    return isinstance(value, str) and "\0" in value


def check_fields(form: Form, known: set[str], *, files: bool = True) -> None:
    """Refuse a form without files, and misspelt fields, which would be ignored otherwise."""
    if form.fields.keys() - known:
        raise ProblemError(
            422,
            "invalid-request",
            "The form has a field that this route does not know.",
            remedy=f"It knows: files, {', '.join(sorted(known))}.",
        )
    if files and not form.uploads:
        raise ProblemError(
            422,
            "no-files",
            "The request holds no file.",
            remedy="Send one or more form fields 'files'; with curl: -F files=@FILE",
        )


def parse_field(form: Form, name: str, kind: Any, default: Any = None) -> Any:
    """Return a form field that holds JSON (or a bare number), validated as `kind`."""
    text = form.fields.get(name, "")
    if text == "":
        return default
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        issues = [{**issue, "loc": (name, *issue["loc"])} for issue in error.errors(include_input=False)]
        raise as_error(invalid(issues)) from None
