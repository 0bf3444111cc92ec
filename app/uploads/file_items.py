"""From received files to the items in them, and which item is which file in the client's own words.

These words are the keys that it gives, and the names in the zips that it sent.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints
from torch import Tensor

from app.core.errors import ProblemError, describe, describe_rejected
from app.core.settings import Settings
from app.uploads.bodies import Form, ReceivedFile, parse_field
from app.uploads.sandbox import Sandbox
from app.uploads.unzip import Contents, contents, unzip
from data_adapters.base import Adapter, BaseAdapter, Record, foreign_format
from data_adapters.catalog import fold, tidy
from data_adapters.errors import BadFileError, UserError
from data_adapters.identity import group_id
from data_adapters.readers.screen import is_whole
from data_adapters.record import FROM_CONTENT
from data_adapters.tables import FIRST
from lejepa_med.client.wire.common import PRINTED, FileKey, Problem, Skipped

LONGEST = 80  # characters of a name or key in a caution, which also goes into a header

# --- keys and names in zips ------------------------------------------------------------------------------------------

GivenKey = (
    Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=PRINTED)]
    | Annotated[int, Field(strict=True)]
)
GivenKeys = list[GivenKey | dict[str, GivenKey] | None]
"""The form field `keys`: for each file a key, null, or for a zip its files' keys by name."""


@dataclass
class FileNames:
    """The keys of a request's files by position, and the names in its zips, by position as well.

    `skipped` are the files in zips that are no images: at first those that are not even unpacked.
    """

    keys: Sequence[FileKey | Mapping[str, FileKey] | None] = ()
    zips: Mapping[int, Contents] = field(default_factory=dict)
    skipped: list[Skipped] = field(init=False)

    def __post_init__(self) -> None:
        told = ((index, name) for index, found in self.zips.items() for name in found.skipped)
        self.skipped = [Skipped(file_index=index, name=name) for index, name in told]

    def of(self, file_index: int, unpacked: str) -> tuple[str | None, FileKey | None]:
        """Name in the zip, None outside of one, and key of a file; `unpacked` is the file's name here."""
        found = self.zips.get(file_index)
        name = None if found is None else found.names.get(unpacked)
        key = self.keys[file_index] if file_index < len(self.keys) else None
        if isinstance(key, Mapping):
            key = None if name is None else self._inside[file_index].get(_same(name))
        return name, key

    @cached_property
    def _inside(self) -> dict[int, dict[str, FileKey]]:
        """By position of a zip, its files' keys by name."""
        given = ((index, key) for index, key in enumerate(self.keys) if isinstance(key, Mapping))
        return {index: {_same(name): key for name, key in keys.items()} for index, keys in given}


def read_names(form: Form, settings: Settings) -> FileNames:
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
    names = FileNames(keys, names_in(form.uploads, settings))
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


def names_in(uploads: Sequence[ReceivedFile], settings: Settings) -> dict[int, Contents]:
    """What the zips among the files hold, by position."""
    zips = (upload for upload in uploads if upload.path.suffix == ".zip")
    return {upload.index: contents(upload.path, settings) for upload in zips}


def _same(name: str) -> str:
    return fold(tidy(name))


# --- items -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Area:
    """Where to look in a slide or tile: `region` is x, y, width, height in level-0 pixels, `mpp` um per pixel."""

    region: tuple[int, int, int, int] | None = None
    mpp: float | None = None

    @classmethod
    def parse(cls, region: str | None, mpp: str | None) -> "Area":
        """From the form's text fields; empty text is no value.

        Raises:
            ProblemError: 422 for text that is no region or no scale.
        """
        box: tuple[int, int, int, int] | None = None
        if region:
            if not re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*){3}", region):
                raise ProblemError(
                    422,
                    "invalid-request",
                    "region is not four whole numbers.",
                    remedy="Give x,y,width,height in pixels of the largest level, such as 2048,1024,512,512.",
                )
            x, y, width, height = (int(part) for part in region.split(","))
            if not (width and height):
                raise ProblemError(422, "invalid-request", "region is empty.", remedy="Give a width and a height.")
            box = (x, y, width, height)
        scale: float | None = None
        if mpp:
            try:
                scale = float(mpp)
            except ValueError:
                scale = math.nan
            if not 0.01 <= scale <= 100:
                raise ProblemError(
                    422, "invalid-request", "mpp is not between 0.01 and 100.", remedy="Give um per pixel, e.g. 0.25."
                )
        return cls(region=box, mpp=scale)


@dataclass(frozen=True)
class RequestItem:
    """One item of a request: a record to prepare, its pixels if they are there already, or the problem instead."""

    file_index: int
    record: Record | None = None
    pixels: Tensor | None = None
    problem: Problem | None = None
    name: str | None = None
    key: FileKey | None = None

    @property
    def group(self) -> str:
        """The pseudonym of the patient or sky cell that the file itself names, as a scan of it has; else empty."""
        if self.record is None or self.record.grouped_by not in FROM_CONTENT:
            return ""
        return group_id(self.record.group)


