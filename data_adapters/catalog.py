"""A catalogue: a table with group, label, split and measured values for the files of an archive."""

import dataclasses
import itertools
import json
import os
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_adapters.errors import UserError
from data_adapters.identity import place_id
from data_adapters.record import BY_CATALOG, Record
from data_adapters.tables import FIRST, INVISIBLE, OWN, PARTICIPANT, MissingCells, Row, Table, count

SCHEMA = """
CREATE TABLE rows (
  path TEXT, item TEXT, cells TEXT, number INTEGER, fold TEXT, used TEXT DEFAULT '', PRIMARY KEY (path, item)
) WITHOUT ROWID
"""
# `fold` is NULL where it is the path itself, which is most rows.
FOLDED = "CREATE INDEX folded ON rows (fold) WHERE fold IS NOT NULL"
FIND = "SELECT path, item, cells, number, used FROM rows WHERE path = ? AND item IN (?, '') ORDER BY item = '' LIMIT 1"
FIND_FOLDED = """
SELECT path, item, cells, number, used FROM rows WHERE (path = ? OR fold = ?) AND item IN (?, '') ORDER BY item = ''
"""
PARTICIPANTS = "participants.tsv"  # at the root of a BIDS dataset
NEEDS = (("path", PARTICIPANT),)
"""Columns of which a catalogue has one."""
SMALL = "Unicode form (NFC, NFD), the case of the suffix or '\\' for '/'"
MatchedRow = tuple[str, str, str, int, str]


