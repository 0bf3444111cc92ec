"""A client's catalogue: which row belongs to which received file, told without the names that joined them."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.errors import ProblemError
from app.settings import Settings
from app.unzip import contents
from app.uploads import Form, Upload, too_large
from data_adapters.errors import UserError
from data_adapters.identity import sealed
from data_adapters.table_paths import fold, tidy
from data_adapters.tables import FIRST, Row, Table, escaped

FILE = "catalog.csv"
COLUMNS = ("path", "item", "group", "label", "split")
NUMBERS = ("mpp", "ra", "dec")  # further columns that adapters read; all others may hold anything, and are left out
ANGLE = re.compile(r"[+-]?\d{1,3}[: ]\d{1,2}[: ]\d{1,2}(\.\d*)?")
REMEDY = "Send CSV in UTF-8 with a header line and a column 'path' that holds the file names as they are sent."


@dataclass(frozen=True)
class Translated:
    """What became of a catalogue's rows.

    Attributes:
        unused: how many no file matched; `first` are the numbers of the first ones.
        missing: by column, the words that were taken as missing, and in how many rows.
    """

    unused: int = 0
    first: list[int] = field(default_factory=list)
    missing: dict[str, dict[str, int]] = field(default_factory=dict)


def translate(form: Form, settings: Settings) -> Translated:
    """Replace the form's catalogue by catalog.csv beside the files, with the paths that the files have here.

    Names do not survive: paths become our own, groups are sealed, and of further columns only `NUMBERS` are kept. Rows
    keep their numbers, so that a later message can name them.

    Raises:
        ProblemError: 413 or 422, no table of the right shape.
    """
    assert form.catalog is not None
    if form.catalog.stat().st_size > settings.max_json_bytes:
        raise too_large(settings.max_json_bytes, "The catalogue")
    try:
        group, label = (form.fields.get(name) or None for name in ("group_column", "label_column"))
        table = Table(form.catalog, public=True, group_column=group, label_column=label)
        rows = list(table)
        table.check_numbers(NUMBERS)
    except UserError as error:
        raise _refused(error.cause, error.remedy) from None
    finally:
        form.catalog.unlink()
    places = _Places(form.uploads, settings, rows)
    unused: list[int] = []
    seen: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}
    found: dict[int, dict[str, str]] = {}
    for row in rows:
        path = places.find(row)
        if path is None:
            unused.append(row.number)
            continue
        key = (path, row.cells.get("item", ""))
        public = {**_public(row, table), "path": path}
        first, before = seen.setdefault(key, (row.number, public))
        if before != public:
            raise _refused(f"Rows {first} and {row.number} are two different rows for one file.")
        found[first] = public
    _write(form.folder / FILE, found)
    words = {name: table.missing.counts(name, empty=name == "label") for name in (*COLUMNS, *NUMBERS)}
    return Translated(len(unused), unused[:FIRST], {name: counts for name, counts in words.items() if counts})


def _write(file: Path, rows: dict[int, dict[str, str]]) -> None:
    columns = [name for name in (*COLUMNS, *NUMBERS) if name == "path" or any(row.get(name) for row in rows.values())]
    with file.open("x", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        line = 1
        for number, row in sorted(rows.items()):
            stream.write("\n" * (number - line - 1))
            writer.writerow(row)
            line = number


def _refused(detail: str, remedy: str = "") -> ProblemError:
    return ProblemError(422, "bad-catalog", detail, remedy=f"{remedy} {REMEDY}".strip())


class _Places:
    """Where the files of each client's name will lie below the upload's folder."""

    def __init__(self, uploads: Sequence[Upload], settings: Settings, rows: Sequence[Row]) -> None:
        self._exact: defaultdict[str, list[str]] = defaultdict(list)
        for upload in uploads:
            if upload.path.suffix != ".zip":
                self._exact[tidy(upload.name)].append(upload.path.name)
                continue
            for unpacked, name in contents(upload.path, settings).names.items():
                self._exact[tidy(name)].append(f"{upload.path.stem}/{unpacked}")
        self._folded: defaultdict[str, list[str]] = defaultdict(list)
        for name, places in self._exact.items():
            self._folded[fold(name)] += places
        self._sent, self._asked = _by_last(self._folded), _by_last(fold(tidy(row.cells["path"])) for row in rows)

    def find(self, row: Row) -> str | None:
        """The place of a row's file, or None.

        Raises:
            ProblemError: 422, several files have this name, or names that differ in their spelling only.
        """
        name = tidy(row.cells["path"])
        key = fold(name)
        found = self._exact.get(name) or self._folded.get(key) or self._folded.get(self._longer(key) or "") or []
        if len(found) > 1:
            raise _refused(f"The path of row {row.number} names several files.")
        return found[0] if found else None

    def _longer(self, key: str) -> str | None:
        """The name that differs only in folders before it, which a browser or zip may leave out or add.

        None where several files or rows could be meant.
        """
        sent = [name for name in self._sent[_last(key)] if _ends(key, name)]
        if len(sent) != 1 or [name for name in self._asked[_last(key)] if _ends(name, sent[0])] != [key]:
            return None
        return sent[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _ends(one: str, other: str) -> bool:
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


def _by_last(names: Iterable[str]) -> defaultdict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        found[_last(name)].append(name)
    return found


def _public(row: Row, table: Table) -> dict[str, str]:
    public = {name: escaped(table.class_name(name, row.cells.get(name, ""))) for name in COLUMNS[1:]}
    for name in NUMBERS:
        text = row.cells.get(name, "")
        value = table.value(name, text) if text else text
        if isinstance(value, float):
            public[name] = repr(value)
        elif name in ("ra", "dec") and ANGLE.fullmatch(text):
            public[name] = text
    return {**public, "group": sealed(table.class_name("group", row.cells.get("group", "")))}
