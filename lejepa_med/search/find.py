"""The items of an embedding table that are nearest to images, or to items of the table: `lejepa-med search`."""

import csv
import io
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_adapters.catalog import Catalog
from data_adapters.record import BY_FILE, BY_FOLDER, BY_ROW
from data_adapters.scan import scan_archive
from data_adapters.tables import count
from lejepa_med.errors import UserError
from lejepa_med.models.embed import cautions_of, embed_records, read_info
from lejepa_med.models.folder import LoadedEncoder, load_encoder
from lejepa_med.probes.names import Names
from lejepa_med.search.base import NONE, Base, build_base, normalised
from lejepa_med.search.conditions import is_number
from lejepa_med.search.filters import Condition

Tell = Callable[[str], None]
WHERE = re.compile(r"\s*([^=<>!]*[^=<>!\s])\s*(!=|>=|<=|=)\s*(.*)", re.DOTALL)
FORMS = "COLUMN=VALUE, COLUMN=A,B (one of them), COLUMN!=VALUE, COLUMN>=NUMBER or COLUMN<=NUMBER"


@dataclass(frozen=True)
class Item:
    """A query: the item whose neighbours are wanted.

    Attributes:
        name: as it was asked for.
        vector: (dim,) float32 of length 1.
        row: its own row in the table, or NONE.
        group: its group as tables have it; empty where it is not known.
    """

    name: str
    vector: np.ndarray
    row: int = NONE
    group: str = ""


