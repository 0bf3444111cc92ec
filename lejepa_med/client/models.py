"""What the service answers, as frozen dataclasses. Fields of a newer service than this client are kept in `more`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np

ENDED = ("succeeded", "failed", "cancelled", "dead")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Base of all answers."""

    more: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Fields that this client does not know yet."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """From the JSON object of an answer."""
        known = {one.name for one in fields(cls)} - {"more"}
        values = {name: cls._value(name, value) for name, value in data.items() if name in known}
        return cls(**values, more={name: value for name, value in data.items() if name not in known})

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        """A field's JSON value as the field's type; what is nested is read by its own class."""
        if value is None:
            return None
        if name == "error":
            return Problem.read(value)
        if name in ("created", "started", "finished"):
            return datetime.fromisoformat(value)
        return value


@dataclass(frozen=True, kw_only=True)
class Problem(Answer):
    """Why something was refused (RFC 9457). `remedy` says what to do, `reference` finds it in the service's log."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    detail: str = ""
    remedy: str = ""
    index: int | None = None
    file_index: int | None = None
    name: str | None = None
    key: str | int | None = None
    errors: list[dict[str, str]] | None = None
    reference: str | None = None

    @property
    def kind(self) -> str:
        """The stable word that programs test, such as 'bad-file'."""
        return self.type.rpartition(":")[2]

    def __str__(self) -> str:
        return " ".join(part for part in (self.detail, self.remedy) if part)


@dataclass(frozen=True, kw_only=True)
class Encoder(Answer):
    """An encoder of the service."""

    id: str
    name: str
    modality: str
    available: bool
    vectors: str = ""


@dataclass(frozen=True, kw_only=True)
class EncoderDetail(Encoder):
    """An encoder with what it expects and gives; only vectors of one fingerprint may be compared."""

    fingerprint: str
    dim: int
    image_size: int
    channels: int
    dims: int = 2
    precision: str = "float32"
    formation: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    """Last records of the run: `training` and `evaluation`; docs/observe.md explains their names."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedItem(Answer):
    """The vector (dim,) of one item, or the problem that stands for it. `part` numbers slices or tiles kept apart.

    `name` is the path of its file in the zip or folder that was sent, `key` the caller's own.
    """

    index: int
    file_index: int
    name: str | None = None
    key: str | int | None = None
    items: int = 0
    part: int | None = None
    vector: list[float] | None = None
    error: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Embeddings(Answer):
    """Vectors in the order of the files; a file with several items gives several."""

    encoder: str
    fingerprint: str
    dim: int
    items: list[EmbeddedItem]
    precision: str = "float32"
    cautions: list[str] = field(default_factory=list)
    """What to know before using the vectors, one text for each kind of problem; `Client.embed` warns of them, too."""
    skipped: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Files in zips and folders that are no images: `file_index` and `name`."""

    @classmethod
    def _value(cls, name: str, value: Any) -> Any:
        return [EmbeddedItem.read(item) for item in value] if name == "items" else super()._value(name, value)

    def array(self) -> "np.ndarray":
        """All vectors, (items, dim) float32; needs NumPy.

        Raises:
            ValueError: an item has no vector.
        """
        import numpy as np

        for item in self.items:
            if item.vector is None:
                raise ValueError(f"item {item.index} has no vector: {item.error}")
        return np.array([item.vector for item in self.items], np.float32)


@dataclass(frozen=True, kw_only=True)
class Archive(Answer):
    """An embedding table of the service; `encoder` is None where its encoder is not there.

    `cautions` say what to know before using it: tiles have no mpp, or a column that looks like the group is not used.
    """

    name: str
    count: int
    dim: int
    fingerprint: str
    encoder: str | None = None
    created: datetime | None = None
    upload: str | None = None
    cautions: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ArchiveDetail(Archive):
    """A table with what it holds; `failures` have `reason` and `count`, `labels` items by label.

    `leak` counts `groups`, `images` and `copies` in several splits of the catalogue; None where there are none.
    `notes` say what became of the catalogue of a folder.
    `by_folder` says what was taken for groups where nothing better was known.
    """

    failed: int
    groups: int
    failures: list[dict[str, Any]] = field(default_factory=list, repr=False)
    labels: dict[str, int] = field(default_factory=dict, repr=False)
    leak: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    by_folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Upload(Answer):
    """Files that were sent to become an archive; `state` is 'importing' or 'ready'."""

    id: str
    name: str
    modality: str
    state: str
    files: int
    bytes: int
    sha256: str
    created: datetime


@dataclass(frozen=True, kw_only=True)
class UploadDetail(Upload):
    """An upload with what its import found; None while it is imported. `embedding` is the id of the job, if any.

    `cautions` name a column of the catalogue that looks like the group and is not used; `notes` say which table among
    the files was taken as the catalogue, or was not; `by_folder` says which folders of the zips were taken
    for groups where nothing better was known.
    """

    items: int | None = None
    groups: int | None = None
    labels: dict[str, int] | None = None
    refused: int | None = None
    reasons: list[dict[str, Any]] | None = field(default=None, repr=False)
    refused_items: list[dict[str, Any]] | None = field(default=None, repr=False)
    skipped: int | None = None
    skipped_files: list[dict[str, Any]] | None = field(default=None, repr=False)
    duplicates: int | None = None
    duplicate_items: list[dict[str, str]] | None = field(default=None, repr=False)
    leak: dict[str, Any] | None = None
    catalog_unused: int | None = None
    catalog_unused_rows: list[int] | None = field(default=None, repr=False)
    catalog_missing: dict[str, dict[str, int]] | None = field(default=None, repr=False)
    catalog_without_row: int | None = None
    cautions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_folder: str | None = None
    embedding: str | None = None


@dataclass(frozen=True, kw_only=True)
class UploadItem(Answer):
    """One readable item of an upload; `name` is that of its file in the zip, `item` which one of several in a file.

    `key` is the sender's own. Names and keys are told to the sender alone (and to administrators).
    """

    id: str
    file_index: int
    group: str
    name: str | None = None
    key: str | int | None = None
    entry: int | None = None
    item: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArchiveItem(Answer):
    """One item of a table: pseudonyms of its file and of its group (patient, slide case, field).

    `name` and `key` are as of `UploadItem`, where the table was made from an upload of the caller.
    """

    id: str
    group: str
    name: str | None = None
    key: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class Job(Answer):
    """Long work of the service. `result` is a link, once it has succeeded.

    `cautions` come with the answer to the request that asked for it, and with what it makes.
    """

    id: str
    kind: str
    state: str
    created: datetime
    progress: float = 0.0
    stage: str = ""
    eta_seconds: float | None = None
    started: datetime | None = None
    finished: datetime | None = None
    attempts: int = 0
    result: str | None = None
    cautions: list[str] | None = None
    error: Problem | None = None
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def has_ended(self) -> bool:
        """Whether it has its outcome."""
        return self.state in ENDED
