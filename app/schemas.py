"""What goes over the wire. These schemas are the service's contract: fields are added, never renamed."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

PRINTED = r"^[^\x00-\x1f\x7f]*$"  # no control characters: tables, logs and terminals show these texts
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120, pattern=PRINTED)]
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=PRINTED)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
LabelValue = Label | Number | Annotated[list[Label], Field(max_length=1000)]
"""A class, a quantity, or what can be seen in one image; all labels of a probe are of one of these kinds."""
ProbeKind = Literal["classification", "multilabel", "regression"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "dead"]


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
    errors: list[dict[str, str]] | None = Field(default=None, description="each value that does not fit the schema")
    reference: str | None = Field(default=None, description="id of the request, to find it in the log")


class Encoder(BaseModel):
    """One encoder of the runs directory."""

    id: str = Field(examples=["galaxies"])
    name: str = Field(examples=["galaxies"], description="name of its run")
    modality: str = Field(examples=["galaxy"], description="adapter that reads its files")
    available: bool = Field(description="false where its folder is damaged or incomplete")


class Encoders(BaseModel):
    """All encoders, by id."""

    encoders: list[Encoder]


class EncoderDetail(Encoder):
    """One encoder with what it expects and gives."""

    fingerprint: str = Field(description="SHA-256 over weights and preprocessing; vectors compare only if it is equal")
    dim: int = Field(examples=[512], description="length of a vector")
    image_size: int = Field(examples=[224], description="side of the square or cube that the encoder sees")
    dims: int = Field(default=2, examples=[2], description="2: images, 3: volumes, seen as cubes")
    channels: int = Field(examples=[3])
    info: dict[str, Any] = Field(description="public part of lejepa_med.json: method, metrics, code version")


class EmbeddedItem(BaseModel):
    """The vector of one item (image, volume, series, slide, region), or why there is none."""

    index: int = Field(examples=[0], description="position among the items of this answer")
    file_index: int = Field(examples=[0], description="position of its file in the request")
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
    dim: int = Field(examples=[512])
    items: list[EmbeddedItem]


class LabelledId(Strict):
    """One labelled item of an embedding table."""

    id: str = Field(max_length=200, examples=["5f0c7e1b9a3d4c2e8f6a1b0c9d8e7f6a"])
    label: LabelValue = Field(
        examples=["spiral"], description="a text (class), a number (quantity) or a list of texts (any number of labels)"
    )
    group: str | None = Field(
        default=None,
        max_length=200,
        description="what must stay on one side of a split (patient, slide case); by default the table's group",
    )


class ProbeRequest(Strict):
    """Train a probe on items that are embedded already."""

    name: Name | None = Field(default=None, examples=["morphology"])
    encoder: str | None = Field(default=None, description="encoder id; checked against the table's when given")
    archive: str = Field(examples=["galaxies-val"], description="name of an embedding table, see GET /v1/archives")
    labels: list[LabelledId] = Field(min_length=2, max_length=100_000)
    folds: int = Field(default=5, ge=2, le=20, description="folds of the group-aware cross-validation")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    balanced: bool | None = Field(
        default=None,
        description="classes weigh equally whatever their counts; by default so for classes, not for lists of labels",
    )


class Probe(BaseModel):
    """One version of a trained probe; it never changes."""

    id: str
    series: str = Field(description="id of its first version, the same for all versions")
    version: int = Field(description="1, 2, ... as labels were added")
    parent: str | None = Field(default=None, description="version whose labels it took over")
    kind: ProbeKind
    name: str = Field(examples=["morphology"])
    encoder: str = Field(description="id of the encoder at the time of training, or the table's name for it")
    fingerprint: str = Field(description="fingerprint of the encoder whose vectors it reads")
    labels: list[str] = Field(
        examples=[["elliptical", "spiral"]], description="classes, in the order of probabilities; none of a quantity"
    )
    count: int = Field(examples=[200], description="labelled items that it was trained on")
    created: datetime


class Probes(BaseModel):
    """Versions of all probes, newest first."""

    probes: list[Probe]
    next: str | None = Field(default=None, description="link to the next page")


class ProbeVersion(BaseModel):
    """One version among those of its series."""

    id: str
    version: int
    count: int = Field(examples=[200], description="labelled items that it was trained on")
    created: datetime


class ProbeDetail(Probe):
    """A probe with the quality that cross-validation measured."""

    metrics: dict[str, Any] = Field(
        description="out-of-fold scores of the linear probe and of k-NN with intervals, calibration, warnings"
    )
    receipt: dict[str, Any] = Field(description="folds, seed and group counts of the cross-validation")
    versions: list[ProbeVersion] = Field(description="all versions of this probe, newest first")


class PredictionRequest(Strict):
    """Predict items that are embedded already."""

    archive: str = Field(examples=["galaxies-val"])
    ids: list[str] = Field(min_length=1, max_length=100_000)


class PredictedItem(BaseModel):
    """One prediction, or why there is none."""

    index: int
    file_index: int | None = Field(default=None, description="position of its file in the request; none for ids")
    id: str | None = Field(default=None, description="the id that was asked for; none for files")
    label: str | None = Field(
        default=None, examples=["spiral"], description="classification: class of the logistic probe"
    )
    probabilities: dict[str, float] | None = Field(
        default=None, examples=[{"elliptical": 0.1, "spiral": 0.9}], description="calibrated, by class"
    )
    knn_label: str | None = Field(default=None, description="classification: of the nearest labelled neighbours")
    nearest_cosine: float | None = Field(default=None, description="similarity of the nearest labelled image")
    labels: list[str] | None = Field(default=None, description="multilabel: those whose chance reaches their threshold")
    knn_labels: list[str] | None = Field(default=None, description="multilabel: of the nearest labelled images")
    value: float | None = Field(default=None, description="regression: the quantity")
    interval: tuple[float, float] | None = Field(
        default=None, description="regression: holds 90 % of the true values; none where labels are too few"
    )
    knn_value: float | None = Field(default=None, description="regression: mean of the nearest labelled images")
    novelty: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how unlike the labelled images: of images like them, at most a share a has 1 - a or more",
    )
    uncertainty: float | None = Field(default=None, ge=0, le=1, description="how much its label would teach the probe")
    note: str | None = Field(default=None, description="only where the image is unlike the labelled ones")
    error: Problem | None = None


class Predictions(BaseModel):
    """Predictions in the order of the files or ids."""

    probe: str
    items: list[PredictedItem]


class Archive(BaseModel):
    """An embedding table, of the runs directory or made by the service."""

    name: str = Field(examples=["galaxies-val"])
    count: int = Field(examples=[1000])
    dim: int = Field(examples=[512])
    fingerprint: str = Field(description="fingerprint of the encoder that made it")
    encoder: str | None = Field(default=None, description="id of that encoder, where it is in the runs directory")
    created: datetime | None = Field(
        default=None, description="when the service made it; none for the runs directory's"
    )
    upload: str | None = Field(default=None, description="the upload that it was made from")


class Archives(BaseModel):
    """All embedding tables, by name."""

    archives: list[Archive]


class ArchiveId(BaseModel):
    """One item of a table."""

    id: str
    group: str


class ArchiveIds(BaseModel):
    """A page of ids, in the table's order."""

    archive: str
    total: int
    offset: int
    items: list[ArchiveId]
    next: str | None = Field(default=None, description="link to the next page")


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
    error: Problem | None = None


