"""A catalogue: a CSV or Parquet table with group, label, split and measured values for the files of an archive."""

import dataclasses
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_adapters.errors import UserError
from data_adapters.record import Record

KNOWN = ("path", "item", "group", "label", "split")


SLICE = 1024  # rows that are Python objects at one time
TABLE = """
CREATE TABLE rows (
  path TEXT, item TEXT, cells TEXT, used INTEGER DEFAULT 0, PRIMARY KEY (path, item)
) WITHOUT ROWID
"""
FIND = "SELECT item, cells, used FROM rows WHERE path = ? AND item IN (?, '') ORDER BY item = '' LIMIT 1"


class Catalog:
    """Rows by path (relative to the catalogue's own folder, to the archive root, or absolute).

    Columns: `path` (required), and optionally `item` (a row of an HDF5 file), `group`, `label`, `split`. Every further
    column becomes `meta[column]`: `mpp` for slides, `ra` and `dec` for galaxies. An empty cell gives nothing.

    The rows lie in temporary files, not in memory. One thread may use an object.
    """

    def __init__(self, file: Path) -> None:
        """Read `file`.

        Raises:
            UserError: it is missing or no table, has no column `path`, or two different rows for one path.
        """
        self.file = file.resolve()
        self._sql = sqlite3.connect("")
        self._sql.execute("PRAGMA journal_mode = OFF")
        self._sql.execute(TABLE)
        self._columns: list[str] = []
        for row in read_rows(self.file):
            self._columns = self._columns or list(row)
            self._add(row)

    def _add(self, row: Mapping[str, str]) -> None:
        key = (row["path"].removeprefix("./"), row.get("item", ""))
        cells = json.dumps(list(row.values()))
        added = self._sql.execute("INSERT OR IGNORE INTO rows (path, item, cells) VALUES (?, ?, ?)", (*key, cells))
        if added.rowcount:
            return
        (before,) = self._sql.execute("SELECT cells FROM rows WHERE path = ? AND item = ?", key).fetchone()
        if before != cells:
            raise UserError(
                f"The catalogue {self.file} has two different rows for the path '{key[0]}'.",
                remedy="Keep one row for each file.",
            )

    def __len__(self) -> int:
        return int(self._sql.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    def lookup(self, uri: str, item: str, root: Path) -> Mapping[str, str] | None:
        """The row for a file, or None. A row without an item stands for every item of its file."""
        names = [uri]
        for base in (self.file.parent, root if root.is_dir() else root.parent):
            if Path(uri).is_relative_to(base):
                names.append(Path(uri).relative_to(base).as_posix())
        for name in names:
            found = self._sql.execute(FIND, (_text(name), item)).fetchone()
            if found is not None:
                own, cells, used = found
                if not used:
                    self._sql.execute("UPDATE rows SET used = 1 WHERE path = ? AND item = ?", (_text(name), own))
                return dict(zip(self._columns, json.loads(cells), strict=True))
        return None

    def apply(self, record: Record, root: Path) -> Record:
        """`record` with the catalogue's values; a record without a row comes back as it is."""
        row = self.lookup(record.uri, record.item, root)
        if row is None:
            return record
        extra: dict[str, Any] = {k: _number(v) for k, v in row.items() if k not in KNOWN and v != ""}
        return dataclasses.replace(
            record,
            group=row.get("group") or record.group,
            label=row.get("label") or record.label,
            split=row.get("split") or record.split,
            meta={**record.meta, **extra},
        )

    def unused(self) -> list[str]:
        """Paths of rows that no file of the archive matched."""
        return [path for (path,) in self._sql.execute("SELECT DISTINCT path FROM rows WHERE NOT used ORDER BY path")]

    def unused_rows(self) -> int:
        """How many rows no file of the archive matched."""
        return int(self._sql.execute("SELECT COUNT(*) FROM rows WHERE NOT used").fetchone()[0])


def _text(name: str) -> str:
    """A file name as a UTF-8 table could hold it: one that is not UTF-8 matches no row."""
    return name.encode("utf-8", "backslashreplace").decode()


def _number(text: str) -> str | float:
    """The number that a cell is; codes such as 007, and numbers that neither 64 bits nor a float hold, stay text."""
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text) if -(2**63) <= int(text) < 2**63 else text
    if re.fullmatch(r"[+-]?0\d+", text):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) or "inf" in text.lower() or "nan" in text.lower() else text


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows one after the other, every cell as text, an empty one as "".

    Raises:
        UserError: the file is missing, is no table, or has no column `path`.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not file.is_file():
        raise UserError(f"The catalogue {file} does not exist.", remedy="Give the path of a CSV or Parquet file.")
    try:
        if file.suffix.lower() == ".parquet":
            table = pa.parquet.ParquetFile(file)
            names, batches = table.schema_arrow.names, table.iter_batches(batch_size=SLICE)
        else:
            names = pa.csv.open_csv(file).schema.names
            # Everything as text: an id such as 007 or 587722952767439450 must not become a number.
            convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
            batches = pa.csv.open_csv(file, convert_options=convert)
        if "path" not in names:
            raise UserError(
                f"The catalogue {file} has no column 'path' (it has: {', '.join(names)}).",
                remedy="Add a column 'path' with each file's path relative to the catalogue's folder.",
            )
        for batch in batches:
            for start in range(0, batch.num_rows, SLICE):
                for raw in batch.slice(start, SLICE).to_pylist():
                    yield {name: "" if value is None else str(value).strip() for name, value in raw.items()}
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"The catalogue {file} cannot be read: {error}.",
            remedy="Save it as UTF-8 CSV with a header line, or as Parquet.",
        ) from error
