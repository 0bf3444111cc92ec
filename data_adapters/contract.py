"""The contract between an archive and the trainer: what a modality tells (Spec, Record, Rejected) and does (Adapter).

Import these names from `data_adapters.base`, which also has BaseAdapter to derive a modality from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from data_adapters.catalog import Catalog

ViewKind = Literal["global", "local"]
Image = np.ndarray  # (H, W, C), or (D, H, W, C) where dims is 3: uint8, or float32 in [0, 1]
Augment = Callable[[Any, np.random.Generator], Image]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the encoder receives from an adapter.

    Sizes are pixels (voxels where `dims` is 3; a view is then a cube). `mean` and `std` are per channel, for values in
    [0, 1] (uint8 is divided by 255 first); the encoder applies them, so that views and `prepare` both carry plain
    pixels.
    """

    channels: int
    global_size: int
    local_size: int
    n_global: int
    n_local: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pool: Literal["mean"] = "mean"
    dims: Literal[2, 3] = 2

    @property
    def n_views(self) -> int:
        """Number of views of one sample."""
        return self.n_global + self.n_local


@dataclass(frozen=True, kw_only=True)
class Record:
    """One archive item: a volume, a series, a slide, a tile or a cut-out.

    Attributes:
        uri: absolute path of the file (or of the first file of a series); it never leaves this machine.
        item: which item inside the file (an HDF5 row, a DICOM series), empty where the file is the item.
        group: what must stay on one side of a split: patient, slide case, sky cell.
        label: a class name when a catalogue gives one; never used for pretraining.
        split: the catalogue's split name, or empty.
        samples: how many training samples an epoch draws from this record (tiles of a slide, slabs of a volume).
        meta: JSON values: `size` (pixels or voxels), `bits`, and where known `spacing` (mm), `mpp`, `bands`, `files`
            (further absolute paths of a series), plus what the adapter's own `read` needs.
    """

    uri: str
    group: str
    item: str = ""
    label: str | None = None
    split: str = ""
    samples: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that scan refuses. `reason` is a short phrase, equal for equal causes, so that reasons can be counted."""

    uri: str
    reason: str
    remedy: str = ""


class AdapterOptions(BaseModel):
    """Options that every adapter has. They are saved with the encoder, so they define its preprocessing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_global: int = Field(default=2, ge=1, description="global views of each sample")
    n_local: int = Field(default=6, ge=0, description="local views of each sample")
    global_size: int = Field(default=224, ge=16, description="side of a global view and of embedding, pixels")
    local_size: int = Field(default=96, ge=16, description="side of a local view, pixels")


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
