"""Which patient a file belongs to, where no catalogue says so.

The rule, in order: the BIDS entity `sub-XX` in the path; the DICOM PatientID (unless it is one that de-identifiers
write for everybody); the first folder below the one that holds all files; the file's name without a trailing contrast
name (_T1, _flair). Too coarse a group costs folds, too fine a group leaks a patient into both sides of a split: the
rule leans to coarse.
"""

import os
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Literal

from data_adapters.record import BY_FILE, BY_FOLDER, BY_PATIENT

BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
CONTRAST = re.compile(
    r"[_-](t1|t2|pd)?(w|c|ce|gd|w?ce|n)?$|[_-](flair|dwi|adc|swi|mra|bold|fa|b0|mprage)$", re.IGNORECASE
)
GroupBy = Literal["auto", "folder", "file"]


def top_folder(paths: Iterable[Path], root: Path) -> Path:
    """The deepest folder that holds all `paths`; `root` where there are none."""
    top: str | None = None
    for folder, _ in groupby(path.parent for path in paths):
        top = os.path.commonpath([top or folder, folder])
    return Path(top) if top is not None else root


def subject(
    path: Path, *, top: Path, suffixes: tuple[str, ...], group_by: GroupBy, patient: str = ""
) -> tuple[str, str]:
    """The group of a file below `top`, and the rule that found it; `patient` is the DICOM PatientID or empty."""
    relative = path.relative_to(top) if path.is_relative_to(top) else Path(path.name)
    stem = _stem(relative.name, suffixes)
    if group_by == "file":
        return relative.with_name(stem).as_posix(), BY_FILE
    if group_by == "folder":
        return relative.parent.as_posix() if relative.parent != Path(".") else top.name, BY_FOLDER
    for part in reversed(relative.parts):
        found = BIDS.search(part)
        if found:
            return found.group(1), "BIDS subject"
    if patient:
        return patient, BY_PATIENT
    if len(relative.parts) > 1:
        return relative.parts[0], BY_FOLDER
    return CONTRAST.sub("", stem) or stem, "file name without its contrast"


def _stem(name: str, suffixes: tuple[str, ...]) -> str:
    known = sorted((s for s in suffixes if name.lower().endswith(s)), key=len)
    return name[: -len(known[-1])] if known else name
