"""What a look at one file found, as JSON: to cross a process border and to be remembered for the next scan.

Groups (often a patient's number) are sealed on the way, so that no header's identifier is stored or sent.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from data_adapters.identity import sealed


def encode(found: Any) -> str:
    """A dataclass, or a list of them, as JSON; the field `group` and fields marked {"group": True} are sealed.

    Raises:
        TypeError: a value that JSON does not know.
    """
    return _ENCODER.encode(found)


def decoder(look: Callable[..., Any]) -> Callable[[str], Any]:
    """The inverse of `encode` for what `look` returns, as its annotation says."""
    kind = TypeAdapter[Any](get_type_hints(look)["return"])
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
