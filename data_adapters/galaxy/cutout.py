"""Pixels of a cut-out: blank and dead bands, background, and how much of it its source fills."""

import cv2
import numpy as np

from data_adapters.errors import BadFileError

MAX_BLANK = 0.1  # of a band's pixels
BORDER = 0.05  # of the shorter side; at least 2 pixels
DETECTION = 3.0  # standard deviations of the sky above its median
SMOOTHING = 1.0  # pixels: the sigma of the blur before detection, about the seeing of a survey
FRAME = 0.04  # of the side: the frame that sky and noise are measured on
MIDDLE = 0.02  # of the side: how far from the middle the source is looked for
HELD = 0.9  # of the source's pixels lie inside the square that is measured


def clean_flux(flux: np.ndarray, *, background: str) -> np.ndarray:
    """(H, W, bands) float32 without blank pixels, background subtracted.

    More than 10 % NaN (the readers' form of a format's blank value) or infinite pixels in a band refuse the image.
    Fewer are filled with 0 *after* the background has gone, so that they look like empty sky. `background`: "border"
    subtracts the median of each band's outer frame (5 % of the side), "none" leaves the zero point as it is.

    Raises:
        BadFileError: a band that is blank or constant.
    """
    planes = np.ascontiguousarray(flux.transpose(2, 0, 1))
    cleaned = [_clean(plane, background=background) for plane in planes]
    merged: np.ndarray = cv2.merge(cleaned)
    return merged.reshape(flux.shape)


def too_blank() -> BadFileError:
    """The error for an image with more than `MAX_BLANK` pixels without data."""
    return BadFileError(
        "more than 10 % blank pixels (NaN, infinite or the file's blank value)",
        remedy="Leave out cut-outs at the edge of the survey.",
    )


def _clean(plane: np.ndarray, *, background: str) -> np.ndarray:
    low, high = plane.min(), plane.max()  # NaN if there is one
    good = None
    if not (np.isfinite(low) and np.isfinite(high)):
        good = np.isfinite(plane)
        if 1 - good.mean() > MAX_BLANK:
            raise too_blank()
        low, high = plane[good].min(), plane[good].max()
    if low == high:
        raise BadFileError("a dead band (every pixel equal)", remedy="Leave out images without data in a band.")
    cleaned: np.ndarray = plane - _border_median(plane) if background == "border" else plane.copy()
    if good is not None:
        cleaned[~good] = 0
    return cleaned


def _border_median(plane: np.ndarray) -> np.float32:
    n = max(2, round(BORDER * min(plane.shape)))
    frame = np.concatenate([part.ravel() for part in (plane[:n], plane[-n:], plane[n:-n, :n], plane[n:-n, -n:])])
    values = frame[np.isfinite(frame)]
    if not values.size:
        raise BadFileError("a blank border, so the background is unknown", remedy="Cut out with more sky around.")
    return np.float32(np.median(values))


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
    n = max(2, round(FRAME * inner))
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
