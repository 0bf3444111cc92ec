"""Labels, probes, predictions, applications of a probe to an archive, and the search for similar items."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from lejepa_med.client.wire.common import (
    CAUTIONS,
    KEY,
    NAME,
    NEWER,
    SKIPPED,
    Answer,
    BackendName,
    FileKey,
    GivenLabel,
    Name,
    ProbeKind,
    Problem,
    Request,
    Skipped,
)
from lejepa_med.search.filters import Condition

AllowLeak = Annotated[
    bool,
    Field(description="learn although a group or an equal image lies in two splits of the archive's catalogue"),
]


LABEL_SET = (
    "id of a set (GET /v1/label-sets) in place of `labels`; items that the archive lacks are left out and counted"
)


class LabelledId(Request):
    """One labelled item of an embedding table."""

    id: str = Field(max_length=200, examples=["5f0c7e1b9a3d4c2e8f6a1b0c9d8e7f6a"])
    label: GivenLabel = Field(
        examples=["spiral"],
        description="a text (class), a number (quantity) or a list of texts (any number of labels); the item is left "
        "out and counted where it is null or a word for a missing value, such as NA",
    )
    group: str | None = Field(
        default=None,
        max_length=200,
        description="what must stay on one side of a split (patient, slide case); by default the table's group",
    )


class ProbeRequest(Request):
    """Train a probe on items that are embedded already. Give `archive` and `labels`, or `label_set`."""

    name: Name | None = Field(default=None, examples=["morphology"])
    encoder: str | None = Field(default=None, description="encoder id; checked against the table's when given")
    archive: str | None = Field(
        default=None,
        examples=["galaxies-val"],
        description="name of an embedding table, see GET /v1/archives; by default that of the label set",
    )
    labels: list[LabelledId] | None = Field(default=None, min_length=2, max_length=100_000)
    label_set: str | None = Field(default=None, max_length=32, description=LABEL_SET)
    folds: int = Field(default=5, ge=2, le=20, description="folds of the group-aware cross-validation")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    balanced: bool | None = Field(
        default=None,
        description="classes weigh equally whatever their counts; by default so for classes, not for lists of labels",
    )
    allow_leak: AllowLeak = False


class Probe(Answer):
    """One version of a trained probe; it never changes."""

    id: str
    series: str = Field(description="id of its first version, the same for all versions")
    version: int = Field(description="1, 2, ... as labels were added")
    parent: str | None = Field(default=None, description="version whose labels it took over")
    kind: ProbeKind
    name: str = Field(examples=["morphology"])
    encoder: str = Field(
        description="id of the encoder at the time of training, or the table's name for it; of a probe in the runs "
        "directory its id now, empty where it is not there"
    )
    fingerprint: str = Field(description="fingerprint of the encoder whose vectors it reads")
    labels: list[str] = Field(
        examples=[["elliptical", "spiral"]], description="classes, in the order of probabilities; none of a quantity"
    )
    count: int = Field(examples=[200], description="labelled items that it was trained on")
    created: datetime
    cautions: list[str] = Field(default=[], description=f"{CAUTIONS}, as they were when it was trained")
    read_only: bool = Field(
        default=False, description="trained with `lejepa-med probe`: it lies in the runs directory, which is only read"
    )


class UnusableProbe(Answer):
    """A folder of the runs directory whose probe is damaged or of another release."""

    id: str
    detail: str
    remedy: str


class Probes(Answer):
    """Versions of all probes, newest first."""

    probes: list[Probe]
    unusable: list[UnusableProbe] = Field(default=[], description="damaged probes of the runs directory, on page one")
    next: str | None = Field(default=None, description="link to the next page")


class ProbeVersion(Answer):
    """One version among those of its series."""

    id: str
    version: int
    count: int = Field(examples=[200], description="labelled items that it was trained on")
    created: datetime
    measure: str | None = Field(
        default=None, examples=["balanced_accuracy"], description="which of the cross-validated scores `score` is"
    )
    score: float | None = Field(default=None, examples=[0.86], description="none where no folds were possible")
    interval: tuple[float, float] | None = Field(default=None, description="95 % interval of the score")
    label_set: dict[str, Any] | None = Field(default=None, description="id and version of the set that it learnt from")


class ProbeDetail(Probe):
    """A probe with the quality that cross-validation measured."""

    metrics: dict[str, Any] = Field(
        repr=False,
        description="out-of-fold scores of the linear probe and of k-NN with intervals, calibration, warnings",
    )
    receipt: dict[str, Any] = Field(repr=False, description="folds, seed and group counts of the cross-validation")
    versions: list[ProbeVersion] = Field(description="all versions of this probe, newest first")


class ScoredRow(Answer):
    """One example with the answer of the part of the cross-validation that has seen neither it nor its group."""

    id: str
    archive: str | None = Field(default=None, description="the table that it is of; none of a file")
    label: Any
    predicted: Any
    probability: float | None = Field(default=None, description="of the predicted class, calibrated")
    fold: int


class Confusion(Answer):
    """Classes that are taken for each other."""

    classes: list[str]
    matrix: list[list[int]] = Field(description="the true class in rows, the predicted one in columns")
    cells: list[list[list[int]]] = Field(description="positions in `rows` of the examples of each cell")


class RocCurve(Answer):
    """How many images with a label are found, and how many without it, by falling threshold."""

    label: str
    auc: float
    positives: int
    negatives: int
    false_positive_rate: list[float]
    true_positive_rate: list[float]
    thresholds: list[float]


class CalibrationBin(Answer):
    """Predictions of about one confidence."""

    start: float = Field(alias="from", serialization_alias="from")
    end: float = Field(alias="to", serialization_alias="to")
    count: int
    confidence: float
    right: float


class MarkRows(Answer):
    """What a probe of several labels says of one of them: positions in `rows`."""

    label: str
    true_positive: list[int]
    false_positive: list[int]
    false_negative: list[int]
    true_negatives: int = Field(description="how many")


class Evaluation(Answer):
    """What lies behind the scores of a probe: out-of-fold answers, from the folds that are kept with it."""

    probe: str
    kind: ProbeKind
    count: int = Field(examples=[200], description="examples")
    scored: int = Field(examples=[200], description="examples that a part of the cross-validation has not seen")
    note: str | None = Field(default=None, description="why there is nothing to show")
    rows: list[ScoredRow]
    confusion: Confusion | None = Field(default=None, description="of classes")
    roc: list[RocCurve] = Field(description="of each class against all others, or of each label")
    marks: list[MarkRows] | None = Field(default=None, description="of several labels an image")
    calibration: list[CalibrationBin] | None = None
    ece: float | None = Field(default=None, description="mean distance of confidence and share right")


class PredictionRequest(Request):
    """Predict items that are embedded already."""

    archive: str = Field(examples=["galaxies-val"])
    ids: list[str] = Field(min_length=1, max_length=100_000)


class PredictedItem(Answer):
    """One prediction, or why there is none."""

    index: int
    file_index: int | None = Field(default=None, description="position of its file in the request; none for ids")
    name: str | None = Field(default=None, description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    id: str | None = Field(default=None, description="the id that was asked for; none for files")
    seen: Annotated[Literal["no", "record", "group"], NEWER] | None = Field(
        default=None,
        description="record: the probe learnt from this image; group: from others of its group. Then every field comes "
        "from the part of the cross-validation that has seen neither, as the probe's scores do",
    )
    in_sample: bool | None = Field(
        default=None,
        description="true: no such part exists, so this is no answer to a new image and must not be scored",
    )
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


class Predictions(Answer):
    """Predictions in the order of the files or ids."""

    probe: str
    items: list[PredictedItem]
    notes: list[str] | None = Field(
        default=None,
        description="how many of the images the probe has seen, and what that means; only where there are any",
    )
    cautions: list[str] = Field(default=[], description=CAUTIONS)
    skipped: list[Skipped] | None = Field(default=None, description=SKIPPED)


class LabelsRequest(Request):
    """More labels for a probe, on items that are embedded already. Give `archive` and `labels`, or `label_set`."""

    archive: str | None = Field(
        default=None,
        examples=["galaxies-val"],
        description="name of an embedding table, see GET /v1/archives; by default that of the label set",
    )
    labels: list[LabelledId] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="an item that was labelled before gets the new label",
    )
    label_set: str | None = Field(
        default=None, max_length=32, description=f"{LABEL_SET}. The version then learns from exactly this set"
    )
    folds: int = Field(default=5, ge=2, le=20, description="folds of the group-aware cross-validation")
    allow_leak: AllowLeak = False


class UncertainItem(PredictedItem):
    """An item to label next, with what the probe says of it."""

    group: str = Field(description="the table's pseudonym of its patient, slide case or field")
    distance: float = Field(description="to the nearest labelled or listed item, of unit vectors: 0 .. 2")
    columns: dict[str, str | bool | int | float | None] = Field(
        examples=[{"label": None, "mpp": 0.5}], description="label, and what `lejepa-med embed --columns` kept"
    )


class Uncertain(Answer):
    """Items whose labels would teach the probe most, the first one first."""

    probe: str
    archive: str
    cautions: list[str] = Field(default=[], description=CAUTIONS)
    items: list[UncertainItem]


class ApplicationRequest(Request):
    """Apply a probe to every item of an archive."""

    archive: str = Field(max_length=300, examples=["galaxies-val"])


class Application(Answer):
    """A probe's predictions for a whole archive."""

    id: str
    probe: str
    archive: str
    fingerprint: str = Field(description="fingerprint of the encoder")
    count: int = Field(examples=[100000])
    summary: dict[str, Any] = Field(
        repr=False,
        description="`counts` by label, or the spread of the `value`; `unlike`: share of items unlike the labelled "
        "ones; `seen`: items that the probe has seen, and those that are in-sample; `notes`: what that means",
    )
    cautions: list[str] = Field(default=[], description=CAUTIONS)
    created: datetime


