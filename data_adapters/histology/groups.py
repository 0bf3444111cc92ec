"""What must stay on one side of a split: the patient where a name tells, otherwise the slide."""

import re
from dataclasses import replace
from pathlib import Path

from data_adapters.record import Record

TCGA = "TCGA patient"
# Project, tissue source site, participant: the first 12 characters of a TCGA barcode name the patient.
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def tcga_patient(name: str) -> str | None:
    """The patient of a TCGA barcode at the start of `name`, or None."""
    found = _TCGA.match(name)
    return found.group().upper() if found else None


def by_name(record: Record, root: Path, *, is_slide: bool) -> Record:
    """A record without a group with that of its names, if they tell one.

    A slide has the TCGA patient of its file's name, else that name (one slide, one case): equal names in two folders
    are one group, as stains and scans of one case often lie so, and too fine a group leaks. A tile has the TCGA patient
    of its file's name, or of the nearest folder below `root` that tells one.
    """
    if record.group:
        return record
    path = Path(record.uri)
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) and path != root else ()
    names = (path.stem, *(() if is_slide else reversed(folders)))
    patient = next((found for name in names if (found := tcga_patient(name))), None)
    if patient:
        return replace(record, group=patient, grouped_by=TCGA)
    return replace(record, group=path.stem, grouped_by="slide name") if is_slide else record
