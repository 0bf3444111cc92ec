"""The histology adapter: slides and tiles -> records, regions at a stated mpp, views, tiles for embedding."""

import copy
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AdapterOptions,
    BaseAdapter,
    Caution,
    Record,
    Rejected,
    Spec,
    ViewKind,
    rejected,
    to_tensor,
)
from data_adapters.errors import BadFileError
from data_adapters.files import Files, check_content
from data_adapters.formats import FormatTable
from data_adapters.groups import Places
from data_adapters.histology import adapter as regions
from data_adapters.histology import coords, hdf5
from data_adapters.histology.crop import resize
from data_adapters.histology.formats import (
    DICOM,
    FORMATS,
    KEY,
    MIRAX,
    Handles,
    HistologyFormat,
    MixedFormat,
    SlideFormat,
    SlideInstance,
    TileFormat,
    TileTableFormat,
    format_of,
    mirax_files,
    slide_instance,
    slide_meta,
    tile_meta,
    tile_table,
    tissue_of,
    too_small,
)
from data_adapters.histology.options import HistologyOptions
from data_adapters.histology.recipe import Source, TissueCrop, operations
from data_adapters.histology.tissue import Tissue
from data_adapters.pipeline_file import symmetries
from data_adapters.record import files_of

SANE = (0.05, 20.0)
# A scan slightly coarser than wanted is enlarged (scanners called 20x lie between .45 and .55); a coarser one has not
# got the detail.
ENLARGE = 1.15


def native_mpp(meta: Mapping[str, Any]) -> float | None:
    """`meta["mpp"]`, um per pixel at level 0 (a catalogue's value has replaced the file's), or None.

    Raises:
        BadFileError: not a number, or not a microscope's.
    """
    value = meta.get("mpp")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadFileError("mpp is not a number", remedy="Correct the column 'mpp' of the catalogue.")
    if not SANE[0] <= value <= SANE[1]:
        raise BadFileError(
            "mpp out of range",
            remedy=f"A slide has {SANE[0]:g} to {SANE[1]:g} um per pixel; a resolution tag may be a printer's. "
            "Give the true value in a catalogue column 'mpp'.",
        )
    return float(value)


def downsample(meta: Mapping[str, Any], options: HistologyOptions) -> float:
    """Level-0 pixels per pixel of an embedded tile.

    Raises:
        BadFileError: mpp is missing or absurd, or the scan is too coarse for the wanted mpp.
    """
    native = native_mpp(meta)
    if options.mpp is None:
        return 1.0
    if native is None:
        raise BadFileError(
            "mpp missing",
            remedy="Give um per pixel in a catalogue column 'mpp', or set mpp=none to read level 0 as it is.",
        )
    if native > ENLARGE * options.mpp:
        raise BadFileError(
            "scan coarser than the wanted mpp",
            remedy="Set mpp to what the scanner gave; enlarging would invent detail.",
        )
    return options.mpp / native


def draw_downsample(
    meta: Mapping[str, Any], options: HistologyOptions, size: tuple[int, int], rng: np.random.Generator
) -> float:
    """Level-0 pixels per pixel of a training region.

    With `mpp_range`: log-uniform, cut to what the slide has. With `mpp_choices`: one of those that the slide has, and
    `mpp` where it has none. Never finer than the scan, never so coarse that the region is larger than the slide.
    Consumes one draw.

    Raises:
        BadFileError: as `downsample`.
    """
    fixed, u = downsample(meta, options), float(rng.random())
    if options.mpp is None:
        return fixed
    native = options.mpp / fixed
    most = native * min(size) / options.tile_px
    if options.mpp_choices is not None:
        has = [choice for choice in options.mpp_choices if native <= ENLARGE * choice and choice <= most]
        return (has[int(u * len(has))] if has else options.mpp) / native
    if options.mpp_range is None:
        return fixed
    high = max(options.mpp, min(options.mpp_range[1], most))
    low = min(max(options.mpp_range[0], native), high)
    return float(low * (high / low) ** u) / native


Region = tuple[float, float, float, float]


