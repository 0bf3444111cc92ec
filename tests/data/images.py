"""Miniature pictures and arrays of many depths and layouts."""

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