class Catalog:
    """Rows by path (relative to the catalogue's own folder, to the archive or its parent folder, or absolute).

    Columns: `path` (required), and optionally `item` (a row of an HDF5 file), `group`, `label`, `split`. Every further
    column becomes `meta[column]`: `mpp` for slides, `ra` and `dec` for galaxies. A missing cell gives nothing. How
    tables are read is in `data_adapters.tables`.

    The rows lie in temporary files, not in memory. One thread may use an object.
    """

    def __init__(
        self,
        file: Path,
        *,
        group_column: str | None = None,
        label_column: str | None = None,
        public: bool = False,
    ) -> None:
        """Read `file`.

        Args:
            file: the table; in a BIDS participants.tsv, a row stands for every file of its participant.
            group_column: the column that is the group; None: `group`, and of participants.tsv the participant.
            label_column: the column that is the label; None: `label`.
            public: messages are for clients of the service, so they hold no path and name its parameters.

        Raises:
            UserError: it is missing or no table, lacks a column, or has two different rows for one path.
        """
        self.file = file.resolve()
        self._folder = tidy(str(self.file.parent))
        self._sql = sqlite3.connect("")
        self._sql.execute("PRAGMA journal_mode = OFF")
        self._sql.execute(SCHEMA)
        self._sql.execute(FOLDED)
        self._table = Table(self.file, needs=NEEDS, public=public, group_column=group_column, label_column=label_column)
        self._columns = self._table.keys
        self._participants = self._table.participants
        self.grouped_by = BY_CATALOG
        """The rule by which `apply` finds groups, in words that a scan shows."""
        if "group" in self._table.called:
            self.grouped_by = f"{BY_CATALOG}, column {self._table.called['group']}"
        elif self._participants:
            self.grouped_by = f"{BY_CATALOG}, column {PARTICIPANT}"
        self._others = [name for name in self._columns if name not in (*OWN, PARTICIPANT)]
        self._foreign: list[str] = []  # a sample
        self._prefixes: dict[Path, str | None] = {}
        self._without: list[str] = []  # how the ids of the first items without a row begin
        self._count_without = 0
        self._twins: list[str] = []
        for row in self._table:
            self._add(row)
        self._table.check_numbers(self._others)

    def _add(self, row: Row) -> None:
        text = participant(row.cells[PARTICIPANT]) if self._participants else row.cells["path"]
        path = tidy(text)
        if path.startswith("../"):
            path = tidy(f"{self._folder}/{path}")
        if is_foreign(text) and len(self._foreign) < SAMPLE:
            self._foreign.append(path)
        item = row.cells.get("item", "")
        cells = json.dumps(list(row.cells.values()))
        folded = fold(real(path) if path.startswith("/") else path)
        added = self._sql.execute(
            "INSERT OR IGNORE INTO rows (path, item, cells, number, fold) VALUES (?, ?, ?, ?, ?)",
            (path, item, cells, row.number, folded if folded != path else None),
        )
        if added.rowcount:
            return
        before, number = self._sql.execute(
            "SELECT cells, number FROM rows WHERE path = ? AND item = ?", (path, item)
        ).fetchone()
        if {**self._cells(before), "path": ""} != {**row.cells, "path": ""}:
            which = "one path" if self._table.public else f"the path '{path}'"
            raise UserError(
                f"{self._table.name} has two different rows for {which} (rows {number} and {row.number}).",
                remedy="Keep one row for each file.",
            )

    def _cells(self, cells: str) -> dict[str, str]:
        return dict(zip(self._columns, json.loads(cells), strict=True))

    def __len__(self) -> int:
        return int(self._sql.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    def lookup(self, uri: str, item: str, root: Path) -> Mapping[str, str] | None:
        """The row for a file, or None. A row without an item stands for every item of its file.

        Raises:
            UserError: a row fits two files, or two different rows fit the file, and none of them exactly.
        """
        find = self._find_participant if self._participants else self._find
        found = find(tidy(_text(uri)), item, root)
        if found is None:
            self._count_without += 1
            if len(self._without) < FIRST:
                self._without.append(_id(uri, item, root))
            return None
        path, own, cells, number, used = found
        if used and used != uri and fold(tidy(used)) == fold(tidy(_text(uri))):
            raise UserError(
                f"Row {number} of the catalogue {self.file} fits two files whose names differ only in {SMALL}: "
                f"{used} and {uri}.",
                remedy="Rename one of the files.",
            )
        if not used:
            self._sql.execute("UPDATE rows SET used = ? WHERE path = ? AND item = ?", (_text(uri), path, own))
        return self._cells(cells)

    def _find(self, uri: str, item: str, root: Path) -> MatchedRow | None:
        root = root if root.is_dir() else root.parent
        names = self._names(uri, root)
        for name in names:
            found: MatchedRow | None = self._sql.execute(FIND, (name, item)).fetchone()
            if found is not None:
                return found
        for name, base in names.items():
            folded = fold(name)
            rows: list[MatchedRow] = self._sql.execute(FIND_FOLDED, (folded, folded, item)).fetchall()
            own = [row for row in rows if not self._is_other(row[0], uri, base, root)]
            own = [row for row in own if row[1] == own[0][1]]
            if any({**self._cells(row[2]), "path": ""} != {**self._cells(own[0][2]), "path": ""} for row in own):
                raise UserError(
                    f"The catalogue {self.file} has different rows for the file {uri}, and none is spelled exactly "
                    f"like it (rows {', '.join(str(row[3]) for row in own)}).",
                    remedy="Keep one row for each file.",
                )
            for row in own[1:]:
                self._sql.execute("UPDATE rows SET used = ? WHERE path = ? AND item = ?", (uri, row[0], row[1]))
            if own:
                return own[0]
        return None

    def _find_participant(self, uri: str, item: str, root: Path) -> MatchedRow | None:
        base = tidy(str(root if root.is_dir() else root.parent))
        for name in subjects(uri.removeprefix(base.rstrip("/") + "/")):
            found: MatchedRow | None = self._sql.execute(FIND, (name, item)).fetchone()
            if found is not None:
                return found
        return None

    def _names(self, uri: str, root: Path) -> dict[str, str]:
        """How rows may name a file, each with the folder that it is relative to ("" for absolute ones)."""
        base = tidy(str(root))
        names = {uri: "", real(uri): ""}
        for folder in (self._folder, base):
            if uri.startswith(folder.rstrip("/") + "/"):
                names.setdefault(uri[len(folder.rstrip("/")) + 1 :], folder)
        if uri.startswith(base + "/"):
            names.setdefault(f"{base.rpartition('/')[2]}/{uri[len(base) + 1 :]}", base.rpartition("/")[0])
            if self._foreign:
                prefix = self._prefix(root)
                if prefix is not None:
                    names[f"{prefix}/{uri[len(base) + 1 :]}"] = base
        return {name.strip(INVISIBLE): folder for name, folder in names.items()}

    def _prefix(self, root: Path) -> str | None:
        if root not in self._prefixes:
            self._prefixes[root] = prefix_of(self._foreign, on_disk(root))
        return self._prefixes[root]

    def _is_other(self, path: str, uri: str, base: str, root: Path) -> bool:
        """Whether a row that fits a file but for its spelling names another file, exactly."""
        if is_foreign(path):
            path, base = path[len(self._prefix(root) or "") + 1 :], tidy(str(root))
        file = Path(path) if path.startswith("/") else Path(f"{base}/{path}")
        try:
            other = file.exists() and not file.samefile(uri)
        except OSError:
            return False
        if other and len(self._twins) < FIRST:
            self._twins.append(_id(uri, "", root))
        return other

    def apply(self, record: Record, root: Path) -> Record:
        """`record` with the catalogue's values; a record without a row comes back as it is."""
        row = self.lookup(record.uri, record.item, root)
        if row is None:
            return record
        extra: dict[str, Any] = {k: self._table.value(k, row[k]) for k in self._others if row[k]}
        group = self._table.class_name("group", row.get("group", ""))
        if self._participants and "group" not in self._table.called:  # a column of this name is a diagnosis in BIDS
            group = participant(row[PARTICIPANT])
        return dataclasses.replace(
            record,
            group=group or record.group,
            grouped_by=self.grouped_by if group else record.grouped_by,
            label=self._table.class_name("label", row.get("label", "")) or record.label,
            split=row.get("split") or record.split,
            meta={**record.meta, **extra},
        )

    def unused(self) -> list[str]:
        """Paths of rows that no file of the archive matched."""
        return [path for (path,) in self._sql.execute("SELECT DISTINCT path FROM rows WHERE used = '' ORDER BY path")]

    def unused_rows(self) -> int:
        """How many rows no file of the archive matched."""
        return int(self._sql.execute("SELECT COUNT(*) FROM rows WHERE used = ''").fetchone()[0])

    def first_unused(self) -> list[tuple[int, str]]:
        """Numbers in the file, and paths, of the first rows that no file of the archive matched."""
        sql = "SELECT number, path FROM rows WHERE used = '' ORDER BY number LIMIT ?"
        return list(self._sql.execute(sql, (FIRST,)))

    @property
    def missing(self) -> MissingCells:
        """Cells that were taken as missing."""
        return self._table.missing

    @property
    def without_row(self) -> int:
        """How many items were looked up and have no row."""
        return self._count_without

    def group_note(self) -> str | None:
        """What `notes` says of a column that looks like the group and is not used; None where there is none."""
        return self._table.group_note()

    def notes(self) -> list[str]:
        """What a user must hear after a scan, in sentences: rows without files, files without rows, missing cells."""
        found = []
        if (likely := self.group_note()) is not None:
            found.append(likely)
        unused, total = self.unused_rows(), len(self)
        if unused:
            # By number, not by path: what a command prints may be shared, and the table is at hand.
            some = ", ".join(f"row {number}" for number, _ in self.first_unused())
            where = "paths are relative to the archive or to the table"
            if self._participants:
                where = "a participant's files have sub-XX in the name of a folder or file"
            found.append(
                f"{unused:,} of {count(total, 'row', 'matches')} no readable file; {where}. "
                f"The first: {some} of {self.file.name}"
            )
        if self._count_without:
            some = ", ".join(self._without)
            items = count(self._count_without, "item", "has")
            found.append(f"{items} no row. The first (their ids in the manifest begin so): {some}")
        if self._twins:
            found.append(
                f"another file's name differs only in {SMALL}, and the row is spelled like that one, so these have "
                f"none (their ids in the manifest begin so): {', '.join(self._twins)}"
            )
        for prefix in self._prefixes.values():
            found.append(
                "no Windows path of the table names a file of the archive"
                if prefix is None
                else "the folder in which Windows paths of the table begin is taken as the archive's"
            )
        return [*found, *self.missing.notes()]


def participants_of(archive: Path) -> Path | None:
    """The participants.tsv of a BIDS dataset at `archive`, or None."""
    file = archive / PARTICIPANTS
    return file if file.is_file() else None


def _id(uri: str, item: str, root: Path) -> str:
    """How the manifest's id of an item begins: what a command prints may be shared, so it holds no names."""
    base = root if root.is_dir() else root.parent
    path = Path(uri).relative_to(base).as_posix() if Path(uri).is_relative_to(base) else uri
    return place_id(_text(path), item)


def _text(name: str) -> str:
    """A file name as a UTF-8 table could hold it: one that is not UTF-8 matches no row."""
    return name.encode("utf-8", "backslashreplace").decode()


FOREIGN = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\/]")  # a drive, or a Windows share
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_|$)")
PACKED = ("gz", "bz2", "xz", "fz", "zst")
SPELLINGS = 64  # at most as many ways to write one path are tried
SAMPLE = 256  # rows by which the folder of foreign paths is found


