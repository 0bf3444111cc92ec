"""The rule for groups by folder, one for every modality: what applies to items of which only their place is known.

Items that share the first folder in which the archive's paths differ are one group. Folders named train, val or test
above it do not count. An item in no such folder is a group of its own.

Too fine a group leaks a patient into both sides of a split, and nothing shows it; too coarse a group costs folds, and
a scan says so. So the outermost folder is taken, and the user says where it is a class or a site: with the option
`group_by`, the same in every modality.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby, takewhile
from pathlib import Path

from data_adapters.record import BY_FILE, BY_FOLDER, BY_ROW, Record

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "holdout"))


class Places:
    """Groups of an archive's items by where they lie."""

    def __init__(self, paths: Iterable[Path], root: Path, *, group_by: str, suffixes: tuple[str, ...]) -> None:
        """Find the level of the folders that are groups.

        Args:
            paths: the archive's files, read once, and only for `group_by` = "folder".
            root: the archive's folder, or one file.
            group_by: "folder": by the first level at which the paths differ; "folder:N": by the Nth folder of each path
                below `root`, or the last one of a shorter path; "file": each item by itself.
            suffixes: of the modality, as a file's name in groups has none.
        """
        self._root = root if root.is_dir() else root.parent
        self._suffixes = suffixes
        by, _, level = group_by.partition(":")
        self._is_chosen = bool(level)
        self._level = 0
        if by == "folder":
            self._level = int(level) if level else _level(paths, self._root, suffixes)

    def settle(self, record: Record) -> Record:
        """A record with a group as it is, another one with its group and the rule that found it."""
        if record.group:
            return record
        path = Path(record.uri)
        inside = path.relative_to(self._root) if path.is_relative_to(self._root) else Path(path.name)
        folders = inside.parent.parts
        level = min(self._level, len(folders)) if self._is_chosen else self._level
        if 0 < level <= len(folders):
            # By its name and not by its path: one case may lie in two classes, one field in two nights.
            return replace(record, group=folders[level - 1], grouped_by=f"{BY_FOLDER}:{self._level}")
        own = inside.with_name(stem(inside.name, self._suffixes)).as_posix()
        if record.item:
            return replace(record, group=f"{own}-{record.item}", grouped_by=BY_ROW)
        return replace(record, group=own, grouped_by=BY_FILE)


def stem(name: str, suffixes: tuple[str, ...]) -> str:
    """A file's name without the longest of `suffixes` that it has; a dot before that is part of the name."""
    known = max((len(suffix) for suffix in suffixes if name.lower().endswith(suffix)), default=0)
    return name[: len(name) - known] or name


def _level(paths: Iterable[Path], root: Path, suffixes: tuple[str, ...]) -> int:
    """The first level at which folders of images differ, counted from 1 below `root`; names of splits do not count.

    Reads `paths` once and keeps none, as there may be millions.
    """
    images = (path for path in paths if path.name.lower().endswith(suffixes) or not path.suffix)
    shared: tuple[str, ...] | None = None  # by all folders
    above: tuple[str, ...] | None = None  # the folder in which all splits lie
    below: tuple[str, ...] | None = None  # what is shared by all folders in the splits
    in_splits = True
    for parent, _ in groupby(path.parent for path in images):
        folders = parent.relative_to(root).parts if parent.is_relative_to(root) else ()
        shared = _common(shared, folders)
        at = next((number for number, name in enumerate(folders) if name.casefold() in SPLITS), None)
        in_splits = in_splits and at is not None and above in (None, folders[:at])
        if in_splits and at is not None:
            above = folders[:at]
            below = _common(below, folders[at + 1 :])
    if in_splits and above is not None and below is not None and shared == above:
        return len(above) + 1 + len(below) + 1
    return len(shared or ()) + 1


def _common(known: tuple[str, ...] | None, folders: tuple[str, ...]) -> tuple[str, ...]:
    if known is None:
        return folders
    return tuple(name for name, _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, folders, strict=False)))
