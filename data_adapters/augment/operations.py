"""Operations on views, and recipes made of them: a crop of the modality, then operations with a probability each.

An operation is a name with plain numbers as arguments. So the recipe that a modality trains with can be shown as a file
(`lejepa-med augment --show`), and a file can name the same operations: those of pictures beside albumentations'
(`data_adapters.pipeline`), those of volumes beside MONAI's (`data_adapters.volume_pipeline`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny

PREFIX = "lejepa."  # of our names in a file

Stage = Literal["flux", "stretch", "view"]  # what an operation works on: see Operation
Scene = Any  # what a crop knows beside its pixels and operations need, such as `sky.FluxScene`; None: nothing
Crop = Callable[[Any, np.random.Generator], tuple[Any, Scene]]  # (source, rng) -> view and scene


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("give the smaller number first")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Operation(BaseModel):
    """One random change of a view; every draw comes from the generator that is passed in.

    Attributes:
        stage: `flux` works on calibrated flux, `stretch` turns flux into values in [0, 1], `view` works on such values.
        p: probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    stage: ClassVar[Stage] = "view"

    p: float = Field(default=1.0, ge=0, le=1)
    """probability"""

    def change(self, image: Any, rng: np.random.Generator, scene: Scene) -> Any:
        """The changed image, of the same form."""
        raise NotImplementedError

    def __call__(self, image: Any, rng: np.random.Generator, scene: Scene = None) -> Any:
        """`change` with probability p; without a draw where p is 0 or 1, as in albumentations."""
        if self.p >= 1 or (self.p > 0 and rng.random() < self.p):
            return self.change(image, rng, scene)
        return image

    @classmethod
    def file_name(cls) -> str:
        """The name in a pipeline file."""
        return PREFIX + cls.__name__

    def entry(self, key: str) -> dict[str, Any]:
        """The operation as an entry of a pipeline file, with its name under `key`."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {key: self.file_name(), **{name: value for name, value in plain.items() if name != "p"}, "p": self.p}


class PictureOperation(Operation):
    """Takes and gives (H, W, C): uint8, or float32 in [0, 1]."""

    named: ClassVar[dict[str, "type[PictureOperation]"]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls.file_name().startswith(PREFIX) and not cls.__name__.startswith("_"):
            PictureOperation.named[cls.file_name()] = cls


class VolumeOperation(Operation):
    """Takes and gives a list of float32 cubes (D, H, W) in [0, 1], one a channel.

    Channels get the same change, drawn once; `apart` operations draw anew for each.
    """

    named: ClassVar[dict[str, "type[VolumeOperation]"]] = {}
    apart: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        VolumeOperation.named[cls.file_name()] = cls

    def change_channel(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The changed (D, H, W)."""
        raise NotImplementedError

    def change(self, image: Sequence[np.ndarray], rng: np.random.Generator, scene: Scene) -> list[np.ndarray]:
        """Change every channel."""
        if self.apart:
            return [self.change_channel(channel, rng) for channel in image]
        state, out = rng.bit_generator.state, []
        for channel in image:
            rng.bit_generator.state = state
            out.append(self.change_channel(channel, rng))
        return out


def one_of(operations: Sequence[Operation], rng: np.random.Generator) -> Operation:
    """One operation, drawn with the operations' p as weights, by the same draw as albumentations' OneOf."""
    total = sum(operation.p for operation in operations)
    draw = rng.random()
    reached = accumulate(operation.p / total for operation in operations)
    return next((one for one, sum_ in zip(operations, reached, strict=True) if draw < sum_), operations[-1])


class OneOf(PictureOperation):
    """One of several operations, with their p as weights. In a file it is albumentations' OneOf."""

    transforms: tuple[SerializeAsAny[PictureOperation], ...] = Field(min_length=1)
    """operations to choose from"""

    def change(self, image: np.ndarray, rng: np.random.Generator, scene: Scene) -> np.ndarray:
        """Change the image by the operation that is drawn."""
        changed: np.ndarray = one_of(self.transforms, rng).change(image, rng, scene)
        return changed

    @classmethod
    def file_name(cls) -> str:
        """The name of albumentations' container, which does the same."""
        return "OneOf"

    def entry(self, key: str) -> dict[str, Any]:
        """The operation and those inside of it."""
        return {**super().entry(key), "transforms": [one.entry(key) for one in self.transforms]}


class OneVolumeOperation(VolumeOperation):
    """One of several operations, with their p as weights."""

    transforms: tuple[SerializeAsAny[VolumeOperation], ...] = Field(min_length=1)
    """operations to choose from"""

    def change(self, image: Sequence[np.ndarray], rng: np.random.Generator, scene: Scene) -> list[np.ndarray]:
        """Change all channels by the operation that is drawn."""
        return one_of(self.transforms, rng).change(image, rng, scene)  # type: ignore[no-any-return]

    @classmethod
    def file_name(cls) -> str:
        """MONAI's OneOf has no probability of its own, so this is another one."""
        return f"{PREFIX}OneOf"

    def entry(self, key: str) -> dict[str, Any]:
        """The operation and those inside of it."""
        return {**super().entry(key), "transforms": [one.entry(key) for one in self.transforms]}


class Chain:
    """(image, rng, scene) -> image: operations in order, as a modality's own recipe is run."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)

    def __call__(self, image: Any, rng: np.random.Generator, scene: Scene = None) -> Any:
        """The changed image."""
        for operation in self.operations:
            image = operation(image, rng, scene)
        return image


@dataclass(frozen=True)
class View:
    """(source, rng) -> view: a crop, what changes it, and how the result becomes an array of the adapter's form."""

    crop: Crop
    change: Callable[[Any, np.random.Generator, Scene], Any]
    finish: Callable[[Any, Scene], np.ndarray]

    def __call__(self, source: Any, rng: np.random.Generator) -> np.ndarray:
        """One view of `source`."""
        image, scene = self.crop(source, rng)
        return self.finish(self.change(image, rng, scene), scene)
