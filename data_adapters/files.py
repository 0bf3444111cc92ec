"""The files of an archive, in one order for every scan."""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from data_adapters.errors import BadFileError
from data_adapters.record import Rejected

Found = TypeVar("Found")

# Files that accompany an archive and are no images; scan counts them and passes over them.
SIDECARS = (".json", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".parquet", ".bval", ".bvec", ".xml", ".log")
# What operating systems, version control and our own scan leave beside images; counted, too.
SYSTEM = (".ds_store", "thumbs.db", "desktop.ini", ".git", ".gitattributes", ".gitignore", ".gitmodules", ".datalad",
          ".bidsignore", ".scan")  # fmt: skip
APPLE_DOUBLE = "._"  # macOS keeps a file's further attributes under its name after this

HELD = 1 << 16  # names of one folder that are sorted in memory: some 4 MiB
MOST_LINKS = 8  # linked folders inside of each other; more are a maze in which a walk would not end

CLOSED = (
    "folder that cannot be listed",
    "Get read permission for this folder, as its owner with: chmod -R u+rX FOLDER",
)
BROKEN = ("link whose target is missing", "Mount or restore what it points to, or remove the link.")
ANNEX = (
    "file whose content was not fetched (git-annex, DataLad)",
    "Fetch it in the archive's folder: datalad get . (or git annex get .)",
)
UNREACHABLE = ("link that cannot be followed", "Point it to a file or folder that you may read, or remove it.")
LOOP = (
    "link to a folder that holds it",
    "Remove the link. The folder's own files are read where they lie, so none is lost.",
)
ABOVE = (
    "link to a folder that holds the archive",
    "Link to the folders in it that you want, or scan it as the archive.",
)
MAZE = (f"more than {MOST_LINKS} linked folders inside of each other", "Link to the last folder directly.")
OUTSIDE = ("a link to a place outside of the archives", "Put the file itself there.")
SPECIAL = ("a pipe, socket or device, not a file", "Remove it from the archive, or save what it gives as a file.")
HIDDEN_FILE = ("hidden file (its name begins with a dot)", "Rename it without the dot if it is an image.")
HIDDEN_FOLDER = ("hidden folder (its name begins with a dot)", "Rename it without the dot if it holds images.")


@dataclass(frozen=True)
class _Walk:
    """What holds for a whole walk; see `walk`. `outer`: device and inode of the folders that hold the archive."""

    outer: frozenset[tuple[int, int]]
    inside: Path | None
    left_out: Callable[[Rejected], None]
    passed: Counter[str]

    def below(self, folder: Path, above: tuple[tuple[int, int], ...], links: int) -> Iterator[Path]:
        """The files in `folder`. `above`: device and inode of the folders that hold it; `links`: how many are links."""
        try:
            here = os.stat(folder)
            known = (*above, (here.st_dev, here.st_ino))
            with os.scandir(folder) as found:
                # a folder sorts as its name with "/", as it does in the paths of its files
                names = _in_order(
                    os.fsencode(entry.name) + b"/" * is_folder
                    for entry in found
                    if (is_folder := self._kind(entry, known, links)) is not None
                )
        except OSError:
            self._leave(folder, CLOSED)
            return
        for name in map(os.fsdecode, names):
            path = Path(folder, name)
            if name.endswith("/"):
                yield from self.below(path, known, links + path.is_symlink())
            else:
                yield path

    def _kind(self, entry: "os.DirEntry[str]", above: tuple[tuple[int, int], ...], links: int) -> bool | None:
        """True for a folder to walk through, False for a file to read; None for what is passed over, which is told."""
        name = entry.name.lower()
        if name in SYSTEM or name.startswith(APPLE_DOUBLE):
            self.passed["system files"] += 1
            return None
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
            cause = self._astray(entry.path, above, links, is_folder=is_folder) if entry.is_symlink() else None
        except (OSError, RuntimeError):  # a link to itself, or into a folder that is closed
            is_folder, is_file, cause = False, False, UNREACHABLE
        if not is_folder and name.endswith(SIDECARS):
            self.passed[os.path.splitext(name)[1]] += 1
            return None
        if cause is None and name.startswith("."):
            cause = HIDDEN_FOLDER if is_folder else HIDDEN_FILE
        if cause is None and not (is_folder or is_file):
            cause = SPECIAL
        if cause is not None:
            self._leave(entry.path, cause)
            return None
        return is_folder

    def _astray(
        self, path: str, above: tuple[tuple[int, int], ...], links: int, *, is_folder: bool
    ) -> tuple[str, str] | None:
        """Why a link is not followed, or None."""
        try:
            target = os.stat(path)
        except FileNotFoundError:
            return ANNEX if ".git/annex/" in os.readlink(path).replace(os.sep, "/") else BROKEN
        if self.inside is not None and not Path(os.path.realpath(path)).is_relative_to(self.inside):
            return OUTSIDE
        if is_folder and (target.st_dev, target.st_ino) in self.outer:
            return ABOVE
        if is_folder and (target.st_dev, target.st_ino) in above:
            return LOOP
        return MAZE if is_folder and links >= MOST_LINKS else None

    def _leave(self, path: str | Path, cause: tuple[str, str]) -> None:
        reason, remedy = cause
        self.left_out(Rejected(uri=str(path), reason=reason, remedy=remedy))


