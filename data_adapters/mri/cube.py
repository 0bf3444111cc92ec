"""The canonical form of a volume in 3-D mode: isotropic voxels of the foreground, and how windows of it are resized.

Axes are (depth, row, column): depth from inferior to superior, rows from anterior to posterior, columns from the
patient's right to the left, so that a plane of constant depth is an axial slice as viewers show it. Intensity is the
policy of `data_adapters.mri.volume`; values are stored as uint16, 0 to 65535 for 0 to 1, which OpenCV resizes directly
and which is finer than half precision above .06.

Nothing that the foreground box holds is ever left out: `windows` covers it whole.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_adapters.errors import BadFileError
from data_adapters.mri.volume import LAYOUT, NOT_ONE_GRID, TISSUE, Volume, normalise, refuse_label_map

FULL = 65535
SPECKLE = 1e-3  # a plane belongs to the foreground box when more than this share of its voxels is tissue ...
MARGIN_MM = 5.0  # ... and the box keeps this much beyond its outermost planes
MAX_VOXELS = 2**29  # 1 GiB; a header with a wrong voxel size could ask for any amount
ELONGATED = 1.5  # longest to second longest side of the box, above which one cube would be mostly air

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Cubes:
    """Volumes of one grid in canonical form, all cut to one box.

    Attributes:
        voxels: (C, D, H, W) uint16, one volume a channel.
        box: (3, 2), first voxel and the one after the last that the box holds of the volumes, along the cube's axes.
    """

    voxels: np.ndarray
    box: np.ndarray


def unit_volume(volume: Volume) -> Volume:
    """The volume with intensities in [0, 1], float32.

    Raises:
        BadFileError: empty, NaN, or a label map.
    """
    refuse_label_map(volume.array)
    return Volume(array=normalise(volume.array), spacing=volume.spacing)


def canonical_cubes(volumes: Sequence[Volume], *, spacing_mm: float) -> Cubes:
    """Volumes of `unit_volume` on one grid -> isotropic at `spacing_mm`, cut to what is foreground in any of them.

    Sides are even numbers, so that a view may be drawn from the planes at half resolution; the voxel size is therefore
    true to one voxel over the whole side.

    Raises:
        BadFileError: volumes of several sizes, or more than 2^29 voxels after resampling.
    """
    if len({volume.array.shape for volume in volumes}) > 1:
        raise BadFileError(NOT_ONE_GRID, remedy="Scan the archive again.")
    order = LAYOUT["axial"]
    channels = [volume.array.transpose(order)[:, ::-1, ::-1] for volume in volumes]
    spacing = [volumes[0].spacing[axis] for axis in order]
    margin = [math.ceil(MARGIN_MM / mm) for mm in spacing]
    box = _around([foreground_box(voxels, margin=margin) for voxels in channels])
    sides = [span.stop - span.start for span in box]
    shape = [max(2, 2 * round(n * mm / spacing_mm / 2)) for n, mm in zip(sides, spacing, strict=True)]
    if len(channels) * math.prod(shape) > MAX_VOXELS:
        raise BadFileError(
            f"more than {MAX_VOXELS} voxels at {spacing_mm:g} mm",
            remedy="Check the voxel size in the header, or choose a coarser option spacing_mm.",
        )
    cubes = np.empty((len(channels), *shape), np.uint16)
    for index, voxels in enumerate(channels):
        scaled = np.rint(np.ascontiguousarray(voxels[box]) * np.float32(FULL)).astype(np.uint16)
        cubes[index] = resize(scaled, shape)
    return Cubes(voxels=cubes, box=np.array([(span.start, span.stop) for span in box]))


def _around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all `boxes`."""
    d, h, w = (
        slice(min(span.start for span in spans), max(span.stop for span in spans)) for spans in zip(*boxes, strict=True)
    )
    return d, h, w


def foreground_box(voxels: np.ndarray, *, margin: Sequence[int]) -> Box:
    """The smallest box with all planes that show tissue, and `margin` voxels more on each side where there are any.

    A plane counts when more than .1 % of its voxels exceed the tissue threshold: single bright voxels of noise do not.
    In a very noisy volume that is the whole of it.
    """
    tissue = voxels > TISSUE
    found = []
    for axis, extra in enumerate(margin):
        share = tissue.mean(axis=tuple(other for other in range(3) if other != axis))
        planes = np.flatnonzero(share > SPECKLE)
        first, last = (int(planes[0]), int(planes[-1])) if planes.size else (0, voxels.shape[axis] - 1)
        found.append(slice(max(0, first - extra), min(voxels.shape[axis], last + extra + 1)))
    return found[0], found[1], found[2]