def is_foreign(path: str) -> bool:
    """Whether a path names a Windows drive or share, on a machine that has none."""
    return os.sep == "/" and bool(FOREIGN.match(path))


def tidy(path: str) -> str:
    r"""A path with '/' between its parts, without '.', and with '..' only at its start."""
    head = "//" if path.startswith("\\\\") else "/" if path[:1] in ("/", "\\") else ""
    parts: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        if part == ".." and (head or parts) and parts[-1:] != [".."]:
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return head + "/".join(parts)


def participant(name: str) -> str:
    """A participant as BIDS names the folder: sub-01 for 01 and for sub-01; empty for an empty name."""
    return name if not name or name.startswith("sub-") else f"sub-{name}"


def subjects(path: str) -> list[str]:
    """The BIDS subjects that a path names, the folders from the root on, then the file: sub-01 in sub-01/anat/x.nii."""
    return [found[1] for found in map(SUBJECT.match, path.split("/")) if found]


def fold(path: str) -> str:
    """A tidy path as it is compared when nothing fits exactly: in NFC, the suffix in lower case."""
    stem, suffix = _suffix(unicodedata.normalize("NFC", path))
    return stem + suffix.lower()


def spellings(path: str) -> Iterator[str]:
    """A tidy path and all the others, as far as they are usual, that `fold` to the same."""
    stem, suffix = _suffix(path)
    parts = [_forms(part) for part in stem.split("/")]
    if _count(parts) > SPELLINGS:
        parts = [[stem], *([[unicodedata.normalize(form, stem)] for form in ("NFC", "NFD")])]
        stems = list(dict.fromkeys(one for (one,) in parts))
    else:
        stems = ["/".join(chosen) for chosen in itertools.product(*parts)]
    seen = {}
    for ending in (suffix, suffix.lower(), suffix.upper()):
        for one in stems:
            seen[one + ending] = True
    yield from seen


