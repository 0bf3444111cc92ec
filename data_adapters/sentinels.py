"""Values that mean "no data": one check, against the values as stored, for every format that declares one.

Integers have no NaN, so formats set a value aside: BLANK in FITS, PixelPaddingValue in DICOM, GDAL_NODATA in TIFF,
_FillValue in HDF5. It counts before any scaling and before unsigned numbers are unfolded (FITS standard 4.0, 4.4.2.5;
DICOM PS3.3, C.7.5.1.1.2). A modality that knows blank pixels gets NaN (`blanked`), others background (`darkened`).
"""

from collections.abc import Sequence

import numpy as np

Sentinel = int | float | tuple[int | float, int | float]  # a value, or the ends of a range that belong to it


def marked(stored: np.ndarray, sentinels: Sequence[Sentinel]) -> np.ndarray | None:
    """Bool of `stored`'s shape, true where a sentinel stands; None where there is none.

    A NaN sentinel finds nothing here: NaN is blank in every format without being declared.
    """
    found: np.ndarray | None = None
    for sentinel in sentinels:
        if isinstance(sentinel, tuple):
            low, high = min(sentinel), max(sentinel)
            here = (stored >= low) & (stored <= high)
        else:
            here = stored == sentinel
        found = here if found is None else found | here
    return found if found is not None and bool(found.any()) else None


def blanked(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """`values` as float32, NaN where `mask` is true."""
    out = values.astype(np.float32)
    if mask is not None:
        out[mask] = np.nan
    return out


def darkened(values: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """`values` with the lowest of the unmarked ones where `mask` is true; unchanged where all are marked."""
    if mask is None or bool(mask.all()):
        return values
    return np.where(mask, values[~mask].min(), values)