def resize(voxels: np.ndarray, shape: Sequence[int], *, averaged: float = 1.0) -> np.ndarray:
    """(D, H, W) uint16 or float32 -> `shape`, centre-aligned, first the planes and then the depth.

    Area averages where it shrinks to less than 1 / `averaged`, else linear, which is six times as fast; below 1/2,
    linear interpolation would pass over voxels.
    """
    depth, height, width = shape
    out = voxels
    if out.shape[1:] != (height, width):
        shrinks = min(out.shape[1] / height, out.shape[2] / width)
        method = cv2.INTER_AREA if shrinks > averaged else cv2.INTER_LINEAR
        planes = np.empty((len(out), height, width), out.dtype)
        for index, plane in enumerate(voxels):  # rows of a crop need no copy
            cv2.resize(plane, (width, height), dst=planes[index], interpolation=method)
        out = planes
    if len(out) != depth:
        method = cv2.INTER_AREA if len(out) / depth > averaged else cv2.INTER_LINEAR
        rows = np.ascontiguousarray(out).reshape(len(out), height * width)
        out = cv2.resize(rows, (height * width, depth), interpolation=method).reshape(depth, height, width)
    return out


def halved(voxels: np.ndarray) -> np.ndarray:
    """(D, H, W) -> (D, H/2, W/2), averages of four voxels of a plane; H and W are even."""
    depth, height, width = voxels.shape
    return resize(voxels, (depth, height // 2, width // 2))


def to_unit(voxels: np.ndarray) -> np.ndarray:
    """uint16 -> float32 in [0, 1]."""
    unit: np.ndarray = voxels.astype(np.float32)
    unit *= np.float32(1 / FULL)
    return unit


def window_side(shape: Sequence[int]) -> int:
    """Side of the cubes that cover a box: its longest side, or the second longest of an elongated one (a spine)."""
    second, longest = sorted(shape)[1:]
    return longest if longest <= ELONGATED * second else second


def windows(shape: Sequence[int]) -> list[Box]:
    """Boxes of at most `window_side` that together cover (D, H, W), evenly spread: one, or several in a row."""
    side = window_side(shape)
    spans = []
    for n in shape:
        count = math.ceil(n / side)
        starts = np.linspace(0, max(0, n - side), count).round().astype(int).tolist()
        spans.append([slice(start, min(start + side, n)) for start in starts])
    return [(d, h, w) for d, h, w in itertools.product(*spans)]


def draw_window(shape: Sequence[int], rng: np.random.Generator) -> Box:
    """A box of the size that `windows` has, anywhere in (D, H, W)."""
    side = window_side(shape)
    starts = [int(rng.integers(max(0, n - side) + 1)) for n in shape]
    d, h, w = (slice(start, min(start + side, n)) for start, n in zip(starts, shape, strict=True))
    return d, h, w


def window_about(shape: Sequence[int], place: Sequence[float]) -> Box | None:
    """The box of the size that `windows` has whose centre is nearest to `place`; None where `place` lies outside.

    `place` is a position along (D, H, W), 0 to the number of voxels.
    """
    if not all(0 <= at <= n for at, n in zip(place, shape, strict=True)):
        return None
    side = window_side(shape)
    starts = [min(max(round(at - side / 2), 0), max(0, n - side)) for at, n in zip(place, shape, strict=True)]
    d, h, w = (slice(start, min(start + side, n)) for start, n in zip(starts, shape, strict=True))
    return d, h, w


def whole(voxels: np.ndarray, size: int) -> np.ndarray:
    """(D, H, W) uint16 -> (size, size, size) float32 in [0, 1]: centred in a black cube, so proportions are kept."""
    side = max(voxels.shape)
    before = [(side - n) // 2 for n in voxels.shape]
    cube = np.zeros((side,) * 3, voxels.dtype)
    d, h, w = (slice(start, start + n) for start, n in zip(before, voxels.shape, strict=True))
    cube[d, h, w] = voxels
    return to_unit(resize(cube, (size,) * 3))


def stacked(channels: Sequence[np.ndarray | None]) -> np.ndarray:
    """(D, H, W) float32 of each channel -> (D, H, W, C); None is black. In memory it lies channel by channel."""
    if len(channels) == 1 and channels[0] is not None:
        return channels[0][..., None]
    shape = next(image.shape for image in channels if image is not None)
    out = np.zeros((len(channels), *shape), np.float32)
    for index, image in enumerate(channels):
        if image is not None:
            out[index] = image
    return np.moveaxis(out, 0, -1)
