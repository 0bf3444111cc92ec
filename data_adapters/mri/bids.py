"""What a BIDS file name and its JSON sidecars say: https://bids-specification.readthedocs.io (entities, inheritance).

Only fields that identify nobody are taken from sidecars, by name and with their units; the subject goes nowhere but
into the group, which is stored as a salted hash.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_adapters.errors import BadFileError

ENTITY = re.compile(r"([A-Za-z0-9]+)-([A-Za-z0-9]+)")
SUFFIX = re.compile(r"[A-Za-z0-9]+")
STORED = {"ses": "session", "acq": "acquisition", "ce": "contrast_agent", "run": "run", "echo": "echo", "part": "part"}
MASKS = ("mask", "dseg", "probseg")
MAGNITUDE = "mag"
# Folders below a dataset's root, so that inherited sidecars are looked for in the dataset and nowhere above it.
INSIDE = re.compile(r"(sub|ses)-[A-Za-z0-9]+|anat|dwi|func|fmap|perf|swi")
NUMBERS = {  # sidecar field -> (meta key, factor); BIDS has seconds, DICOM milliseconds
    "MagneticFieldStrength": ("tesla", 1),
    "RepetitionTime": ("repetition_ms", 1000),
    "EchoTime": ("echo_ms", 1000),
    "InversionTime": ("inversion_ms", 1000),
    "FlipAngle": ("flip_deg", 1),
}
TEXTS = {"Manufacturer": "manufacturer", "ManufacturersModelName": "model", "MRAcquisitionType": "acquisition_type"}
LONGEST_TEXT = 64  # characters: names of devices, not sentences about patients
LARGEST_SIDECAR = 1 << 20  # bytes


@dataclass(frozen=True)
class BidsName:
    """Entities and suffix of a file name: sub-01_ses-1_run-2_T1w.nii.gz."""

    entities: dict[str, str]
    suffix: str


def parse(file_name: str) -> BidsName | None:
    """The name's parts, or None where it is no BIDS name."""
    *entities, suffix = file_name.split(".", 1)[0].split("_")
    found = [ENTITY.fullmatch(part) for part in entities]
    if not SUFFIX.fullmatch(suffix) or not all(found):
        return None
    return BidsName(entities={match[1]: match[2] for match in found if match}, suffix=suffix)


def facts(path: Path) -> dict[str, Any]:
    """Meta values of a file with a BIDS name: `suffix`, `session`, `acquisition`, `run` ..., and sidecar fields.

    Raises:
        BadFileError: the suffix is that of a mask or segmentation, or `part` is not the magnitude.
    """
    name = parse(path.name)
    if name is None or "sub" not in name.entities:
        return {}
    if name.suffix in MASKS:
        raise BadFileError("a BIDS mask or segmentation", remedy="Skipped, no error: the images beside it are read.")
    if name.entities.get("part", MAGNITUDE) != MAGNITUDE:
        raise BadFileError("phase, real or imaginary image", remedy="Give the magnitude image.")
    return {
        "suffix": name.suffix,
        **{STORED[key]: value for key, value in name.entities.items() if key in STORED},
        **_sidecar(path),
    }


def sidecars(path: Path) -> list[Path]:
    """The JSON files that apply to a file with a BIDS name, the nearest last (the inheritance principle)."""
    name = parse(path.name)
    if name is None or "sub" not in name.entities:
        return []
    folders = [path.parent]
    while INSIDE.fullmatch(folders[0].name):
        folders.insert(0, folders[0].parent)
    mine = set(name.entities.items())
    return [
        file
        for folder in folders
        for file, entities, suffix in _json_files(folder, folder.stat().st_mtime_ns)
        if suffix == name.suffix and entities <= mine
    ]


def _sidecar(path: Path) -> dict[str, Any]:
    """Fields of all sidecars that apply, the nearest file winning."""
    merged: dict[str, Any] = {}
    for file in sidecars(path):
        merged |= _fields(file)
    out: dict[str, Any] = {}
    for field, (key, factor) in NUMBERS.items():
        value = merged.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            out[key] = round(float(value) * factor, 6)
    for field, key in TEXTS.items():
        value = merged.get(field)
        if isinstance(value, str) and 0 < len(value.strip()) <= LONGEST_TEXT:
            out[key] = value.strip()
    return out


@lru_cache(maxsize=64)
def _json_files(folder: Path, mtime_ns: int) -> tuple[tuple[Path, frozenset[tuple[str, str]], str], ...]:
    """Sidecars of a folder, the more general first. `mtime_ns` makes a changed folder be read again."""
    found = []
    for file in sorted(folder.glob("*.json")):
        name = parse(file.name)
        if name is not None and file.is_file():
            found.append((file, frozenset(name.entities.items()), name.suffix))
    return tuple(sorted(found, key=lambda entry: len(entry[1])))


def _fields(file: Path) -> dict[str, Any]:
    """A sidecar's object; one that cannot be read says nothing, since no pixel depends on it."""
    try:
        if file.stat().st_size > LARGEST_SIDECAR:
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
