"""What must stay on one side of a split: the patient where a name tells, otherwise the slide."""

import re
from pathlib import Path

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


def tile_group(path: Path, root: Path) -> tuple[str, str]:
    """The TCGA patient of a tile's name, or of the nearest folder below `root` that has one; else both are empty."""
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
    found = next((patient for name in (path.stem, *reversed(folders)) if (patient := tcga_patient(name))), None)
    return (found, TCGA) if found else ("", "")
