"""A client's catalogue: which row belongs to which received file, told without the names that joined them."""

import csv
import math
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence

from app.errors import ProblemError
from app.settings import Settings
from app.unzip import check_directory, named
from app.uploads import Form, Upload, too_large
from data_adapters.catalog import KNOWN, read_rows
from data_adapters.errors import BadFileError, UserError
from data_adapters.identity import sealed

FILE = "catalog.csv"
NUMBERS = ("mpp", "ra", "dec")  # further columns that adapters read; all others may hold anything, and are left out
REMEDY = "Send CSV in UTF-8 with a header line and a column 'path' that holds the file names as they are sent."


def translate(form: Form, settings: Settings) -> int:
    """Replace the form's catalogue by catalog.csv beside the files, with the paths that the files have here.

    Names do not survive: paths become our own, groups are sealed, and of further columns only `NUMBERS` are kept.

    Returns:
        Rows that no file matched.

    Raises:
        ProblemError: 413 or 422, no table of the right shape.
    """
    assert form.catalog is not None
    if form.catalog.stat().st_size > settings.max_json_bytes:
        raise too_large(settings.max_json_bytes, "The catalogue")
    places = _places(form.uploads, settings)
    unused, rows = 0, []
    seen: set[tuple[str, str]] = set()
    try:
        for number, row in enumerate(read_rows(form.catalog), start=1):
            found = places.get(row["path"].removeprefix("./"), [])
            unused += not found
            if len(found) > 1:
                raise _refused(f"The path of row {number} names several files.")
            for path in found:
                if (path, row.get("item", "")) in seen:
                    raise _refused(f"The path of row {number} has a row already.")
                seen.add((path, row.get("item", "")))
                rows.append({**_public(row), "path": path})
    except UserError:  # its words hold the file's path
        raise _refused("The catalogue cannot be read, or has no column 'path'.") from None
    finally:
        form.catalog.unlink()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (form.folder / FILE).open("x", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns or ["path"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return unused


def _refused(detail: str) -> ProblemError:
    return ProblemError(422, "bad-catalog", detail, remedy=REMEDY)


def _places(uploads: Sequence[Upload], settings: Settings) -> dict[str, list[str]]:
    """Where the files of each client's name will lie below the upload's folder."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for upload in uploads:
        if upload.path.suffix != ".zip":
            found[upload.name].append(upload.path.name)
            continue
        for name, place in _entries(upload, settings):
            found[name].append(place)
    return found


def _entries(upload: Upload, settings: Settings) -> Iterator[tuple[str, str]]:
    try:
        check_directory(upload.path, settings)
        with zipfile.ZipFile(upload.path) as source:
            for entry, name in named(source.infolist()):
                yield entry.filename, f"{upload.path.stem}/{name}"
    except (BadFileError, zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, EOFError):
        return  # the import refuses it with a reason


def _public(row: dict[str, str]) -> dict[str, str]:
    public = {name: text for name, text in row.items() if name in KNOWN or (name in NUMBERS and _is_number(text))}
    return {**public, "group": sealed(row.get("group", ""))}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
