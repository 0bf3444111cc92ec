"""Arrays of any depth and number of bands as pictures for the eye, and in words which bands are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]  # (H, W) or (H, W, 3)
PERCENTILES = (0.5, 99.5)
# Filters from short to long wavelength; the longest of three is shown as red.
SPECTRUM = ("FUV", "NUV", "u", "U", "B", "g", "V", "r", "R", "i", "I", "z", "y", "Y", "J", "H", "K", "Ks")


@dataclass(frozen=True)
class Shown:
    """Which channels become red, green and blue (or grey), and the sentence that says so."""

    channels: tuple[int, ...]
    words: str


def choose_channels(count: int, names: Sequence[str] = ()) -> Shown:
    """One or two channels: the first, as grey. Three: as red, green, blue. More: the last, middle and first.

    `names`: the bands in channel order, if they are known. Known filters are put in the order of their wavelength.
    """
    label = [str(name) for name in names] if len(names) == count else [f"channel {k + 1}" for k in range(count)]
    if count == 1 and label[0].startswith("channel"):
        return Shown((0,), "grey")
    if count < 3:
        return Shown((0,), f"{label[0]} as grey" + (f" ({label[1]} is not shown)" if count == 2 else ""))
    chosen = [0, 1, 2] if count == 3 else [count - 1, count // 2, 0]  # bands are mostly listed from short to long
    if set(label) != {"r", "g", "b"} and all(label[k] in SPECTRUM for k in chosen):
        chosen.sort(key=lambda k: -SPECTRUM.index(label[k]))
    if count == 3 and label[0].startswith("channel"):
        return Shown((0, 1, 2), "three channels as red, green, blue")
    left_out = "" if count == 3 else f"; {count - 3} more bands are not shown"
    return Shown(tuple(chosen), ", ".join(label[k] for k in chosen) + " as red, green, blue" + left_out)


def planes(pixels: Tensor) -> NDArray[np.float32]:
    """One view or item, (C, H, W) or (C, D, H, W), -> (C, H, W) in units of [0, 1] (uint8 is divided by 255).

    A volume becomes its three middle planes, side by side, each in a square as large as the longest axis.
    """
    values = pixels.numpy().astype(np.float32)
    if pixels.numpy().dtype == np.uint8:
        values /= 255
    if values.ndim == 3:
        return values
    depth, height, width = values.shape[1:]
    side = max(depth, height, width)
    sheet = np.zeros((values.shape[0], side, 3 * side), np.float32)
    cuts = (values[:, depth // 2], values[:, :, height // 2], values[:, :, :, width // 2])
    for number, cut in enumerate(cuts):
        top, left = (side - cut.shape[1]) // 2, (side - cut.shape[2]) // 2 + number * side
        sheet[:, top : top + cut.shape[1], left : left + cut.shape[2]] = cut
    return sheet


def picture(values: NDArray[np.float32], shown: Shown) -> Pixels:
    """(C, H, W) in [0, 1] -> uint8, without any stretch: what the encoder gets, before its mean and std."""
    part = np.nan_to_num(values[list(shown.channels)], nan=0.0, posinf=1.0, neginf=0.0)
    rounded = np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    return rounded[0] if len(rounded) == 1 else np.ascontiguousarray(rounded.transpose(1, 2, 0))


def stretched(image: NDArray[np.generic], names: Sequence[str] = ()) -> tuple[Pixels, str]:
    """A stored image (H, W) or (H, W, C) of any real type -> uint8, and how; 8-bit images stay as they are.

    Everything else is shown linearly between two percentiles of the finite values, which is what image viewers do.
    """
    values = np.asarray(image)
    values = values[:, :, None] if values.ndim == 2 else values
    chosen = choose_channels(values.shape[2], names).channels
    values = values[:, :, list(chosen)]
    how = "as stored"
    if values.dtype != np.uint8:
        numbers = values.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 1.0)
        scaled = (np.nan_to_num(numbers, nan=low, posinf=high, neginf=low) - low) / (high - low or 1.0)
        values = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        how = f"linear from {low:.4g} to {high:.4g} (percentiles .5 and 99.5)"
    out = np.ascontiguousarray(values)
    return (out[:, :, 0] if out.shape[2] == 1 else out), how


def outlined(pixels: Pixels, mask: NDArray[np.bool_], *, colour: tuple[int, int, int] = (20, 200, 60)) -> Pixels:
    """The picture (H, W) or (H, W, 3) with the border of a mask (h, w) over the whole of it, as (H, W, 3)."""
    rgb = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()
    height, width = rgb.shape[:2]
    large = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(
        cv2.drawContours(np.ascontiguousarray(rgb), contours, -1, colour, max(1, min(rgb.shape[:2]) // 200))
    )


def montage(images: Sequence[Pixels], *, gap: int = 2) -> Pixels:
    """Equal images in a nearly square grid, as one picture."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, *images[0].shape[2:]), 128, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
