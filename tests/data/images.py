"""Miniature pictures and arrays of many depths and layouts."""

import itertools
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def scene(height: int = 40, width: int = 56, channels: int = 3, *, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """(height, width, channels) smooth structure over the dtype's range (floats: 0 to 1); no two sides are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [
        0.5 + 0.3 * np.sin(x / (4 + k) + rng.uniform(0, 6)) * np.cos(y / (5 + k)) + 0.2 * (x / width - y / height)
        for k in range(channels)
    ]
    values = np.clip(np.stack(planes, axis=2), 0, 1)
    if np.issubdtype(dtype, np.floating):
        return values.astype(dtype)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)


def write_image(path: Path, image: np.ndarray, **options: object) -> Path:
    """Save 8-bit grey, RGB or RGBA by suffix."""
    squeezed = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(squeezed).save(path, **options)
    return path


def write_deep_png(path: Path, image: np.ndarray) -> Path:
    """A 16-bit colour PNG, which Pillow cannot write."""
    import cv2

    order = [2, 1, 0, 3][: image.shape[2]]
    assert cv2.imwrite(str(path), np.ascontiguousarray(image[..., order]))
    return path


def write_tiff(path: Path, image: np.ndarray, **options: object) -> Path:
    """A TIFF by tifffile, of any depth and number of samples."""
    tifffile.imwrite(path, image, **options)
    return path


def write_archive(folder: Path, count: int = 4) -> Path:
    """Folders of small RGB and grey JPEG and PNG files."""
    for number in range(count):
        place = folder / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        if number % 2:
            write_image(place / f"{number}.png", scene(channels=1, seed=number))
        else:
            write_image(place / f"{number}.jpg", scene(seed=number), quality=95)
    return folder


def cmyk_profile(colours: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """An ICC 2.4 printer profile: the CIELAB colours of inks that are off (0) or full (1), linear between; else black.

    One tag A2B0 of type mft1 (ICC.1:2001-04, 6.5.9) with a grid of two points an ink.
    """
    lab = [colours.get(inks, (0.0, 0.0, 0.0)) for inks in itertools.product((0, 1), repeat=4)]
    grid = bytes(round(v) for L, a, b in lab for v in (L * 2.55, a + 128, b + 128))
    identity = b"".join(struct.pack(">i", 65536 * (k % 4 == 0)) for k in range(9))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + grid + bytes(range(256)) * 3
    start = 128 + 4 + 12
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(table), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp"
    )
    head = (head + bytes(28) + d50).ljust(128, b"\0")
    return head + struct.pack(">I4sII", 1, b"A2B0", start, len(table)) + table
