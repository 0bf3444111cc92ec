"""The 3-D MRI adapter: the volumes of `mri` as cubes of isotropic voxels, for 3-D encoders."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.base import Image, Record, Rejected, ViewKind, to_tensor
from data_adapters.errors import BadFileError
from data_adapters.files import Files
from data_adapters.mri import sequences
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.cube import (
    Box,
    Cubes,
    canonical_cubes,
    draw_window,
    stacked,
    unit_volume,
    whole,
    window_about,
    window_side,
    windows,
)
from data_adapters.mri.cube_views import CubeCrop, CubeSource, Source, operations
from data_adapters.mri.formats import SLICE_READERS, check_files, find, guarded, load_volume
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.sequences import kept
from data_adapters.mri.volume import Volume
from data_adapters.record import files_of


class MRI3DOptions(MRIOptions):
    """Options of the 3-D adapter: those of `mri` about files, patients and sequences, and the grid.

    What speaks of slices (plane, slab, channels) has one possible value here, so that setting it is an error and not
    ignored; it is not saved with the encoder.
    """

    INSTEAD: ClassVar[dict[str, str]] = {
        "plane": "a cube holds every plane; the modality mri shows slices",
        "channels": "the option sequences makes channels; neighbouring slices are channels in the modality mri",
        "slab_mm": "a view is a crop of the whole volume; the modality mri has slabs",
        "slices": "an embedding sees the whole volume; the options global_size and spacing_mm say how finely",
        "thick": "the option max_slice_mm decides about thick slices",
    }

    global_size: int = Field(default=96, ge=16, description="side of a global view and of embedding, voxels")
    local_size: int = Field(default=48, ge=16, description="side of a local view, voxels")
    spacing_mm: float = Field(
        default=1.0, ge=0.01, le=10, description="isotropic voxel size that volumes are resampled to before cropping"
    )
    max_slice_mm: float = Field(
        default=4.0, gt=0, description="refuse volumes with a voxel side above this: what lies between is not known"
    )
    plane: Literal["axial"] = Field(default="axial", exclude=True, description="only in 2.5-D")
    channels: Literal[1] = Field(default=1, exclude=True, description="only in 2.5-D")
    slab_mm: Literal[0] = Field(default=0, exclude=True, description="only in 2.5-D")
    slices: Literal[1] = Field(default=1, exclude=True, description="only in 2.5-D")
    thick: Literal["resample"] = Field(
        default="resample", exclude=True, description="only in 2.5-D; here max_slice_mm decides"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_slices(cls, given: Any) -> Any:
        wrong = [name for name in cls.INSTEAD if name in given and given[name] != cls.model_fields[name].default]
        if wrong:
            raise ValueError("; ".join(f"{name} is not available in mri3d: {cls.INSTEAD[name]}" for name in wrong))
        return given


MIN_PLANES = 16  # along each axis; fewer are a slab, which 2.5-D shows as well
FEWEST = 8  # ... and along each axis after resampling: a volume of microscopy at 1 mm would be a few voxels
USE_SLICES = "Use the modality mri (2.5-D), which reads it slice by slice"


class MRI3DAdapter(MRIAdapter):
    """Records are volumes and DICOM series; files, groups and refusals are those of `mri`.

    An embedding sees the whole foreground: as one cube, or as several along the longest side of an elongated volume,
    whose vectors are averaged. Several sequences of a session are channels or paired views. Resampled volumes are
    cached when training reads them; `prepare` and `verify` store nothing.
    """

    name: ClassVar[str] = "mri3d"
    Options: ClassVar[type[MRI3DOptions]] = MRI3DOptions
    # Reading and intensity are those of `mri`: when they change there, these pixels change too.
    version: ClassVar[int] = 100 * MRIAdapter.version + 1
    dims: ClassVar[Literal[2, 3]] = 3
    warm_views, usual_views, usual_layers = None, 1, 1

    # --- scan -------------------------------------------------------------------------------------------------------

    def inspect_all(self, files: Files) -> Iterator[Record | Rejected]:
        """What `mri` finds, without slices, slabs and thick slices."""
        for found in super().inspect_all(files):
            yield self._judge(found) if isinstance(found, Record) else found

    def _judge(self, record: Record) -> Record | Rejected:
        size, spacing = record.meta.get("size", ()), record.meta.get("spacing", ())
        limit = self.options.max_slice_mm
        if len(size) != 3 or len(spacing) != 3:
            return Rejected(uri=record.uri, reason="a single slice, no volume", remedy=f"{USE_SLICES}.")
        if min(size) < MIN_PLANES:
            return Rejected(
                uri=record.uri, reason=f"fewer than {MIN_PLANES} voxels along an axis", remedy=f"{USE_SLICES}."
            )
        if max(spacing) > limit:
            return Rejected(
                uri=record.uri,
                reason=f"thick slices (above {limit:g} mm)",
                remedy=f"{USE_SLICES}, or raise the option max_slice_mm.",
            )
        if min(n * mm for n, mm in zip(size, spacing, strict=True)) < FEWEST * self.options.spacing_mm:
            return Rejected(
                uri=record.uri,
                reason=f"fewer than {FEWEST} voxels along an axis at {self.options.spacing_mm:g} mm",
                remedy="Choose a finer option spacing_mm, near the archive's voxel size, or use the modality mri.",
            )
        sides = [math.ceil(n * mm) for n, mm in zip(size, spacing, strict=True)]
        return dataclasses.replace(record, samples=math.ceil(max(sides) / window_side(sides)))

    # --- pixels -----------------------------------------------------------------------------------------------------

    def read(self, record: Record, rng: np.random.Generator) -> Source:  # type: ignore[override]
        """The foreground, or a part of an elongated one, as large as `prepare` shows at once. Raises BadFileError."""
        o = self.options
        load = partial(self._cubes, store=True)
        if sequences.is_session(record):
            if o.combine == "views":
                return draw_paired(sequences.parts(record), load, rng=rng, mirror=o.flip, dropout=o.sequence_dropout)
            channels = self._channels(record, load(record))
            return draw_channels(channels, rng=rng, mirror=o.flip, dropout=o.sequence_dropout)
        voxels = load(record).voxels[0]
        return CubeSource(voxels=voxels[draw_window(voxels.shape, rng)], mirror=o.flip)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """A cube of the volume for each channel."""
        return CubeCrop(kind, size)

    def operations(self) -> list[Operation]:
        """What a scanner does to intensities."""
        return operations()

    def finish(self, image: Any, scene: Scene) -> Image:
        """Cubes as channels, (size, size, size, channels); those that the view does without are black."""
        images = iter(image)
        return stacked([None if cube is None else next(images) for cube in scene])

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[list[np.ndarray], Scene]:
        """Any values in [0, 1], in every channel."""
        cubes = [rng.random((size,) * 3, dtype=np.float32) for _ in range(self.spec.channels)]
        return cubes, cubes

    def prepare(self, record: Record) -> Tensor:
        """The whole foreground on black, proportions kept: (n, C, size, size, size) float32 in [0, 1].

        n is 1 unless the foreground's longest side is more than 1.5 times its second longest. Sequences as channels
        share one foreground, with a black channel for a missing one; sequences as views give their cubes in turn.
        """
        if sequences.is_session(record) and self.options.combine == "views":
            return torch.cat([self.prepare(part) for part in sequences.parts(record).values()])
        cubes = self._cubes(record, store=False)
        channels, size = self._channels(record, cubes), self.options.prepared_size
        images = [
            stacked([None if voxels is None else whole(voxels[box], size) for voxels in channels])
            for box in windows(cubes.voxels.shape[1:])
        ]
        return torch.stack([to_tensor(image) for image in images])

    def verify(self, record: Record) -> None:
        """Decode every voxel and compare gzip checksums. Raises BadFileError."""
        if sequences.is_session(record) and self.options.combine == "views":
            for part in sequences.parts(record).values():
                self.verify(part)
            return
        for part in _members(record):
            check_files(part)
        self._decode(record)

    def _channels(self, record: Record, cubes: Cubes) -> list[np.ndarray | None]:
        """(D, H, W) of each channel that the encoder gets, or None."""
        if not sequences.is_session(record):
            return list(cubes.voxels)
        return in_order(cubes, present=list(sequences.parts(record)), sequences=self.options.sequences)

    def _decode(self, record: Record) -> Cubes:
        volumes = [guarded(part, self._unit_volume) for part in _members(record)]
        return guarded(record, lambda _: canonical_cubes(volumes, spacing_mm=self.options.spacing_mm))

    def _unit_volume(self, record: Record) -> Volume:
        if record.meta.get("reader") in SLICE_READERS:
            raise BadFileError("a single slice, no volume", remedy=f"{USE_SLICES}.")
        return unit_volume(load_volume(record, self.options, self.formats))

    def _cubes(self, record: Record, *, store: bool) -> Cubes:
        """The canonical form of a volume, or of a session's volumes on one grid; from the cache where it is there."""
        o = self.options
        recipe = {
            "adapter": self.name,
            "version": self.version,
            "volumes": [[part.item, len(files_of(part))] for part in _members(record)],
            "volume": o.volume,
            "spacing_mm": o.spacing_mm,
        }
        key, entry = find(record, recipe=recipe, cache=self._cache, store=store)
        if entry is not None:
            return Cubes(voxels=entry.array("cubes"), box=entry.array("box"))
        cubes = self._decode(record)
        if store:
            self._cache.write(key, {"cubes": cubes.voxels, "box": cubes.box}, meta={})
        return cubes


def _members(record: Record) -> list[Record]:
    """The records of the volumes that a record stands for."""
    return list(sequences.parts(record).values()) if sequences.is_session(record) else [record]


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
