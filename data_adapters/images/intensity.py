"""How stored values become [0, 1]: by a policy that the user chose, never by the range of a dtype."""

import numpy as np

from data_adapters.errors import BadFileError

PERCENTILES = (0.5, 99.5)


def require_policy(dtype: np.dtype[np.generic], policy: str) -> None:
    """Refuse anything but 8-bit images while the policy is the default `dtype8`.

    Raises:
        BadFileError: the values' meaning is unknown.
    """
    if policy == "dtype8" and dtype != np.uint8:
        raise BadFileError(
            f"{dtype.name} values, which have no natural range",
            remedy="Set the option intensity to percentile (each image) or window (with intensity_range=low,high).",
        )


def map_intensity(image: np.ndarray, *, policy: str, bounds: tuple[float, float] | None) -> np.ndarray:
    """(H, W, C) of any real dtype -> uint8 unchanged (`dtype8`) or float32 in [0, 1].

    `percentile` maps two percentiles of the image, over all its channels together, to 0 and 1; it forgets absolute
    brightness. `window` maps two fixed values and keeps it. Both cut what lies outside, which is their purpose.

    Raises:
        BadFileError: no policy for this depth, NaN or infinite values, or an image of one value under `percentile`.
    """
    require_policy(image.dtype, policy)
    if policy == "dtype8":
        return image
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise BadFileError("NaN or infinite values", remedy="Repair or leave out the image.")
    values = image.astype(np.float32)
    low, high = np.percentile(values, bounds or PERCENTILES) if policy == "percentile" else (bounds or (0.0, 1.0))
    if not low < high:
        raise BadFileError("an image of a single value", remedy="Leave it out, or use intensity=window.")
    values -= np.float32(low)
    values *= np.float32(1 / (high - low))
    return np.clip(values, 0, 1, out=values)
