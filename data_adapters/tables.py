"""The tables that a user hands in (catalogues, labels, meta tables): one reader, and one rule for missing cells.

docs/archive.md, "Tables you hand in", says the same for users. Which file a row means is in `catalog`.
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from data_adapters.errors import BadFileError, UserError

KEYS = ("path", "id")  # what names a row: never a missing word, never a number
OWN = (*KEYS, "item", "group", "label", "split")
PARTICIPANT = "participant_id"  # names the rows of a BIDS participants.tsv, in place of a path
# Columns that are likely to hold what belongs together, by their letters and digits in lower case.
LIKELY_GROUP = re.compile(
    r"(bcr)?(patient|subject|subj|participant|person|individual|donor|proband|animal|case|slide|wsi|specimen|field)"
    r"(submitter)?(id|ids|uid|no|nr|num|number|name|code|key|barcode|identifier)?|mrn"
)
FACTS = ("mpp", "ra", "dec", "bands", "pixel_scale", "redshift", "sequence", "session")  # further ones adapters read
SEPARATORS = {",": "','", ";": "';'", "\t": "tab"}
DASHES = ("-", "\N{EN DASH}", "\N{EM DASH}")
# As R, pandas, Excel, SPSS, SAS, Stata, MATLAB, SQL and BIDS write "no value". Case matters: a class called "none"
# or "na" is a class.
MISSING = frozenset(
    (
        *("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "NAN", "-NaN", "-nan", "NULL", "Null", "null", "None", "NaT"),
        *("#N/A", "#N/A N/A", "#NA", "#NULL!", "#VALUE!", "#DIV/0!", "#REF!", "#NAME?", "#NUM!"),
        *(".", "<missing>", "<undefined>", "\\N", *DASHES),
    )
)
ESCAPE = "\\"  # before a missing word: this very text, such as \NA for a class called NA
NO_LABELS = "[]"  # of several labels an image: looked at, and none of them seen
INVISIBLE = " \t\r\n\f\v\N{NO-BREAK SPACE}\N{ZERO WIDTH NO-BREAK SPACE}\N{ZERO WIDTH SPACE}"
SLICE = 1024  # rows of a Parquet file that are Python objects at one time
HEAD = 1 << 16  # bytes in which the header is looked for
FIRST = 5  # rows that a message names
LONGEST = 2**63  # integers from here on are names, since neither 64 bits nor a float hold them
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")  # 1,234: a decimal comma, or thousands
DOTTED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")  # 1.234,5
PADDED = re.compile(r"[+-]?0\d+")  # 007
WHOLE = re.compile(r"([+-]?\d+)[.,]0*")  # 1.0
SAVE_AS = "Save it as UTF-8: 'CSV UTF-8' in Excel and LibreOffice, or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
SIGNATURES = {
    b"PK\x03\x04": "an Excel workbook or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
}


@dataclass(frozen=True)
class Row:
    """One row: its number in the file (the header is row 1, as a spreadsheet counts), and cells, "" where missing."""

    number: int
    cells: dict[str, str]


@dataclass
class Column:
    """What the cells of a column look like, as far as they have been read."""

    name: str
    values: int = 0
    numbers: int = 0
    commas: int = 0
    points: int = 0
    unclear: int = 0  # numbers with commas that may part thousands
    first: int = 0  # row of the first number with a comma
    padded: bool = False
    decimal_comma: bool = False  # by the separator of the columns

    def see(self, text: str, row: int) -> None:
        """Count one cell that is not missing."""
        self.values += 1
        if NUMBER.fullmatch(text):
            self.numbers += 1
            self.points += "." in text
            self.padded |= bool(PADDED.fullmatch(text)) or (text.lstrip("+-").isdigit() and abs(int(text)) >= LONGEST)
        elif not (GROUPED.fullmatch(text) or DOTTED.fullmatch(text)):
            return
        else:
            self.numbers += 1
            self.points += "." in text
        if "," in text:
            self.commas += 1
            self.first = self.first or row
            self.unclear += not NUMBER.fullmatch(text) or bool(GROUPED.fullmatch(text))

    @property
    def numeric(self) -> bool:
        """Whether every cell is a number, and none is written like a code, such as 007."""
        return self.values == self.numbers > 0 and not self.padded

    def class_name(self, text: str) -> str:
        """`text`; of a column of numbers, 1.0 is 1."""
        whole = WHOLE.fullmatch(text) if self.numeric else None
        return whole[1] if whole else text

    def value(self, text: str) -> str | float:
        """The number that `text` is; codes such as 007 and all other texts stay."""
        if self.padded or not NUMBER.fullmatch(text):
            return text
        if "," in text and not (self.numeric or (self.decimal_comma and not self.points)):
            return text
        if re.fullmatch(r"-?(0|[1-9]\d*)", text):
            return int(text)
        number = float(text.replace(",", "."))
        return number if math.isfinite(number) else text


@dataclass
class MissingCells:
    """Cells that were taken as missing, by column and what stood there.

    `called`: what the table calls a column that was named by an option, such as age for label.
    """

    words: Counter[tuple[str, str]] = field(default_factory=Counter)
    called: Mapping[str, str] = field(default_factory=dict)

    def notes(self, columns: Sequence[str] | None = None) -> list[str]:
        """A sentence for each column and word; of empty cells only for labels, since others are usual."""
        found = []
        for (column, word), times in self.words.items():
            if columns is not None and column not in columns:
                continue
            if word:
                found.append(
                    f"{count(times, 'row')} with '{word}' in the column '{self.called.get(column, column)}' taken as "
                    f"missing (write {ESCAPE}{word} where it is a name)"
                )
            elif column == "label":
                found.append(f"{count(times, 'row')} with an empty label taken as unlabelled")
        return found

    def counts(self, column: str, *, empty: bool = True) -> dict[str, int]:
        """How often each word was missing in a column; "" is an empty cell."""
        return {word: count for (name, word), count in self.words.items() if name == column and (word or empty)}


def meaning(text: str) -> str | None:
    """A cell's text without outer spaces, in NFC; None where it is missing. Looking-alike labels become one."""
    text = text.strip(INVISIBLE)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if text in MISSING:
        return None
    return text[1:] if text.startswith(ESCAPE) and text[1:] in MISSING else text


