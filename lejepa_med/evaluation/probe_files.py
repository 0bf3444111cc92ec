"""A probe's folder: probe.json (what it is) and probe.safetensors (its numbers). Never pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from data_adapters.atomic import new_folder, recover
from data_adapters.errors import UserError

FORMAT = 2
DOCUMENT, ARRAYS = "probe.json", "probe.safetensors"
TRAIN_AGAIN = "Train the probe again from its labels (lejepa-med probe, or POST /v1/probes)."


class OtherFormatError(UserError):
    """The probe was written by another release."""


def write_folder(folder: Path, document: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write both files into a folder that is whole or absent (`new_folder`); it replaces a probe that stands there.

    Raises:
        UserError: `folder` exists and is not a probe.
    """
    folder = folder.absolute()
    recover(folder)
    if folder.exists() and not (folder / DOCUMENT).is_file():
        raise UserError(f"{folder} exists and is not a probe.", remedy="Give the name of a new folder.")
    weights = save({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    document = {"format": FORMAT, **document, "arrays_sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False)
    with new_folder(folder) as draft:
        (draft / ARRAYS).write_bytes(weights)
        (draft / DOCUMENT).write_text(text, encoding="utf-8")


def find_probes(runs: Path) -> list[Path]:
    """Probe folders at most three levels below `runs`, sorted; drafts of a probe that is being written are none."""
    found = {file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for file in runs.glob(depth + DOCUMENT)}
    return sorted(
        folder for folder in found if not any(part.startswith(".") for part in folder.relative_to(runs).parts)
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The document and the arrays that `write_folder` wrote.

    Raises:
        OtherFormatError: written by another release.
        UserError: no probe there, or damaged.
    """
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
        weights = (folder / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"There is no probe in {folder} ({Path(error.filename).name} is missing).",
            remedy="Give the folder that 'lejepa-med probe' wrote.",
        ) from error
    except ValueError as error:
        raise UserError(f"{folder / DOCUMENT} is damaged: {error}.", remedy=TRAIN_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise OtherFormatError(
            f"{folder / DOCUMENT} is not in format {FORMAT}, the one this installation reads.",
            remedy="Install the lejepa-med release that wrote it, or train the probe again.",
        )
    if hashlib.sha256(weights).hexdigest() != document.get("arrays_sha256"):
        raise UserError(f"{folder / ARRAYS} does not match its probe.json.", remedy=TRAIN_AGAIN)
    return document, load(weights)
