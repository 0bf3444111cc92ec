"""CMYK, the inks of print, as sRGB: by the embedded profile, and without one by the formula for ideal inks."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from data_adapters.errors import BadFileError

INK_SET, CMYK_INKS = 332, 1  # the TIFF tag and its value for cyan, magenta, yellow, black
REMEDY = "Convert the picture to RGB with the profile that it was made with."


def check_cmyk(image: Image.Image, path: Path | str) -> None:
    """Refuse four samples that need not be CMYK, or that may be stored inverted.

    Raises:
        BadFileError: a TIFF of other inks; a JPEG without Adobe's marker, which alone says what 0 stands for.
    """
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(INK_SET, CMYK_INKS) != CMYK_INKS:
            raise BadFileError("a TIFF of inks other than CMYK", remedy=REMEDY, path=path)
    if image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise BadFileError("a CMYK JPEG that does not say whether its inks are inverted", remedy=REMEDY, path=path)


def cmyk_to_srgb(image: Image.Image) -> np.ndarray:
    """A decoded CMYK picture as (H, W, 3) uint8 sRGB.

    With an embedded ICC profile: relative colorimetric with black-point compensation, which is what picture editors
    do. Without one: R = 255 (1 - C)(1 - K) and so on, as for device CMYK in PDF (ISO 32000-1, 10.3.5); such colours
    are comparable among pictures of one source only.

    Raises:
        BadFileError: the profile is damaged or is none of CMYK.
    """
    embedded = image.info.get("icc_profile")
    if not embedded:
        return np.asarray(image.convert("RGB"))
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
    except (OSError, ImageCms.PyCMSError) as error:
        raise BadFileError("CMYK pixels with a damaged colour profile", remedy=REMEDY) from error
    if profile.profile.xcolor_space.strip() != "CMYK":
        raise BadFileError("CMYK pixels with a colour profile of another kind", remedy=REMEDY)
    try:
        converted = ImageCms.profileToProfile(
            image,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise BadFileError("CMYK pixels with a colour profile that cannot be applied", remedy=REMEDY) from error
    return np.asarray(converted)
