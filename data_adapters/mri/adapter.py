"""The MRI adapter: NIfTI and kin, DICOM series and exported slices as views of neighbouring slices."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from data_adapters.base import Augment, BaseAdapter, Record, Rejected, Spec, ViewKind, rejected, to_tensor
from data_adapters.cache import ArrayCache, cache_key, default_folder
from data_adapters.errors import BadFileError, UserError
from data_adapters.mri import dicom, exported, nifti, series
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.recipe import Slab, draw_slab, slab_augment
from data_adapters.mri.subjects import subject, top_folder
from data_adapters.mri.volume import (
    LAYOUT,
    Stack,
    Volume,
    normalise,
    resize,
    slicing_plane,
    square_slice,
    stack_slices,
    stack_volume,
    usable,
)

SLICES_PER_SAMPLE = 8  # an epoch draws one slab for each 8 slices of a volume ...
MAX_SAMPLES = 16  # ... but a finely sliced volume must not crowd out the others
MAX_VOXELS = 10**9  # 4 GB while decoding; a damaged or hostile header can claim more than any scanner makes
PACKED_DICOM = ".dcm.gz"
T = TypeVar("T")


class MRIAdapter(BaseAdapter):
    """Records are volumes, DICOM series and 2-D slices; an embedding pools `slices` slices of a volume.

    meta: `reader` (nifti, series, multiframe, slice, exported), `size`, `spacing` (mm), `bits`, `files` (all that make
    up the record) and, from DICOM, `derived`, `manufacturer`, `tesla`. Volumes are cached when training reads them;
    `prepare` and `verify` store nothing, so that an uploaded image leaves no trace.
    """

    name: ClassVar[str] = "mri"
    suffixes: ClassVar[tuple[str, ...]] = (*nifti.SUFFIXES, *exported.SUFFIXES, *dicom.SUFFIXES, PACKED_DICOM)
    Options: ClassVar[type[MRIOptions]] = MRIOptions
    version: ClassVar[int] = 1

    @property
    def spec(self) -> Spec:
        """One or three grey channels, centred at .5."""
        n = self.options.channels
        return self.make_spec(channels=n, mean=(0.5,) * n, std=(0.5,) * n)

    # --- scan -------------------------------------------------------------------------------------------------------

    def inspect_all(self, paths: Iterable[Path], root: Path) -> Iterator[Record | Rejected]:
        """File by file, then the DICOM series in the order of their first files."""
        paths = list(paths)
        names = set(paths)
        top = top_folder((p for p in paths if p.name.lower().endswith(self.suffixes) or not p.suffix), root)
        headers: list[dicom.Header] = []
        for path in paths:
            try:
                if dicom.is_dicom(path):
                    headers.append(dicom.read_header(path, modalities=self.options.modalities))
                    continue
            except Exception as error:
                yield rejected(path, error)
                continue
            if nifti.header_of(path) not in names:  # a pair is one record, under its header's name
                yield from self.try_inspect(path, top)
        groups, copies = series.group_series(headers)
        for members in groups:
            try:
                yield self._dicom_record(members, top)
            except Exception as error:
                yield from (rejected(header.path, error) for header in members)
        for header in copies:
            yield Rejected(
                uri=str(header.path), reason="copy of another DICOM image", remedy="None needed: the first is used."
            )

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """Headers of one file. `root` is the folder below which subjects have folders of their own."""
        lower = path.name.lower()
        if lower.endswith(PACKED_DICOM):
            raise BadFileError("compressed DICOM file (.dcm.gz)", remedy="Unpack it with gunzip.", path=path)
        if dicom.is_dicom(path):
            return [self._dicom_record([dicom.read_header(path, modalities=self.options.modalities)], root)]
        if lower.endswith(exported.SUFFIXES):
            picture = exported.read_header(path)
            meta = {"reader": "exported", "size": list(picture.size), "bits": picture.bits}
            return [Record(uri=str(path), group=self._group(path, root), meta=meta)]
        path = nifti.header_of(path) or path
        o = self.options
        header = nifti.read_header(path, volume=o.volume, sides_matter=not o.flip)
        meta = {"reader": "nifti", "bits": header.bits, "files": list(header.files)}
        return [self._volume_record(path, self._group(path, root), header, meta)]

    def _dicom_record(self, members: list[dicom.Header], top: Path) -> Record:
        first = members[0]
        meta = {"bits": first.bits, "files": [str(header.path) for header in members], **first.facts}
        group = self._group(first.path, top, patient=first.patient)
        if first.frames > 1:
            return self._volume_record(
                first.path, group, series.multiframe_grid(first.path), {"reader": "multiframe", **meta}
            )
        if len(members) > 1:
            return self._volume_record(first.path, group, series.series_grid(members), {"reader": "series", **meta})
        meta |= {"reader": "slice", "size": [first.columns, first.rows]}
        if first.pixel_mm is not None:
            meta["spacing"] = [first.pixel_mm[1], first.pixel_mm[0]]
        if first.orientation is not None:
            meta["mirror"] = int(np.abs(first.orientation[:3]).argmax()) == 0  # columns run from right to left
        return Record(uri=str(first.path), group=group, meta=meta)

    def _volume_record(self, path: Path, group: str, grid: nifti.Header | series.Grid, meta: dict[str, Any]) -> Record:
        if math.prod(grid.size) > MAX_VOXELS:
            raise BadFileError("more than 10^9 voxels", remedy="Give a coarser volume or parts of it.", path=path)
        plane = slicing_plane(shape=grid.size, spacing=grid.spacing, plane=self.options.plane)
        n = grid.size[LAYOUT[plane][0]]
        return Record(
            uri=str(path),
            group=group,
            samples=min(max(n // SLICES_PER_SAMPLE, 1), MAX_SAMPLES),
            meta={**meta, "size": list(grid.size), "spacing": list(grid.spacing)},
        )

    def _group(self, path: Path, top: Path, *, patient: str = "") -> str:
        return subject(path, top=top, suffixes=self.suffixes, group_by=self.options.group_by, patient=patient)

    # --- pixels -----------------------------------------------------------------------------------------------------

    def read(self, record: Record, rng: np.random.Generator) -> Slab:
        """A slab about a slice drawn from the usable ones. Raises BadFileError."""
        o = self.options
        stack = self._stack(record, store=True)
        return draw_slab(stack, rng=rng, slab_mm=o.slab_mm, channels=o.channels, mirror=o.flip)

    def augment(self, kind: ViewKind, size: int) -> Augment:
        """The recipe of `data_adapters.mri.recipe`."""
        return slab_augment(kind, size)

    def prepare(self, record: Record) -> Tensor:
        """Slices spread evenly over the usable ones, on a black square: (n, C, size, size) float32 in [0, 1].

        n is `slices`, or fewer where a volume has fewer usable slices; 1 for a 2-D slice.
        """
        o = self.options
        stack = self._stack(record, store=False)
        candidates = usable(stack.area)
        chosen = candidates[np.unique(np.linspace(0, len(candidates) - 1, o.slices).round().astype(int))]
        slices = stack.slices[0 : len(stack.area)]
        images = [resize(square_slice(slices, int(i), channels=o.channels), o.global_size) for i in chosen]
        return torch.stack([to_tensor(image) for image in images])

    def verify(self, record: Record) -> None:
        """Decode every voxel and compare gzip checksums. Raises BadFileError."""
        self._check_files(record)
        self._decode_safely(record)

    def _check_files(self, record: Record) -> None:
        if not all(Path(name).is_file() for name in _files(record)):
            raise _missing(record)
        if record.meta.get("reader") == "nifti":
            nifti.check_compression(_files(record))

    @cached_property
    def _cache(self) -> ArrayCache:
        return ArrayCache(default_folder())

    def _stack(self, record: Record, *, store: bool) -> Stack:
        """The canonical stack: 2-D slices are decoded each time, volumes come from the cache where they are."""
        if record.meta.get("reader") in ("slice", "exported"):
            return self._decode_safely(record)
        o = self.options
        recipe = {
            "adapter": self.name,
            "version": self.version,
            "item": record.item,
            "plane": o.plane,
            "volume": o.volume,
        }
        try:
            key = cache_key(files=_files(record), recipe=recipe)
        except FileNotFoundError as error:
            raise _missing(record) from error
        entry = self._cache.find(key)
        if entry is not None:
            meta = entry.meta
            return Stack(
                slices=entry.rows("slices"),
                area=entry.array("area"),
                step=float(meta["step"]),
                mirror=meta["mirror"] == "True",
            )
        stack = self._decode_safely(record)
        if store:
            meta = {"step": repr(stack.step), "mirror": str(stack.mirror)}
            self._cache.write(key, {"slices": stack.slices, "area": stack.area}, meta=meta)
        return stack

    def _decode_safely(self, record: Record) -> Stack:
        return self._guarded(record, self._decode)

    def _guarded(self, record: Record, decode: Callable[[Record], T]) -> T:
        """Any failure of a foreign reader becomes a BadFileError that shows no path."""
        try:
            return decode(record)
        except BadFileError as error:
            raise BadFileError(error.cause, remedy=error.remedy, path=error.path or record.uri) from error
        except UserError:  # a missing extra is no fault of the file
            raise
        except FileNotFoundError as error:
            raise _missing(record) from error
        except Exception as error:
            cause = f"unreadable ({type(error).__name__})"
            raise BadFileError(cause, remedy="Export the image again.", path=record.uri) from error

    def _decode(self, record: Record) -> Stack:
        path, meta = Path(record.uri), record.meta
        match meta.get("reader"):
            case "slice":
                width_mm, height_mm = meta.get("spacing", (1.0, 1.0))
                return stack_slices(
                    normalise(dicom.load_slice(path))[None],
                    pixel_mm=(height_mm, width_mm),
                    mirror=bool(meta.get("mirror", True)),
                )
            case "exported":
                return stack_slices(normalise(exported.load(path))[None])
        return stack_volume(self._volume(record), plane=self.options.plane)

    def _volume(self, record: Record) -> Volume:
        path = Path(record.uri)
        match record.meta.get("reader"):
            case "nifti":
                return nifti.load(path, volume=self.options.volume)
            case "series":
                return series.load_series(_files(record))
            case "multiframe":
                return series.load_multiframe(path)
        raise BadFileError("record without a reader", remedy="Records come from scan: scan the archive again.")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_cache"}


def _files(record: Record) -> tuple[str, ...]:
    return tuple(record.meta.get("files", (record.uri,)))


def _missing(record: Record) -> BadFileError:
    return BadFileError("a file of the record is missing", remedy="Scan the archive again.", path=record.uri)
