"""Plain images of any field: a folder of pictures or arrays, one embedding each.

Views are a random crop without aliasing, then appearance, written on OpenCV and PyTorch directly: eight views of a
512 px picture then cost a third of the same chain in albumentations, whose calls and area resizing dominate at these
sizes (benchmarks/adapters.py).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from data_adapters.augment.operations import Crop, Operation, Scene
from data_adapters.augment.picture import (
    Blur,
    BrightnessContrast,
    ColourJitter,
    Grey,
    Mirror,
    RandomCrop,
    Solarize,
    middle_square,
)
from data_adapters.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AdapterOptions,
    BaseAdapter,
    Record,
    Spec,
    ViewKind,
    to_tensor,
)
from data_adapters.errors import BadFileError
from data_adapters.formats import FormatTable
from data_adapters.images.formats import FORMATS, ImageFormat
from data_adapters.pipeline_file import symmetries

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
        default=None, description="(low, high): percentiles (default 0.5, 99.5) or values that become 0 and 1"
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


PERCENTILES = (0.5, 99.5)  # that intensity=percentile maps to 0 and 1 where no others are given


class ImagesAdapter(BaseAdapter):
    """Pictures and NumPy arrays with the option's number of channels.

    A grey image becomes three equal channels where three are asked for; any other difference is refused. A record's
    group is the catalogue's, else that of its folder.
    """

    name: ClassVar[str] = "images"
    formats: ClassVar[FormatTable[ImageFormat]] = FORMATS
    suffixes: ClassVar[tuple[str, ...]] = formats.suffixes
    Options: ClassVar[type[ImagesOptions]] = ImagesOptions
    prepares_any_size: ClassVar[bool] = True

    @property
    def spec(self) -> Spec:
        """ImageNet's statistics for three channels, .5 and .5 otherwise."""
        channels = self.options.channels
        if channels == 3:
            return self.make_spec(channels=3, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        return self.make_spec(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)

    @property
    def most_views(self) -> int:
        """2, where training mirrors its views."""
        return min(2, symmetries(self.options.augment, usual=2 if self.options.hflip > 0 else 1))

    def inspect(self, path: Path, root: Path) -> Iterable[Record]:
        """The header of one file -> one record."""
        info = self.formats.of(path).info(path)
        if min(info.height, info.width) < MIN_SIDE:
            raise BadFileError(
                f"a side of less than {MIN_SIDE} pixels",
                remedy="Give the full-size picture, or leave it out.",
                path=path,
            )
        self._check_channels(info.channels)
        require_policy(info.dtype, self.options.intensity)
        meta = {"size": [info.width, info.height], "bits": info.bits, "channels": info.channels}
        return [Record(uri=str(path), group="", meta=meta)]

    def _check_channels(self, channels: int) -> None:
        wanted = self.options.channels
        if channels != wanted and (channels, wanted) != (1, 3):
            raise BadFileError(
                f"{channels} channels, where the option channels is {wanted}",
                remedy="Set channels to the archive's number, and split archives that mix several.",
            )

    def pixels(self, record: Record) -> np.ndarray:
        """(H, W, channels) uint8, or float32 in [0, 1] after the intensity policy.

        Raises:
            BadFileError: damaged, of another number of channels, or of a depth without a policy.
        """
        path = Path(record.uri)
        image = self.formats.of(path).read(path)
        image = image[:, :, None] if image.ndim == 2 else image
        self._check_channels(image.shape[2])
        o = self.options
        image = map_intensity(image, policy=o.intensity, bounds=o.intensity_range)
        return np.repeat(image, 3, axis=2) if (image.shape[2], o.channels) == (1, 3) else image

    def read(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        """The whole image, see `pixels`; nothing in it is random."""
        return self.pixels(record)

    def verify(self, record: Record) -> None:
        """Read the pixels."""
        self.pixels(record)

    def crop(self, kind: ViewKind, size: int) -> Crop:
        """A random part of the picture."""
        return RandomCrop(size=size, area=self.options.global_area if kind == "global" else self.options.local_area)

    def operations(self) -> list[Operation]:
        """The option's recipe."""
        o = self.options
        colour = o.channels == 3 and o.intensity == "dtype8"
        return operations(colour=colour, natural=o.recipe == "natural", mirror=o.hflip)

    def view_example(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Scene]:
        """Any values of the type that `pixels` gives."""
        shape = (size, size, self.options.channels)
        if self.options.intensity == "dtype8":
            return rng.integers(0, 256, shape).astype(np.uint8), None
        return rng.random(shape, dtype=np.float32), None

    def prepare(self, record: Record) -> Tensor:
        """The middle square of the image, resized to (1, C, size, size): areas when it shrinks, linear when it grows.

        The same as resizing the short side and cropping the middle. Raises BadFileError as `pixels` does.
        """
        return to_tensor(middle_square(self.pixels(record), self.options.prepared_size))[None]


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


def operations(*, colour: bool, natural: bool, mirror: float) -> list[Operation]:
    """What happens to a crop of a picture.

    `natural` is LeJEPA's recipe for photographs (Balestriero and LeCun 2025): jitter .4/.4/.2/.1 with p .8, grey .2,
    blur .5, solarize .2. Without it grey and solarize are left out, which destroy what colour and brightness say in
    most scientific images.

    Args:
        colour: 8-bit RGB: saturation, hue, grey and solarize exist only there; elsewhere the jitter changes brightness
            and contrast, of all channels alike.
        natural: LeJEPA's recipe.
        mirror: probability of a mirrored view.
    """
    natural = natural and colour
    jitter: Operation = ColourJitter(p=0.8) if colour else BrightnessContrast(p=0.8)
    grey, solarize = ([Grey(p=0.2)], [Solarize(p=0.2)]) if natural else ([], [])
    return [Mirror(p=mirror), jitter, *grey, Blur(p=0.5), *solarize]
