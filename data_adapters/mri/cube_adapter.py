"""The 3-D MRI adapter: the volumes of `mri` as cubes of isotropic voxels, for 3-D encoders."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.base import Image, Record, Rejected, ViewKind, to_tensor
from data_adapters.errors import BadFileError
from data_adapters.mri import decoding, sequences
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.cube import (
    Cubes,
    canonical_cubes,
    draw_window,
    stacked,
    unit_volume,
    whole,
    window_side,
    windows,
)
from data_adapters.mri.cube_options import MRI3DOptions
from data_adapters.mri.cube_sequences import draw_channels, draw_paired, in_order
from data_adapters.mri.cube_views import CubeCrop, CubeSource, Source, operations
from data_adapters.mri.volume import Volume

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

    def inspect_all(self, paths: Iterable[Path], root: Path) -> Iterator[Record | Rejected]:
        """What `mri` finds, without slices, slabs and thick slices."""
        for found in super().inspect_all(paths, root):
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
            decoding.check_files(part)
        self._decode(record)

    def _channels(self, record: Record, cubes: Cubes) -> list[np.ndarray | None]:
        """(D, H, W) of each channel that the encoder gets, or None."""
        if not sequences.is_session(record):
            return list(cubes.voxels)
        return in_order(cubes, present=list(sequences.parts(record)), sequences=self.options.sequences)

    def _decode(self, record: Record) -> Cubes:
        volumes = [decoding.guarded(part, self._unit_volume) for part in _members(record)]
        return decoding.guarded(record, lambda _: canonical_cubes(volumes, spacing_mm=self.options.spacing_mm))

    def _unit_volume(self, record: Record) -> Volume:
        if record.meta.get("reader") in decoding.SLICE_READERS:
            raise BadFileError("a single slice, no volume", remedy=f"{USE_SLICES}.")
        return unit_volume(decoding.load_volume(record, self.options))

    def _cubes(self, record: Record, *, store: bool) -> Cubes:
        """The canonical form of a volume, or of a session's volumes on one grid; from the cache where it is there."""
        o = self.options
        recipe = {
            "adapter": self.name,
            "version": self.version,
            "volumes": [[part.item, len(decoding.files_of(part))] for part in _members(record)],
            "volume": o.volume,
            "spacing_mm": o.spacing_mm,
        }
        key, entry = decoding.find(record, recipe=recipe, cache=self._cache, store=store)
        if entry is not None:
            return Cubes(voxels=entry.array("cubes"), box=entry.array("box"))
        cubes = self._decode(record)
        if store:
            self._cache.write(key, {"cubes": cubes.voxels, "box": cubes.box}, meta={})
        return cubes


def _members(record: Record) -> list[Record]:
    """The records of the volumes that a record stands for."""
    return list(sequences.parts(record).values()) if sequences.is_session(record) else [record]