def request_items(
    adapter: Adapter,
    uploads: Sequence[ReceivedFile],
    field: Area,
    *,
    settings: Settings,
    sandbox: Sandbox,
    names: FileNames | None = None,
    pixels: bool = False,
) -> list[RequestItem]:
    """Every item in the files, in the files' order; a bad file becomes one item with a problem.

    `names` are those of the request, whose `skipped` gets what in zips turns out to be no image.

    Reads headers only. With `pixels`, a lone file that is one item is decoded at once; of several files the pixels
    would fill the memory.

    Raises:
        MissingExtraError: the reader of this modality is not installed.
        UserError: the modality knows no regions.
    """
    if field.region is not None and is_whole(adapter):
        raise UserError(
            f"'region' is for slides and tiles; the encoder's modality is {adapter.name}.",
            remedy="Leave out the field 'region'.",
        )
    names = names or FileNames(zips=names_in(uploads, settings))
    found: list[RequestItem] = []
    unzipped = 0
    for upload in uploads:
        _, key = names.of(upload.index, "")
        try:
            if upload.size == 0:
                raise BadFileError("The file is empty.", remedy="Check the file at its source and send it again.")
            root = upload.path
            if root.suffix == ".zip":
                root = root.with_suffix(".d")
                if not root.is_dir():  # a job that continues finds it unpacked
                    budget = settings.max_unzipped_bytes - unzipped
                    unzipped += unzip(upload.path, root, settings=settings, budget=budget)
            if pixels and len(uploads) == 1 and field == Area() and root.is_file():
                found.extend(replace(one, key=key) for one in _read(adapter, root, upload.index, sandbox))
                continue
            items = list(_scan(adapter, root, upload.index, field, sandbox, names))
            taken = [one for one in items if isinstance(one, RequestItem)]
            if not taken:
                raise _nothing(adapter)
            found += taken
            names.skipped += [one for one in items if isinstance(one, Skipped)]
        except BadFileError as error:
            found.append(RequestItem(upload.index, problem=describe(error), key=key))
    return found


def cautions_of(adapter: Adapter, found: Sequence[RequestItem], *, named: bool = True) -> list[str]:
    """What the sender must know before using the vectors of `found`: a text for each kind of problem, not each file.

    With `named`, the text has the first files by their keys and names in zips, as the items of an answer do; without,
    by position: what is kept, or told to others, holds no names.
    """
    read = [source for source in found if source.record is not None]
    records = [source.record for source in read if source.record is not None]
    texts = []
    for caution in adapter.cautions(records) if isinstance(adapter, BaseAdapter) else []:
        give = "Give the form field '{fact}' (it holds for all files of the request)"
        if caution.fact not in {one.name for one in fields(Area)}:
            give = "Send the files to POST /v1/uploads, with a catalogue that has a column '{fact}'"
        places = [read[row] for row in caution.rows]
        told = list(dict.fromkeys(_which(one, named=named) for one in places))
        which = "Files" if len(told) <= FIRST else "The first files"
        texts.append(f"{caution.text(give=give)}. {which} (by position, from 0): {', '.join(told[:FIRST])}")
    return texts


def _which(source: RequestItem, *, named: bool) -> str:
    """A file by its position in the request, with the sender's key or its name in the zip."""
    if not named or (source.key is None and source.name is None):
        return str(source.file_index)
    own = source.name if source.key is None else source.key
    if isinstance(own, str):
        own = repr(own if len(own) <= LONGEST else f"...{own[-LONGEST:]}")
    return f"{source.file_index} {'' if source.key is None else 'key '}{own}"


def _read(adapter: Adapter, path: Path, index: int, sandbox: Sandbox) -> list[RequestItem]:
    found, pixels = sandbox.read(adapter, path)
    if not found:
        raise _nothing(adapter)
    if isinstance(pixels, UserError):
        return [RequestItem(index, problem=describe(pixels))]
    return [
        RequestItem(index, record=item, pixels=pixels)
        if isinstance(item, Record)
        else RequestItem(index, problem=describe_rejected(item))
        for item in found
    ]


def _scan(
    adapter: Adapter, root: Path, index: int, field: Area, sandbox: Sandbox, names: FileNames
) -> Iterator[RequestItem | Skipped]:
    if root.is_file() and field != Area() and not is_whole(adapter):
        # A scan would judge the whole slide first (its own mpp, its tissue), which a stated region does not need.
        record = sandbox.complete(adapter, _aim(Record(uri=str(root), group="upload"), field))
        yield RequestItem(index, record=record, key=names.of(index, "")[1])
        return
    is_zip = root.is_dir()
    for item in sandbox.scan(adapter, root):
        name, key = names.of(index, Path(item.uri).name if is_zip else "")
        if isinstance(item, Record):
            yield RequestItem(index, record=_aim(item, field), name=name, key=key)
        elif is_zip and item.reason == foreign_format(adapter.name):
            yield Skipped(file_index=index, name=name or "")
        else:
            yield RequestItem(index, problem=describe_rejected(item), name=name, key=key)


def _nothing(adapter: Adapter) -> BadFileError:
    return BadFileError(
        f"The file holds no image of the encoder's modality, {adapter.name}.",
        remedy="Send a file of this modality, or name an encoder of the file's modality: GET /v1/encoders",
    )


def _aim(record: Record, field: Area) -> Record:
    extra: dict[str, object] = {}
    if field.region is not None:
        extra["region"] = list(field.region)
    if field.mpp is not None:
        extra["mpp"] = field.mpp
    return replace(record, meta={**record.meta, **extra}) if extra else record
