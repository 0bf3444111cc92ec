"""What all resources share (bases, texts, `Problem`), jobs, health, API keys and the audit trail."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

ENDED = ("succeeded", "failed", "cancelled", "dead")
PRINTED = r"^[^\x00-\x1f\x7f]*$"  # no control characters: tables, logs and terminals show these texts
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120, pattern=PRINTED)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTED)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LabelValue = Label | Number | Annotated[list[Label], Field(max_length=1000)]
"""A class, a quantity, or what can be seen in one image; all labels of a probe are of one of these kinds."""
GivenLabel = Annotated[LabelValue | None, BeforeValidator(lambda value: None if value != value else value)]
"""A label as a request gives it: null, and NaN as Python's json writes it, are missing."""
FileKey = str | int
"""The client's own name of a file, given back as it came."""


def _known_or_newer(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Check a word against its list, but take any text where a client reads an answer."""
    return value if info.context is READING and isinstance(value, str) else check(value)


READING = {"reading": True}
NEWER = WrapValidator(_known_or_newer)
JobKind = Annotated[
    Literal[
        "train-probe",
        "import-upload",
        "embed-archive",
        "apply-probe",
        "map-archive",
        "check-archive",
        "find-outliers",
    ],
    NEWER,
]
JobState = Annotated[Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"], NEWER]
ProbeKind = Annotated[Literal["classification", "multilabel", "regression"], NEWER]
BackendName = Annotated[Literal["exact", "pgvector", "lancedb"], NEWER]
Scope = Literal["embed", "probe", "admin"]

NAME = "name of its file in the zip that was sent, of a series its first file; none outside of a zip"
KEY = "the client's own key of the file, as the form field `keys` gave it"
CAUTIONS = (
    "what to know before using the vectors, one text for each kind of problem: tiles without mpp, for example, with "
    "their number, the first files and the remedy"
)
SKIPPED = "files in zips that are no images of the modality (tables, README): they are not read and count nowhere"


class Request(BaseModel):
    """A request body: unknown fields are errors, so that a misspelt option is never ignored."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the service answers, or a part of it."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def read(cls, data: Any) -> Self:
        """Return the answer in a JSON object, also one of a newer service.

        Raises:
            pydantic.ValidationError: a field that this release needs is missing or of another type.
        """
        return cls.model_validate(data, extra="allow", context=READING)

    @property
    def more(self) -> Mapping[str, Any]:
        """Fields that this release does not know."""
        return self.model_extra or {}


class Problem(Answer):
    """RFC 9457 problem document. `remedy` says what to do."""

    type: str = Field(examples=["urn:lejepa-med:problem:bad-file"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["The image is cut off."])
    remedy: str = Field(default="", examples=["Copy the file again from its source."])
    index: int | None = Field(default=None, description="which item of the request, from 0")
    file_index: int | None = Field(default=None, description="which file of the request, from 0")
    name: str | None = Field(default=None, description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    errors: list[dict[str, str]] | None = Field(default=None, description="each value that does not fit the schema")
    reference: str | None = Field(default=None, description="id of the request, to find it in the log")

    @property
    def kind(self) -> str:
        """The stable word that programs test, such as 'bad-file'."""
        return self.type.rpartition(":")[2]

    def __str__(self) -> str:
        return " ".join(part for part in (self.detail, self.remedy) if part)


class Skipped(Answer):
    """A file in a zip that is no image of the modality."""

    file_index: int = Field(examples=[0], description="position of the zip in the request")
    name: str = Field(examples=["labels.csv"], description="name in the zip")


class JobEvent(Answer):
    """One line of a job's log."""

    at: datetime
    message: str


class Job(Answer):
    """Long work. Poll it until `state` is succeeded, failed, cancelled, or dead (given up, can be queued again)."""

    id: str
    kind: JobKind
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

    @property
    def has_ended(self) -> bool:
        """Whether it has its outcome."""
        return self.state in ENDED


class JobDetail(Job):
    """A job with its log."""

    events: list[JobEvent]


class Jobs(Answer):
    """Jobs, newest first."""

    jobs: list[Job]
    next: str | None = Field(default=None, description="link to the next page")


class Health(Answer):
    """Whether the process lives."""

    status: Literal["ok"]


class Readiness(Answer):
    """Whether the service can work: store writable, first encoders warm, one of them usable, and not being stopped."""

    status: Annotated[Literal["ready", "not ready", "draining"], NEWER]
    store: bool
    warm: bool = Field(description="the first encoders are loaded and have run at the common batch sizes")
    encoders: dict[str, bool] = Field(description="by id: loaded without fault, or not loaded yet and complete")


class KeyRequest(Request):
    """Make an API key."""

    name: Name = Field(examples=["pacs-gateway"], description="whose key it is")
    scopes: list[Scope] = Field(
        min_length=1, max_length=3, examples=[["embed"]], description="admin includes the others"
    )
    expires_days: float | None = Field(default=None, gt=0, le=36_500, examples=[365], description="none: never")


class Key(Answer):
    """An API key without its secret."""

    id: str = Field(examples=["5f0c7e1b9a3d4c2e"])
    name: str
    scopes: list[Scope]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    last_used: datetime | None = Field(default=None, description="to a minute")


class NewKey(Key):
    """A new API key. `key` is shown this once."""

    key: str = Field(examples=["lj_5f0c7e1b9a3d4c2e_..."])


class Keys(Answer):
    """All API keys, oldest first."""

    keys: list[Key]


class AuditLine(Answer):
    """One request that changed something or was refused, or one command of the operator (status 0)."""

    id: int
    at: datetime
    key_id: str | None = Field(description="none where nobody was asked for a key, and where no key was accepted")
    action: str = Field(examples=["DELETE /v1/jobs/{job_id}"])
    target: str | None = Field(description="id of what was made, changed or removed")
    status: int = Field(examples=[200])
    request_id: str | None


class Audit(Answer):
    """A page of the audit trail, newest first."""

    lines: list[AuditLine]
    next: str | None = Field(default=None, description="link to the next page")
