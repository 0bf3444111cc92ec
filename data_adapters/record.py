"""What a modality tells: of its archive (Record, Rejected, Caution) and of what the encoder receives (Spec)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Rules for groups that several modalities have; see `Record.grouped_by`.
BY_CATALOG, BY_FOLDER, BY_FILE, BY_ROW = "catalogue", "folder", "file", "row"
BY_NAME = "file name"
BY_PATIENT, BY_SKY = "DICOM patient number", "sky position"
FROM_CONTENT = (BY_PATIENT, BY_SKY)
"""Rules that read a file's content and not its name, so that they hold for a file that is sent without one."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What the encoder receives from an adapter.

    Sizes are pixels (voxels where `dims` is 3; a view is then a cube). `embed_size` is the side of what `prepare`
    gives; 0 becomes `global_size`. `mean` and `std` are per channel, for values in
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
    embed_size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "embed_size", self.embed_size or self.global_size)

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
        group: what must stay on one side of a split: patient, slide case, sky cell; empty while only the place of the
            file could tell it, which a scan then asks.
        grouped_by: the rule that found the group, in words that a scan shows.
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
    grouped_by: str = field(default="", compare=False)


def files_of(record: Record) -> list[str]:
    """Absolute paths of all files that make up a record."""
    return list(record.meta.get("files", (record.uri,)))


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file that scan refuses. `reason` is a short phrase, equal for equal causes, so that reasons can be counted."""

    uri: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One kind of problem that a user must know before using the vectors of some records.

    Attributes:
        cause: what it is, in sentences with the counts; without the last full stop.
        rows: positions of the records that it is about.
        remedy: an action that helps however the files were given; empty where `fact` is the remedy.
        fact: the missing fact, by its name in `Record.meta`, which is also the name of a catalogue's column.
    """

    cause: str
    rows: Sequence[int]
    remedy: str = ""
    fact: str = ""

    def text(self, *, give: str = "Give a catalogue with a column '{fact}'") -> str:
        """Cause and remedy as the sentences that a user reads; `give` says how the caller's user supplies the fact."""
        missing = f"{give.format(fact=self.fact)}, so that this is checked" if self.fact else ""
        return ". ".join(part for part in (self.cause, self.remedy, missing) if part)