def walk(
    root: Path,
    *,
    inside: Path | None = None,
    left_out: Callable[[Rejected], None] | None = None,
    passed: Counter[str] | None = None,
) -> Iterator[Path]:
    """Files below `root` in the order of their relative paths as text; a file yields itself.

    Links are followed, also to folders: files have the path by which the walk came to them. A link to a folder that
    holds it is not, so that every walk ends.

    Args:
        root: a folder or a file.
        inside: folder that no link may lead out of, links in its own path resolved.
        left_out: gets everything else that is there: broken links and loops, hidden, closed and special ones.
        passed: counts sidecars by suffix, and system files; `left_out` gets neither.
    """
    if root.is_file():
        yield root
        return
    stats = [folder.stat() for folder in root.resolve().parents if folder.is_dir()]  # `root` may lie nowhere
    outer = frozenset((known.st_dev, known.st_ino) for known in stats)
    rules = _Walk(outer, inside, left_out or (lambda one: None), Counter() if passed is None else passed)
    yield from rules.below(root, (), 0)


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
        BadFileError: an empty file, a pointer of git-annex or Git LFS, or a macOS resource file.
        OSError: there is nothing, or it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    if size == 0:
        raise BadFileError("an empty file (0 bytes)", remedy="Copy the file again from its source.")
    if head.startswith(b"version https://git-lfs.") or b"/annex/objects/" in head:
        raise BadFileError(
            "a placeholder of git-annex or Git LFS without the content",
            remedy="Fetch the content with git annex get, datalad get or git lfs pull.",
        )
    if head.startswith(b"\x00\x05\x16\x07"):
        raise BadFileError("a macOS resource file (AppleDouble), no image", remedy="Delete it: run dot_clean FOLDER.")


class Files:
    """The files below `root`, as `walk` gives them, and how they are read.

    Iterate any number of times: no path is kept.
    """

    def __init__(
        self,
        root: Path,
        *,
        inside: Path | None = None,
        originals: Mapping[Path, Path] | None = None,
        each: Callable[..., Iterator[Any]] | None = None,
    ) -> None:
        """Describe the files of a scan.

        Args:
            root: the archive's folder, or one file.
            inside: folder that no link may lead out of, links in its own path resolved.
            originals: copied file -> its path in the archive that it was copied from; groups follow that one.
            each: how `each` works; None: in this process, without memory of earlier scans.
        """
        self.root, self.inside, self.originals, self._each = root, inside, originals or {}, each

    def __iter__(self) -> Iterator[Path]:
        return walk(self.root, inside=self.inside)

    def each(self, function: Callable[..., Found], paths: Iterable[Path], *arguments: Any) -> Iterator[Found]:
        """Yield `function(path, *arguments)` for every path, in order; a scan does this in several processes.

        `function` is a method of the adapter that depends on nothing but that file, its `companions` and the arguments
        (strings, numbers, paths), because a repeated scan remembers its result for an unchanged file. It returns a
        dataclass or a list of them, as its annotation says. A file whose reader crashed gives a list with one Rejected.
        """
        if self._each is not None:
            return self._each(function, paths, *arguments)
        return (function(path, *arguments) for path in paths)