def marked_region(meta: Mapping[str, Any], size: tuple[int, int]) -> Region | None:
    """`meta["region"]` = [left, top, width, height] in level-0 pixels, or None when there is no such list.

    Raises:
        BadFileError: not four numbers, or not wholly inside the picture.
    """
    given = meta.get("region")
    if not isinstance(given, list | tuple):  # a catalogue column of that name holds text
        return None
    numbers = [v for v in given if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(given) != 4 or len(numbers) != 4 or numbers[2] < 1 or numbers[3] < 1:
        raise BadFileError(
            "region is not left, top, width, height", remedy="Give four numbers in level-0 pixels, sides of at least 1."
        )
    x, y, w, h = (float(v) for v in numbers)
    if x < 0 or y < 0 or x + w > size[0] or y + h > size[1]:
        raise BadFileError(
            "region lies outside of the picture",
            remedy=f"Mark a region inside the picture, which is {size[0]} x {size[1]} level-0 pixels.",
        )
    return x, y, w, h


def cover(region: Region, *, side: float, count: int) -> list[tuple[float, float]]:
    """Corners of squares of `side` that show a region, in reading order, evenly spread.

    Along each axis as many squares as fit best (at least one); with more than `count`, every k-th of them.

    Raises:
        BadFileError: the region is smaller than one square.
    """
    x, y, w, h = region
    if min(w, h) < side * 0.999:
        raise BadFileError(
            "region smaller than one view of the encoder",
            remedy=f"Mark at least {math.ceil(side)} x {math.ceil(side)} level-0 pixels of this slide.",
        )
    side = min(side, w, h)
    columns, rows = (_spread(length, side) for length in (w, h))
    corners = [(x + left, y + top) for top in rows for left in columns]
    if len(corners) <= count:
        return corners
    return [corners[int((i + 0.5) * len(corners) / count)] for i in range(count)]


def _spread(length: float, side: float) -> list[float]:
    n = max(1, round(length / side))
    if n == 1:
        return [(length - side) / 2]
    return [i * (length - side) / (n - 1) for i in range(n)]


MOST_TILES = 1 << 20  # rows of one slide: a resection at .25 um per pixel has about 100,000 tiles of 224 pixels
SCALE_SAMPLE = 1000  # records by which `fit` tells whether the archive has a scale
# Known to labs, unknown to openslide: the reason says more than "not a format".
_FOREIGN = (".czi", ".isyntax", ".vsi", ".sdpc", ".kfb", ".vms", ".vmu", ".lif", ".qptiff")
TCGA = "TCGA patient"
# Project, tissue source site, participant: the first 12 characters of a TCGA barcode name the patient.
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


class HistologyAdapter(BaseAdapter):
    """Whole slides of every format that openslide reads and OME-TIFF, folders of tiles, and tiles in HDF5.

    A slide is read region by region at a stated um per pixel; nothing is cut to disk. `Record.meta` may carry `mpp`
    (um per pixel at level 0, from the file or a catalogue) and `region` ([left, top, width, height], level-0 pixels),
    which confines `prepare` to a rectangle.
    """

    name: ClassVar[str] = "histology"
    formats: ClassVar[FormatTable[HistologyFormat]] = FORMATS
    suffixes: ClassVar[tuple[str, ...]] = formats.suffixes
    Options: ClassVar[type[AdapterOptions]] = HistologyOptions
    version: ClassVar[int] = 1
    small_size: ClassVar[int] = 96  # nuclei of 1 um pixels; the side of the usual tiles
    prepares_any_size: ClassVar[bool] = True
    reads_regions = True
    part_columns: ClassVar[tuple[str, ...]] = ("x", "y", "side", "level0_mpp", "tile_mpp")
    usual_views, usual_layers = 8, 2  # benchmarks/results/warm-start-trials.md

    def __init__(self, options: AdapterOptions | None = None, **kwargs: Any) -> None:
        super().__init__(options, **kwargs)
        self._handles = Handles(table=self.formats)

    @property
    def spec(self) -> Spec:
        """RGB with ImageNet's statistics, which initial checkpoints expect."""
        return self.make_spec(channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def most_images(self) -> int:
        """Tiles of a slide."""
        return int(self.options.tiles)

    @property
    def most_views(self) -> int:
        """8, since tissue has no up; fewer where an `augment` file turns or mirrors less."""
        return min(8, symmetries(self.options.augment, usual=8))

    # --- scan -------------------------------------------------------------------------------------------------------

    def combine(self, found: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
        """The records whose mpp is right. It is judged last, because the catalogue may supply or correct it."""
        for one in found:
            if isinstance(one, Rejected):
                yield one
                continue
            try:
                yield self.settle(one)
            except BadFileError as error:
                of_mirax = one.uri.lower().endswith(MIRAX)  # its data files are no slides of their own
                for path in (one.uri,) if of_mirax else files_of(one):
                    yield rejected(path, error)

    def inspect_all(self, files: Files) -> Iterator[Record | Rejected]:
        """File by file; the files of one DICOM slide (one folder, one series) make one record, at the end."""
        series: dict[tuple[Path, str], list[Path]] = {}
        for found in files.each(self.inspect_file, self._of_their_own(files), files.root):
            if isinstance(found, SlideInstance):
                series.setdefault((found.path.parent, found.series), []).append(found.path)
            else:
                yield from found
        firsts = [first for first, *_ in series.values()]
        inspected = files.each(self.try_inspect, firsts, files.root)
        for (first, *others), slides in zip(series.values(), inspected, strict=True):
            for slide in slides:
                if isinstance(slide, Record):
                    further = {"files": [str(first), *map(str, others)]} if others else {}
                    yield dataclasses.replace(slide, meta={**slide.meta, **further})
                else:
                    yield slide
                    yield from (dataclasses.replace(slide, uri=str(p)) for p in others)

    def inspect_file(self, path: Path, root: Path) -> SlideInstance | list[Record | Rejected]:
        """The part of `inspect_all` that reads one file."""
        if path.suffix.lower() != DICOM:
            return self.try_inspect(path, root)
        try:
            check_content(path)
            return slide_instance(path)
        except BadFileError as error:
            return [rejected(path, error)]

    def companions(self, path: Path) -> Iterable[Path]:
        """What else tells about a file: labels and groups of HDF5 tiles, patch coordinates, a slide's further files.

        The folder of a DICOM slide's files changes when one of them comes or goes; a MIRAX slide's data may also change
        in place.
        """
        suffix = path.suffix.lower()
        if suffix in hdf5.SUFFIXES:
            return hdf5.companions(path)
        if suffix == MIRAX:
            found = [path.with_suffix(""), *mirax_files(path)[1:]]
        else:
            found = [path.parent] if suffix == DICOM else []
        return found + ([] if self.options.coords is None else coords.names(self.options.coords, path))

    def _of_their_own(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Without the data of .mrxs slides, labels of tiles beside them, and what the option coords names."""
        for path in _without_mirax_data(paths):
            if path.suffix.lower() not in hdf5.SUFFIXES or not (hdf5.is_companion(path) or self._is_coords(path)):
                yield path

    def try_inspect(self, path: Path, root: Path) -> list[Record | Rejected]:
        """As the base, with a better reason for formats that labs have and openslide lacks."""
        if path.suffix.lower() in _FOREIGN:
            reason = "slide format that this adapter does not read"
            return [Rejected(uri=str(path), reason=reason, remedy="Convert it to pyramidal TIFF or DICOM.")]
        return super().try_inspect(path, root)

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """One slide, one tile, or the rows of an HDF5 file."""
        form = format_of(path, self.formats)
        if isinstance(form, TileTableFormat):
            return hdf5.records(path, tile_table(path, form, self._handles), KEY)
        if isinstance(form, TileFormat):
            return [Record(uri=str(path), group="", meta=tile_meta(path, form, self.options))]
        case = slide_instance(path).case if path.suffix.lower() == DICOM else ""
        meta = slide_meta(path, form, self._handles, self.options, tissue=True)
        if len(files := form.files(path)) > 1:
            meta = {**meta, "files": [str(file) for file in files]}
        return [Record(uri=str(path), group=case, grouped_by="DICOM patient or study" if case else "", meta=meta)]

    def grouped(self, record: Record, root: Path, places: Places) -> Record:
        """The record with the group of its content or names, else of its place; a row of an HDF5 file has no name."""
        is_slide = record.meta[KEY]["kind"] == "slide"
        return places.settle(record if record.item else by_name(record, root, is_slide=is_slide))

    def settle(self, record: Record) -> Record:
        """A scanned record with its catalogue values -> the same with `samples`, or refused.

        Raises:
            BadFileError: mpp missing, absurd or too coarse; slide too small or with too little tissue for one region.
        """
        own = record.meta[KEY]
        if own["kind"] != "slide":
            regions.native_mpp(record.meta)
            return record
        pixel = regions.downsample(record.meta, self.options)
        side = self.options.tile_px * pixel
        if max(side, self.options.prepared_size * pixel) > min(own["size"]):  # nothing is filled beyond the slide
            raise too_small(self.options, Path(record.uri))
        tissue = tissue_of(own)
        if tissue.most(side=side, size=tuple(own["size"])) < self.options.min_tissue:
            raise BadFileError(
                "no region with enough tissue", remedy="Reduce min_tissue, or check the options stain and mpp."
            )
        fits = int(tissue.area / side**2)
        return dataclasses.replace(record, samples=min(max(fits, 1), self.options.samples_per_slide))

    # --- training ---------------------------------------------------------------------------------------------------

    def read(self, record: Record, rng: np.random.Generator) -> Source:
        """A tile, or a random tissue region of a slide, about tile_px wide at a random mpp (see `Source`).

        Where the tiles of a slide are read directly, they are decoded, and found damaged, by `views`.

        Raises:
            BadFileError: the pixels cannot be read right.
        """
        path, meta = Path(record.uri), self._meta(record, tissue=True)
        own, side_px = meta[KEY], self.options.tile_px
        if own["kind"] != "slide":
            return Source(pixels=self._tile(record, own), scaled=False)
        size = tuple(own["size"])
        side = side_px * regions.draw_downsample(meta, self.options, size, rng)
        corner = tissue_of(own).draw(rng, side=side, size=size, least=self.options.min_tissue)
        reader = own.get("training_reader", "openslide")
        pixels = self._handles.source(path, corner=corner, side=side, out=side_px, reader=reader)
        return Source(pixels=pixels, scaled=True)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """A crop that keeps the size of nuclei."""
        return TissueCrop(kind, size, self.options)

    def operations(self) -> list[Operation]:
        """Symmetry, stain, colour, focus and JPEG."""
        return operations(self.options)

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """Any 8-bit RGB."""
        return rng.integers(0, 256, (size, size, 3)).astype(np.uint8), None

    def fit(self, records: Sequence[Record]) -> "HistologyAdapter":
        """The adapter that knows whether its encoder saw images of a known scale."""
        chosen = records[:: max(1, len(records) // SCALE_SAMPLE)]
        known = any("mpp" in record.meta or record.meta.get(KEY, {}).get("kind") == "slide" for record in chosen)
        fitted = copy.copy(self)  # through __getstate__, so without open files
        fitted.options = self.options.model_copy(update={"known_scale": known})
        return fitted

    def cautions(self, records: Sequence[Record]) -> list[Caution]:
        """Tiles, and marked regions of slides, of an unknown scale or another one than the encoder was trained at."""
        o = self.options
        if o.mpp is None or o.known_scale is False:
            return []
        low, high = o.mpp_range or (min(o.mpp_choices or (o.mpp,)), max(o.mpp_choices or (o.mpp,)))
        kinds: list[str] = []
        unknown: list[int] = []
        other: list[int] = []
        for row, record in enumerate(records):
            of_slide, marked = record.meta[KEY]["kind"] == "slide", record.meta.get("region")
            try:
                native = regions.native_mpp(record.meta)
            except BadFileError:  # of a request: `prepare` refuses the item
                continue
            if of_slide and (native is not None or not isinstance(marked, list | tuple)):
                continue  # it is read at the encoder's mpp
            kinds.append("region" if of_slide else "tile")
            if native is None:
                unknown.append(row)
                continue
            side = min(marked[2:] if isinstance(marked, list | tuple) else record.meta["size"])
            if not low / regions.ENLARGE <= native * side / o.prepared_size <= high * regions.ENLARGE:
                other.append(row)
        names = sorted(set(kinds), reverse=True)
        one, all_of_them = " or ".join(names), f"{len(kinds):,} {' and '.join(f'{name}s' for name in names)}"
        found = []
        if unknown:
            cause = (
                f"{len(unknown):,} of {all_of_them} have no mpp (um per pixel), and the encoder was trained at "
                f"{o.mpp:g}. A {one} is resized to {o.prepared_size} pixels whatever it shows, so these vectors may be "
                "of another scale"
            )
            found.append(Caution(cause=cause, rows=unknown, fact="mpp"))
        if other:
            cause = (
                f"{len(other):,} of {all_of_them}, resized to {o.prepared_size} pixels, lie outside of the {low:g} to "
                f"{high:g} um per pixel that the encoder was trained at"
            )
            remedy = f"Cut tiles that are about {o.prepared_size * o.mpp:.0f} um wide"
            found.append(Caution(cause=cause, rows=other, remedy=remedy))
        return found

    def complete(self, record: Record) -> Record:
        """A slide or tile that came alone, with the header's facts and, where no region is marked, its tissue."""
        return dataclasses.replace(record, meta=self._meta(record, tissue="region" not in record.meta))

    # --- embedding --------------------------------------------------------------------------------------------------

    def prepare(self, record: Record) -> Tensor:
        """Pixels for embedding, (n, 3, size, size) uint8; size is options.prepared_size.

        - Tile: n = 1, scaled until its shorter side is size, then the central square.
        - Slide: up to `tiles` tissue tiles of a regular grid at `mpp`.
        - Slide with a marked region: the region in tiles at `mpp`; without known mpp, scaled by its shorter side.

        Raises:
            BadFileError: the pixels cannot be read right, or the region lies outside or is too small.
        """
        path, out = Path(record.uri), self.options.prepared_size
        marked = isinstance(record.meta.get("region"), list | tuple)
        meta = self._meta(record, tissue=not marked)
        own = meta[KEY]
        if own["kind"] != "slide":
            regions.native_mpp(meta)  # a scan checks it, but a request may bring its own
            pixels = self._tile(record, own)
            fields = [_fit(_cut(pixels, regions.marked_region(meta, pixels.shape[1::-1])), out)]
        else:
            size = (int(own["size"][0]), int(own["size"][1]))
            side, corners = self._fields(meta, own, size, regions.marked_region(meta, size))
            read = partial(self._handles.read, path, reader=own.get("reader", "openslide"))
            fields = [read(corner=corner, extent=(side, side), out=(out, out)) for corner in corners]
        return torch.stack([to_tensor(field) for field in fields])

    def _fields(
        self, meta: dict[str, Any], own: dict[str, Any], size: tuple[int, int], region: regions.Region | None
    ) -> tuple[float, list[tuple[float, float]]]:
        """Side (level-0 pixels) and corners of the tiles that stand for a slide or a region of it."""
        o = self.options
        if region is None:
            side = o.prepared_size * regions.downsample(meta, o)
            return side, tissue_of(own).grid(side=side, size=size, least=o.min_tissue, count=o.tiles)
        unknown = o.mpp is not None and regions.native_mpp(meta) is None
        side = min(region[2:]) if unknown else o.prepared_size * regions.downsample(meta, o)
        return side, regions.cover(region, side=side, count=o.tiles)

    def parts(self, record: Record) -> list[Record]:
        """Every tissue tile of a slide, however many: regions of one tile each, in reading order.

        meta: `x`, `y` (left, top) and `side` in level-0 pixels, `level0_mpp` and `tile_mpp` in um per pixel or None.
        A tile that is a file of its own stays as it is.

        Raises:
            BadFileError: mpp is missing or absurd.
        """
        own = record.meta.get(KEY)
        if own is None or own["kind"] != "slide" or not ("tissue" in own or "patches" in own):
            return [record]
        o, native = self.options, regions.native_mpp(record.meta)
        pixel = regions.downsample(record.meta, o)
        side = o.prepared_size * pixel
        size = (int(own["size"][0]), int(own["size"][1]))
        corners = tissue_of(own).grid(side=side, size=size, least=o.min_tissue, count=MOST_TILES)
        bare = {name: value for name, value in own.items() if name not in ("tissue", "patches")}
        scale = {"level0_mpp": native, "tile_mpp": None if native is None else native * pixel}
        found = []
        for x, y in corners:
            place = {"x": x, "y": y, "side": side, **scale, "region": [x, y, side, side]}
            item = f"{record.item} {x:.0f},{y:.0f}".strip()
            meta = {**record.meta, KEY: bare, **place}
            found.append(dataclasses.replace(record, item=item, samples=1, meta=meta))
        return found

    def outline(self, record: Record) -> np.ndarray | None:
        """The tissue mask of a slide, (h, w) bool; None of a tile, and where patches of another tool stand for it."""
        own = record.meta.get(KEY, {})
        if own.get("kind") != "slide" or "tissue" not in own:
            return None
        tissue = Tissue.unpack(own["tissue"])
        width, height = (max(1, round(length / tissue.cell)) for length in own["size"])
        return tissue.mask[:height, :width]

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _tile(self, record: Record, own: dict[str, Any]) -> np.ndarray:
        path = Path(record.uri)
        form = self.formats.of(path)
        if isinstance(form, TileTableFormat):
            return tile_table(path, form, self._handles).read(int(record.item))
        if isinstance(form, MixedFormat):
            form = form.tile  # the scan looked into it
        if not isinstance(form, TileFormat):
            raise BadFileError("no tile", remedy="Scan the archive again.", path=path)
        return form.read(path, self.options.stain == "any")

    def _is_coords(self, path: Path) -> bool:
        return self.options.coords is not None and path.is_relative_to(self.options.coords.resolve())

    def _meta(self, record: Record, *, tissue: bool) -> dict[str, Any]:
        """The record's meta; for a record that no scan made (an upload), completed from the file."""
        own = record.meta.get(KEY)
        if own is not None and (own["kind"] != "slide" or "tissue" in own or "patches" in own or not tissue):
            return dict(record.meta)
        path = Path(record.uri)
        form = format_of(path, self.formats)
        if isinstance(form, SlideFormat):
            return {**slide_meta(path, form, self._handles, self.options, tissue=tissue), **record.meta}
        if isinstance(form, TileFormat):
            return {**tile_meta(path, form, self.options), **record.meta}
        raise BadFileError("a file of many tiles", remedy="Mark regions on slides and single tiles.", path=path)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_handles": Handles(self._handles.limit, self.formats)}


def _without_mirax_data(paths: Iterable[Path]) -> Iterator[Path]:
    """Without the data of .mrxs slides, which stand beside folders of their names."""
    for folder, inside in groupby(paths, key=lambda path: path.parent):
        if not (folder.name and folder.with_name(folder.name + ".mrxs").is_file()):
            yield from inside


def _cut(pixels: np.ndarray, region: regions.Region | None) -> np.ndarray:
    if region is None:
        return pixels
    x, y, w, h = (round(v) for v in region)
    return pixels[y : y + h, x : x + w]


def _fit(pixels: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) -> (side, side, 3): shorter side to `side`, then the central square."""
    height, width = pixels.shape[:2]
    factor = side / min(height, width)
    fitted = resize(pixels, (max(side, round(width * factor)), max(side, round(height * factor))))
    top, left = (fitted.shape[0] - side) // 2, (fitted.shape[1] - side) // 2
    return np.ascontiguousarray(fitted[top : top + side, left : left + side])


def tcga_patient(name: str) -> str | None:
    """The patient of a TCGA barcode at the start of `name`, or None."""
    found = _TCGA.match(name)
    return found.group().upper() if found else None


def by_name(record: Record, root: Path, *, is_slide: bool) -> Record:
    """A record without a group with that of its names, if they tell one: the patient, otherwise the slide.

    A slide has the TCGA patient of its file's name, else that name (one slide, one case): equal names in two folders
    are one group, as stains and scans of one case often lie so, and too fine a group leaks. A tile has the TCGA patient
    of its file's name, or of the nearest folder below `root` that tells one.
    """
    if record.group:
        return record
    path = Path(record.uri)
    folders = path.parent.relative_to(root).parts if path.is_relative_to(root) and path != root else ()
    names = (path.stem, *(() if is_slide else reversed(folders)))
    patient = next((found for name in names if (found := tcga_patient(name))), None)
    if patient:
        return dataclasses.replace(record, group=patient, grouped_by=TCGA)
    return dataclasses.replace(record, group=path.stem, grouped_by="slide name") if is_slide else record
