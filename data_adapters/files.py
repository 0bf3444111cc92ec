"""The files of an archive, in one order for every scan."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from data_adapters.errors import BadFileError

# Files that accompany an archive and are no images; scan passes over them without a word.
SIDECARS = (".json", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".parquet", ".bval", ".bvec", ".xml", ".log")

HELD = 1 << 16  # names of one folder that are sorted in memory: some 4 MiB


def walk(root: Path, *, closed: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Files below `root` in the order of their relative paths as text, without sidecars; a file yields itself.

    Hidden files and folders (leading dot) are passed over, links to folders are not followed. `closed` is told of
    folders that cannot be listed.
    """
    if root.is_file():
        yield root
        return
    try:
        with os.scandir(root) as found:
            # a folder sorts as its name with "/", as it does in the paths of its files
            names = _in_order(
                os.fsencode(entry.name) + b"/" * entry.is_dir()
                for entry in found
                if not (entry.name.startswith(".") or (entry.is_symlink() and entry.is_dir()))
            )
    except OSError:
        if closed is not None:
            closed(root)
        return
    for name in map(os.fsdecode, names):
        if name.endswith("/"):
            yield from walk(Path(root, name), closed=closed)
        elif not name.lower().endswith(SIDECARS):
            yield Path(root, name)


def _in_order(names: Iterable[bytes]) -> Iterable[bytes]:
    """`names` sorted; where they are very many, on disk, so that one folder may hold a million files."""
    names = iter(names)
    held = list(islice(names, HELD))
    if len(held) < HELD:
        return sorted(held)
    disk = sqlite3.connect("")  # a private database in temporary files
    disk.execute("PRAGMA journal_mode = OFF")
    disk.execute("CREATE TABLE names (name BLOB)")
    disk.executemany("INSERT INTO names VALUES (?)", ((name,) for name in chain(held, names)))
    return (name for (name,) in disk.execute("SELECT name FROM names ORDER BY name"))


def check_content(path: Path) -> None:
    """Refuse what stands in the place of a file's content, so that no reader calls it damaged.

    Raises:
        BadFileError: a link to nothing, an empty file, a pointer of git-annex or Git LFS, or a macOS resource file.
        FileNotFoundError: there is nothing at all.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(64)
    except (OSError, RuntimeError) as error:  # of links in a ring, either
        if path.is_symlink() and not path.exists():
            raise BadFileError("a link whose target is missing", remedy=_FETCH + ", or correct the link.") from error
        raise
    if size == 0:
        raise BadFileError("an empty file (0 bytes)", remedy="Copy the file again from its source.")
    if head.startswith(b"version https://git-lfs.") or b"/annex/objects/" in head:
        raise BadFileError("a placeholder of git-annex or Git LFS without the content", remedy=_FETCH + ".")
    if head.startswith(b"\x00\x05\x16\x07"):
        raise BadFileError("a macOS resource file (AppleDouble), no image", remedy="Delete it: run dot_clean FOLDER.")


_FETCH = "Fetch the content with git annex get, datalad get or git lfs pull"


class Files:
    """The files below `root`, as `walk` gives them; to be gone through any number of times without being kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __iter__(self) -> Iterator[Path]:
        return walk(self.root)