@dataclass(frozen=True)
class Neighbours:
    """The result as a table: one row for each neighbour, in the order of the queries, the nearest first."""

    header: list[str]
    rows: list[list[str]]

    def as_csv(self) -> str:
        """The table as CSV."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return stream.getvalue()

    def as_text(self) -> str:
        """The table for a person: a block for each query, in columns, nothing cut off."""
        blocks = []
        for name in dict.fromkeys(row[0] for row in self.rows):
            lines = [self.header[1:], *(row[1:] for row in self.rows if row[0] == name)]
            wide = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
            shown = ("  ".join(map(str.ljust, line, wide)).rstrip() for line in lines)
            blocks.append("\n".join([f"nearest to {name}", *shown]))
        return "\n\n".join(blocks) + "\n"


def find_neighbours(
    queries: Sequence[str],
    table: Path,
    *,
    encoder: Path | None = None,
    k: int = 10,
    where: Sequence[str] = (),
    leave_out_own_group: bool = False,
    names: Names | None = None,
    catalog: Path | None = None,
    device: str = "cpu",
    tell: Tell,
) -> Neighbours:
    """Find the k items of `table` with the largest cosine to each query.

    Args:
        queries: ids of the table, files or folders that `encoder` embeds, or with `names` paths below the archive.
        table: folder of `lejepa-med embed`.
        encoder: the run folder of the encoder that made the table; needed for files.
        k: neighbours of each query, at most.
        where: conditions that a neighbour must meet, as `FORMS` lists them.
        leave_out_own_group: no neighbours of the query's own patient, slide or field.
        names: adds path (and item) of each neighbour.
        catalog: facts of the files, such as mpp, by path.
        device: of the encoder.
        tell: called with what a user must hear.

    Raises:
        UserError: a query is neither a file nor an id of the table, or a file cannot be read; the encoder is another
            one than the table's; a condition does not fit the table; nothing meets the conditions.
    """
    info = read_info(table)
    loaded = None if encoder is None else _load(encoder, table, info, device=device)
    # The search's own form of the table: written and mapped, so that memory does not grow with the table.
    with tempfile.TemporaryDirectory(prefix="lejepa-search-") as folder:
        try:
            build_base(table, Path(folder) / "base")
        except ValueError as error:
            raise UserError(
                f"{table} cannot be searched: {error}.", remedy="Embed the archive again into another folder."
            ) from error
        base = Base(Path(folder) / "base")
        conditions = [condition for text in where for condition in _conditions(text, base.columns)]
        rows = np.flatnonzero(base.meets(conditions)) if conditions else None
        if rows is not None and not len(rows):
            raise UserError(
                f"Not one of the {count(base.rows, 'item')} meets all conditions (--where).",
                remedy="Loosen them. What the table holds is printed by: lejepa-med names TABLE --scan SCAN",
            )
        items = [item for text in queries for item in _items(text, base, info, loaded, names, catalog, tell)]
        found = base.nearest(
            np.stack([item.vector for item in items]),
            k,
            rows=rows,
            own_rows=np.array([item.row for item in items], np.int64),
            own_groups=_own_groups(items, base, tell) if leave_out_own_group else np.full(len(items), NONE, np.int64),
        )
        return _table(items, found, base, names, tell)


def _load(run: Path, table: Path, info: Mapping[str, object], *, device: str) -> LoadedEncoder:
    loaded = load_encoder(run, device=device)
    if loaded.fingerprint != info["encoder"]:
        raise UserError(
            f"{table} holds the vectors of another encoder ('{info['encoder_name']}') than {run}, and vectors of two "
            "encoders cannot be compared.",
            remedy="Give the table's own encoder as --encoder, or embed the archive with this one: "
            "lejepa-med embed RUN ARCHIVE --out FOLDER.",
        )
    return loaded


def _items(
    text: str,
    base: Base,
    info: Mapping[str, object],
    loaded: LoadedEncoder | None,
    names: Names | None,
    catalog: Path | None,
    tell: Tell,
) -> Iterator[Item]:
    """Resolve one query: an item of the table by its id or its name, else the items of a file or folder."""
    ids = [text] if base.rows_of([text])[0] is not None else names.ids_of(text) if names is not None else []
    rows = [(name, row) for name, row in zip(ids, base.rows_of(ids), strict=True) if row is not None]
    if rows:
        for name, row in rows:
            called = text if len(rows) == 1 else f"{text} ({name})"
            yield Item(called, np.array(base.vectors[row]), row, base.table["group"][row].as_py())
        return
    file = Path(text)
    if not file.exists():
        raise UserError(
            f"{text} is neither a file nor an id of the table.",
            remedy="Give an image file, or an id: lejepa-med names TABLE --scan SCAN prints ids and paths. With "
            "--names SCAN a path below the archive is a query, too.",
        )
    if loaded is None:
        raise UserError(
            f"{text} is a file, and nothing says which encoder is to embed it.",
            remedy=f"Give the run folder of the table's encoder ('{info['encoder_name']}'): --encoder RUN.",
        )
    yield from _embedded(file, loaded, catalog, tell)


def _embedded(file: Path, loaded: LoadedEncoder, catalog: Path | None, tell: Tell) -> Iterator[Item]:
    """Embed the items of a file or folder as `lejepa-med embed` does."""
    found = scan_archive(loaded.adapter, file, catalog=None if catalog is None else Catalog(catalog))
    for refused in found.refused if len(found) else ():
        tell(f"{refused.uri} is left out: {refused.reason}. {refused.remedy}")
    if not len(found):
        if not found.refused:
            raise UserError(f"{file} holds no files.", remedy="Give an image file.")
        first = found.refused[0]
        raise UserError(f"{first.uri} cannot be embedded: {first.reason}.", remedy=first.remedy)
    manifest = found.manifest
    for caution in cautions_of(loaded.adapter, manifest.records()):
        tell(f"{caution}.")
    # a file alone has no place in the archive, so only what it says itself tells its group
    places = (BY_FILE, BY_ROW, BY_FOLDER)
    is_known = not any(one.rule.partition(":")[0] in places for one in found.grouping())
    paths, inside, groups = (manifest.column(name) for name in ("path", "item", "group"))
    for feature in embed_records(loaded, manifest.records()):
        place = feature.index
        name = str(file / paths[place]) if file.is_dir() else str(file)
        name += f" item {inside[place]}" if inside[place] and len(manifest) > 1 else ""
        if feature.vector is None:
            raise UserError(
                f"{name} cannot be embedded: {feature.error}.", remedy="Leave it out, or export the file again."
            )
        yield Item(name, normalised(feature.vector[None])[0], group=groups[place] if is_known else "")


def _own_groups(items: Sequence[Item], base: Base, tell: Tell) -> np.ndarray:
    codes = base.codes_of([item.group for item in items])
    for item in items:
        if item.group not in codes:
            tell(f"The table does not have the group of {item.name}, so --leave-out-own-group leaves out none there.")
    return np.array([codes.get(item.group, NONE) for item in items], np.int64)


def _table(
    items: Sequence[Item], found: Sequence[np.ndarray], base: Base, names: Names | None, tell: Tell
) -> Neighbours:
    kept = [name for name in base.columns if name != "label" or base.table[name].null_count < base.rows]
    header = ["query", "rank", "score", "id", *kept, "group"]
    rows, ids = [], []
    for item, places in zip(items, found, strict=True):
        scores = base.vectors[places] @ item.vector
        if not len(places):
            tell(f"{item.name} has no neighbours: nothing but itself or its group meets the conditions.")
        for rank, (place, score) in enumerate(zip(places, scores, strict=True), 1):
            row = base.table.slice(int(place), 1).to_pylist()[0]
            ids.append(row["id"])
            cells = [row[name] for name in ("id", *kept, "group")]
            rows.append([item.name, str(rank), f"{score:.4f}", *("" if cell is None else str(cell) for cell in cells)])
    if names is not None:
        behind = header.index("id") + 1
        header[behind:behind] = names.columns
        for row, added in zip(rows, names.cells(ids), strict=True):
            row[behind:behind] = added
    return Neighbours(header, rows)


def _conditions(text: str, columns: Mapping[str, pa.DataType]) -> list[Condition]:
    """Parse one --where.

    Raises:
        UserError: it says nothing, names no column of the table, or a value of another kind than the column's.
    """
    parts = WHERE.fullmatch(text)
    if parts is None:
        raise UserError(f"--where {text} is no condition.", remedy=f"Give {FORMS}.")
    name, sign, value = parts.groups()
    known = {"group": pa.string(), **columns}
    if name not in known:
        raise UserError(
            f"--where {text}: the table has no column '{name}'.",
            remedy=f"It has: {', '.join(known)}. lejepa-med embed --columns puts further ones into a new table.",
        )
    kind = known[name]
    if sign in (">=", "<="):
        if not is_number(kind):
            raise UserError(
                f"--where {text}: the column '{name}' holds no numbers, so it has no {sign}.",
                remedy="Give COLUMN=VALUE or COLUMN!=VALUE.",
            )
        return [Condition.model_validate({"column": name, {">=": "min", "<=": "max"}[sign]: _value(value, kind, text)})]
    values = [_value(one.strip(), kind, text) for one in value.split(",")]
    return [Condition.model_validate({"column": name, "in" if sign == "=" else "not_in": values})]


def _value(text: str, kind: pa.DataType, where: str) -> bool | int | float | str:
    """Convert a value to the type of the column."""
    if pa.types.is_string(kind):
        return text
    try:
        if pa.types.is_boolean(kind):
            return {"true": True, "false": False}[text.lower()]
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)  # a float does not hold the whole numbers of 64 bits
        number = float(text)
    except (ValueError, KeyError):
        number = float("nan")
    if not np.isfinite(number):
        what = "numbers" if is_number(kind) else "true and false"
        raise UserError(
            f"--where {where}: '{text}' does not fit the column, which holds {what}.", remedy=f"Give {FORMS}."
        )
    return number
