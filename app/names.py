"""Which item is which file, in the client's own words: its keys, and the names in the zips that it sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints

from app.errors import ProblemError
from app.forms import parse_field
from app.schemas import PRINTED, Key, Skipped
from app.settings import Settings
from app.unzip import Contents, contents
from app.uploads import Form, Upload
from data_adapters.catalog import fold, tidy

GivenKey = (
    Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PRINTED)]
    | Annotated[int, Field(strict=True)]
)
GivenKeys = list[GivenKey | dict[str, GivenKey] | None]
"""The form field `keys`: for each file a key, null, or for a zip its files' keys by name."""


@dataclass
class Names:
    """The keys of a request's files by position, and the names in its zips, by position as well.

    `skipped` are the files in zips that are no images: at first those that are not even unpacked.
    """

    keys: Sequence[Key | Mapping[str, Key] | None] = ()
    zips: Mapping[int, Contents] = field(default_factory=dict)
    skipped: list[Skipped] = field(init=False)

    def __post_init__(self) -> None:
        told = ((index, name) for index, found in self.zips.items() for name in found.skipped)
        self.skipped = [Skipped(file_index=index, name=name) for index, name in told]

    def of(self, file_index: int, unpacked: str) -> tuple[str | None, Key | None]:
        """Name in the zip, None outside of one, and key of a file; `unpacked` is the file's name here."""
        found = self.zips.get(file_index)
        name = None if found is None else found.names.get(unpacked)
        key = self.keys[file_index] if file_index < len(self.keys) else None
        if isinstance(key, Mapping):
            key = None if name is None else self._inside[file_index].get(_same(name))
        return name, key

    @cached_property
    def _inside(self) -> dict[int, dict[str, Key]]:
        """By position of a zip, its files' keys by name."""
        given = ((index, key) for index, key in enumerate(self.keys) if isinstance(key, Mapping))
        return {index: {_same(name): key for name, key in keys.items()} for index, keys in given}


def read_names(form: Form, settings: Settings) -> Names:
    """The names of a request: its field `keys`, and what its zips hold. Blocks on the disk: on a thread.

    Raises:
        ProblemError: 422, `keys` does not fit the files.
    """
    keys = parse_field(form, "keys", GivenKeys, [])
    if keys and len(keys) != len(form.uploads):
        raise ProblemError(
            422,
            "invalid-request",
            f"The request has {len(form.uploads)} files and {len(keys)} keys.",
            remedy="Give 'keys' as a JSON list with one entry for each file, in the order of the files; null for none.",
        )
    names = Names(keys, names_in(form.uploads, settings))
    for index, key in enumerate(keys):
        if not isinstance(key, dict):
            continue
        if index not in names.zips:
            raise ProblemError(
                422,
                "invalid-request",
                f"The entry at position {index} of 'keys' is an object, but the file at this position is no zip.",
                remedy="Give a text or a whole number for a file that is no zip.",
                file_index=index,
            )
        known = {_same(name) for name in names.zips[index].names.values()}
        unknown = [place for place, name in enumerate(key) if _same(name) not in known]
        if unknown and known:  # a zip that cannot be read is refused with its own reason
            raise ProblemError(
                422,
                "invalid-request",
                f"{len(unknown)} of the {len(key)} names in 'keys' are not names of images in the zip at position "
                f"{index}; the first is at position {unknown[0]}.",
                remedy="Name the files as the zip does, with their folders: unzip -l FILE lists them.",
                file_index=index,
            )
    return names


def names_in(uploads: Sequence[Upload], settings: Settings) -> dict[int, Contents]:
    """What the zips among the files hold, by position."""
    zips = (upload for upload in uploads if upload.path.suffix == ".zip")
    return {upload.index: contents(upload.path, settings) for upload in zips}


def _same(name: str) -> str:
    return fold(tidy(name))
