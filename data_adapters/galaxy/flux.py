"""Rules for flux: what is refused as blank or dead, how the background goes, and what fills the few blank pixels."""

import cv2
import numpy as np

from data_adapters.errors import BadFileError

MAX_BLANK = 0.1  # of a band's pixels
BORDER = 0.05  # of the shorter side; at least 2 pixels


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
