"""The files of this modality: which reader takes one, the handles that are open, and what the manifest keeps."""

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_adapters.errors import BadFileError, require
from data_adapters.histology import hdf5, slide, tiles
from data_adapters.histology.coords import Patches, find_patches
from data_adapters.histology.options import HistologyOptions
from data_adapters.histology.slide import open_slide, read_field, read_source
from data_adapters.histology.tiledtiff import VENDOR as OME
from data_adapters.histology.tiledtiff import Canvas, TiledTiff, is_ome
from data_adapters.histology.tissue import Tissue, tissue_mask

CACHE_BYTES = 64 * 2**20  # decoded tiles, shared by all openslide handles: about 1 MB a handle instead of 10
OPENERS: dict[str, Callable[[Path], Any]] = {"openslide": open_slide, "tiles": TiledTiff.open, "hdf5": hdf5.open_tiles}
Key = tuple[str, str, int, int]
FieldPixels = TypeVar("FieldPixels", bound=np.ndarray | Canvas)


class Handles:
    """Least-recently-used handles, opened lazily, never carried across a process border.

    Handles are let go, not closed, so one that another thread still reads from lives until that read ends.
    """

    def __init__(self, limit: int = 32) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Key, Any] = OrderedDict()
        self._pid = os.getpid()
        self._inherited: list[Any] = []
        self._cache: Any = None

    def __reduce__(self) -> tuple[type["Handles"], tuple[int]]:
        return Handles, (self.limit,)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: Path, reader: str = "openslide") -> Any:
        """The handle of `path` under one of OPENERS; a file that changed on disk is opened anew.

        Raises:
            BadFileError: the reader cannot open the file, or it is gone.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise BadFileError(
                "file not found or not readable", remedy="Check that the archive is mounted.", path=path
            ) from error
        key = (str(path), reader, stat.st_mtime_ns, stat.st_size)
        with self._lock:
            self._leave_parent()
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        handle = OPENERS[reader](path)
        with self._lock:
            if reader == "openslide":
                if self._cache is None:
                    self._cache = require("openslide", extra="histology").OpenSlideCache(CACHE_BYTES)
                handle.set_cache(self._cache)
            self._open[key] = handle
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return handle

    def drop(self, path: Path) -> None:
        """Forget the handles of `path`: after one error openslide answers every call with that error."""
        with self._lock:
            for key in [k for k in self._open if k[0] == str(path)]:
                del self._open[key]

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

    def _leave_parent(self) -> None:
        # After a fork the parent still uses its handles; keeping the references closes nothing behind its back.
        if self._pid != os.getpid():
            self._inherited += [self._open, self._cache]
            self._open, self._cache, self._pid = OrderedDict(), None, os.getpid()


def undecodable(path: Path) -> BadFileError:
    """The error for slide data that openslide opens but cannot decode."""
    return BadFileError(
        "slide whose pixels cannot be decoded",
        remedy="The file is damaged or incomplete; copy it again from the scanner or archive.",
        path=path,
    )


WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage


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


MIRAX = ".mrxs"
MIRAX_PARTS = (".ini", ".dat")  # Slidedat.ini, Index.dat, Data0000.dat, ...


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


SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".dcm")
TIFF_SUFFIXES = (".tif", ".tiff")
# A plain tiled TIFF with one level and longer sides than this is a slide without a pyramid, not a tile.
LARGEST_TILE = 4096
# Whose tiles may be plain; each slide is compared before its tiles are read directly.
DIRECT_VENDORS = ("generic-tiff", "aperio")
COMPARED = 64  # pixels a side, in the middle of each level
SAME_LEVELS = 8.0  # grey levels: a shift by half a pixel on a coarse level is allowed, another picture is not
KEY = "histology"  # of what this adapter keeps in Record.meta, out of the way of a catalogue's columns


def is_slide(path: Path) -> bool:
    """Whether `path` is read as a slide.

    Slide suffixes are slides. A TIFF is one when openslide knows its vendor, or when it is a tiled pyramid of several
    levels, or larger than LARGEST_TILE. Everything else is a tile.
    """
    suffix = path.suffix.lower()
    if suffix not in TIFF_SUFFIXES:
        return suffix in SLIDE_SUFFIXES
    vendor = slide.detect(path)
    if vendor != "generic-tiff":
        return vendor is not None
    try:
        opened = TiledTiff.open(path) if is_ome(path) else slide.open_slide(path)
    except BadFileError:
        return False  # a compression that openslide lacks: Pillow reads it, or names the reason
    return bool(opened.level_count > 1 or max(opened.dimensions) > LARGEST_TILE)


def tile_meta(path: Path, options: HistologyOptions) -> dict[str, Any]:
    """Meta of a tile, from its header.

    Raises:
        BadFileError: see `tiles.tile_header`.
    """
    size = tiles.tile_header(path, grey=options.stain == "any").size
    return {"size": list(size), "bits": 8, KEY: {"kind": "tile", "size": list(size)}}


def slide_meta(path: Path, handles: Handles, options: HistologyOptions, *, tissue: bool) -> dict[str, Any]:
    """Meta of a slide, from its header and, with `tissue`, its overview or the patches of the option coords.

    `mpp` is there when the file tells one, be it sane or not: the catalogue may still correct it.

    Raises:
        BadFileError: not readable as one 8-bit colour picture, damaged, or without tissue.
    """
    reader = "tiles" if path.suffix.lower() in TIFF_SUFFIXES and is_ome(path) else "openslide"
    opened = handles.get(path, reader)
    head = slide.header(opened, path)
    if head.vendor in ("generic-tiff", OME):
        _check_plain_tiff(path, grey=options.stain == "any")
    own: dict[str, Any] = {
        "kind": "slide",
        "size": list(head.size),
        "downsamples": list(head.downsamples),
        "vendor": head.vendor,
        "reader": reader,
    }
    if tissue:
        if min(head.size) < 2 * slide.FINEST_CELL:
            raise too_small(options, path)
        if options.coords is not None:
            own["patches"] = find_patches(options.coords, path, head).pack()
        else:
            own["tissue"] = _tissue(path, handles, opened, options).pack()
        own["training_reader"] = training_reader(path, handles, opened, head)
    meta: dict[str, Any] = {"size": list(head.size), "bits": 8, KEY: own}
    return meta if head.mpp is None else {**meta, "mpp": head.mpp}


def where(own: dict[str, Any]) -> Tissue | Patches:
    """Where a slide has tissue, from the manifest."""
    return Patches.unpack(own["patches"]) if "patches" in own else Tissue.unpack(own["tissue"])


def row_table(path: Path, handles: Handles) -> hdf5.TileTable:
    """The tiles of an HDF5 file.

    Raises:
        BadFileError: see `hdf5.open_tiles`.
    """
    table: hdf5.TileTable = handles.get(path, "hdf5")
    return table


def training_reader(path: Path, handles: Handles, opened: Any, head: slide.SlideHeader) -> str:
    """The reader for training: "tiles" where the slide is a plain tiled TIFF and both readers see the same pixels."""
    if isinstance(opened, TiledTiff):
        return "tiles"
    if head.vendor not in DIRECT_VENDORS:
        return "openslide"
    try:
        direct = handles.get(path, "tiles")
        if direct.level_dimensions != opened.level_dimensions:
            return "openslide"
        # one tile in the middle of each level, on the level's own grid, where openslide does not interpolate
        for level, (width, height) in enumerate(direct.level_dimensions):
            side = min(COMPARED, width, height)
            factor = direct.level_downsamples[level]
            corner = (round((width - side) // 2 * factor), round((height - side) // 2 * factor))
            one = direct.region(corner, level, (side, side))[0].astype(np.int16)
            two = slide.on_white(opened.read_region(corner, level, (side, side)))[0]
            if np.abs(one - two).mean() > SAME_LEVELS:
                return "openslide"
    except (BadFileError, require("openslide", extra="histology").OpenSlideError):
        handles.drop(path)  # whichever is damaged: the reading that follows finds it
        return "openslide"
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
