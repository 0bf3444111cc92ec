"""Which patient a file belongs to, where no catalogue says so.

The rule, in order: the BIDS entity `sub-XX` in the path; the DICOM PatientID (unless it is one that de-identifiers
write for everybody); the folder, as in every modality; the file's name without a trailing contrast name (_T1, _flair).
Too coarse a group costs folds, too fine a group leaks a patient into both sides of a split: the rule leans to coarse.
"""

import re
from pathlib import Path

from data_adapters.record import BY_PATIENT

BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
CONTRAST = re.compile(
    r"[_-](t1|t2|pd)?(w|c|ce|gd|w?ce|n)?$|[_-](flair|dwi|adc|swi|mra|bold|fa|b0|mprage)$", re.IGNORECASE
)
BY_NAME = "file name without its contrast"


def subject(path: Path, *, root: Path, patient: str = "") -> tuple[str, str]:
    """The group of a file below `root` and the rule that found it; both empty where only the place is known.

    `patient` is the DICOM PatientID or empty.
    """
    relative = path.relative_to(root) if path != root and path.is_relative_to(root) else Path(path.name)
    for part in reversed(relative.parts):
        found = BIDS.search(part)
        if found:
            return found.group(1), "BIDS subject"
    return (patient, BY_PATIENT) if patient else ("", "")


def name_group(group: str) -> tuple[str, str]:
    """The group of a file that lies in no folder, from its path without the suffix, and the rule."""
    name = Path(group).name
    return CONTRAST.sub("", name) or name, BY_NAME
