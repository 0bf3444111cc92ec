"""Several sequences (T1w, T2w, FLAIR ...) of one patient and session become one record.

Which sequence a file is comes, in this order, from the catalogue's column `sequence`, from the option
`sequence_patterns` (file name, or SeriesDescription of DICOM), and from the BIDS suffix. It is never guessed.
A session is the catalogue's column `session`, the BIDS entity `ses-`, or the DICOM study.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.base import Record, Rejected, rejected
from data_adapters.errors import BadFileError
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.volume import NOT_ONE_GRID, slicing_plane
from data_adapters.record import files_of

READER = "sequences"
GRID_TOLERANCE = 0.1  # of the smallest voxel side: by how much a corner may lie elsewhere on "the same" grid


def by_pattern(text: str, patterns: Mapping[str, str]) -> str | None:
    """The sequence whose pattern is found in `text`, upper and lower case alike; None where none is.

    Raises:
        BadFileError: patterns of several sequences are found.
    """
    found = [name for name, pattern in patterns.items() if re.search(pattern, text, re.IGNORECASE)]
    if len(found) > 1:
        raise BadFileError(
            "several sequence patterns match", remedy="Make the option sequence_patterns more particular."
        )
    return found[0] if found else None


def recognise(record: Record, options: MRIOptions) -> str:
    """The sequence of a volume.

    Raises:
        BadFileError: not a volume, of no recognised sequence, or of one that the option does not list.
    """
    meta = record.meta
    if meta["reader"] in ("slice", "exported"):
        raise BadFileError("a single slice cannot be combined with other sequences", remedy="Give volumes.")
    if slicing_plane(shape=meta["size"], spacing=meta["spacing"], plane=options.plane) != options.plane:
        raise BadFileError("a volume of one slice in another plane", remedy="Set the option plane to its plane.")
    name = meta.get("sequence") or by_pattern(Path(record.uri).name, options.sequence_patterns) or meta.get("suffix")
    if name is None:
        raise BadFileError(
            "sequence not recognised",
            remedy="Use BIDS names, the catalogue's column 'sequence', or the option sequence_patterns.",
        )
    for wanted in options.sequences:
        if wanted.casefold() == str(name).casefold():
            return wanted
    raise BadFileError("not one of the option's sequences", remedy="Add it to the option sequences, if it is wanted.")


def combine(found: Iterable[Record | Rejected], options: MRIOptions) -> Iterator[Record | Rejected]:
    """One record for each patient and session; what cannot be combined is refused with its reason."""
    sessions: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for item in found:
        if isinstance(item, Rejected):
            yield item
            continue
        try:
            name = recognise(item, options)
        except BadFileError as error:
            yield from _refused([item], error)
            continue
        key = (item.group, str(item.meta.get("session", "")))
        sessions.setdefault(key, {}).setdefault(name, []).append(item)
    for session in sessions.values():
        try:
            yield _joined(session, options)
        except BadFileError as error:
            yield from _refused([record for records in session.values() for record in records], error)


def is_session(record: Record) -> bool:
    """Whether a record stands for several sequences of one session, which `parts` gives."""
    return bool(record.meta.get("reader") == READER)


def parts(record: Record) -> dict[str, Record]:
    """Sequence -> the record of its volume, for those that the session has, in the option's order."""
    files = list(record.meta["files"])
    out: dict[str, Record] = {}
    for part in record.meta["parts"]:
        own = files[part["first"] : part["first"] + part["count"]]
        meta: dict[str, Any] = {**part["meta"], "files": own}
        out[part["sequence"]] = Record(uri=own[0], item=part["item"], group=record.group, meta=meta)
    return out


def _joined(session: dict[str, list[Record]], options: MRIOptions) -> Record:
    present = [name for name in options.sequences if name in session]
    if any(len(records) > 1 for records in session.values()):
        raise BadFileError(
            "several images of one sequence in one session",
            remedy="Tell them apart by sequence_patterns or a catalogue (columns sequence, session), or leave one out.",
        )
    records = [session[name][0] for name in present]
    first = records[0]
    labels = {record.label for record in records} - {None}
    splits = {record.split for record in records} - {""}
    if len(labels) > 1 or len(splits) > 1:
        raise BadFileError("labels or splits of one session differ", remedy="Correct the catalogue.")
    if options.combine == "channels" and not all(same_grid(first, record) for record in records[1:]):
        raise BadFileError(
            NOT_ONE_GRID,
            remedy="Register and resample them to one grid (ANTs, elastix, FreeSurfer), or set combine to views.",
        )
    files: list[str] = []
    described = []
    for name, record in zip(present, records, strict=True):
        own = [str(file) for file in record.meta["files"]]
        meta = {key: value for key, value in record.meta.items() if key != "files"}
        described.append({"sequence": name, "item": record.item, "first": len(files), "count": len(own), "meta": meta})
        files += own
    return Record(
        uri=first.uri,
        group=first.group,
        grouped_by=first.grouped_by,
        label=labels.pop() if labels else None,
        split=splits.pop() if splits else "",
        samples=max(record.samples for record in records),
        meta={
            "reader": READER,
            "files": files,
            "parts": described,
            "size": first.meta["size"],
            "spacing": first.meta["spacing"],
            "bits": max(record.meta["bits"] for record in records),
            "missing": [name for name in options.sequences if name not in session],
        },
    )


def same_grid(one: Record, other: Record) -> bool:
    """Whether two volumes have equal sizes and their corners lie at equal places (mm, to a tenth of a voxel)."""
    if list(one.meta["size"]) != list(other.meta["size"]):
        return False
    a, b = (np.reshape(record.meta["affine"], (3, 4)) for record in (one, other))
    corners = np.array([(*np.array(index) * one.meta["size"], 1) for index in np.ndindex(2, 2, 2)])
    shift = np.linalg.norm((a - b) @ corners.T, axis=0).max()
    return bool(shift <= GRID_TOLERANCE * min(one.meta["spacing"]))


def _refused(records: Iterable[Record], error: BadFileError) -> Iterator[Rejected]:
    for record in records:
        for file in files_of(record):
            yield rejected(file, error)