class Applications(Answer):
    """Applications of a probe, newest first."""

    applications: list[Application]
    next: str | None = Field(default=None, description="link to the next page")


NeighbourCount = Annotated[int, Field(ge=1, le=1000)]
Filters = Annotated[list[Condition], Field(max_length=50)]
QUERIES = 1000  # of one request


class SearchRequest(Request):
    """Neighbours of items that are embedded already, or of vectors. Give `ids` or `vectors`."""

    archive: str = Field(examples=["galaxies-val"], description="the embedding table that is searched")
    ids: list[Annotated[str, Field(max_length=200)]] | None = Field(
        default=None, min_length=1, max_length=QUERIES, examples=[["5f0c7e1b9a3d4c2e8f6a1b0c9d8e7f6a"]]
    )
    ids_of: str | None = Field(default=None, description="the table that the ids are of; by default `archive`")
    vectors: list[Annotated[list[FiniteFloat], Field(max_length=65_536)]] | None = Field(
        default=None, min_length=1, max_length=QUERIES, description="as POST /v1/embeddings gives them, of any length"
    )
    fingerprint: str | None = Field(
        default=None, max_length=200, description="of the encoder that made `vectors`; POST /v1/embeddings names it"
    )
    k: NeighbourCount = Field(default=10, description="neighbours of each item, at most")
    filters: Filters = Field(default=[], description="conditions on group, label and the table's further columns")
    leave_out_own_group: bool = Field(
        default=False, description="no neighbours of the item's own patient, slide or field; for `ids`"
    )


