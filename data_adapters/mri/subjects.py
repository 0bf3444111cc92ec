"""Which patient a file belongs to, where no catalogue says so.

The rule, in order: the BIDS entity `sub-XX` in the path; the DICOM PatientID (unless it is one that de-identifiers
write for everybody); the folder, as in every modality; the file's name without a trailing contrast name (_T1, _flair).
Too coarse a group costs folds, too fine a group leaks a patient into both sides of a split: the rule leans to coarse.
"""

import re
from dataclasses import replace
from pathlib import Path

from data_adapters.record import BY_PATIENT, Record

BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
CONTRAST = re.compile(
    r"[_-](t1|t2|pd)?(w|c|ce|gd|w?ce|n)?$|[_-](flair|dwi|adc|swi|mra|bold|fa|b0|mprage)$", re.IGNORECASE
)
BY_NAME = "file name without its contrast"


def by_bids(record: Record, root: Path) -> Record:
    """A record of a file below `root` with the BIDS subject of its path, where it has one and no catalogue tells."""
    if record.grouped_by not in ("", BY_PATIENT):
        return record
    path = Path(record.uri)
    parts = path.relative_to(root).parts if path != root and path.is_relative_to(root) else (path.name,)
    found = next((match for part in reversed(parts) if (match := BIDS.search(part))), None)
    return replace(record, group=found.group(1), grouped_by="BIDS subject") if found else record


def by_name(record: Record) -> Record:
    """A record whose group is its file's path without suffix: with the name without the contrast."""
    name = Path(record.group).name
    return replace(record, group=CONTRAST.sub("", name) or name, grouped_by=BY_NAME)
