"""From ids back to files: adds the paths that a manifest holds to any table with a column `id`.

Paths stay on this machine: nothing here writes into an embedding table, a probe or the service's data.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_adapters.atomic import new_file, write_text
from data_adapters.identity import PLACE
from data_adapters.manifest import Manifest
from data_adapters.tables import Table, count
from lejepa_med.errors import UserError
from lejepa_med.models.embed import DONE, PLAN, about, read_info, read_shards
from lejepa_med.probes.probe import DOCUMENT, Probe

ADDED = ("path", "item")


class Names:
    """Paths and items by id, from the manifest of a scan or run."""

    def __init__(self, scan: Path) -> None:
        """Read `scan`: the folder of a scan or run, or its manifest.parquet.

        Raises:
            UserError: there is no manifest.
        """
        self.file = scan / "manifest.parquet" if scan.is_dir() else scan
        if not self.file.is_file():
            raise UserError(
                f"{scan} holds no manifest.parquet, so ids cannot be matched with files.",
                remedy="Give the folder of: lejepa-med scan ARCHIVE --modality MODALITY --out FOLDER. "
                "The same files have the same ids in every scan on this machine. The folder of a run works, too.",
            )
        manifest = Manifest.read(self.file)
        self._root = manifest.root
        ids, paths, items = (manifest.column(name) for name in ("id", *ADDED))
        self._known = dict(zip(ids, zip(paths, items, strict=True), strict=True))
        self._places = {name[:PLACE] for name in ids}
        self.columns = ADDED if any(items) else ADDED[:1]
        """Names of the columns that are added: path, and item where files hold several items."""
        self.note = ""
        """After `cells`: how many ids were found, as a sentence."""

    def ids_of(self, path: str) -> list[str]:
        """The ids of a file's items; none where the manifest does not know it.

        Args:
            path: below the archive; or that of a file that lies in the archive.
        """
        file = Path(path).absolute()
        inside = file.relative_to(self._root).as_posix() if file.is_relative_to(self._root) else path
        return [name for name, (known, _) in self._known.items() if known in (path, inside)]

    def cells(self, ids: Sequence[str]) -> list[tuple[str, ...]]:
        """The cells of `columns` for each id; empty ones for an unknown id.

        Raises:
            UserError: not one of the ids is known.
        """
        unknown = [name for name in ids if name not in self._known]
        if ids and len(unknown) == len(ids):
            raise UserError(
                f"Not one of the {count(len(ids), 'id')} is in {self.file}.",
                remedy="Give the scan of the archive that the table was made from. If its files have changed since, or "
                "the installation's salt (LEJEPA_SALT), embed the archive again.",
            )
        changed = sum(name[:PLACE] in self._places for name in unknown)
        self.note = f"{len(ids) - len(unknown):,} of {count(len(ids), 'id')} found in {self.file}"
        if unknown:
            self.note += f"; {count(len(unknown), 'row', 'has')} no path"
        if changed:
            self.note += f", {changed:,} of them because the file's content has changed between the two"
        if unknown and not changed:
            self.note += ". A run's manifest holds only the split that it was trained on: give a scan of all files"
        self.note += "."
        nothing = ("",) * len(self.columns)
        return [self._known[name][: len(self.columns)] if name in self._known else nothing for name in ids]


def add_names(table: Path, scan: Path, *, out: Path | None = None) -> tuple[str, list[str]]:
    """Add the columns `path` and, where files hold several items, `item` to a table with the column `id`.

    Args:
        table: a CSV or Parquet file, an answer of the service in JSON, the folder of an embedding table, or of a probe,
            whose labelled items are then the table.
        scan: the folder of a scan or run, or its manifest.parquet.
        out: file to write, in the format of its suffix (.csv, .parquet, .json); None: none.

    Returns:
        The text of the new table where there is no `out`, else an empty one; and what to tell the user.

    Raises:
        UserError: `table` is no such table, has the columns already, or holds no id that the manifest knows; or the
            suffix of `out` does not fit.
    """
    names = Names(scan)
    if out is not None and out.resolve() == table.resolve():
        raise UserError(f"--out {out} is the table itself.", remedy="Give another file as --out.")
    if table.suffix.lower() in (".json", ".ndjson", ".jsonl"):
        text = _json(table, names)
        said = [names.note]
        if out is not None:
            _write(out, text, suffixes=(".json", ".ndjson", ".jsonl"))
        return text if out is None else "", said
    given = _open(table)
    clash = [name for name in names.columns if name in given.header]
    if clash:
        raise UserError(
            f"{table} has a column '{clash[0]}' already.", remedy=f"Rename or remove the column '{clash[0]}' first."
        )
    found = names.cells(given.ids)
    said = [names.note]
    if out is not None and out.suffix.lower() == ".parquet":
        _write_parquet(out, given, names.columns, found)
        return "", said
    left_out = [name for name, cells in zip(given.header, given.cells, strict=True) if cells is None]
    if left_out:
        said.append(f"The column '{left_out[0]}' is left out, as CSV holds no lists: --out FILE.parquet keeps it.")
    text = _csv(given, names.columns, found)
    if out is not None:
        _write(out, text, suffixes=(".csv",))
    return text if out is None else "", said


@dataclass(frozen=True)
class _Given:
    """A table: header, cells by column (None for one that no CSV can hold), ids, and the same as Arrow where it is.

    `column` is the place of the ids among the columns.
    """

    header: list[str]
    cells: list[list[Any] | None]
    ids: list[str]
    arrow: pa.Table | None = None
    column: int = 0
    separator: str = ","


def _open(table: Path) -> _Given:
    if (table / DOCUMENT).is_file():
        known = Probe.load(table).examples
        labels = [";".join(label) if isinstance(label, tuple | list) else label for label in known.labels]
        return _Given(["id", "label", "group"], [list(known.ids), labels, list(known.groups)], list(known.ids))
    if table.is_dir():
        if not (about(table, DONE).is_file() or about(table, PLAN).is_file()):
            raise UserError(
                f"{table} is no folder of an embedding table or probe.",
                remedy="Give a CSV, Parquet or JSON file with ids, or the --out folder of lejepa-med embed or probe.",
            )
        read_info(table)
        return _of_arrow(read_shards(table))
    source = Table(table, what="The table", needs=(("id",),))
    place = source.names.index("id")
    if source.parquet:
        return _of_arrow(pq.read_table(table), place)
    rows = [cells for _, cells in source.rows()]
    columns: list[list[Any] | None] = [[row[number] for row in rows] for number in range(len(source.header))]
    return _Given(source.header, columns, [row[place] for row in rows], column=place, separator=source.separator)


def _of_arrow(table: pa.Table, place: int = 0) -> _Given:
    nested = [pa.types.is_nested(kind) for kind in table.schema.types]
    cells = [None if inner else table.column(number).to_pylist() for number, inner in enumerate(nested)]
    ids = ["" if name is None else str(name) for name in table.column(place).to_pylist()]
    return _Given(table.column_names, cells, ids, table, place)


def _csv(given: _Given, columns: Sequence[str], found: list[tuple[str, ...]]) -> str:
    """The table with the new columns behind the id."""
    kept = [place for place, cells in enumerate(given.cells) if cells is not None]
    behind = 1 + kept.index(given.column)
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=given.separator, lineterminator="\n")
    header = [given.header[place] for place in kept]
    writer.writerow([*header[:behind], *columns, *header[behind:]])
    for row, names in enumerate(found):
        cells = [given.cells[place][row] for place in kept]  # type: ignore[index]
        writer.writerow([*cells[:behind], *names, *cells[behind:]])
    return stream.getvalue()


def _write_parquet(out: Path, given: _Given, columns: Sequence[str], found: list[tuple[str, ...]]) -> None:
    table = given.arrow
    if table is None:
        table = pa.table(given.cells, names=given.header)
    for place, name in enumerate(columns):
        table = table.append_column(name, pa.array([cells[place] for cells in found], pa.string()))
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as draft:
        pq.write_table(table, draft)


def _write(out: Path, text: str, *, suffixes: Sequence[str]) -> None:
    if out.suffix.lower() not in suffixes:
        raise UserError(f"--out {out} is no {suffixes[0]} file.", remedy=f"Give a name that ends in {suffixes[0]}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)


def _json(file: Path, names: Names) -> str:
    """An answer of the service (or lines of them) in which every object with an id has its path."""
    try:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines() if file.suffix.lower() != ".json" else [text]
        answers = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as JSON: {error}.", remedy="Save the service's answer again."
        ) from error
    items = [one for answer in answers for one in _objects(answer) if isinstance(one.get("id"), str)]
    if not items:
        raise UserError(f"{file} holds no object with an 'id'.", remedy="Give an answer that holds ids of items.")
    for item, cells in zip(items, names.cells([item["id"] for item in items]), strict=True):
        item.update(zip(names.columns, cells, strict=True))
    indent = 1 if file.suffix.lower() == ".json" else None
    return "".join(json.dumps(answer, indent=indent, ensure_ascii=False) + "\n" for answer in answers)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _objects(one)
