"""Training sources and prepared slices of several sequences: as channels of one image, or as paired views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_adapters.base import Record
from data_adapters.errors import BadFileError
from data_adapters.mri.recipe import Slab, cut_slab, draw_centre
from data_adapters.mri.volume import LAYOUT, NOT_ONE_GRID, Stack, resize, spread, square_slice, usable


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
