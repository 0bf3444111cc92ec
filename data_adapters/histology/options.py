"""Options of the histology adapter. They are saved with the encoder."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_adapters.base import AdapterOptions

# Room that the narrow crop of a region may need: area up to 1.21 s^2 at ratio 1.05 is a side of 1.13 s.
CROP_ROOM = 1.15
# The proportion of Virchow2's extended-context crops: a 224 px view from a 392 px region.
REGION_PER_VIEW = 392 / 224


def _training_range(data: dict[str, Any]) -> tuple[float, float] | None:
    # .4 to 1.1 um/px about the usual .5: between 20x and 10x, sampled continuously (arXiv 2601.02198).
    mpp = None if data.get("mpp_choices") else data.get("mpp")
    return None if mpp is None else (0.8 * mpp, 2.2 * mpp)


def _region_side(data: dict[str, Any]) -> int:
    views: tuple[int, int] = data.get("global_size", 224), data.get("local_size", 96)
    return math.ceil(REGION_PER_VIEW * max(views))


class HistologyOptions(AdapterOptions):
    """Scale, sampling and stain of slides; crops of tiles."""

    OF_RECIPE: ClassVar[tuple[str, ...]] = ("stain_sigma",)

    mpp: float | None = Field(
        default=0.5, ge=0.1, le=5, description="um per pixel of slide tiles; none reads each slide at its own level 0"
    )
    mpp_choices: tuple[float, ...] | None = Field(
        default=None, min_length=1, description="um per pixel in training, one of these for each sample; not a range"
    )
    mpp_range: tuple[float, float] | None = Field(
        default_factory=_training_range,
        validate_default=True,
        description="um per pixel in training, drawn log-uniformly; none: mpp alone (default 0.8 to 2.2 x mpp)",
    )
    known_scale: bool | None = Field(
        default=None, description="whether the training images had a known mpp; learnt from the archive"
    )
    stain: Literal["he", "ihc", "any"] = Field(
        default="he",
        description="how tissue is found, and which stains are jittered (he: haematoxylin, eosin and "
        "rest; ihc: haematoxylin and DAB; any: none)",
    )
    coords: Path | None = Field(
        default=None,
        exclude=True,  # a path of this machine: what it said lies in the manifest, not in the encoder
        description="folder of CLAM or TRIDENT patch coordinates (STEM.h5), in place of tissue detection",
    )
    stain_sigma: float = Field(default=0.05, ge=0, le=0.5, description="HED jitter in optical density; 0.2 is strong")
    tile_px: int = Field(
        default_factory=_region_side,
        ge=16,
        validate_default=True,
        description="side of the slide region that a sample's views share, pixels (default 1.75 x the larger view)",
    )
    tiles: int = Field(default=16, ge=1, description="tissue tiles of a slide that are embedded and pooled")
    samples_per_slide: int = Field(default=64, ge=1, description="most regions an epoch draws from one slide")
    min_tissue: float = Field(default=0.5, gt=0, le=1, description="least tissue fraction of a region")
    tile_global_area: tuple[float, float] = Field(
        default=(0.4, 1.0), description="area of global crops of ready-made tiles, fraction of the tile"
    )
    tile_local_area: tuple[float, float] = Field(
        default=(0.15, 0.4), description="area of local crops of ready-made tiles, fraction of the tile"
    )

    @field_validator("coords")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("the folder does not exist; give the one that CLAM or TRIDENT wrote")
        return value

    @field_validator("tile_global_area", "tile_local_area")
    @classmethod
    def _areas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError("give two fractions of the area, smaller first, between 0 and 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "HistologyOptions":
        if self.mpp_range is not None:
            if self.mpp is None:
                raise ValueError("mpp_range needs mpp, the scale at which tiles are embedded")
            low, high = self.mpp_range
            if not 0.1 <= low <= self.mpp <= high <= 11:
                raise ValueError(f"mpp_range must enclose mpp ({self.mpp}) and lie between .1 and 11 um per pixel")
        if self.mpp_choices is not None:
            if self.mpp is None or self.mpp_range is not None:
                raise ValueError("mpp_choices needs mpp, the scale at which tiles are embedded, and no mpp_range")
            if not all(0.1 <= choice <= 11 for choice in self.mpp_choices):
                raise ValueError("mpp_choices must lie between .1 and 11 um per pixel")
        need = math.ceil(CROP_ROOM * max(self.global_size, self.local_size))
        if self.tile_px < need:
            raise ValueError(f"tile_px must be at least {need}, so that each view fits into the region with some play")
        return self
