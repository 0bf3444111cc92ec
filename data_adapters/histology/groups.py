"""What must stay on one side of a split: the patient where a name tells, otherwise the slide."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

from data_adapters.base import file_group

TCGA = "TCGA patient"
# Project, tissue source site, participant: the first 12 characters of a TCGA barcode name the patient.
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def tcga_patient(name: str) -> str | None:
    """The patient of a TCGA barcode at the start of `name`, or None."""
    found = _TCGA.match(name)
    return found.group().upper() if found else None


def slide_group(path: Path) -> tuple[str, str]:
    """TCGA patient, else the file's stem (one slide, one case), and which of them it is.

    Equal names in two folders are one group: stains and scans of one case often lie so, and too fine a group leaks.
    """
    patient = tcga_patient(path.stem)
    return (patient, TCGA) if patient else (path.stem, "slide name")


def tile_group(path: Path, root: Path, *, by: Literal["folder", "file"]) -> tuple[str, str]:
    """The group of one tile, and the rule that found it.

    1. A TCGA barcode in the file's name, or in the nearest folder below `root` that has one: the patient.
    2. With `by` = "folder": the tile's folder, as a path below `root`, when it has sister folders. Tiles of one slide
       lie together, and neighbours on both sides of a split would flatter every result.
    3. Otherwise (one heap of tiles, or folders that are classes) the tile itself, by its path below `root`.

    A catalogue's `group` column goes before all of this.
    """
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
    for name in (path.stem, *reversed(folders)):
        patient = tcga_patient(name)
        if patient:
            return patient, TCGA
    return file_group(path, root, by="folder" if by == "folder" and folders and _has_sisters(path.parent) else "file")


@lru_cache(maxsize=4096)
def _has_sisters(folder: Path) -> bool:
    return any(p.is_dir() and p != folder and not p.name.startswith(".") for p in folder.parent.iterdir())


def forget_folders() -> None:
    """Look at folders anew; a scan calls this first, since an archive grows between two scans."""
    _has_sisters.cache_clear()