class JobDetail(Job):
    """A job with its log."""

    events: list[JobEvent]


class Jobs(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]


class KeyRequest(Strict):
    """Make an API key."""

    name: Name = Field(examples=["pacs-gateway"], description="whose key it is")
    scopes: list[Literal["embed", "probe", "admin"]] = Field(
        min_length=1, max_length=3, examples=[["embed"]], description="admin includes the others"
    )
    expires_days: float | None = Field(default=None, gt=0, le=36_500, examples=[365], description="none: never")


class Key(BaseModel):
    """An API key without its secret."""

    id: str = Field(examples=["5f0c7e1b9a3d4c2e"])
    name: str
    scopes: list[Literal["embed", "probe", "admin"]]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None
    last_used: datetime | None = Field(default=None, description="to a minute")


class NewKey(Key):
    """A new API key. `key` is shown this once."""

    key: str = Field(examples=["lj_5f0c7e1b9a3d4c2e_..."])


class Keys(BaseModel):
    """All API keys, oldest first."""

    keys: list[Key]


class AuditLine(BaseModel):
    """One request that changed something or was refused, or one command of the operator (status 0)."""

    id: int
    at: datetime
    key_id: str | None = Field(description="none where nobody was asked for a key, and where no key was accepted")
    action: str = Field(examples=["DELETE /v1/jobs/{job_id}"])
    target: str | None = Field(description="id of what was made, changed or removed")
    status: int = Field(examples=[200])
    request_id: str | None


class Audit(BaseModel):
    """A page of the audit trail, newest first."""

    lines: list[AuditLine]
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
