"""How much of a cut-out its source fills, so that the encoder's few pixels go to the source and not to the sky."""

import cv2
import numpy as np

DETECTION = 3.0  # standard deviations of the sky above its median
SMOOTHING = 1.0  # pixels: the sigma of the blur before detection, about the seeing of a survey
BORDER = 0.04  # of the side: the frame that sky and noise are measured on
MIDDLE = 0.02  # of the side: how far from the middle the source is looked for
HELD = 0.9  # of the source's pixels lie inside the square that is measured


def source_fraction(image: np.ndarray) -> float | None:
    """Side of the smallest centred square that holds 90 % of the central source, as a fraction of the shorter side.

    The source is the connected region at the middle that is 3 sigma above the sky in the mean of all bands; sky and
    sigma are the median and the scaled median absolute deviation of the frame. Pixels are counted and not weighted by
    light, so that flux and stretched pictures of one source agree about its size.

    Args:
        image: (H, W, C) uint8 or float32.

    Returns:
        A value in (0, 1], or None where nothing is detected in the middle.
    """
    grey = image.mean(axis=2, dtype=np.float32)
    height, width = grey.shape
    inner = min(height, width)
    n = max(2, round(BORDER * inner))
    frame = np.concatenate([part.ravel() for part in (grey[:n], grey[-n:], grey[n:-n, :n], grey[n:-n, -n:])])
    sky = np.median(frame)
    # 8-bit pictures may show a sky without noise: half a grey level is then the least that can be told apart.
    least = 0.5 if image.dtype == np.uint8 else 0.0
    sigma = max(1.4826 * float(np.median(np.abs(frame - sky))), least)
    bright = (cv2.GaussianBlur(grey, (0, 0), SMOOTHING) > sky + DETECTION * sigma).astype(np.uint8)
    _, regions = cv2.connectedComponents(bright)
    reach = max(1, round(MIDDLE * inner))
    middle = regions[height // 2 - reach : height // 2 + reach + 1, width // 2 - reach : width // 2 + reach + 1]
    found = middle[middle > 0]
    if not found.size:
        return None
    rows, columns = np.nonzero(regions == np.bincount(found).argmax())
    radius = np.maximum(np.abs(rows - (height - 1) / 2), np.abs(columns - (width - 1) / 2)) + 0.5
    side: float = 2 * float(np.quantile(radius, HELD)) / inner
    return min(1.0, side)


def middle(image: np.ndarray, field: float) -> np.ndarray:
    """The middle of (H, W, C), `field` of its height and width; a view, no copy."""
    height, width = (max(1, round(field * n)) for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
