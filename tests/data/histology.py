"""Miniature slides and tiles in real formats: H&E-like tissue by Beer-Lambert from haematoxylin and eosin."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pydicom
import pydicom.encaps
import tifffile
from PIL import Image

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


def he_picture(*, width: int, height: int, seed: int = 0, blobs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(height, width, 3) uint8 picture on near-white glass, and its (height, width) bool tissue."""
    rng = np.random.default_rng(seed)
    tissue = np.zeros((height, width), np.uint8)
    for _ in range(blobs):
        centre = (int(rng.uniform(0.25, 0.75) * width), int(rng.uniform(0.25, 0.75) * height))
        axes = (int(rng.uniform(0.15, 0.3) * width), int(rng.uniform(0.15, 0.3) * height))
        cv2.ellipse(tissue, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    fibres = cv2.GaussianBlur(rng.random((height, width), dtype=np.float32), (0, 0), 4)
    eosin = 0.35 + 0.25 * (fibres - fibres.min()) / np.ptp(fibres)
    nuclei = np.zeros((height, width), np.float32)
    for x, y in zip(*(rng.integers(0, side, width * height // 500) for side in (width, height)), strict=True):
        cv2.circle(nuclei, (int(x), int(y)), int(rng.integers(3, 6)), float(rng.uniform(0.7, 1.2)), -1)
    stains = np.dstack([eosin * tissue, nuclei * tissue, rng.standard_normal((height, width), dtype=np.float32)])
    density = cv2.transform(stains, np.column_stack([EOSIN, HAEMATOXYLIN, np.full(3, 0.004)]).astype(np.float32))
    return np.clip(244 * cv2.exp(-density), 0, 255).astype(np.uint8), tissue.astype(bool)


def write_pyramid(
    path: Path,
    picture: np.ndarray,
    *,
    mpp: float | tuple[float, float] | None = 0.5,
    levels: int = 3,
    compression: str = "deflate",
    description: str | None = None,
    tile: int = 256,
    quality: int | None = None,
) -> Path:
    """A tiled TIFF whose further pages are halved by areas; openslide reads it as generic-tiff.

    With an Aperio `description` openslide takes it for an SVS. `mpp` None writes no resolution tags. `quality` is
    JPEG's.
    """
    resolution = None
    if mpp is not None:
        x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        resolution = (1e4 / x, 1e4 / y)
    common: dict[str, Any] = {"compression": compression, "photometric": "rgb" if picture.ndim == 3 else "minisblack"}
    if quality is not None and compression == "jpeg":
        common["compressionargs"] = {"level": quality}
    common |= {"resolution": resolution, "resolutionunit": "CENTIMETER"} if resolution else {}
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            if level:
                half = (picture.shape[1] // 2, picture.shape[0] // 2)
                picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
            file.write(
                picture,
                tile=(tile, tile),
                subfiletype=int(level > 0),
                metadata=None,
                description=description if level == 0 else None,
                **common,
            )
    return path


def write_slide(
    path: Path, *, width: int = 1200, height: int = 1000, seed: int = 0, mpp: float | None = 0.5, levels: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """A pyramid of `he_picture`; returns the picture and its tissue."""
    picture, tissue = he_picture(width=width, height=height, seed=seed)
    write_pyramid(path, picture, mpp=mpp, levels=levels)
    return picture, tissue


def write_tiles(
    folder: Path, *, slides: Sequence[str], per_slide: int = 2, side: int = 96, seed: int = 0
) -> list[Path]:
    """PNG tiles full of tissue, one sub-folder a slide."""
    paths = []
    for s, name in enumerate(slides):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for t in range(per_slide):
            picture, _ = he_picture(width=4 * side, height=4 * side, seed=seed + 100 * s + t)
            middle = picture[3 * side // 2 : 5 * side // 2, 3 * side // 2 : 5 * side // 2]
            paths.append(folder / name / f"tile_{t}.png")
            Image.fromarray(middle).save(paths[-1])
    return paths


def write_svs(path: Path, picture: np.ndarray, *, mpp: float = 0.5) -> Path:
    """An Aperio slide as scanners write it: level 0, thumbnail, level 1, and the label with the patient's name."""
    height, width = picture.shape[:2]
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    small = cv2.resize(picture, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    label = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    about = f"Aperio Image Library v11.2.1\r\n{width}x{height} (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = {mpp}"
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 95}, "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, tile=(256, 256), description=about, **jpeg)
        file.write(small, rowsperstrip=16, description=about, **jpeg)
        file.write(half, tile=(256, 256), description=about, **jpeg)
        file.write(label, subfiletype=1, compression="lzw", metadata=None, description="Aperio\r\nlabel 64x64")
    return path


def write_dicom_slide(folder: Path, picture: np.ndarray, *, mpp: float = 0.5, series: str = "1.2.3.4") -> list[Path]:
    """A DICOM whole slide of two levels, one file each, tiles as JPEG (Supplement 145, TILED_FULL)."""
    paths = []
    for level in range(2):
        if level:
            half = (picture.shape[1] // 2, picture.shape[0] // 2)
            picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
        paths.append(folder / f"level_{level}.dcm")
        _dicom_level(picture, level=level, mpp=mpp * 2**level, series=series).save_as(
            paths[-1], enforce_file_format=True
        )
    return paths


def _dicom_level(picture: np.ndarray, *, level: int, mpp: float, series: str, tile: int = 256) -> pydicom.Dataset:
    height, width = picture.shape[:2]
    frames = []
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = picture[top : top + tile, left : left + tile]
            padding = ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0))
            stream = io.BytesIO()
            Image.fromarray(np.pad(part, padding, mode="edge")).save(stream, "JPEG", quality=95, subsampling=0)
            frames.append(stream.getvalue())
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.77.1.6", f"{series}.{level + 1}"
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{series}.0.1", series
    data.FrameOfReferenceUID, data.PatientID, data.Modality = f"{series}.0.2", "case-7", "SM"
    data.ImageType = (
        ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if level == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    )
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.NumberOfFrames, data.DimensionOrganizationType = len(frames), "TILED_FULL"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    spacing = pydicom.Dataset()
    spacing.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [spacing]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PixelData = pydicom.encaps.encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def write_ome(path: Path, picture: np.ndarray, *, mpp: float | None = 0.5, levels: int = 3) -> Path:
    """An OME-TIFF as Bio-Formats and QuPath write it: levels as SubIFDs, um per pixel in the XML alone."""
    metadata = {"axes": "YXS"}
    if mpp is not None:
        # in nanometres, which is as good as micrometres
        metadata |= {"PhysicalSizeX": mpp * 1e3, "PhysicalSizeXUnit": "nm"}  # type: ignore[dict-item]
        metadata |= {"PhysicalSizeY": mpp * 1e3, "PhysicalSizeYUnit": "nm"}  # type: ignore[dict-item]
    common = {"tile": (128, 128), "compression": "deflate", "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(picture, subifds=levels - 1, metadata=metadata, **common)
        for _ in range(levels - 1):
            half = (picture.shape[1] // 2, picture.shape[0] // 2)
            picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
            file.write(picture, subfiletype=1, **common)
    return path


def _ycbcr(picture: np.ndarray) -> np.ndarray:
    """tifffile writes YCbCr as it is given."""
    return np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def write_ndpi(path: Path, picture: np.ndarray, *, mpp: float = 0.5) -> Path:
    """A Hamamatsu slide: one JPEG strip a level, source lens in a private tag, and a macro image (lens -1)."""
    height, width = picture.shape[:2]
    with tifffile.TiffWriter(path) as file:
        for lens, size in ((20.0, (width, height)), (5.0, (width // 4, height // 4)), (-1.0, (160, 80))):
            part = np.full((80, 160, 3), (255, 0, 0), np.uint8)
            if lens > 0:
                part = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            per_cm = 1e4 / (mpp * width / size[0])
            file.write(
                _ycbcr(part),
                rowsperstrip=part.shape[0],
                compression="jpeg",
                compressionargs={"level": 95},
                photometric="ycbcr",
                subsampling=(1, 1),
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                extratags=[(65420, "I", 1, 1, True), (65421, "f", 1, lens, True), (65424, "i", 1, 0, True)],
            )
    return path


def write_scn(path: Path, picture: np.ndarray, *, mpp: float = 0.5) -> Path:
    """A Leica slide: BigTIFF whose XML names the scan's levels and the macro image, sizes in nanometres."""
    height, width = picture.shape[:2]
    view = (int(width * mpp * 1000), int(height * mpp * 1000))
    xml = f"""<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">
<collection name="Collection" uuid="urn:uuid:2" sizeX="{view[0] + 1}" sizeY="{view[1] + 1}">
<image name="macro" uuid="urn:uuid:4"><pixels sizeX="256" sizeY="256"><dimension sizeX="256" sizeY="256" r="0" ifd="2"/>
</pixels><view sizeX="{view[0] + 1}" sizeY="{view[1] + 1}" offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>1</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
<image name="scan" uuid="urn:uuid:3"><pixels sizeX="{width}" sizeY="{height}">
<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/>
<dimension sizeX="{width // 2}" sizeY="{height // 2}" r="1" ifd="1"/></pixels>
<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
</collection></scn>"""
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, part in enumerate((picture, half, np.full((256, 256, 3), (255, 0, 0), np.uint8))):
            file.write(
                _ycbcr(part),
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 95},
                photometric="ycbcr",
                subsampling=(1, 1),
                metadata=None,
                resolution=(1e4 / mpp / 2**level, 1e4 / mpp / 2**level),
                resolutionunit="CENTIMETER",
                description=xml if level == 0 else None,
                software=False,
            )
    return path


def write_pcam(
    folder: Path, *, rows: int = 6, split: str = "train", chunks: tuple[int, ...] | None = (1, 96, 96, 3)
) -> tuple[Path, np.ndarray]:
    """PatchCamelyon's files of one split: tiles, labels and the meta table; returns the tile file and its tiles."""
    tiles = np.stack([he_picture(width=96, height=96, seed=row)[0] for row in range(rows)])
    base = f"camelyonpatch_level_2_split_{split}_"
    with h5py.File(folder / f"{base}x.h5", "w") as file:
        file.create_dataset("x", data=tiles, chunks=chunks, compression="gzip" if chunks else None)
    with h5py.File(folder / f"{base}y.h5", "w") as file:
        file["y"] = (np.arange(rows, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)
    lines = [f"{row},1,0,0,0,camelyon16_train_normal_{row // 2:03d}" for row in range(rows)]
    (folder / f"{base}meta.csv").write_text("\n".join([",tumor_patch,center_tumor_patch,y,x,wsi", *lines]) + "\n")
    return folder / f"{base}x.h5", tiles


def write_mrxs(path: Path, picture: np.ndarray, *, mpp: float = 0.5, tile: int = 64) -> Path:
    """A MIRAX slide of two levels, sides whole multiples of 2 * tile: index, Slidedat.ini, Index.dat, Data0000.dat."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(b"index " + path.stem.encode())
    columns, rows = picture.shape[1] // tile, picture.shape[0] // tile
    data, records = bytearray(b"01.02slide-7".ljust(64, b"\0")), []
    for level in range(2):
        if level:
            half = (picture.shape[1] // 2, picture.shape[0] // 2)
            picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)
        entries = []
        for row in range(rows >> level):
            for column in range(columns >> level):
                stream = io.BytesIO()
                part = picture[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                Image.fromarray(part).save(stream, "JPEG", quality=95, subsampling=0)
                image = (row << level) * columns + (column << level)  # in images of level 0
                entries.append((image, len(data), len(stream.getvalue()), 0))
                data += stream.getvalue()
        records.append(entries)
    (folder / "Data0000.dat").write_bytes(data)
    # roots, then one pointer a level, then for each level an empty page and the page with its images
    start = 5 + len("slide-7")
    heads, pages, at = [], b"", start + 8 + 8
    for entries in records:
        heads.append(at + len(pages))
        pages += struct.pack("<ii", 0, at + len(pages) + 8)
        pages += struct.pack("<ii", len(entries), 0) + b"".join(struct.pack("<iiii", *entry) for entry in entries)
    index = b"01.02slide-7" + struct.pack("<ii", start + 8, start + 8) + struct.pack("<ii", *heads) + pages
    (folder / "Index.dat").write_bytes(index)
    zoom = "".join(
        f"[ZOOM_{level}]\nOVERLAP_X = 0\nOVERLAP_Y = 0\nMICROMETER_PER_PIXEL_X = {mpp * 2**level}\n"
        f"MICROMETER_PER_PIXEL_Y = {mpp * 2**level}\nIMAGE_FORMAT = JPEG\nIMAGE_FILL_COLOR_BGR = 16777215\n"
        f"DIGITIZER_WIDTH = {tile}\nDIGITIZER_HEIGHT = {tile}\nIMAGE_CONCAT_FACTOR = {level}\n"
        for level in range(2)
    )
    (folder / "Slidedat.ini").write_text(
        f"[GENERAL]\nSLIDE_VERSION = 01.02\nSLIDE_ID = slide-7\nIMAGENUMBER_X = {columns}\nIMAGENUMBER_Y = {rows}\n"
        "OBJECTIVE_MAGNIFICATION = 20\nCameraImageDivisionsPerSide = 1\n"
        "[HIERARCHICAL]\nHIER_COUNT = 1\nNONHIER_COUNT = 0\nINDEXFILE = Index.dat\nHIER_0_NAME = Slide zoom level\n"
        "HIER_0_COUNT = 2\nHIER_0_SECTION = ZOOM\nHIER_0_VAL_0_SECTION = ZOOM_0\nHIER_0_VAL_1_SECTION = ZOOM_1\n"
        f"[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n{zoom}"
    )
    return path
