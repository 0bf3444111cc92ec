"""Limits told to whoever sent a file that is beyond one."""

from data_adapters.errors import BadFileError
from data_adapters.readers.limits import Limits

MAX_RATIO = 200  # unpacked bytes for one packed byte; masks and empty slices stay below it, and images far below
RATIO_FROM = 64 << 20  # bytes of an item below which the ratio does not matter


def too_many_items(limits: Limits) -> BadFileError:
    """The refusal of a file that holds more items than one request may have."""
    return BadFileError(
        f"The file holds more than {limits.max_items} items.",
        remedy="Send it in parts; the operator sets the limit (LEJEPA_MAX_ITEMS).",
    )


def too_many_tiles(limits: Limits) -> BadFileError:
    """The refusal of an item that becomes too many images, or a file of too many pages."""
    return BadFileError(
        f"The item has more than {limits.max_tiles} slices, tiles or pages.",
        remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_TILES).",
    )


def too_many_pixels(limits: Limits) -> BadFileError:
    """The refusal of an item of too many pixels or voxels."""
    return BadFileError(
        f"The image has more than {limits.max_pixels} pixels or voxels.",
        remedy="Send a smaller part of it; the operator sets the limit (LEJEPA_MAX_PIXELS).",
    )


def swells() -> BadFileError:
    """The refusal of a bomb."""
    return BadFileError(
        f"The file unpacks to more than {MAX_RATIO} times its size.", remedy="Send an image, or send it uncompressed."
    )
