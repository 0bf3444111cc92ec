"""What a scanning process says, as JSON: it has read foreign files, so nothing that it sends is unpickled."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_adapters.record import Rejected

MAX_BYTES = 256 << 20  # of one word; the looks at 64 files with tissue maps take some 10 MiB


@dataclass(frozen=True)
class Checked:
    """A record that may enter the manifest: its row, and the facts by which a later scan knows it again."""

    row: dict[str, str | int | None]
    facts: str


@dataclass(frozen=True)
class Missing:
    """A reader's library is not installed."""

    cause: str
    remedy: str


@dataclass(frozen=True)
class Ready:
    """The adapter is there, and work may come."""


Result = str | Checked | Rejected
Word = Ready | Missing | list[Result]
RESULTS = TypeAdapter[list[Result]](list[Result])
MISSING = TypeAdapter[Missing](Missing)


class NoWordError(Exception):
    """What came is nothing that a scanning process says."""


def pack(word: Ready | Missing | Sequence[Result]) -> bytes:
    """A word as JSON."""
    if isinstance(word, Ready):
        said: Any = {"ready": True}
    elif isinstance(word, Missing):
        said = {"missing": asdict(word)}
    else:
        said = {"results": [one if isinstance(one, str) else vars(one) for one in word]}
    return json.dumps(said).encode()


def unpack(data: bytes, *, results: int) -> Word:
    """The inverse of `pack`.

    Args:
        data: as it came.
        results: how many are expected, if any.

    Raises:
        NoWordError: it is something else.
    """
    try:
        said = json.loads(data)
        if said == {"ready": True}:
            return Ready()
        if isinstance(said, dict) and "missing" in said:
            return MISSING.validate_python(said["missing"])
        found = RESULTS.validate_python(said["results"])
    except (ValueError, RecursionError, KeyError, TypeError, ValidationError) as error:
        raise NoWordError from error
    if len(found) != results:
        raise NoWordError
    return found
