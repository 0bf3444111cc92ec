"""The list of images that are left out: ids that a person marked, as `lejepa-med outliers` writes them."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from data_adapters.errors import UserError
from data_adapters.tables import Table, count

if TYPE_CHECKING:
    from data_adapters.manifest import Manifest  # it loads torch, which --help does without

MARK = "exclude"
NO = frozenset(("", "no", "n", "0", "false", "keep"))


def read_exclusion(file: Path) -> list[str]:
    """Return the ids of a CSV or Parquet file, sorted; with a column 'exclude' those whose cell there says so.

    Any text but 'no', '0' and 'false' in the column 'exclude' leaves an image out.

    Raises:
        UserError: the file is missing or no table with a column 'id', or no row of it is marked.
    """
    table = Table(file, what="The list of images to exclude", needs=(("id",),))
    is_marked = MARK in table.keys
    ids = {
        row.cells["id"]
        for row in table
        if row.cells["id"] and (not is_marked or row.cells[MARK].strip().lower() not in NO)
    }
    if not ids:
        raise UserError(
            f"{file} marks no image to exclude.",
            remedy="Write yes into the column 'exclude' of the rows that shall be left out, or leave out --exclude."
            if is_marked
            else "Give a file with ids in the column 'id', or leave out --exclude.",
        )
    return sorted(ids)


def without(manifest: "Manifest", ids: Collection[str]) -> "Manifest":
    """Return the rows whose id is not among `ids`.

    Raises:
        UserError: none of them is in the manifest, or all rows are.
    """
    left_out = set(ids)
    names = manifest.column("id")
    kept = [row for row, name in enumerate(names) if name not in left_out]
    check_exclusion(len(names) - len(kept), of=len(names))
    return manifest.select(kept)


def check_exclusion(found: int, *, of: int) -> None:
    """Refuse an exclusion that leaves out nothing or everything. found: rows that it left out, of all.

    Raises:
        UserError: with the remedy.
    """
    if not found:
        raise UserError(
            f"Not one of the {count(of, 'item')} is in the list of images to exclude.",
            remedy="Ids depend on the archive's folder, the files' content and the installation's salt: make the list "
            "with lejepa-med outliers on a table of this archive.",
        )
    if found == of:
        raise UserError(
            "The list of images to exclude leaves nothing.", remedy="Mark fewer rows in its column 'exclude'."
        )
