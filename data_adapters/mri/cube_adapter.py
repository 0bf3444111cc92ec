"""The 3-D MRI adapter: the volumes of `mri` as cubes of isotropic voxels, for 3-D encoders."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from data_adapters.base import Augment, Record, Rejected, Spec, ViewKind, to_tensor
from data_adapters.cache import cache_key
from data_adapters.errors import BadFileError
from data_adapters.mri.adapter import MRIAdapter
from data_adapters.mri.cube import canonical_cube, draw_window, whole, window_side, windows
from data_adapters.mri.cube_options import MRI3DOptions
from data_adapters.mri.cube_views import CubeSource, cube_augment

MIN_PLANES = 16  # along each axis; fewer are a slab, which 2.5-D shows as well
USE_SLICES = "Use the modality mri (2.5-D), which reads it slice by slice"


class MRI3DAdapter(MRIAdapter):
    """Records are volumes and DICOM series; files, groups and refusals are those of `mri`.

    An embedding sees the whole foreground: as one cube, or as several along the longest side of an elongated volume,
    whose vectors are averaged. Resampled volumes are cached when training reads them; `prepare` and `verify` store
    nothing.
    """

    name: ClassVar[str] = "mri3d"
    Options: ClassVar[type[MRI3DOptions]] = MRI3DOptions
    # Reading and intensity are those of `mri`: when they change there, these pixels change too.
    version: ClassVar[int] = 100 * MRIAdapter.version + 1
    dims: ClassVar[Literal[2, 3]] = 3

    @property
    def spec(self) -> Spec:
        """One grey channel, centred at .5."""
        return self.make_spec(channels=1, mean=(0.5,), std=(0.5,))

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
        sides = [math.ceil(n * mm) for n, mm in zip(size, spacing, strict=True)]
        return dataclasses.replace(record, samples=math.ceil(max(sides) / window_side(sides)))

    # --- pixels -----------------------------------------------------------------------------------------------------

    def read(self, record: Record, rng: np.random.Generator) -> CubeSource:  # type: ignore[override]
        """The foreground, or a part of an elongated one, as large as `prepare` shows at once. Raises BadFileError."""
        voxels = self._guarded(record, partial(self._voxels, store=True))
        return CubeSource(voxels=voxels[draw_window(voxels.shape, rng)], mirror=self.options.flip)

    def augment(self, kind: ViewKind, size: int) -> Augment:
        """The recipe of `data_adapters.mri.cube_views`."""
        return cube_augment(kind, size)

    def prepare(self, record: Record) -> Tensor:
        """The whole foreground on black, proportions kept: (n, 1, size, size, size) float32 in [0, 1].

        n is 1 unless the foreground's longest side is more than 1.5 times its second longest.
        """
        voxels = self._guarded(record, partial(self._voxels, store=False))
        size = self.options.global_size
        return torch.stack([to_tensor(whole(voxels[box], size)[..., None]) for box in windows(voxels.shape)])

    def verify(self, record: Record) -> None:
        """Decode every voxel and compare gzip checksums. Raises BadFileError."""
        self._check_files(record)
        self._guarded(record, self._cube)

    def _cube(self, record: Record) -> np.ndarray:
        if record.meta.get("reader") in ("slice", "exported"):
            raise BadFileError("a single slice, no volume", remedy=f"{USE_SLICES}.")
        return canonical_cube(self._volume(record), spacing_mm=self.options.spacing_mm)

    def _voxels(self, record: Record, *, store: bool) -> np.ndarray:
        """The canonical cube, from the cache of decoded volumes where it is there."""
        o = self.options
        recipe = {
            "adapter": self.name,
            "version": self.version,
            "item": record.item,
            "volume": o.volume,
            "spacing_mm": o.spacing_mm,
        }
        folder = self._cache.folder if store else None
        key = cache_key(files=record.meta.get("files", (record.uri,)), recipe=recipe, folder=folder)
        entry = self._cache.find(key)
        if entry is not None:
            return entry.array("cube")
        voxels = self._cube(record)
        if store:
            self._cache.write(key, {"cube": voxels}, meta={})
        return voxels
