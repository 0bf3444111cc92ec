"""Several sequences (T1w, T2w, FLAIR ...) of one patient and session become one record.

Which sequence a file is comes, in this order, from the catalogue's column `sequence`, from the option
`sequence_patterns` (file name, or SeriesDescription of DICOM), and from the BIDS suffix. It is never guessed.
A session is the catalogue's column `session`, the BIDS entity `ses-`, or the DICOM study.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_adapters.base import Record, Rejected, rejected
from data_adapters.errors import BadFileError
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.recipe import Slab, cut_slab, draw_centre
from data_adapters.mri.volume import LAYOUT, NOT_ONE_GRID, Stack, resize, slicing_plane, spread, square_slice, usable
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


@dataclass(frozen=True)
class ChannelSlab:
    """Registered sequences as channels; a missing one is zero.

    Attributes:
        slices: (k, H, W) float16 of each sequence, or None where the session lacks it.
        centres: indices that a view may choose, the same for all.
        mirror: whether a view may be flipped left to right.
        dropout: chance that a view does without a sequence.
    """

    slices: tuple[np.ndarray | None, ...]
    centres: np.ndarray
    mirror: bool
    dropout: float

    @property
    def channels(self) -> int:
        """One for each sequence."""
        return len(self.slices)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One slice of all sequences that the view keeps, (S, S, sequences) float32."""
        index = int(self.centres[rng.integers(len(self.centres))])
        present = [channel for channel, slices in enumerate(self.slices) if slices is not None]
        stays = kept(present, self.dropout, rng)
        return _image([slices if channel in stays else None for channel, slices in enumerate(self.slices)], index)


@dataclass(frozen=True)
class PairedSlabs:
    """Slabs about one place in several sequences; each view is drawn from one of them."""

    slabs: tuple[Slab, ...]

    @property
    def channels(self) -> int:
        """Neighbouring slices of one sequence."""
        return self.slabs[0].channels

    @property
    def mirror(self) -> bool:
        """Whether a view may be flipped left to right."""
        return all(slab.mirror for slab in self.slabs)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One slice of one sequence, (S, S, channels) float32."""
        return self.slabs[rng.integers(len(self.slabs))].draw(rng)


def kept(present: Sequence[int], dropout: float, rng: np.random.Generator) -> list[int]:
    """Those of `present` that stay, each dropped with chance `dropout`; one, drawn evenly, stays in any case."""
    stay = rng.random(len(present)) >= dropout
    stay[rng.integers(len(present))] |= not stay.any()
    return [item for item, stays in zip(present, stay, strict=True) if stays]


def draw_channels(
    stacks: Sequence[Stack | None], *, rng: np.random.Generator, slab_mm: float, mirror: bool, dropout: float
) -> ChannelSlab:
    """A slab about a slice that is usable by the sequences' mean foreground."""
    present = [stack for stack in stacks if stack is not None]
    candidates = usable(_shared_area(present))
    centre = draw_centre(candidates, rng)
    centres = candidates[np.abs(candidates - centre) <= int(slab_mm / present[0].step)]
    start, stop = int(centres[0]), int(centres[-1]) + 1
    return ChannelSlab(
        slices=tuple(None if stack is None else np.asarray(stack.slices[start:stop]) for stack in stacks),
        centres=centres - start,
        mirror=mirror and all(stack.mirror for stack in present),
        dropout=dropout,
    )


def draw_paired(
    stacks: Mapping[str, Stack],
    records: Mapping[str, Record],
    *,
    plane: str,
    rng: np.random.Generator,
    slab_mm: float,
    channels: int,
    mirror: bool,
    dropout: float,
) -> PairedSlabs:
    """Slabs about one place of the scanner's space, from the sequences that the sample keeps.

    The place is drawn from one kept sequence; another joins with its slices within `slab_mm` (or half its own slice
    distance) of the place, along the slice axis through the middle of the volume, and stays away where it has none.
    """
    names = list(stacks)
    chosen = [names[i] for i in kept(range(len(names)), dropout, rng)]
    lead = chosen[int(rng.integers(len(chosen)))]
    centre = draw_centre(usable(stacks[lead].area), rng)
    place = slice_places(records[lead], plane)[centre]
    slabs = []
    for name in chosen:
        candidates = usable(stacks[name].area)
        distance = np.abs(slice_places(records[name], plane)[candidates] - place)
        near = candidates[distance <= max(slab_mm, stacks[name].step / 2)]
        if near.size:
            slabs.append(cut_slab(stacks[name], near, channels=channels, mirror=mirror))
    return PairedSlabs(slabs=tuple(slabs))


def slice_places(record: Record, plane: str) -> np.ndarray:
    """RAS coordinate, mm, of each slice's middle along the axis that `plane` is stacked on, (n,)."""
    axis = LAYOUT[plane][0]
    affine = np.reshape(record.meta["affine"], (3, 4))
    middle = (np.array(record.meta["size"], float) - 1) / 2
    middle[axis] = 0
    places: np.ndarray = (affine[axis, :3] @ middle + affine[axis, 3]) + affine[axis, axis] * np.arange(
        record.meta["size"][axis]
    )
    return places


def prepare_channels(stacks: Sequence[Stack | None], *, slices: int, size: int) -> list[np.ndarray]:
    """Slices spread evenly over those usable by the mean foreground, (size, size, sequences) each; missing is zero."""
    present = [stack for stack in stacks if stack is not None]
    whole = [None if stack is None else stack.slices[0 : len(stack.area)] for stack in stacks]
    return [resize(_image(whole, int(index)), size) for index in spread(usable(_shared_area(present)), slices)]


def _shared_area(stacks: Sequence[Stack]) -> np.ndarray:
    if len({tuple(np.shape(stack.area)) for stack in stacks}) > 1:
        raise BadFileError(NOT_ONE_GRID, remedy="Scan the archive again.")
    area: np.ndarray = np.mean([stack.area for stack in stacks], axis=0)
    return area


def _image(slices: Sequence[np.ndarray | None], index: int) -> np.ndarray:
    """Slice `index` of each sequence on one black square, (S, S, sequences) float32; None is zero."""
    squares = [None if one is None else square_slice(one, index, channels=1) for one in slices]
    side = next(square.shape[0] for square in squares if square is not None)
    empty = np.zeros((side, side, 1), np.float32)
    return np.concatenate([empty if square is None else square for square in squares], axis=2)
