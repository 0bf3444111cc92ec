"""The MRI adapter: NIfTI and kin, DICOM series and exported slices as views of neighbouring slices."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.base import BaseAdapter, Record, Rejected, Spec, ViewKind, rejected, to_tensor
from data_adapters.cache import ArrayCache, default_folder
from data_adapters.errors import BadFileError
from data_adapters.files import Files, check_content
from data_adapters.formats import FormatTable
from data_adapters.groups import Places
from data_adapters.mri import bids, dicom, sequences, series
from data_adapters.mri.formats import (
    FORMATS,
    MRIFormat,
    SliceFormat,
    VolumeFormat,
    cached_stack,
    check_files,
    guarded,
    header_of,
    load_stack,
    volume_formats,
)
from data_adapters.mri.geometry import VoxelGrid
from data_adapters.mri.options import MRIOptions
from data_adapters.mri.recipe import SliceCrop, Source, draw_slab, operations
from data_adapters.mri.volume import LAYOUT, Stack, resize, slicing_plane, spread, square_slice, usable
from data_adapters.record import BY_FILE, BY_PATIENT

SLICES_PER_SAMPLE = 8  # an epoch draws one slab for each 8 slices of a volume ...
MAX_SAMPLES = 16  # ... but a finely sliced volume must not crowd out the others
MAX_VOXELS = 10**9  # 4 GB while decoding; a damaged or hostile header can claim more than any scanner makes
THICK = 3  # slices are thick above this ratio of voxel sides (nnU-Net's threshold for anisotropic data)
NAMESAKES = (
    "%d DICOM images share a SOPInstanceUID with another image, but show something else: all are used. "
    "Whatever wrote them should give each image a UID of its own."
)
MIXED = (
    "%d DICOM series hold images of several patients under one SeriesInstanceUID: each patient's images are read as a "
    "series of their own. Check who belongs to which patient, and give each series a UID of its own."
)
# Which patient a file belongs to, where no catalogue says so, in this order: the BIDS entity sub-XX in the path; the
# DICOM PatientID (unless it is one that de-identifiers write for everybody); the folder, as in every modality; the
# file's name without a trailing contrast name (_T1, _flair). Too coarse a group costs folds, too fine a group leaks a
# patient into both sides of a split: the rule leans to coarse.
BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
CONTRAST = re.compile(
    r"[_-](t1|t2|pd)?(w|c|ce|gd|w?ce|n)?$|[_-](flair|dwi|adc|swi|mra|bold|fa|b0|mprage)$", re.IGNORECASE
)
BY_NAME = "file name without its contrast"
logger = logging.getLogger(__name__)


class MRIAdapter(BaseAdapter):
    """Records are volumes, DICOM series and 2-D slices; an embedding pools `slices` slices of a volume.

    meta: `reader` (nifti for every volume file, series, multiframe, slice, exported, sequences), `size`, `spacing`
    (mm), `affine` (RAS), `bits`, `files` (all that make up the record), and what docs/mri.md lists. Volumes are cached
    when training reads them; `prepare` and `verify` store nothing, so that an uploaded image leaves no trace.
    """

    name: ClassVar[str] = "mri"
    formats: ClassVar[FormatTable[MRIFormat]] = FORMATS
    suffixes: ClassVar[tuple[str, ...]] = formats.suffixes
    Options: ClassVar[type[MRIOptions]] = MRIOptions
    version: ClassVar[int] = 2  # 2: padding of DICOM is background
    small_size: ClassVar[int] = 128  # at 64, a lesion is a few pixels
    warm_views: ClassVar[tuple[int, int] | None] = (2, 224)  # benchmarks/results/warm-start-trials.md
    usual_views, usual_layers = 2, 2  # the same
    prepares_any_size: ClassVar[bool] = True

    @property
    def spec(self) -> Spec:
        """One or three grey channels, or one a sequence, centred at .5."""
        n = self.options.image_channels
        return self.make_spec(channels=n, mean=(0.5,) * n, std=(0.5,) * n)

    @property
    def most_images(self) -> int:
        """Slices of a volume."""
        return int(self.options.slices)

    @property
    def most_views(self) -> int:
        """2, left and right mirrored, where training does that and the plane of every volume shows both."""
        return 2 if self.options.flip and self.options.plane in ("axial", "coronal") else 1

    # --- scan -------------------------------------------------------------------------------------------------------

    def combine(self, found: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
        """The records as they are; with the option `sequences`, one for each patient and session."""
        return sequences.combine(found, self.options) if self.options.sequences else found

    def grouped(self, record: Record, root: Path, places: Places) -> Record:
        """The record with the group of its patient, by the rule beside `BIDS`."""
        record = places.settle(by_bids(record, root))
        return by_name(record) if record.grouped_by == BY_FILE and self.options.group_by != "file" else record

    def inspect_all(self, files: Files) -> Iterator[Record | Rejected]:
        """File by file, then the DICOM series in the order of their first files."""
        headers: list[dicom.DicomHeader] = []
        # a pair is one record, under its header's name
        single = (path for path in files if path == files.root or not self._has_header(path))
        for found in files.each(self.inspect_file, single, files.root):
            if isinstance(found, dicom.DicomHeader):
                headers.append(found)
            else:
                yield from found
        hashed = files.each(self.hash_pixels, series.suspects(headers))
        digests = {found.path: found.digest for found in hashed if isinstance(found, dicom.PixelDigest)}
        sorted_out = series.group_series(headers, digests)
        if sorted_out.namesakes:
            logger.warning(NAMESAKES, sorted_out.namesakes)
        if sorted_out.mixed:
            logger.warning(MIXED, sorted_out.mixed)
        groups = sorted_out.groups
        alone = (members[0].path for members in groups if members[0].frames > 1)
        frames = files.each(self.inspect_frames, alone, files.root)
        for members in groups:
            if members[0].frames > 1:
                yield from next(frames)
                continue
            try:
                yield self._dicom_record(members)
            except Exception as error:
                yield from (rejected(header.path, error) for header in members)
        for header in sorted_out.copies:
            yield Rejected(
                uri=str(header.path),
                reason="copy of another DICOM image",
                remedy="Skipped, no error: the first copy is used.",
            )

    def inspect_file(self, path: Path, root: Path) -> dicom.DicomHeader | list[Record | Rejected]:
        """The part of `inspect_all` that reads one file."""
        try:
            check_content(path)
            if dicom.is_dicom(path, others=self.suffixes):
                return dicom.read_header(path, modalities=self.options.modalities)
        except Exception as error:
            return [rejected(path, error)]
        return self.try_inspect(path, root)

    def hash_pixels(self, path: Path) -> dicom.PixelDigest | list[Record | Rejected]:
        """The hash of one DICOM image's pixels, where its SOPInstanceUID is another's, too."""
        return dicom.pixels_of(path)

    def inspect_frames(self, path: Path, root: Path) -> list[Record | Rejected]:
        """The record of a multi-frame DICOM file, whose geometry takes more than its header."""
        try:
            return [self._dicom_record([dicom.read_header(path, modalities=self.options.modalities)])]
        except Exception as error:
            return [rejected(path, error)]

    def companions(self, path: Path) -> Iterable[Path]:
        """The data file of a header file, and the BIDS sidecars that apply."""
        return [data for one in volume_formats(self.formats) for data in one.data_of(path)] + bids.sidecars(path)

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """Headers of one file below the archive's folder `root`."""
        if path.name.lower().endswith(dicom.PACKED):
            raise BadFileError("compressed DICOM file (.dcm.gz)", remedy="Unpack it with gunzip.", path=path)
        if dicom.is_dicom(path, others=self.suffixes):
            return [self._dicom_record([dicom.read_header(path, modalities=self.options.modalities)])]
        path = header_of(path, self.formats) or path
        form, o = self.formats.of(path), self.options
        if isinstance(form, SliceFormat):
            picture = form.read_header(path)
            meta = {"reader": "exported", "size": list(picture.size), "bits": picture.bits, **bids.facts(path)}
            return [Record(uri=str(path), group="", meta=meta)]
        if not isinstance(form, VolumeFormat):
            raise BadFileError("not a readable DICOM file", remedy="Export it again.", path=path)
        header = form.read_header(path, volume=o.volume, sides_matter=not o.flip)
        meta = {"reader": "nifti", "bits": header.bits, "files": list(header.files), **bids.facts(path)}
        return [self._volume_record(path, "", header.grid, meta)]

    def _has_header(self, path: Path) -> bool:
        header = header_of(path, self.formats)
        return header is not None and header.is_file()

    def _dicom_record(self, members: list[dicom.DicomHeader]) -> Record:
        first = members[0]
        dicom.permit(members, self.options)
        meta = {"bits": first.bits, "files": [str(header.path) for header in members], **first.facts}
        sequence = sequences.by_pattern(first.description, self.options.sequence_patterns)
        if sequence is not None:
            meta["sequence"] = sequence
        group = first.patient
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
        return Record(uri=str(first.path), group=group, grouped_by=BY_PATIENT if group else "", meta=meta)

    def _volume_record(self, path: Path, group: str, grid: VoxelGrid, meta: dict[str, Any]) -> Record:
        if math.prod(grid.size) > MAX_VOXELS:
            raise BadFileError("more than 10^9 voxels", remedy="Give a coarser volume or parts of it.", path=path)
        plane = slicing_plane(shape=grid.size, spacing=grid.spacing, plane=self.options.plane)
        n = grid.size[LAYOUT[plane][0]]
        if max(grid.spacing) > THICK * min(grid.spacing):
            meta["thick_slices"] = True
            pixel = [grid.spacing[axis] for axis in LAYOUT[plane][1:]]
            if max(pixel) > THICK * min(pixel) and self.options.thick == "refuse":
                raise BadFileError(
                    "the plane cuts across thick slices",
                    remedy="Set the option plane to acquired, or thick to resample.",
                    path=path,
                )
        return Record(
            uri=str(path),
            group=group,
            grouped_by=BY_PATIENT if group else "",
            samples=min(max(n // SLICES_PER_SAMPLE, 1), MAX_SAMPLES),
            meta={**meta, "size": list(grid.size), "spacing": list(grid.spacing), "affine": list(grid.affine)},
        )

    # --- pixels -----------------------------------------------------------------------------------------------------

    def read(self, record: Record, rng: np.random.Generator) -> Source:
        """A slab about a slice drawn from the usable ones. Raises BadFileError."""
        o = self.options
        if sequences.is_session(record):
            members = sequences.parts(record)
            stacks = {name: self._stack(part, store=True) for name, part in members.items()}
            common: dict[str, Any] = {"rng": rng, "slab_mm": o.slab_mm, "mirror": o.flip, "dropout": o.sequence_dropout}
            if o.combine == "channels":
                return sequences.draw_channels([stacks.get(name) for name in o.sequences], **common)
            return sequences.draw_paired(stacks, members, plane=o.plane, channels=o.channels, **common)
        stack = self._stack(record, store=True)
        return draw_slab(stack, rng=rng, slab_mm=o.slab_mm, channels=o.channels, mirror=o.flip)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """A crop of one slice."""
        return SliceCrop(kind, size)

    def operations(self) -> list[Operation]:
        """What a scanner does to intensities."""
        return operations()

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[Any, Scene]:
        """Any values in [0, 1]."""
        return rng.random((size, size, self.spec.channels), dtype=np.float32), None

    def prepare(self, record: Record) -> Tensor:
        """Slices spread evenly over the usable ones, on a black square: (n, C, size, size) float32 in [0, 1].

        n is `slices`, or fewer where a volume has fewer usable slices; 1 for a 2-D slice. Sequences as channels give
        such slices with a zero channel for a missing sequence; sequences as views give those of one after the other.
        """
        o = self.options
        if sequences.is_session(record):
            members = sequences.parts(record)
            if o.combine == "views":
                return torch.cat([self.prepare(part) for part in members.values()])
            stacks = {name: self._stack(part, store=False) for name, part in members.items()}
            images = sequences.prepare_channels(
                [stacks.get(name) for name in o.sequences], slices=o.slices, size=o.prepared_size
            )
            return torch.stack([to_tensor(image) for image in images])
        stack = self._stack(record, store=False)
        slices = stack.slices[0 : len(stack.area)]
        images = [
            resize(square_slice(slices, int(i), channels=o.channels), o.prepared_size)
            for i in spread(usable(stack.area), o.slices)
        ]
        return torch.stack([to_tensor(image) for image in images])

    def verify(self, record: Record) -> None:
        """Decode every voxel and compare gzip checksums. Raises BadFileError."""
        if sequences.is_session(record):
            for part in sequences.parts(record).values():
                self.verify(part)
            return
        check_files(record)
        guarded(record, lambda one: load_stack(one, self.options, self.formats))

    @cached_property
    def _cache(self) -> ArrayCache:
        return ArrayCache(default_folder())

    def _stack(self, record: Record, *, store: bool) -> Stack:
        o = self.options
        recipe = {
            "adapter": self.name,
            "version": self.version,
            "item": record.item,
            "plane": o.plane,
            "volume": o.volume,
        }
        return cached_stack(record, o, self.formats, recipe=recipe, cache=self._cache, store=store)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "_cache"}


def by_bids(record: Record, root: Path) -> Record:
    """A record of a file below `root` with the BIDS subject of its path, where it has one and no catalogue tells."""
    if record.grouped_by not in ("", BY_PATIENT):
        return record
    path = Path(record.uri)
    parts = path.relative_to(root).parts if path != root and path.is_relative_to(root) else (path.name,)
    found = next((match for part in reversed(parts) if (match := BIDS.search(part))), None)
    return replace(record, group=found.group(1), grouped_by="BIDS subject") if found else record


def by_name(record: Record) -> Record:
    """A record whose group is its file's path without suffix: with the name without the contrast."""
    name = Path(record.group).name
    return replace(record, group=CONTRAST.sub("", name) or name, grouped_by=BY_NAME)