def _forms(part: str) -> list[str]:
    return list(dict.fromkeys([part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]))


def _count(parts: Iterable[list[str]]) -> int:
    total = 1
    for forms in parts:
        total *= len(forms)
    return total


def _suffix(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    if not stem:
        return path, ""
    if ending.lower() in PACKED and "." in stem.strip("."):
        stem, dot, inner = stem.rpartition(".")
        ending = f"{inner}.{ending}"
    return folder + slash + stem, dot + ending


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def real(path: str) -> str:
    """An absolute tidy path whose folder is named without links."""
    folder, _, name = path.rpartition("/")
    return f"{tidy(_real(folder))}/{name}" if folder else path


def prefix_of(paths: Iterable[str], has: Callable[[str], bool]) -> str | None:
    """The folder that foreign tidy paths have in place of the archive's, by what of them lies in the archive.

    Args:
        paths: some of them.
        has: whether a path below the archive is there.
    """
    found: Counter[str] = Counter()
    for path in paths:
        parts = path.split("/")
        for place in range(1, len(parts)):
            rest = "/".join(parts[place:])
            if rest and parts[place] and has(rest):
                found["/".join(parts[:place])] += 1
                break
    return found.most_common(1)[0][0] if found else None


def on_disk(root: Path) -> Callable[[str], bool]:
    """Whether a path below `root` is there, in one of its spellings."""
    return lambda rest: any((root / one).exists() for one in spellings(rest))


def below(path: str, *, root: Path, folder: Path) -> list[str]:
    """Tidy paths below `root` that a table's path can mean, the likely one first.

    Args:
        path: as it stands in the table, not foreign.
        root: the archive's folder.
        folder: the table's folder.
    """
    given = tidy(path)
    roots = list(dict.fromkeys(tidy(str(one)) for one in (Path(os.path.abspath(root)), root.resolve())))
    absolute = os.path.isabs(given) or bool(FOREIGN.match(given))
    whole = given if absolute else tidy(f"{os.path.abspath(folder)}/{given}")
    found = []
    for one, base in itertools.product(dict.fromkeys((whole, real(whole))), roots):
        if one.startswith(base.rstrip("/") + "/"):
            found.append(one[len(base.rstrip("/")) + 1 :])
    if not absolute and not given.startswith("../"):
        found.append(given)
        name = roots[-1].rpartition("/")[2]
        if name and given.startswith(name + "/"):
            found.append(given[len(name) + 1 :])
    return list(dict.fromkeys(found))
