"""A client's catalogue: which row belongs to which received file, told without the names that joined them."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.core.errors import ProblemError, describe
from app.core.settings import Settings
from app.uploads.bodies import Form, ReceivedFile, too_large
from app.uploads.unzip import contents, read_entry
from data_adapters.catalog import NEEDS, PARTICIPANTS, fold, participant, subjects, tidy
from data_adapters.errors import BadFileError, UserError
from data_adapters.identity import sealed
from data_adapters.tables import FIRST, PARTICIPANT, Row, Table, count, escaped

FILE = "catalog.csv"
COLUMNS = ("path", "item", "group", "label", "split")
NUMBERS = ("mpp", "ra", "dec")  # further columns that adapters read; all others may hold anything, and are left out
ANGLE = re.compile(r"[+-]?\d{1,3}[: ]\d{1,2}[: ]\d{1,2}(\.\d*)?")
TABLES = (".csv", ".tsv", ".parquet")
SEND = "Send the table in the form field 'catalog'"
REMEDY = (
    "Send CSV in UTF-8 with a header line and a column 'path' that holds the file names as they are sent, or a BIDS "
    "participants.tsv."
)


@dataclass(frozen=True, kw_only=True)
class Translated:
    """What became of an upload's catalogue.

    Attributes:
        used: whether there is one; without, the other fields but `notes` are empty.
        files: how many files have a row.
        unused: how many rows no file matched; `first` are the numbers of the first ones.
        missing: by column, the words that were taken as missing, and in how many rows.
        rows: of a participants.tsv, whose rows stand for several files each, the number of each file's row.
        cautions: what to know before using the groups.
        notes: which table in the upload was taken as the catalogue, or was not.
    """

    used: bool = True
    files: int = 0
    unused: int = 0
    first: list[int] = field(default_factory=list)
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def translate(form: Form, settings: Settings) -> Translated:
    """Replace the form's catalogue by catalog.csv beside the files, with the paths that the files have here.

    Without a catalogue, the participants.tsv of a BIDS dataset among the files is the catalogue: the names by which its
    participants are found do not outlive the request. Names do not survive: paths become our own, groups are sealed,
    and of further columns only `NUMBERS` are kept. Rows keep their numbers, so that a later message can name them.

    Raises:
        ProblemError: 413 or 422, no table of the right shape.
    """
    group, label = (form.fields.get(name) or None for name in ("group_column", "label_column"))
    if form.catalog is not None:
        return _translated(form, settings, form.catalog, group=group, label=label)
    try:
        content = _participants(form, settings)
        if content is None:
            return _without_catalog(form, settings, wanted=group or label)
        form.catalog = form.folder / "catalog"
        form.catalog.write_bytes(content)
        found = _translated(form, settings, form.catalog, group=group, label=label)
    except (ProblemError, BadFileError) as error:
        if group or label:
            raise
        told = describe(error)
        return Translated(used=False, notes=[unusable(told.detail, told.remedy)])
    if not (found.files or group or label):
        (form.folder / FILE).unlink()
        cause = "no file has a participant's sub-XX in the name of a folder or file."
        return Translated(used=False, notes=[unusable(cause, f"{SEND}, with the names of the files as 'path'.")])
    return replace(found, notes=[taken(group=group, label=label)])


def taken(*, group: str | None, label: str | None) -> str:
    """The note that a participants.tsv which nobody named is the catalogue, with the columns that were chosen."""
    groups = "" if group else ", and its participants as the groups"
    labels = "" if label else "; give label_column=COLUMN to take labels from it"
    return f"{PARTICIPANTS} is taken as the catalogue{groups}{labels}"


def unusable(cause: str, remedy: str) -> str:
    """The note that a participants.tsv which nobody named is not the catalogue."""
    return f"{PARTICIPANTS} is not used as the catalogue: {cause} {remedy}"


def _translated(form: Form, settings: Settings, file: Path, *, group: str | None, label: str | None) -> Translated:
    if file.stat().st_size > settings.max_json_bytes:
        raise too_large(settings.max_json_bytes, "The catalogue")
    try:
        table = Table(file, needs=NEEDS, public=True, group_column=group, label_column=label)
        rows = list(table)
        table.check_numbers(NUMBERS)
    except UserError as error:
        raise _refused(error.cause, error.remedy) from None
    finally:
        file.unlink()
    places = _Places(form.uploads, settings, rows, participants=table.participants)
    unused: list[int] = []
    seen: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}
    found: dict[tuple[int, str], dict[str, str]] = {}
    for row in rows:
        paths = places.find(row)
        if not paths:
            unused.append(row.number)
        for path in paths:
            key = (path, row.cells.get("item", ""))
            public = {**_public(row, table), "path": path}
            first, before = seen.setdefault(key, (row.number, public))
            if before != public:
                raise _refused(f"Rows {first} and {row.number} are two different rows for one file.")
            found[first, path] = public
    _write(form.folder / FILE, found)
    words = {name: table.missing.counts(name, empty=name == "label") for name in (*COLUMNS, *NUMBERS)}
    note = table.group_note()
    return Translated(
        files=len(found),
        unused=len(unused),
        first=unused[:FIRST],
        missing={name: counts for name, counts in words.items() if counts},
        rows={path: number for number, path in found} if table.participants else {},
        cautions=[] if note is None else [f"In the catalogue, {note}"],
    )


def _without_catalog(form: Form, settings: Settings, *, wanted: str | None) -> Translated:
    if wanted is not None:
        raise _refused("'group_column' and 'label_column' name columns of a catalogue, and none was sent.", f"{SEND}.")
    tables = sum(name.lower().endswith(TABLES) for _, name in _beside(form, settings))
    told = f"{count(tables, 'table', 'lies')} among the files, and {'is' if tables == 1 else 'are'} not read. {SEND}"
    return Translated(used=False, notes=[told] if tables else [])


def _beside(form: Form, settings: Settings) -> list[tuple[ReceivedFile, str]]:
    """The files of a request that are not given to a reader, or not as images: all those in zips, and lone tables."""
    found = []
    for upload in form.uploads:
        if upload.path.suffix == ".zip":
            found += [(upload, name) for name in contents(upload.path, settings).skipped]
        else:
            found += [(upload, upload.name)] if upload.name.lower().endswith(TABLES) else []
    return found


def _participants(form: Form, settings: Settings) -> bytes | None:
    """The participants.tsv of a request: in each zip the one in the highest folder, and all of them equal.

    Raises:
        BadFileError: it cannot be read.
        ProblemError: 422, there are several.
    """
    named: defaultdict[int, list[tuple[int, ReceivedFile, str]]] = defaultdict(list)
    for upload, name in _beside(form, settings):
        if _last(tidy(name)).lower() == PARTICIPANTS:
            named[upload.index].append((tidy(name).count("/"), upload, name))
    highest = [
        (upload, name)
        for places in named.values()
        for depth, upload, name in places
        if depth == min(other for other, _, _ in places)
    ]
    found = {_content(upload, name, most=settings.max_json_bytes) for upload, name in highest}
    if len(found) > 1:
        raise _refused(f"The files hold {len(found)} different {PARTICIPANTS}.", f"{SEND}.")
    return found.pop() if found else None


def _content(upload: ReceivedFile, name: str, *, most: int) -> bytes:
    if upload.path.suffix == ".zip":
        return read_entry(upload.path, name, most=most)
    if upload.size > most:
        raise too_large(most, "The catalogue")
    return upload.path.read_bytes()


def _write(file: Path, rows: dict[tuple[int, str], dict[str, str]]) -> None:
    columns = [name for name in (*COLUMNS, *NUMBERS) if name == "path" or any(row.get(name) for row in rows.values())]
    with file.open("x", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        line = 1
        for (number, _), row in sorted(rows.items()):
            stream.write("\n" * (number - line - 1))
            writer.writerow(row)
            line = number


def _refused(detail: str, remedy: str = "") -> ProblemError:
    return ProblemError(422, "bad-catalog", detail, remedy=f"{remedy} {REMEDY}".strip())


class _Places:
    """Where the files of each client's name will lie below the upload's folder."""

    def __init__(
        self, uploads: Sequence[ReceivedFile], settings: Settings, rows: Sequence[Row], *, participants: bool
    ) -> None:
        self._exact: defaultdict[str, list[str]] = defaultdict(list)
        for upload in uploads:
            if upload.path.suffix != ".zip":
                self._exact[tidy(upload.name)].append(upload.path.name)
                continue
            for unpacked, name in contents(upload.path, settings).names.items():
                self._exact[tidy(name)].append(f"{upload.path.stem}/{unpacked}")
        self._of: defaultdict[str, list[str]] | None = None
        if participants:
            self._of = defaultdict(list)
            known = {participant(row.cells[PARTICIPANT]) for row in rows}
            for name, places in self._exact.items():
                if (subject := next((one for one in subjects(name) if one in known), None)) is not None:
                    self._of[subject] += places
            return
        self._folded: defaultdict[str, list[str]] = defaultdict(list)
        for name, places in self._exact.items():
            self._folded[fold(name)] += places
        self._sent, self._asked = _by_last(self._folded), _by_last(fold(tidy(row.cells["path"])) for row in rows)

    def find(self, row: Row) -> list[str]:
        """The place of a row's file, or the places of a participant's files; empty where there is none.

        Raises:
            ProblemError: 422, several files have this name, or names that differ in their spelling only.
        """
        if self._of is not None:
            return self._of.get(participant(row.cells[PARTICIPANT]), [])
        name = tidy(row.cells["path"])
        key = fold(name)
        found = self._exact.get(name) or self._folded.get(key) or self._folded.get(self._longer(key) or "") or []
        if len(found) > 1:
            raise _refused(f"The path of row {row.number} names several files.")
        return found

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
    group = table.class_name("group", row.cells.get("group", ""))
    if table.participants and "group" not in table.called:  # a column of this name is a diagnosis in BIDS
        group = participant(row.cells[PARTICIPANT])
    return {**public, "group": sealed(group)}
