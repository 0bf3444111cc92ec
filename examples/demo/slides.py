"""A slide archive: H&E-like pyramidal TIFFs at 0.5 um per pixel, and labelled tiles cut from them.

A slide is a map of tissue areas (stroma, glands, lymphoid, tumour) filled by `tissue`; areas differ in cellularity and
slides in stain and scanner, so that colour alone tells little and the arrangement of nuclei tells the class.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from examples.demo import tissue
from examples.demo.common import SLIDES, Label, Progress, generators, parallel, smooth_noise, split_of, write_labels
from examples.demo.tissue import CELL, Array, Stains

MPP = 0.5
CLASSES = ("stroma", "gland", "lymphoid", "tumour")
TILE = 128
AREAS = 36
# Optical density of the stains in R, G, B, unit length: reference vectors of Macenko et al. 2009 (ISBI, 1107).
HAEMATOXYLIN = np.array([0.5626, 0.7201, 0.4062])
EOSIN = np.array([0.2159, 0.8012, 0.5581])


@dataclass(frozen=True)
class Slide:
    """RGB pixels (side, side, 3) uint8, and the coarse map of classes (side/16, side/16): index into CLASSES or -1."""

    pixels: Array
    classes: Array


def area_map(rng: np.random.Generator, coarse: int) -> tuple[Array, Array]:
    """(area number or -1 outside the tissue, class of each area): warped Voronoi cells inside a ragged outline."""
    y, x = np.mgrid[:coarse, :coarse].astype(np.float32) / np.float32(coarse)
    warp = 0.03 * np.stack([smooth_noise(rng, x.shape, cell=coarse / 10) for _ in range(2)])
    seeds = rng.uniform(0.05, 0.95, (AREAS, 2)).astype(np.float32)
    distance = (x + warp[0] - seeds[:, :1, None]) ** 2 + (y + warp[1] - seeds[:, 1:, None]) ** 2
    areas = distance.argmin(0)
    turn = rng.uniform(0, np.pi)
    u = np.cos(turn) * (x - 0.5) + np.sin(turn) * (y - 0.5)
    v = np.cos(turn) * (y - 0.5) - np.sin(turn) * (x - 0.5)
    edge = (u / 0.48) ** 2 + (v / 0.40) ** 2 + 0.1 * smooth_noise(rng, x.shape, cell=coarse / 6)
    areas[edge > 1] = -1
    return areas, rng.permutation(np.arange(AREAS) % len(CLASSES))


def draw(rng: np.random.Generator, *, side: int) -> Slide:
    """One slide of `side` x `side` pixels at 0.5 um per pixel; `side` is a multiple of 256."""
    coarse = side // CELL
    areas, kinds = area_map(rng, coarse)
    classes = np.where(areas >= 0, kinds[areas], -1)
    texture, direction = tissue.fibres(rng, side)
    grain = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 1.5)
    grain /= grain.std()

    # Ground substance: collagen is pink and streaky, cytoplasm paler and even, lymphoid tissue almost without eosin.
    fibrous = _upscaled(np.isin(classes, (0, 1)), side)
    even = _upscaled(np.isin(classes, (2, 3)), side)
    level = _upscaled(np.where(areas >= 0, rng.uniform(20, 38, AREAS)[areas], 0), side)
    e = fibrous * (46 + 13 * texture) + even * (level + 3 * grain)
    h = _upscaled(np.where(areas >= 0, rng.uniform(5, 14, AREAS)[areas], 0), side)
    stains = Stains(h=np.clip(h, 0, 255).astype(np.uint8), e=np.clip(e, 0, 255).astype(np.uint8))
    for area in np.unique(areas[areas >= 0]):
        _fill(stains, areas == area, CLASSES[kinds[area]], direction, rng)

    chromatin = stains.h * (1 + 0.12 * grain)
    stains.h = cv2.GaussianBlur(np.clip(chromatin, 0, 255).astype(np.uint8), (0, 0), 0.7)
    return Slide(_scan(stains, rng), classes)


def _upscaled(coarse: Array, side: int) -> Array:
    fine: Array = cv2.resize(coarse.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    return fine


def _fill(stains: Stains, mask: Array, kind: str, direction: Array, rng: np.random.Generator) -> None:
    """Cells of one area of class `kind`, in place."""
    keep = rng.uniform(0.55, 1)  # cellularity differs between areas of one class
    if kind == "lymphoid":
        tissue.draw_nuclei(stains.h, tissue.scattered(rng, mask, spacing=14, keep=keep), rng, kind=tissue.LYMPHOCYTE)
        return
    if kind == "tumour":
        tissue.draw_nuclei(stains.h, tissue.scattered(rng, mask, spacing=25, keep=keep), rng, kind=tissue.CARCINOMA)
    else:
        points = tissue.scattered(rng, mask, spacing=34, keep=keep)
        cell = (points // CELL).astype(int)
        angles = direction[cell[:, 1], cell[:, 0]]
        tissue.draw_nuclei(stains.h, points, rng, kind=tissue.FIBROBLAST, angles=angles)
    if kind == "gland":
        spacing = rng.uniform(88, 125)
        for centre in tissue.scattered(rng, mask, spacing=spacing, jitter=0.12):
            tissue.draw_gland(stains, rng, centre=centre, radius=spacing * rng.uniform(0.38, 0.46))
    infiltrate = tissue.scattered(rng, mask, spacing=16, keep=rng.beta(0.7, 6) * (0.6 if kind == "tumour" else 1))
    tissue.draw_nuclei(stains.h, infiltrate, rng, kind=tissue.LYMPHOCYTE)


def _scan(stains: Stains, rng: np.random.Generator) -> Array:
    """Planes -> RGB by Beer-Lambert, with this slide's stain vectors, stain amounts, lamp and camera noise."""
    amounts = np.exp(rng.normal(0, [0.16, 0.22]))
    vectors = np.stack([HAEMATOXYLIN, EOSIN]) * np.exp(rng.normal(0, 0.07, (2, 3)))
    white = rng.uniform(232, 247) * np.array([1, 1, 1]) + rng.normal(0, 1.5, 3)
    density = np.arange(256) / 100
    noise = rng.normal(0, 2.0, (512, 512)).astype(np.float32)
    noise = np.tile(noise, (stains.h.shape[0] // 512 + 1, stains.h.shape[1] // 512 + 1))
    noise = noise[: stains.h.shape[0], : stains.h.shape[1]]
    channels = []
    for channel in range(3):
        # One look-up table a stain and channel: 10^(-amount * vector * density).
        h, e = ((10 ** (-amounts[s] * vectors[s, channel] * density)).astype(np.float32) for s in (0, 1))
        light = cv2.multiply(cv2.LUT(stains.h, h), cv2.LUT(stains.e, e), scale=float(white[channel]))
        channels.append(cv2.add(light, np.roll(noise, 171 * channel, axis=1)))
    pixels: Array = cv2.merge([np.clip(c, 0, 255).astype(np.uint8) for c in channels])
    return pixels


def write_tiff(path: Path, pixels: Array) -> None:
    """A tiled JPEG pyramid (1, 1/4, 1/16) with resolution tags, from which OpenSlide reads 0.5 um per pixel."""
    from data_adapters.errors import require

    tifffile = require("tifffile", extra="histology")
    require("imagecodecs", extra="histology")
    with tifffile.TiffWriter(path) as file:
        for level in range(3):
            per_cm = 1e4 / (MPP * 4**level)
            file.write(
                pixels,
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 85},
                subfiletype=int(level > 0),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                metadata=None,
                maxworkers=1,
            )
            pixels = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def labelled_places(classes: Array, rng: np.random.Generator, *, per_class: int) -> list[tuple[int, int, str]]:
    """Up to `per_class` tiles of each class as (x, y, class): at least nine tenths of the tile is of that class."""
    window, places = TILE // CELL, []
    rows, cols = classes.shape[0] // window, classes.shape[1] // window
    blocks = classes[: rows * window, : cols * window].reshape(rows, window, cols, window)
    for index, name in enumerate(CLASSES):
        found = np.argwhere((blocks == index).mean((1, 3)) >= 0.9)
        for row, col in rng.permutation(found)[:per_class]:
            places.append((int(col) * TILE, int(row) * TILE, name))
    return places


@dataclass(frozen=True)
class _Job:
    folder: Path
    name: str
    split: str
    side: int
    per_class: int
    rng: np.random.Generator


def _make(job: _Job) -> list[Label]:
    from PIL import Image

    slide = draw(job.rng, side=job.side)
    write_tiff(job.folder / "slides" / f"{job.name}.tiff", slide.pixels)
    tiles = job.folder / "tiles" / job.name
    tiles.mkdir(parents=True, exist_ok=True)
    rows = []
    for x, y, label in labelled_places(slide.classes, job.rng, per_class=job.per_class):
        file = tiles / f"{job.name}_x{x:05d}_y{y:05d}.png"
        dots = 25400 / MPP  # per inch
        Image.fromarray(slide.pixels[y : y + TILE, x : x + TILE]).save(file, dpi=(dots, dots), compress_level=1)
        path = file.relative_to(job.folder).as_posix()
        rows.append(Label(path=path, label=label, group=job.name, split=job.split, extra=(("mpp", str(MPP)),)))
    return rows


def make(
    folder: Path,
    *,
    n: int = 16,
    side: int = 4096,
    per_class: int = 16,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `n` slides of `side` pixels (`folder`/slides), labelled tiles (`folder`/tiles), slides.csv and labels.csv.

    Labels belong to tiles; the slide is the group, and whole slides go to `val`. Returns the table's path.
    """
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    jobs = [
        _Job(folder, f"slide-{index:03d}", split_of(index, n), side, per_class, child)
        for index, child in enumerate(generators(seed, n))
    ]
    found = parallel(_make, jobs, workers=workers, progress=progress)
    whole = [Label(path=f"slides/{job.name}.tiff", label="", group=job.name, split=job.split) for job in jobs]
    write_labels(folder, whole, name=SLIDES)
    return write_labels(folder, [row for rows in found for row in rows])
