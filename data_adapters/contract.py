"""The contract between an archive and the trainer: what a modality does (Adapter), on what record.py describes.

Import these names from `data_adapters.base`, which also has BaseAdapter to derive a modality from.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor

from data_adapters.catalog import Catalog
from data_adapters.pipeline_file import content_of
from data_adapters.record import Record, Rejected, Spec

ViewKind = Literal["global", "local"]
Image = np.ndarray  # (H, W, C), or (D, H, W, C) where dims is 3: uint8, or float32 in [0, 1]
Augment = Callable[[Any, np.random.Generator], Image]


def _group_by(value: str) -> str:
    if not re.fullmatch(r"file|folder(:[1-9][0-9]?)?", value):
        raise ValueError("give folder, file, or folder:2 for the second folder of each path below the archive")
    return value


class AdapterOptions(BaseModel):
    """Options that every adapter has. They are saved with the encoder, so they define its preprocessing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    OF_RECIPE: ClassVar[tuple[str, ...]] = ()  # options that only the modality's own recipe follows

    n_global: int = Field(default=2, ge=1, description="global views of each sample")
    n_local: int = Field(default=6, ge=0, description="local views of each sample")
    global_size: int = Field(default=224, ge=16, description="side of a global view and of embedding, pixels")
    embed_size: int | None = Field(
        default=None, ge=16, description="side of the images to embed, pixels; unset: global_size (set --vector.size)"
    )
    local_size: int = Field(default=96, ge=16, description="side of a local view, pixels")
    mean: tuple[FiniteFloat, ...] | None = Field(
        default=None, description="of each channel's values in [0, 1]; unset: the modality's, or that of --init"
    )
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] | None = Field(
        default=None, description="standard deviations that belong to mean"
    )
    augment: Annotated[dict[str, Any] | None, BeforeValidator(content_of)] = Field(
        default=None,
        description="pipeline file (YAML) in place of the modality's own recipe; `lejepa-med augment` shows that one",
    )
    group_by: Annotated[str, AfterValidator(_group_by)] = Field(
        default="folder",
        description="what stays on one side of a split where nothing better is known: folder (the first folder in "
        "which the archive's paths differ), folder:2 (the second folder of each path), or file",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, given: Any) -> Any:
        """Encoders and manifests have the option as it was once called."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if "group_by" not in given and "tile_group" in given and "tile_group" not in cls.model_fields:
            given["group_by"] = given.pop("tile_group")
        if given.get("group_by") == "auto":
            given["group_by"] = "folder"
        return given

    @property
    def prepared_size(self) -> int:
        """Side of what `prepare` gives, pixels or voxels."""
        return self.embed_size or self.global_size

    @model_validator(mode="after")
    def _recipe_or_pipeline(self) -> "AdapterOptions":
        fields = type(self).model_fields
        idle = [name for name in self.OF_RECIPE if getattr(self, name) != fields[name].default]
        if self.augment is not None and idle:
            raise ValueError(f"{' and '.join(idle)} would change the built-in recipe, which augment replaces")
        return self

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> "AdapterOptions":
        if len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std belong together: one number for each channel in both")
        return self


@runtime_checkable
class Adapter(Protocol):
    """What the trainer, `embed` and the service need from a modality."""

    name: ClassVar[str]

    @property
    def spec(self) -> Spec:
        """What the encoder receives."""

    def scan(self, root: Path, *, catalog: Catalog | None = None) -> Iterator[Record | Rejected]:
        """Headers only, in a deterministic order. `root` may be one file or a folder."""

    def fit(self, records: Sequence[Record]) -> "Adapter":
        """The adapter with what it must learn from the archive before training (bands, scales); saved by describe()."""

    def read(self, record: Record, rng: np.random.Generator) -> Any:
        """One training source: region, slab or cut-out. Raises BadFileError."""

    def views(self, source: Any, rng: np.random.Generator) -> list[Tensor]:
        """`n_global` then `n_local` tensors (C, size, size), uint8 or float32 in [0, 1]."""

    def prepare(self, record: Record) -> Tensor:
        """Deterministic pixels for embedding, (n, C, size, size) or (n, C, size, size, size); n vectors are pooled."""

    def verify(self, record: Record) -> None:
        """Raise BadFileError where the pixels cannot be read right; used by scan."""

    def describe(self) -> dict[str, Any]:
        """JSON from which `data_adapters.from_description` builds an equal adapter."""
