"""How an image was made: the facts by which a probe may know the scanner or the site instead of the disease."""

from collections.abc import Mapping
from typing import Any

Fact = str | float
COLUMNS = frozenset(
    (
        *("site", "center", "centre", "hospital", "institution", "clinic", "laboratory", "lab", "source", "cohort"),
        *("dataset", "scanner", "device", "manufacturer", "vendor", "model", "tesla", "field_strength", "coil"),
        *("protocol", "sequence", "suffix", "acquisition", "acquisition_type", "repetition_ms", "echo_ms"),
        *("inversion_ms", "flip_deg", "spacing", "size", "bits", "channels", "mpp", "magnification", "stain"),
        *("stain_batch", "staining", "batch", "survey", "telescope", "camera", "instrument", "seeing", "psf"),
        *("airmass", "exposure", "exposure_s", "pixel_scale", "mag", "magnitude", "unit", "contrast_agent"),
    )
)
"""Names, in lower case, of header facts and catalogue columns that an embedding table keeps for these checks."""
LONGEST = 64  # characters of a text: names of devices and sites, not sentences about patients


def acquisition_facts(meta: Mapping[str, Any]) -> dict[str, Fact]:
    """Return those of a record's facts (`Record.meta`) that tell how it was made.

    Sizes and spacings become texts, '224 x 224'; other lists and objects are left out.
    """
    found: dict[str, Fact] = {}
    for name, value in meta.items():
        if name.lower() not in COLUMNS or isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, str) and 0 < len(value) <= LONGEST:
            found[name] = value
        elif name in ("size", "spacing") and all(isinstance(side, int | float) for side in value):
            found[name] = " x ".join(f"{side:.4g}" for side in value)
    return found
