"""What a scan does with one file: inspect its headers, check its pixels, hash its content.

What is found becomes JSON, to cross a process border and to be remembered for the next scan. Groups (often a patient's
number) are sealed on the way, so that no header's identifier is stored or sent.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from data_adapters.base import Adapter, Record, Rejected, rejected
from data_adapters.identity import group_id, item_id, sealed
from data_adapters.record import files_of

HASH_WHOLE = 64 << 20  # bytes; of larger files the size, the head, the middle and the tail are hashed (4 MiB each)
META = json.JSONEncoder(sort_keys=True)  # json.dumps would build one at each call


@dataclass(frozen=True)
class Checked:
    """A record that may enter the manifest: its row, and the facts by which a later scan knows it again."""

    row: dict[str, str | int | None]
    facts: str


def inspect_file(adapter: Adapter, path: str, method: str, arguments: Sequence[Any]) -> str:
    """Call the adapter's `method` on one file and return the result as JSON.

    Raises:
        MissingExtraError: a library that reads such files is not installed.
    """
    try:
        return encode(getattr(adapter, method)(Path(path), *arguments))
    except Exception as error:  # a reader may raise anything; `rejected` lets real faults through
        return encode([rejected(path, error)])


def check_record(adapter: Adapter, record: Record, base: Path, *, verify: bool) -> Checked | Rejected:
    """Make a record's manifest row; with `verify`, decode its pixels once.

    Raises:
        MissingExtraError: a library that reads such files is not installed.
    """
    try:
        files = files_of(record)
        stats = [os.stat(name) for name in files]
        row = describe(record, base)
        if verify:
            adapter.verify(record)
        digest = _hash_once(tuple((name, s.st_size, s.st_ctime_ns) for name, s in zip(files, stats, strict=True)))
    except Exception as error:  # as above
        return rejected(record.uri, error)
    size, mtime = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
    return Checked(with_content(row, bytes=size, mtime_ns=mtime, digest=digest), facts(stats, row["meta"]))


# --- a record's row -------------------------------------------------------------------------------------------------


def facts(stats: Iterable[os.stat_result], meta: str) -> str:
    """A hash that changes with the sizes and times of a record's files, and with the `meta` that `verify` sees."""
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


@lru_cache(maxsize=1)
def _hash_once(files: tuple[tuple[str, int, int], ...]) -> str:
    """`content_hash` of files by name, size and time of change; the items of one file follow each other."""
    return content_hash(name for name, _, _ in files)


def relative(path: str, base: Path) -> str:
    """`path` below `base` with forward slashes; a path elsewhere as it is."""
    prefix = f"{base}{os.sep}" if base != base.parent else str(base)
    return path[len(prefix) :].replace(os.sep, "/") if path.startswith(prefix) else path


# --- as JSON --------------------------------------------------------------------------------------------------------


def encode(found: Any) -> str:
    """A dataclass, or a list of them, as JSON; the field `group` and fields marked {"group": True} are sealed.

    Raises:
        TypeError: a value that JSON does not know.
    """
    return _ENCODER.encode(found)


def decoder(function: Callable[..., Any]) -> Callable[[str], Any]:
    """The inverse of `encode` for what `function` returns, as its annotation says.

    What it gives raises ValueError for a text that is something else.
    """
    kind = TypeAdapter[Any](get_type_hints(function)["return"])
    return lambda text: kind.validate_python(json.loads(text))


@lru_cache(maxsize=64)
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    def is_group(f: "Field[Any]") -> bool:
        return f.name == "group" or bool(f.metadata.get("group"))

    return tuple((f.name, is_group(f)) for f in fields(kind))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = ((name, getattr(value, name), group) for name, group in _fields(type(value)))
        return {name: sealed(content) if group else content for name, content, group in named}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"))  # json.dumps would build one at each call
