"""A catalogue: a CSV or Parquet table with group, label, split and measured values for the files of an archive."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_adapters.errors import UserError

if TYPE_CHECKING:
    from data_adapters.base import Record

KNOWN = ("path", "item", "group", "label", "split")


class Catalog:
    """Rows by path (relative to the catalogue's own folder, to the archive root, or absolute).

    Columns: `path` (required), and optionally `item` (a row of an HDF5 file), `group`, `label`, `split`. Every further
    column becomes `meta[column]`: `mpp` for slides, `ra` and `dec` for galaxies. An empty cell gives nothing.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self._rows = _read_rows(self.file)
        self._used: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def lookup(self, uri: str, item: str, root: Path) -> Mapping[str, str] | None:
        """The row for a file, or None. A row without an item stands for every item of its file."""
        names = [uri]
        for base in (self.file.parent, root if root.is_dir() else root.parent):
            if Path(uri).is_relative_to(base):
                names.append(Path(uri).relative_to(base).as_posix())
        for name in names:
            for key in ((name, item), (name, "")):
                if key in self._rows:
                    self._used.add(key)
                    return self._rows[key]
        return None

    def apply(self, record: "Record", root: Path) -> "Record":
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
        return sorted({path for path, item in self._rows.keys() - self._used})


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _read_rows(file: Path) -> dict[tuple[str, str], dict[str, str]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not file.is_file():
        raise UserError(f"The catalogue {file} does not exist.", remedy="Give the path of a CSV or Parquet file.")
    try:
        if file.suffix.lower() == ".parquet":
            table = pa.parquet.read_table(file)
        else:
            header = pa.csv.open_csv(file).schema.names
            # Everything as text: an id such as 007 or 587722952767439450 must not become a number.
            convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True)
            table = pa.csv.read_csv(file, convert_options=convert)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"The catalogue {file} cannot be read: {error}.",
            remedy="Save it as UTF-8 CSV with a header line, or as Parquet.",
        ) from error
    if "path" not in table.column_names:
        raise UserError(
            f"The catalogue {file} has no column 'path' (it has: {', '.join(table.column_names)}).",
            remedy="Add a column 'path' with each file's path relative to the catalogue's folder.",
        )
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for raw in table.to_pylist():
        row = {k: "" if v is None else str(v).strip() for k, v in raw.items()}
        key = (row["path"].removeprefix("./"), row.get("item", ""))
        if rows.get(key, row) != row:
            raise UserError(
                f"The catalogue {file} has two different rows for the path '{key[0]}'.",
                remedy="Keep one row for each file.",
            )
        rows[key] = row
    return rows
