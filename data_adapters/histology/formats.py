"""The files of this modality: which reader takes one, the handles that are open, and what the manifest keeps."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.formats import FormatTable
from data_adapters.histology import hdf5, slide, tiles
from data_adapters.histology.coords import Patches, find_patches
from data_adapters.histology.options import HistologyOptions
from data_adapters.histology.slide import read_field, read_source
from data_adapters.histology.tiledtiff import VENDOR as OME
from data_adapters.histology.tiledtiff import Canvas, TiledTiff, is_ome, undecodable
from data_adapters.histology.tissue import Tissue, tissue_mask
from data_adapters.openfiles import OpenFiles

KEY = "histology"  # of what this adapter keeps in Record.meta, out of the way of a catalogue's columns
CACHE_BYTES = 64 * 2**20  # decoded tiles, shared by all openslide handles: about 1 MB a handle instead of 10
MIRAX, DICOM = ".mrxs", ".dcm"
MIRAX_PARTS = (".ini", ".dat")  # Slidedat.ini, Index.dat, Data0000.dat, ...
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
# A plain tiled TIFF with one level and longer sides than this is a slide without a pyramid, not a tile.
LARGEST_TILE = 4096
# Whose tiles may be plain; each slide is compared before its tiles are read directly.
DIRECT_VENDORS = ("generic-tiff", "aperio")
COMPARED = 64  # pixels a side, in the middle of each level
SAME_LEVELS = 8.0  # grey levels: a shift by half a pixel on a coarse level is allowed, another picture is not
FieldPixels = TypeVar("FieldPixels", bound=np.ndarray | Canvas)


def alone(path: Path) -> list[Path]:
    """The files of a slide that is one file."""
    return [path]


@dataclass(frozen=True, kw_only=True)
class SlideFormat:
    """A format of whole slides.

    Attributes:
        suffixes: lower case.
        reader: name of the reader in the manifest.
        open: path -> handle. It has what `slide.py` uses of openslide's: `dimensions`, `level_count`,
            `level_dimensions`, `level_downsamples`, `properties` (`openslide.mpp-x` and `-y`, um per pixel),
            `get_best_level_for_downsample` and `read_region`. Both raise BadFileError for what they cannot read right.
        files: all files that hold a slide, itself first.
    """

    suffixes: tuple[str, ...]
    reader: str
    open: Callable[[Path], Any]
    files: Callable[[Path], list[Path]] = alone


@dataclass(frozen=True, kw_only=True)
class TileFormat:
    """A format of single tiles. Both functions take `grey`, whether greyscale is accepted, and raise BadFileError.

    Attributes:
        suffixes: lower case.
        size: width and height of a tile, upright, from its header.
        read: (H, W, 3) uint8 RGB, upright.
    """

    suffixes: tuple[str, ...]
    size: Callable[[Path, bool], tuple[int, int]]
    read: Callable[[Path, bool], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TileTableFormat:
    """A format of many tiles in one file.

    Attributes:
        suffixes: lower case.
        reader: name of the reader among the open handles.
        open: path -> an `hdf5.TileTable`, or what has its attributes and methods. Raises BadFileError.
    """

    suffixes: tuple[str, ...]
    reader: str
    open: Callable[[Path], hdf5.TileTable]


@dataclass(frozen=True, kw_only=True)
class MixedFormat:
    """A format whose files are slides or tiles.

    Attributes:
        suffixes: lower case.
        of: looks into a file; gives `tile`, or the format of a slide.
        tile: reads a file that is a tile.
    """

    suffixes: tuple[str, ...]
    of: Callable[[Path], SlideFormat | TileFormat]
    tile: TileFormat


HistologyFormat = SlideFormat | TileFormat | TileTableFormat | MixedFormat


class Handles:
    """The open slides, tiled TIFF pyramids and HDF5 files of one process, by the readers of a table of formats."""

    def __init__(self, limit: int = 32, table: FormatTable[HistologyFormat] | None = None) -> None:
        """Open files by the readers of `table`, by default `FORMATS`; keep at most `limit` of them."""
        self.limit, self.table = limit, FORMATS if table is None else table
        self._openers: dict[str, Callable[[Path], Any]] = {
            one.reader: one.open
            for one in (OPENSLIDE, TILED_TIFF, *self.table.formats)
            if isinstance(one, SlideFormat | TileTableFormat)
        }
        self._files = OpenFiles(limit)
        self._caches: dict[int, Any] = {}  # of openslide, by process: after a fork, the parent's is not this one's

    def __len__(self) -> int:
        return len(self._files)

    def __reduce__(self) -> tuple[type["Handles"], tuple[int, FormatTable[HistologyFormat]]]:
        return Handles, (self.limit, self.table)

    def get(self, path: Path, reader: str = "openslide") -> Any:
        """The handle of `path` under one of the readers; a file that changed on disk is opened anew.

        Raises:
            BadFileError: the reader cannot open the file, or it is gone.
        """
        return self._files.get(path, partial(self._open, reader), reader=reader)

    def _open(self, reader: str, path: Path) -> Any:
        handle = self._openers[reader](path)
        if reader == OPENSLIDE.reader:
            if os.getpid() not in self._caches:
                self._caches[os.getpid()] = require("openslide", extra="histology").OpenSlideCache(CACHE_BYTES)
            handle.set_cache(self._caches[os.getpid()])
        return handle

    def drop(self, path: Path) -> None:
        """Forget the handles of `path`, see `OpenFiles.drop`."""
        self._files.drop(path)

    def read(
        self,
        path: Path,
        *,
        corner: tuple[float, float],
        extent: tuple[float, float],
        out: tuple[int, int],
        reader: str = "openslide",
    ) -> np.ndarray:
        """`read_field` of the slide at `path`: (out height, out width, 3) uint8 RGB.

        Raises:
            BadFileError: the slide cannot be opened or the region cannot be decoded.
        """
        return self._guarded(path, reader, lambda slide: read_field(slide, corner=corner, extent=extent, out=out))

    def source(
        self, path: Path, *, corner: tuple[float, float], side: float, out: int, reader: str
    ) -> np.ndarray | Canvas:
        """`read_source` of the slide at `path`: (n, n, 3) uint8 RGB.

        Raises:
            BadFileError: the slide cannot be opened or the region cannot be decoded.
        """
        return self._guarded(path, reader, lambda slide: read_source(slide, corner=corner, side=side, out=out))

    def _guarded(self, path: Path, reader: str, read: Callable[[Any], FieldPixels]) -> FieldPixels:
        slide = self.get(path, reader)
        try:
            return read(slide)
        except BadFileError:
            self.drop(path)
            raise
        except require("openslide", extra="histology").OpenSlideError as error:
            self.drop(path)
            raise undecodable(path) from error


@dataclass(frozen=True, kw_only=True)
class SlideInstance:
    """The series of one DICOM file and its case (patient, else study; empty where the header tells neither)."""

    path: Path
    series: str
    case: str = field(metadata={"group": True})


def slide_instance(path: Path) -> SlideInstance:
    """Identifiers of one DICOM file, from its header.

    Raises:
        BadFileError: no DICOM, or not whole-slide microscopy, or no series.
    """
    pydicom = require("pydicom", extra="histology")
    tags = ["SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values, which may be a patient's
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
            series = str(header.get("SeriesInstanceUID", "") or "")
            case = str(header.get("PatientID") or header.get("StudyInstanceUID") or "")
    except Exception as error:  # damaged headers raise what they like: KeyError, OSError, struct.error
        raise BadFileError(
            "not readable as DICOM", remedy="Export the slide again from the archive.", path=path
        ) from error
    if sop_class != WHOLE_SLIDE:
        raise BadFileError(
            "DICOM of another kind than whole-slide microscopy",
            remedy="Give slides (SOP class VL Whole Slide Microscopy) or image tiles; annotations are not images.",
            path=path,
        )
    if not series:
        raise BadFileError(
            "DICOM slide without a series number", remedy="Export it again with SeriesInstanceUID.", path=path
        )
    return SlideInstance(path=path, series=series, case=case)


def mirax_files(path: Path) -> list[Path]:
    """A MIRAX slide: NAME.mrxs, an index with a thumbnail, and the files with its pixels in the folder NAME, by name.

    A scan hashes them as the slide's content (whole up to 64 MiB each; beyond, size, head, middle and tail), and reads
    the slide again when one of them changes.
    """
    folder = path.with_suffix("")
    if not folder.is_dir():
        return [path]
    found = (
        p for p in folder.iterdir() if p.suffix.lower() in MIRAX_PARTS and not p.name.startswith(".") and p.is_file()
    )
    return [path, *sorted(found)]


def tiff_format(path: Path) -> SlideFormat | TileFormat:
    """The format of a TIFF by its content.

    It is a slide when openslide knows its vendor, or when it is a tiled pyramid of several levels, or larger than
    LARGEST_TILE. Everything else is a tile.
    """
    vendor = slide.detect(path)
    if vendor is None:
        return PICTURE
    kind = TILED_TIFF if is_ome(path) else OPENSLIDE
    if vendor != "generic-tiff":
        return kind
    try:
        opened = kind.open(path)
    except BadFileError:
        return PICTURE  # a compression that openslide lacks: Pillow reads it, or names the reason
    return kind if opened.level_count > 1 or max(opened.dimensions) > LARGEST_TILE else PICTURE


OPENSLIDE = SlideFormat(
    suffixes=(".svs", ".ndpi", ".scn", ".bif", ".svslide"), reader="openslide", open=slide.open_slide
)
TILED_TIFF = SlideFormat(suffixes=(), reader="tiles", open=TiledTiff.open)  # told by content, see `tiff_format`
PICTURE = TileFormat(suffixes=tiles.SUFFIXES, size=tiles.tile_size, read=tiles.read_tile)
FORMATS: FormatTable[HistologyFormat] = FormatTable(
    OPENSLIDE,
    SlideFormat(suffixes=(MIRAX,), reader="openslide", open=slide.open_slide, files=mirax_files),
    SlideFormat(suffixes=(DICOM,), reader="openslide", open=slide.open_slide),  # its series is one slide, see `look`
    PICTURE,
    MixedFormat(suffixes=(".tif", ".tiff"), of=tiff_format, tile=PICTURE),
    TileTableFormat(suffixes=hdf5.SUFFIXES, reader="hdf5", open=hdf5.open_tiles),
)


def format_of(path: Path, table: FormatTable[HistologyFormat]) -> SlideFormat | TileFormat | TileTableFormat:
    """The format of a file.

    Raises:
        BadFileError: none of the table.
    """
    found = table.of(path)
    return found.of(path) if isinstance(found, MixedFormat) else found


def tile_meta(path: Path, form: TileFormat, options: HistologyOptions) -> dict[str, Any]:
    """Meta of a tile, from its header.

    Raises:
        BadFileError: see `TileFormat`.
    """
    size = form.size(path, options.stain == "any")
    return {"size": list(size), "bits": 8, KEY: {"kind": "tile", "size": list(size)}}


def slide_meta(
    path: Path, form: SlideFormat, handles: Handles, options: HistologyOptions, *, tissue: bool
) -> dict[str, Any]:
    """Meta of a slide, from its header and, with `tissue`, its overview or the patches of the option coords.

    `mpp` is there when the file tells one, be it sane or not: the catalogue may still correct it.

    Raises:
        BadFileError: not readable as one 8-bit colour picture, damaged, or without tissue.
    """
    opened = handles.get(path, form.reader)
    head = slide.header(opened, path)
    if head.vendor in ("generic-tiff", OME):
        _check_plain_tiff(path, grey=options.stain == "any")
    own: dict[str, Any] = {
        "kind": "slide",
        "size": list(head.size),
        "downsamples": list(head.downsamples),
        "vendor": head.vendor,
        "reader": form.reader,
    }
    if tissue:
        if min(head.size) < 2 * slide.FINEST_CELL:
            raise too_small(options, path)
        if options.coords is not None:
            own["patches"] = find_patches(options.coords, path, head).pack()
        else:
            own["tissue"] = _tissue(path, handles, opened, options).pack()
        own["training_reader"] = training_reader(path, form.reader, handles, opened, head)
    meta: dict[str, Any] = {"size": list(head.size), "bits": 8, KEY: own}
    return meta if head.mpp is None else {**meta, "mpp": head.mpp}


def tissue_of(own: dict[str, Any]) -> Tissue | Patches:
    """Where a slide has tissue, from the manifest."""
    return Patches.unpack(own["patches"]) if "patches" in own else Tissue.unpack(own["tissue"])


def tile_table(path: Path, form: TileTableFormat, handles: Handles) -> hdf5.TileTable:
    """The tiles of a file of many.

    Raises:
        BadFileError: see `TileTableFormat`.
    """
    table: hdf5.TileTable = handles.get(path, form.reader)
    return table


def training_reader(path: Path, reader: str, handles: Handles, opened: Any, head: slide.SlideHeader) -> str:
    """The reader for training: "tiles" in place of `reader` where the slide is a plain tiled TIFF.

    Scan compares both readers, so that they show the same pixels.
    """
    if isinstance(opened, TiledTiff) or head.vendor not in DIRECT_VENDORS:
        return reader
    try:
        direct = handles.get(path, "tiles")
        if direct.level_dimensions != opened.level_dimensions:
            return reader
        # one tile in the middle of each level, on the level's own grid, where openslide does not interpolate
        for level, (width, height) in enumerate(direct.level_dimensions):
            side = min(COMPARED, width, height)
            factor = direct.level_downsamples[level]
            corner = (round((width - side) // 2 * factor), round((height - side) // 2 * factor))
            one = direct.region(corner, level, (side, side))[0].astype(np.int16)
            two = slide.on_white(opened.read_region(corner, level, (side, side)))[0]
            if np.abs(one - two).mean() > SAME_LEVELS:
                return reader
    except (BadFileError, require("openslide", extra="histology").OpenSlideError):
        handles.drop(path)  # whichever is damaged: the reading that follows finds it
        return reader
    return "tiles"


def _tissue(path: Path, handles: Handles, opened: Any, options: HistologyOptions) -> Tissue:
    try:
        rgb, covered, cell = slide.overview(opened, path)
    except require("openslide", extra="histology").OpenSlideError as error:
        handles.drop(path)
        raise undecodable(path) from error
    found = Tissue(mask=tissue_mask(rgb, covered, stain=options.stain), cell=cell)
    if not found.mask.any():
        raise BadFileError(
            "no tissue found on the slide",
            remedy="Check the option stain (he, ihc, any); leave out blank and control slides.",
            path=path,
        )
    return found


def too_small(options: HistologyOptions, path: Path) -> BadFileError:
    """The error for a slide that does not hold one training region, or one image to embed."""
    embedded = options.prepared_size > options.tile_px
    return BadFileError(
        "slide smaller than one region",
        remedy=f"Regions are {max(options.tile_px, options.prepared_size)} pixels at the wanted mpp; reduce "
        f"{'the size of the images to embed' if embedded else 'tile_px'} or mpp.",
        path=path,
    )


def _check_plain_tiff(path: Path, *, grey: bool) -> None:
    """Refuse what openslide would bend: it makes one 8-bit RGB picture of any plain TIFF, also of stacks or 16 bits."""
    tifffile = require("tifffile", extra="histology")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            bits, samples, photometric = page.bitspersample, page.samplesperpixel, int(page.photometric)
            # openslide shows the first of several full pictures and is silent about the others.
            equal = [p for p in file.pages if not p.is_reduced and p.shape[:2] == page.shape[:2]]
    except tifffile.TiffFileError as error:
        raise undecodable(path) from error
    if len(equal) > 1:
        raise BadFileError(
            "several pictures in one slide file",
            remedy="Export one scene or focus plane as RGB; channels and stacks are not slides.",
            path=path,
        )
    if bits != 8:
        raise BadFileError(
            f"slide with {bits} bits a channel", remedy="Convert it to 8-bit RGB with a stated mapping.", path=path
        )
    colour = samples in (3, 4) and photometric in (2, 6)  # RGB, YCbCr
    if not colour and not (grey and samples == 1 and photometric == 1):
        raise BadFileError(
            "slide that is not RGB",
            remedy="Export it as 8-bit RGB; greyscale is read with stain=any.",
            path=path,
        )
