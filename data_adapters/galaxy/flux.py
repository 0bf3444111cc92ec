"""Rules for flux: what is refused as blank or dead, how the background goes, and what fills the few blank pixels."""

import numpy as np

from data_adapters.errors import BadFileError

MAX_BLANK = 0.1  # of a band's pixels
BORDER = 0.05  # of the shorter side; at least 2 pixels


def clean_flux(flux: np.ndarray, *, background: str) -> np.ndarray:
    """(H, W, bands) float32 without blank pixels, background subtracted.

    More than 10 % NaN or infinite pixels in a band refuse the image. Fewer are filled with 0 *after* the background
    has gone, so that they look like empty sky. `background`: "border" subtracts the median of each band's outer frame
    (5 % of the side), "none" leaves the zero point as it is.

    Raises:
        BadFileError: a band that is blank or constant.
    """
    good = np.isfinite(flux)
    everywhere = bool(good.all())
    if not everywhere and (1 - good.mean(axis=(0, 1))).max() > MAX_BLANK:
        raise BadFileError(
            "more than 10 % blank pixels (NaN or infinite)", remedy="Leave out cut-outs at the edge of the survey."
        )
    for band in range(flux.shape[2]):
        values = flux[..., band] if everywhere else flux[..., band][good[..., band]]
        if values.min() == values.max():
            raise BadFileError("a dead band (every pixel equal)", remedy="Leave out images without data in a band.")
    if background == "border":
        flux = flux - _border_median(flux, everywhere)
    elif not everywhere:
        flux = flux.copy()
    if not everywhere:
        flux[~good] = 0
    return flux


def _border_median(flux: np.ndarray, everywhere: bool) -> np.ndarray:
    height, width, bands = flux.shape
    n = max(2, round(BORDER * min(height, width)))
    frame = (flux[:n], flux[-n:], flux[n:-n, :n], flux[n:-n, -n:])
    values = np.concatenate([part.reshape(-1, bands) for part in frame])
    if everywhere:
        return np.asarray(np.median(values, axis=0), np.float32)
    values[~np.isfinite(values)] = np.nan
    if np.isnan(values).all(axis=0).any():
        raise BadFileError("a blank border, so the background is unknown", remedy="Cut out with more sky around.")
    return np.asarray(np.nanmedian(values, axis=0), np.float32)