def escaped(text: str) -> str:
    """`text` as a cell that `meaning` reads as this very text."""
    return ESCAPE + text if text in MISSING and text else text


def count(number: int, noun: str, verb: str = "") -> str:
    """'1 row matches', '3 rows match': a number with its noun, and with the verb given as for one."""
    singular = number == 1
    several = {"has": "have", "is": "are", "was": "were", "lies": "lie"}.get(
        verb, verb.removesuffix("es") if verb.endswith("ches") else verb
    )
    return f"{number:,} {noun}{'' if singular else 's'}" + (f" {verb if singular else several}" if verb else "")


def one_style(labels: Sequence[str]) -> list[str]:
    """Class names as a column has them: where all are numbers, 1.0 is 1."""
    column = Column("label")
    for number, label in enumerate(labels):
        column.see(label, number)
    return [column.class_name(label) for label in labels]


class Table:
    """A CSV (comma, semicolon or tab; UTF-8, or UTF-16 with its mark) or Parquet file, read row by row.

    Column names are stripped; the project's own are found whatever their case. Rows without any cell are skipped.
    `missing` and `columns` are complete once all rows have been read.
    """

    def __init__(
        self,
        file: Path,
        *,
        what: str = "The catalogue",
        needs: Sequence[Sequence[str]] = (("path",),),
        public: bool = False,
        group_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        """Read the header.

        Args:
            file: the table.
            what: what messages call it.
            needs: for each tuple, at least one of its columns.
            public: messages hold neither the file's name nor what stands in it (for clients of the service).
            group_column: the column that is read as `group`; None: the one of this name.
            label_column: the column that is read as `label`; None: the one of this name.

        Raises:
            UserError: the file is missing, no table of a known kind, or lacks a column.
        """
        self.file, self.public = file, public
        self._wanted = {"group": group_column, "label": label_column}
        self.name = what if public else f"{what} {file}"
        self._needs = needs
        if not file.is_file():
            raise UserError(f"{self.name} does not exist.", remedy="Give the path of a CSV or Parquet file.")
        try:
            with file.open("rb") as stream:
                head = stream.read(HEAD)
                while len(head) % HEAD == 0 and head and b"\n" not in head and b"\r" not in head:
                    head += stream.read(HEAD) or b"\n"  # a header of thousands of columns
        except PermissionError as error:
            raise self._unreadable("you may not read it", remedy=f"Run: chmod u+r {self.file}") from error
        except OSError as error:
            raise self._unreadable(self._why(error)) from error
        self.parquet = head.startswith(b"PAR1")
        self.separator = ","
        if self.parquet:
            names = self._parquet_names()
        else:
            self._encoding, self._errors = self._coding(head)
            names = self._header(head)
        self.names = self._checked(names)
        """Names of the columns as the project knows them; `header` has them as they are written."""
        self.called = self._roles(self.names)
        """Names of the columns that options make `group` and `label`, by these."""
        self._keys = [self._keys_of(name) for name in self.names]
        self.keys = [key for keys in self._keys for key in keys]
        """Names of the cells of a row."""
        self._forget()

    @property
    def participants(self) -> bool:
        """Whether rows are named by BIDS participants and not by paths."""
        return PARTICIPANT in self.keys and not {"path", "id"} & set(self.keys)

    @property
    def likely_group(self) -> str | None:
        """A column that is likely to hold groups where none is used as such; known once all rows have been read."""
        if self.participants or ("group" in self.columns and self.columns["group"].values):
            return None
        return next((name for name in self.names if LIKELY_GROUP.fullmatch(re.sub(r"[\W_]", "", name.lower()))), None)

    def group_note(self) -> str | None:
        """The sentence about a `likely_group`, with the option that makes it the group; None where there is none."""
        name = self.likely_group
        if name is None:
            return None
        option = quote(f"group_column={name}") if self.public else f"--group-column {quote(name)}"
        return (
            f"the column '{name}' looks like the group (patient, slide, field), and is not used: give {option} to keep "
            "its equal values on one side of every split"
        )

    def _keys_of(self, name: str) -> tuple[str, ...]:
        """Under which names the cells of a column are found: its own, and what an option makes of it."""
        roles = tuple(role for role, called in self.called.items() if called == name)
        return roles if not name or (name in self.called and self.called[name] != name) else (name, *roles)

    def _roles(self, names: Sequence[str]) -> dict[str, str]:
        """The columns that options name, by what they are read as; spelled as the header spells them.

        Raises:
            UserError: the table has no such column.
        """
        found = {}
        for role, wanted in self._wanted.items():
            if wanted is None:
                continue
            name = _named(wanted, names)
            if name is None:
                option = f"{role}_column" if self.public else f"--{role}-column"
                has = ", ".join(name for name in names if name) or "none"
                cause = f"'{wanted}' (it has: {has})" if not self.public else f"of the name that {option} gives"
                raise UserError(f"{self.name} has no column {cause}.", remedy=f"Name one of its columns with {option}.")
            if name != role:
                found[role] = name
        return found

    def _forget(self) -> None:
        """Begin the counts of cells."""
        self.missing = MissingCells(called=self.called)
        # Where ';' or a tab parts the columns, the comma is the decimal mark of that locale.
        decimal = self.separator != "," and not self.parquet
        self.columns = {
            key: column
            for name, keys in zip(self.names, self._keys, strict=True)
            for column in [Column(name, decimal_comma=decimal)]
            for key in keys
        }

    # --- rows -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Row]:
        """The rows, one after the other.

        Raises:
            UserError: a row has more or fewer cells than the header, or cannot be decoded.
        """
        self._forget()
        for number, raw in self.rows():
            if not any(raw):
                continue
            cells = {}
            for keys, text in zip(self._keys, raw, strict=True):
                if keys:
                    found = text if keys[0] in KEYS else self._meaning(keys[-1], text, number)
                    cells.update(dict.fromkeys(keys, found))
            yield Row(number, cells)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows by number, each with its cells as texts without outer spaces, whatever they mean."""
        return self._parquet_rows() if self.parquet else self._csv_rows()

    def _meaning(self, name: str, text: str, number: int) -> str:
        found = meaning(text)
        if found is None:
            self.missing.words[name, text] += 1
            return ""
        if name == "item" and (whole := WHOLE.fullmatch(found)):  # pandas writes a row's number as 3.0 beside NaN
            return whole[1]
        self.columns[name].see(found, number)
        return found

    def value(self, column: str, text: str) -> str | float:
        """A cell's number where it is one, else its text; once all rows have been read and `check_numbers` passed."""
        return self.columns[column].value(text)

    def class_name(self, column: str, text: str) -> str:
        """A label, group or item as its column writes it: 1 and 1.0 are one where the whole column is numbers."""
        return self.columns[column].class_name(text) if column in self.columns else text

    def check_numbers(self, columns: Iterable[str]) -> None:
        """Refuse columns of numbers whose commas are unclear.

        Raises:
            UserError: a column has decimal points and decimal commas, or commas that may part thousands.
        """
        for column in (self.columns[name] for name in columns if name in self.columns):
            if not (column.numeric and column.commas):
                continue
            if column.points or (column.unclear == column.commas and not column.decimal_comma):
                raise UserError(
                    f"{self.name} has numbers with a comma in the column '{column.name}' (row {column.first}): "
                    "a decimal comma or thousands?",
                    remedy="Write the whole column with a decimal point and without marks for thousands.",
                )

    # --- CSV --------------------------------------------------------------------------------------------------------

    def _csv_rows(self) -> Iterator[tuple[int, list[str]]]:
        width = len(self.names)
        number = 0
        try:
            with self.file.open(newline="", encoding=self._encoding, errors=self._errors) as stream:
                for number, raw in enumerate(self._reader(stream, self.separator), start=1):
                    self._check_text(raw, number)
                    if number <= self._header_row or not raw:
                        continue
                    cells = [cell.strip(INVISIBLE) for cell in raw]
                    if not any(cells):
                        continue
                    if len(cells) > width and not any(cells[width:]):
                        cells = cells[:width]
                    if len(cells) != width:
                        raise self._ragged(number, len(cells))
                    yield number, cells
        except csv.Error as error:
            cause = f"row {number + 1} and what follows it: {error}"
            raise self._unreadable(cause, remedy="Close every quote, and put quotes inside a cell twice.") from error
        except (OSError, UnicodeError) as error:
            raise self._unreadable(f"after row {number}: {self._why(error)}") from error

    @staticmethod
    def _reader(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)

    def _check_text(self, cells: Sequence[str], number: int) -> None:
        text = "".join(cells)
        if text.isascii():
            if "\0" in text:
                raise self._unreadable(f"row {number} holds a NUL character", remedy=SAVE_AS)
            return
        try:
            text.encode()
        except UnicodeEncodeError:
            raw = "".join(cells).encode("utf-8", "surrogateescape")
            shown = "" if self.public else f"; as Windows-1252 it would read '{raw.decode('cp1252', 'replace')[:60]}'"
            raise self._unreadable(f"row {number} is not UTF-8{shown}", remedy=SAVE_AS) from None

    def _ragged(self, number: int, count: int) -> UserError:
        return UserError(
            f"{self.name} cannot be read: row {number} has {count} cells, the header has {len(self.names)} "
            f"(the separator is {SEPARATORS[self.separator]}).",
            remedy=f"Write one cell for each column, and quotes around a cell that holds {SEPARATORS[self.separator]}, "
            "such as a decimal comma.",
        )

    def _coding(self, head: bytes) -> tuple[str, str]:
        for signature, kind in SIGNATURES.items():
            if head.startswith(signature):
                raise self._unreadable(f"it is {kind}", remedy="Export it as CSV in UTF-8 ('CSV UTF-8' in Excel).")
        if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
            return "utf-32", "strict"
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "utf-16", "strict"
        if b"\0" in head:
            raise self._unreadable("it is UTF-16 without a byte order mark, or no text", remedy=SAVE_AS)
        return "utf-8-sig", "surrogateescape"

    def _header(self, head: bytes) -> list[str]:
        """Names of the columns, and with them the separator: the one that finds what is needed, else the most names."""
        try:
            text = codecs.getincrementaldecoder(self._encoding)(self._errors).decode(head)
        except UnicodeError as error:
            raise self._unreadable(self._why(error)) from error
        lines = list(io.StringIO(text, newline=""))
        given = re.fullmatch(r"sep=(.)\s*", lines[0], re.IGNORECASE) if lines else None  # Excel's own line
        self._header_row = 1 + bool(given)
        while self._header_row <= len(lines) and not lines[self._header_row - 1].strip():
            self._header_row += 1
        lines = lines[self._header_row - 1 :]
        if not lines:
            raise UserError(f"{self.name} is empty.", remedy="Give a table with a header line and a row for each file.")
        found = []
        for separator in [given[1]] if given and given[1] in SEPARATORS else SEPARATORS:
            try:
                names = [_column_name(name) for name in next(self._reader(lines, separator))]
            except (csv.Error, StopIteration):
                continue
            found.append((not self._lacks(names), len(names), separator, names))
        if not found:
            raise self._unreadable("its header has an open quote", remedy="Close every quote.")
        _, _, self.separator, chosen = max(found, key=lambda one: one[:2])
        while chosen and not chosen[-1]:  # separators at the end of each line
            chosen.pop()
        self._check_text(chosen, self._header_row)
        self.header = [name.strip(INVISIBLE) for name in next(self._reader(lines, self.separator))][: len(chosen)]
        return chosen

    # --- Parquet ----------------------------------------------------------------------------------------------------

    def _parquet_names(self) -> list[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.file) as source:
                self.header = list(source.schema_arrow.names)
                return [_column_name(name) for name in self.header]
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(self._why(error)) from error

    def _parquet_rows(self) -> Iterator[tuple[int, list[str]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 1
        try:
            with pq.ParquetFile(self.file) as source:
                for batch in source.iter_batches(batch_size=SLICE):
                    for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        number += 1
                        yield number, [_cell(value) for value in values]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(f"after row {number}: {self._why(error)}") from error

    # --- errors -----------------------------------------------------------------------------------------------------

    def _lacks(self, names: Sequence[str]) -> list[Sequence[str]]:
        there = {*names, *(role for role, wanted in self._wanted.items() if wanted and _named(wanted, names))}
        return [some for some in self._needs if not set(some) & there]

    def _checked(self, names: list[str]) -> list[str]:
        lacking = self._lacks(names)
        if lacking:
            wanted = " and ".join(" or ".join(f"'{name}'" for name in some) for some in lacking)
            has = "" if self.public else f" (it has: {', '.join(name for name in names if name) or 'none'})"
            named = "" if self.public or ("label",) not in lacking else ", or name the label's with --label-column"
            raise UserError(
                f"{self.name} has no column {wanted}{has}.",
                remedy=f"Add it to the header{named}. 'path' is a file's path relative to the archive or to the table; "
                "columns are parted by ',', ';' or tab.",
            )
        for name, count in Counter(names).items():
            if name and count > 1:
                places = [str(place) for place, other in enumerate(names, start=1) if other == name]
                said = f"'{name}' " if not self.public or name in OWN else ""
                raise UserError(
                    f"{self.name} has the column {said}{count} times (columns {', '.join(places)}).",
                    remedy="Keep one of them, or rename the others.",
                )
        return names

    def _why(self, error: Exception) -> str:
        return type(error).__name__ if self.public else str(error)

    def _unreadable(self, cause: str, *, remedy: str = "") -> UserError:
        remedy = remedy or "Save it as CSV in UTF-8 with a header line, or as Parquet."
        return UserError(f"{self.name} cannot be read: {cause}.", remedy=remedy)


def _named(wanted: str, names: Sequence[str]) -> str | None:
    """The column that a user means: spelled so, or the only one that is but for upper and lower case."""
    name = _column_name(wanted)
    alike = [other for other in names if other.casefold() == name.casefold()]
    return name if name in names else alike[0] if len(alike) == 1 and name else None


def _column_name(name: str) -> str:
    """Without outer spaces; those that the project reads in lower case, others as they are."""
    text = unicodedata.normalize("NFC", name.strip(INVISIBLE))
    if text.startswith("__index_level_"):  # the index that pandas adds
        return ""
    return text.lower() if text.lower() in (*OWN, *FACTS) else text


def _cell(value: Any) -> str:
    """A Parquet value as the same table's CSV has it; lists are labels with ';' between them."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8").strip(INVISIBLE)
    if isinstance(value, list):
        return ";".join(_cell(one) for one in value) or NO_LABELS
    return str(value).strip(INVISIBLE)


# --- columns of arrays ----------------------------------------------------------------------------------------------


def array_labels(values: np.ndarray, rows: int, *, of: str = "images") -> list[str | None]:
    """Labels of `rows` images (or what `of` calls them), None where missing.

    The array is (rows,), (rows, 1) or one-hot (rows, classes).

    Raises:
        BadFileError: another number of rows, several labels or shares an image, or values that are no labels.
    """
    given = np.asarray(values)
    if given.ndim == 0 or given.shape[0] != rows:
        count = given.shape[0] if given.ndim else "no"
        raise BadFileError(
            f"labels that do not belong to the {of}",
            remedy=f"There are {count} labels for {rows} {of}: write one for each, in their order, or take them out.",
        )
    if given.size == rows:
        return _texts(given.reshape(rows))
    if given.ndim == 2 and given.dtype.kind in "uifb" and bool(np.isin(given, (0, 1)).all()):
        if bool((given.sum(1) == 1).all()):
            return [str(place) for place in given.argmax(1).tolist()]
        raise BadFileError(
            f"several labels, or none, for one image (labels of shape {given.shape})",
            remedy="Take them out of the file and give a table with the column 'label', such as 'a;b', to: "
            "lejepa-med probe --kind multilabel",
        )
    raise BadFileError(
        f"labels of shape {given.shape} that are neither one an image nor one-hot",
        remedy="Write one label for each image (shape (n,)), or one-hot rows of 0 and 1.",
    )


def _texts(values: np.ndarray) -> list[str | None]:
    if values.dtype.kind == "f":
        texts = [str(int(v)) if v.is_integer() else repr(v) for v in values.tolist() if np.isfinite(v)]
        if np.isinf(values).any():
            raise BadFileError("an infinite label", remedy="Write NaN where there is no label.")
        found = iter(texts)
        return [None if np.isnan(value) else next(found) for value in values.tolist()]
    if values.dtype.kind in "uib":
        return [str(value) for value in values.tolist()]
    cells = []
    for value in values.tolist():
        if not isinstance(value, str | bytes):
            raise BadFileError("labels that are neither texts nor numbers", remedy="Write texts or numbers.")
        try:
            cells.append(meaning(value.decode() if isinstance(value, bytes) else value))
        except UnicodeDecodeError as error:
            raise BadFileError("labels that are not UTF-8", remedy="Write the texts as UTF-8.") from error
    named = iter(one_style([cell for cell in cells if cell is not None]))
    return [None if cell is None else next(named) for cell in cells]
