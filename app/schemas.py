"""What goes over the wire. These schemas are the service's contract: fields are added, never renamed."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

PRINTED = r"^[^\x00-\x1f\x7f]*$"  # no control characters: tables, logs and terminals show these texts
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120, pattern=PRINTED)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTED)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LabelValue = Label | Number | Annotated[list[Label], Field(max_length=1000)]
"""A class, a quantity, or what can be seen in one image; all labels of a probe are of one of these kinds."""
GivenLabel = Annotated[LabelValue | None, BeforeValidator(lambda value: None if value != value else value)]
"""A label as a request gives it: null, and NaN as Python's json writes it, are missing."""
Key = str | int
"""The client's own name of a file, given back as it came."""
ProbeKind = Literal["classification", "multilabel", "regression"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]


NAME = "name of its file in the zip that was sent, of a series its first file; none outside of a zip"
KEY = "the client's own key of the file, as the form field `keys` gave it"
CAUTIONS = (
    "what to know before using the vectors, one text for each kind of problem: tiles without mpp, for example, with "
    "their number, the first files and the remedy"
)
SKIPPED = "files in zips that are no images of the modality (tables, README): they are not read and count nowhere"


class Strict(BaseModel):
    """A request body: unknown fields are errors, so that a misspelt option is never ignored."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """RFC 9457 problem document. `remedy` says what to do."""

    type: str = Field(examples=["urn:lejepa-med:problem:bad-file"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The image is cut off."])
    remedy: str = Field(default="", examples=["Copy the file again from its source."])
    index: int | None = Field(default=None, description="which item of the request, from 0")
    file_index: int | None = Field(default=None, description="which file of the request, from 0")
    name: str | None = Field(default=None, description=NAME)
    key: Key | None = Field(default=None, description=KEY)
    errors: list[dict[str, str]] | None = Field(default=None, description="each value that does not fit the schema")
    reference: str | None = Field(default=None, description="id of the request, to find it in the log")


class Encoder(BaseModel):
    """One encoder of the runs directory."""

    id: str = Field(examples=["galaxies"])
    name: str = Field(examples=["galaxies"], description="name of its run")
    modality: str = Field(examples=["galaxy"], description="adapter that reads its files")
    available: bool = Field(description="false where its folder is damaged or incomplete")
    vectors: str = Field(
        default="",
        examples=["64 px, mean over 8 fixed views: 8 passes an image"],
        description="how the vector of an image is formed, and what it costs; empty where the folder is damaged",
    )


class Encoders(BaseModel):
    """All encoders, by id."""

    encoders: list[Encoder]


class EncoderDetail(Encoder):
    """One encoder with what it expects and gives."""

    fingerprint: str = Field(
        description="SHA-256 over weights, preprocessing, formation and precision; vectors compare only if it is equal"
    )
    precision: str = Field(
        default="float32", examples=["float32"], description="arithmetic of its vectors, as recorded with the encoder"
    )
    dim: int = Field(examples=[512], description="length of a vector")
    image_size: int = Field(examples=[224], description="side of the square or cube that the encoder sees")
    formation: dict[str, int] = Field(
        default={},
        examples=[{"size": 224, "views": 8, "layers": 1}],
        description="of its vectors: side of the image, fixed views that are averaged (passes an image), joined layers",
    )
    dims: int = Field(default=2, examples=[2], description="2: images, 3: volumes, seen as cubes")
    channels: int = Field(examples=[3])
    info: dict[str, Any] = Field(description="public part of lejepa_med.json: objective, backbone, code version")
    metrics: dict[str, dict[str, Any]] = Field(
        examples=[{"training": {"step": 900, "loss": 0.31, "backbone/effective_rank": 84.2}, "evaluation": {}}],
        description="the last records of the run: `training` of metrics.jsonl, `evaluation` of online.jsonl, under the "
        "names that docs/observe.md explains; both empty where the encoder's folder came without its run",
    )


class Skipped(BaseModel):
    """A file in a zip that is no image of the modality."""

    file_index: int = Field(examples=[0], description="position of the zip in the request")
    name: str = Field(examples=["labels.csv"], description="name in the zip")


class EmbeddedItem(BaseModel):
    """The vector of one item (image, volume, series, slide, region), or why there is none."""

    index: int = Field(examples=[0], description="position among the items of this answer")
    file_index: int = Field(examples=[0], description="position of its file in the request")
    name: str | None = Field(default=None, examples=["night 3/a.fits"], description=NAME)
    key: Key | None = Field(default=None, description=KEY)
    part: int | None = Field(
        default=None, description="position of the slice or tile within its item; only with the form field pool=none"
    )
    items: int = Field(examples=[1], description="slices or tiles whose vectors were averaged; 0 with an error")
    vector: list[float] | None = Field(default=None, examples=[[0.12, -0.03]])
    error: Problem | None = None


class Embeddings(BaseModel):
    """Vectors in the order of the files; a file with several items (a zip, an HDF5 table) gives several."""

    encoder: str = Field(examples=["galaxies"])
    fingerprint: str
    precision: str = Field(default="float32", examples=["float32"], description="arithmetic of the vectors")
    dim: int = Field(examples=[512])
    cautions: list[str] = Field(default=[], description=CAUTIONS)
    items: list[EmbeddedItem]
    skipped: list[Skipped] | None = Field(default=None, description=SKIPPED)


class JobEvent(BaseModel):
    """One line of a job's log."""

    at: datetime
    message: str


class Job(BaseModel):
    """Long work. Poll it until `state` is succeeded, failed, cancelled, or dead (laid aside, can be queued again)."""

    id: str
    kind: Literal["train-probe", "import-upload", "embed-archive", "apply-probe"]
    state: JobState
    stage: str = Field(default="", examples=["embedding"])
    progress: float = Field(ge=0, le=1, examples=[0.4])
    eta_seconds: float | None = Field(default=None, examples=[12.5])
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    attempts: int = Field(description="how often it was started; more than one after a restart of the service")
    result: str | None = Field(default=None, examples=["/v1/probes/0b8c"], description="link, once it succeeded")
    cautions: list[str] | None = Field(
        default=None, description=f"{CAUTIONS}; only in the answer to POST, what is made has them, too"
    )
    error: Problem | None = None


class JobDetail(Job):
    """A job with its log."""

    events: list[JobEvent]


class Jobs(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]
    next: str | None = Field(default=None, description="link to the next page")


class Health(BaseModel):
    """Whether the process lives."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether the service can work: store writable, first encoders warm, one of them usable, and not being stopped."""

    status: Literal["ready", "not ready", "draining"]
    store: bool
    warm: bool = Field(description="the first encoders are loaded and have run at the common batch sizes")
    encoders: dict[str, bool] = Field(description="by id: loaded without fault, or not loaded yet and complete")
