"""What a user may set for an archive of galaxies; `fit` fills in what is left open."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from data_adapters.base import AdapterOptions

UNNAMED = "unnamed"  # the band of a two-dimensional image whose header names none
PICTURE_BANDS = {1: ("grey",), 3: ("r", "g", "b")}  # of JPEG, PNG and 8-bit HDF5, which hold display colours
MIN_SIDE = 16  # pixels; smaller images show no structure
MAX_ASPECT = 4.0  # longer frames are strips, not cut-outs


def split_bands(bands: str | None) -> tuple[str, ...] | None:
    """The names in "g,r,z", in order; None stays None."""
    return None if bands is None else tuple(name.strip() for name in bands.split(","))


def _distinct(bands: str | None) -> str | None:
    names = split_bands(bands)
    if names is None:
        return None
    if "" in names or len(set(names)) != len(names):
        raise ValueError("bands are distinct names with commas between them, such as g,r,z")
    return ",".join(names)


def _ordered(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError("an area is (low, high) with 0 < low <= high <= 1")
    return area


Area = Annotated[tuple[float, float], AfterValidator(_ordered)]


class GalaxyOptions(AdapterOptions):
    """Options of the galaxy adapter."""

    kind: Literal["auto", "flux", "picture"] = Field(
        default="auto", description="calibrated flux (FITS, float HDF5) or 8-bit pictures; auto: what the archive holds"
    )
    bands: Annotated[str | None, AfterValidator(_distinct)] = Field(
        default=None, description="bands in channel order, such as g,r,z; None: as the headers name them"
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="factor on each band's flux before the stretch; None: measured on the archive"
    )
    stretch_q: float = Field(default=20.0, gt=0, description="softening of the asinh stretch")
    stretch_m: float = Field(default=0.03, ge=0, description="offset that lifts the sky above black")
    background: Literal["border", "none"] = Field(
        default="border", description="subtract the median of each band's border, or leave the flux as it is"
    )
    pixel_scale: float | None = Field(
        default=None, gt=0, description="arcsec per pixel; None: from the headers, or 0.262 without such a header"
    )
    max_side: int = Field(default=2048, ge=64, description="larger frames are refused: sources are to be cut out")
    field: float | None = Field(
        default=None,
        ge=0.1,
        le=1,
        description="part of the cut-out's side that is shown, about its middle; None: what the archive's typical "
        "source fills, but never so little that pixels are enlarged",
    )
    global_area: Area = Field(default=(0.5, 1.0), description="part of the field that a global view shows")
    local_area: Area = Field(default=(0.15, 0.4), description="part of the field that a local view shows")
