"""The files of an archive, in one order for every scan."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Files that accompany an archive and are no images; scan passes over them without a word.
SIDECARS = (".json", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".parquet", ".bval", ".bvec", ".xml", ".log")


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
            entries = [(e.name + "/" if e.is_dir() else e.name, e) for e in found if not e.name.startswith(".")]
    except OSError:
        if closed is not None:
            closed(root)
        return
    # a folder sorts as its name with "/", as it does in the paths of its files
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
        if name.endswith("/"):
            if not entry.is_symlink():
                yield from walk(Path(root, entry.name), closed=closed)
        elif not name.lower().endswith(SIDECARS):
            yield Path(root, name)


class Files:
    """The files below `root`, as `walk` gives them; to be gone through any number of times without being kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __iter__(self) -> Iterator[Path]:
        return walk(self.root)
