"""What a user may set for an archive of plain images."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from data_adapters.base import AdapterOptions

MIN_SIDE = 16  # pixels; the smallest view


def _ordered(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError("an area is (low, high) with 0 < low <= high <= 1")
    return area


Area = Annotated[tuple[float, float], AfterValidator(_ordered)]


class ImagesOptions(AdapterOptions):
    """Options of the images adapter."""

    OF_RECIPE: ClassVar[tuple[str, ...]] = ("recipe", "hflip")

    channels: int = Field(default=3, ge=1, le=64, description="channels of every image; grey is repeated for 3")
    intensity: Literal["dtype8", "percentile", "window"] = Field(
        default="dtype8",
        description="dtype8: 8-bit images as they are; percentile: of each image; window: fixed values",
    )
    intensity_range: tuple[float, float] | None = Field(
        default=None, description="(low, high): percentiles (default .5, 99.5) or values that become 0 and 1"
    )
    recipe: Literal["moderate", "natural"] = Field(
        default="moderate", description="moderate: colour kept; natural: LeJEPA's, with grey and solarize"
    )
    hflip: float = Field(default=0.5, ge=0, le=1, description="probability of a mirrored view; 0 where sides differ")
    global_area: Area = Field(default=(0.3, 1.0), description="part of the image that a global view shows")
    local_area: Area = Field(default=(0.05, 0.3), description="part of the image that a local view shows")

    @model_validator(mode="after")
    def _range_fits_policy(self) -> "ImagesOptions":
        low, high = self.intensity_range or (0.0, 1.0)
        if not low < high:
            raise ValueError("intensity_range is (low, high) with low < high")
        if self.intensity == "window" and self.intensity_range is None:
            raise ValueError("intensity=window needs intensity_range=(low, high), the values that become 0 and 1")
        if self.intensity == "percentile" and not 0 <= low < high <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        if self.intensity == "dtype8" and self.intensity_range is not None:
            raise ValueError("intensity_range belongs to intensity=percentile or intensity=window")
        return self
