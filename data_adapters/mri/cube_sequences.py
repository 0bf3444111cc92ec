"""Training sources of several sequences in 3-D mode: as channels of one cube, or as paired views."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_adapters.base import Record
from data_adapters.mri.cube import Box, Cubes, draw_window, window_about
from data_adapters.mri.cube_views import CubeSource
from data_adapters.mri.paired import kept


@dataclass(frozen=True)
class ChannelCubes:
    """Registered sequences as channels; a missing one is black.

    Attributes:
        channels: each sequence, all cut to one window, or None where the session lacks it.
        mirror: whether a view may be mirrored left to right.
        dropout: chance that a view does without a sequence.
    """

    channels: tuple[CubeSource | None, ...]
    mirror: bool
    dropout: float

    def draw(self, rng: np.random.Generator) -> Sequence[CubeSource | None]:
        """The sequences that the view keeps."""
        present = [index for index, cube in enumerate(self.channels) if cube is not None]
        stays = kept(present, self.dropout, rng)
        return [cube if index in stays else None for index, cube in enumerate(self.channels)]


@dataclass(frozen=True)
class PairedCubes:
    """Windows about one place in several sequences; each view is drawn from one of them."""

    cubes: tuple[CubeSource, ...]
    mirror: bool

    def draw(self, rng: np.random.Generator) -> Sequence[CubeSource | None]:
        """One sequence, as the one channel of the view."""
        return (self.cubes[rng.integers(len(self.cubes))],)


def in_order(cubes: Cubes, *, present: Sequence[str], sequences: Sequence[str]) -> list[np.ndarray | None]:
    """(D, H, W) uint16 of each of `sequences`, or None; `present` names the channels of `cubes`."""
    by_name = dict(zip(present, cubes.voxels, strict=True))
    return [by_name.get(name) for name in sequences]


def draw_channels(
    channels: Sequence[np.ndarray | None], *, rng: np.random.Generator, mirror: bool, dropout: float
) -> ChannelCubes:
    """One window of all sequences, (D, H, W) uint16 each, as large as `prepare` shows at once."""
    window = draw_window(next(voxels.shape for voxels in channels if voxels is not None), rng)
    return ChannelCubes(
        channels=tuple(
            None if voxels is None else CubeSource(voxels=voxels[window], mirror=mirror) for voxels in channels
        ),
        mirror=mirror,
        dropout=dropout,
    )


def draw_paired(
    records: Mapping[str, Record],
    load: Callable[[Record], Cubes],
    *,
    rng: np.random.Generator,
    mirror: bool,
    dropout: float,
) -> PairedCubes:
    """Windows about one place of the scanner's space, from the sequences that the sample keeps.

    The place is the middle of a window drawn from one kept sequence. Another joins with its window nearest to it, which
    is all of it unless it is elongated, and stays away where its foreground does not reach the place.
    """
    names = list(records)
    chosen = [names[i] for i in kept(range(len(names)), dropout, rng)]
    lead = chosen[int(rng.integers(len(chosen)))]
    cubes = {name: load(records[name]) for name in chosen}
    window = draw_window(cubes[lead].voxels.shape[1:], rng)
    middle = [(span.start + span.stop) / 2 for span in window]
    place = ras_of(records[lead], cubes[lead]) @ [*middle, 1]
    sources = []
    for name in chosen:
        box: Box | None = window
        if name != lead:
            there = np.linalg.solve(ras_of(records[name], cubes[name]), place)[:3]
            box = window_about(cubes[name].voxels.shape[1:], there.tolist())
        if box is not None:
            sources.append(CubeSource(voxels=cubes[name].voxels[0][box], mirror=mirror))
    return PairedCubes(cubes=tuple(sources), mirror=mirror)


def ras_of(record: Record, cubes: Cubes) -> np.ndarray:
    """(4, 4) matrix from a position in the cube, 0 to D, H, W from edge to edge, to RAS mm.

    The record's affine counts from the middle of its first voxel; rows and columns of a cube run against A and R.
    """
    affine = np.vstack([np.reshape(record.meta["affine"], (3, 4)), [0, 0, 0, 1]])
    step = (cubes.box[:, 1] - cubes.box[:, 0]) / np.array(cubes.voxels.shape[1:])
    first = cubes.box[:, 0]
    right, anterior = record.meta["size"][:2]
    voxel = np.array(
        [
            [0, 0, -step[2], right - 0.5 - first[2]],
            [0, -step[1], 0, anterior - 0.5 - first[1]],
            [step[0], 0, 0, first[0] - 0.5],
            [0, 0, 0, 1],
        ]
    )
    matrix: np.ndarray = affine @ voxel
    return matrix
