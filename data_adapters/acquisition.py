"""How an image was made: the facts by which a probe may know the scanner or the site instead of the disease."""

import re
from collections.abc import Mapping
from typing import Any

from data_adapters.identity import pseudonym

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
VENDORS = re.compile(
    r"\b(siemens|philips|canon|toshiba|hitachi|fujifilm|united imaging|bruker|varian|esaote|hyperfine|agilent|aperio|"
    r"leica|hamamatsu|3dhistech|mirax|ventana|roche|olympus|zeiss|motic|trestle|sakura|huron|ge|"
    r"sdss|legacysurvey|decals|des|desi|hsc|pan-?starrs|ps1|ztf|lsst|rubin|euclid|hst|jwst|gaia|2mass|wise|galex)",
    re.IGNORECASE,
)
"""Makers of devices and names of surveys, which may be told as they are."""
LONGEST = 64  # characters of a text: names of devices and sites, not sentences about patients


def acquisition_facts(meta: Mapping[str, Any]) -> dict[str, Fact]:
    """Return those of a record's facts (`Record.meta`) that tell how it was made.

    Sizes and spacings become texts, '224 x 224'; other lists are left out. Facts that a modality keeps as an object
    under its own name, such as a slide's vendor, count as well.
    """
    found: dict[str, Fact] = {}
    own = [value for value in meta.values() if isinstance(value, Mapping)]  # what a modality keeps under its name
    for name, value in (pair for facts in (*own, meta) for pair in facts.items()):
        if name.lower() not in COLUMNS or isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            found[name] = float(value)
        elif isinstance(value, str) and 0 < len(value) <= LONGEST:
            found[name] = value
        elif name in ("size", "spacing") and all(isinstance(side, int | float) for side in value):
            found[name] = " x ".join(f"{side:.4g}" for side in value)
    return found


def public_facts(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return facts as an embedding table may hold them: numbers, sizes, vendors and surveys; pseudonyms of other texts.

    Headers and catalogues may hold the name of a hospital or a patient in any text.
    """
    found: dict[str, Fact] = {}
    for name, value in facts.items():
        if isinstance(value, str) and name not in ("size", "spacing"):
            known = VENDORS.search(value) if name.lower() in ("manufacturer", "vendor", "survey") else None
            value = known[0].lower() if known else f"{name}-{pseudonym('fact', name, value)[:6]}"
        found[name] = value
    return found