class Hit(Answer):
    """One neighbour."""

    id: str
    group: str
    score: float = Field(examples=[0.93], description="cosine of the two vectors, -1 to 1")
    columns: dict[str, str | bool | int | float | None] = Field(
        examples=[{"label": "spiral", "mpp": 0.5}], description="label, and what `lejepa-med embed --columns` kept"
    )


class Neighbourhood(Answer):
    """The neighbours of one item, the nearest first, or why there are none."""

    index: int = Field(description="position among the items of this answer")
    id: str | None = Field(default=None, description="the id that was asked for; it is not its own neighbour")
    file_index: int | None = Field(default=None, description="position of its file in the request")
    name: str | None = Field(default=None, description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    hits: list[Hit] = Field(default=[])
    error: Problem | None = None


class SearchAnswer(Answer):
    """Neighbours, in the order of the ids, vectors or files."""

    archive: str
    fingerprint: str = Field(description="fingerprint of the encoder whose vectors were compared")
    backend: BackendName
    recall: float = Field(description="recall at 10 of the index, measured when it was built; 1 where exact")
    note: str | None = Field(default=None, description="why the answer is exact although the table has an index")
    cautions: list[str] = Field(default=[], description=f"{CAUTIONS}; of files")
    items: list[Neighbourhood]
    skipped: list[Skipped] | None = Field(default=None, description=SKIPPED)


class SearchIndex(Answer):
    """How a table is searched."""

    archive: str
    rows: int = Field(examples=[1000])
    backend: BackendName
    state: Annotated[Literal["absent", "building", "ready", "failed"], NEWER] = Field(
        description="absent: the first search makes it, and is answered exactly meanwhile"
    )
    recall: float | None = Field(default=None, description="recall at 10 against the exact answer; 1 where exact")
    sample: int | None = Field(default=None, description="items of the table with which recall was measured")
    build_seconds: float | None = None
    built: datetime | None = None
    note: str | None = None


class SearchIndexes(Answer):
    """All tables, by name."""

    indexes: list[SearchIndex]
