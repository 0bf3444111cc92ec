"""Encoders, vectors of images, uploads, and embedding tables (archives)."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from lejepa_med.client.wire.common import (
    CAUTIONS,
    KEY,
    NAME,
    NEWER,
    SKIPPED,
    Answer,
    FileKey,
    Problem,
    Request,
    Skipped,
)

if TYPE_CHECKING:
    import numpy as np

ARCHIVE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}"
ArchiveName = Annotated[str, StringConstraints(pattern=f"^{ARCHIVE_NAME}$")]
"""Part of an address, so of letters, digits and _ . - only."""
Column = Annotated[str, StringConstraints(pattern="^[A-Za-z][A-Za-z0-9_]{0,39}$")]
Id = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]


NOTES = "which table among the files was taken as the catalogue, or was not, and what became of its rows"
BY_FOLDER = "40 files in 2 folders were taken for 2 groups, by folder (folder:1)"
TAKEN = "what was taken for groups where nothing better is known; null where that was not needed"
ENTRY = "position of its file among the images in the zip, by name; use `name` to tell which it is"


class Encoder(Answer):
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


class Encoders(Answer):
    """All encoders, by id."""

    encoders: list[Encoder]


class RunVerdict(Answer):
    """How a run went, by the rules of docs/observe.md."""

    state: Annotated[Literal["early", "improving", "plateau", "collapsing", "diverging"], NEWER]
    text: str = Field(examples=["improving: the loss still falls"])
    notes: list[str] = Field(default=[])
    advice: str = Field(default="", description="what to do, where somebody should look at the run")


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
    info: dict[str, Any] = Field(
        repr=False, description="public part of lejepa_med.json: objective, backbone, code version"
    )
    metrics: dict[str, dict[str, Any]] = Field(
        repr=False,
        examples=[{"training": {"step": 900, "loss": 0.31, "backbone/effective_rank": 84.2}, "evaluation": {}}],
        description="the last records of the run: `training` of metrics.jsonl, `evaluation` of online.jsonl, under the "
        "names that docs/observe.md explains; both empty where the encoder's folder came without its run",
    )

    verdict: RunVerdict | None = Field(default=None, description="of the run; none where the folder came without it")
    effective_rank: float | None = Field(default=None, description="of the backbone, as the run last recorded it")
    card: str | None = Field(default=None, repr=False, description="the model card, Markdown")
    report: str | None = Field(
        default=None, examples=["/v1/encoders/galaxies/report"], description="link to the run's report"
    )


class TrainingCurve(Answer):
    """Records of a run as curves by name; `step` is their horizontal axis."""

    training: dict[str, list[float | None]] = Field(
        repr=False, examples=[{"step": [0, 10], "loss": [0.9, 0.5]}], description="of metrics.jsonl"
    )
    evaluation: dict[str, list[float | None]] = Field(repr=False, description="of online.jsonl")


class EmbeddedItem(Answer):
    """The vector of one item (image, volume, series, slide, region), or why there is none."""

    index: int = Field(examples=[0], description="position among the items of this answer")
    file_index: int = Field(examples=[0], description="position of its file in the request")
    name: str | None = Field(default=None, examples=["night 3/a.fits"], description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    part: int | None = Field(
        default=None, description="position of the slice or tile within its item; only with the form field pool=none"
    )
    items: int = Field(examples=[1], description="slices or tiles whose vectors were averaged; 0 with an error")
    vector: list[float] | None = Field(default=None, examples=[[0.12, -0.03]])
    error: Problem | None = None


class Embeddings(Answer):
    """Vectors in the order of the files; a file with several items (a zip, an HDF5 table) gives several."""

    encoder: str = Field(examples=["galaxies"])
    fingerprint: str
    precision: str = Field(default="float32", examples=["float32"], description="arithmetic of the vectors")
    dim: int = Field(examples=[512])
    cautions: list[str] = Field(default=[], description=CAUTIONS)
    items: list[EmbeddedItem]
    skipped: list[Skipped] | None = Field(default=None, description=SKIPPED)

    def array(self) -> "np.ndarray":
        """Return all vectors, (items, dim) float32; needs NumPy.

        Raises:
            ValueError: an item has no vector.
        """
        import numpy as np

        for item in self.items:
            if item.vector is None:
                raise ValueError(f"item {item.index} has no vector: {item.error}")
        return np.array([item.vector for item in self.items], np.float32)


class Archive(Answer):
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
    cautions: list[str] = Field(
        default=[], description=f"{CAUTIONS}; or a column of the catalogue that looks like the group and is not used"
    )
    content: str | None = Field(
        default=None, description="names what the table holds; another value after it was embedded anew"
    )
    thumbnails: bool = Field(default=False, description="whether there are small pictures of its items")


class Archives(Answer):
    """All embedding tables, by name."""

    archives: list[Archive]


class ArchiveId(Answer):
    """One item of a table. Names and keys are told of an upload's archive, to its sender, while the upload is there."""

    id: str
    group: str
    name: str | None = Field(default=None, description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)


class ArchiveIds(Answer):
    """A page of ids, in the table's order."""

    archive: str
    total: int
    offset: int
    items: list[ArchiveId]
    next: str | None = Field(default=None, description="link to the next page")


class Reason(Answer):
    """Why items are missing, and how many."""

    reason: str = Field(examples=["damaged or truncated picture"])
    count: int = Field(examples=[3])


class Leak(Answer):
    """Groups and equal images that lie in several splits of the catalogue: scores on such a split are too high."""

    groups: int = Field(examples=[2], description="groups (patients, slide cases, fields) in several splits")
    images: int = Field(examples=[7], description="items of these groups")
    copies: int = Field(
        examples=[0], description="images that lie in several splits as exact copies under other groups"
    )
    first: list[str] = Field(description="pseudonyms of the first groups")


class Upload(Answer):
    """Files that were sent to become an archive."""

    id: str
    name: str = Field(examples=["ward 3, autumn"])
    modality: str = Field(examples=["mri"])
    state: Annotated[Literal["importing", "ready"], NEWER]
    files: int = Field(examples=[200])
    bytes: int = Field(examples=[104857600])
    sha256: str = Field(description="over the contents of the files in their order")
    created: datetime


class Uploads(Answer):
    """Uploads, newest first."""

    uploads: list[Upload]
    next: str | None = Field(default=None, description="link to the next page")


class RefusedItem(Answer):
    """A file, or an entry of a zip, that cannot be used."""

    file_index: int = Field(examples=[4], description="position of the file in the request")
    entry: int | None = Field(default=None, description=ENTRY)
    name: str | None = Field(default=None, examples=["night 3/a.fits"], description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    reason: str
    remedy: str


class Duplicate(Answer):
    """An item whose content is that of an earlier one."""

    id: str
    same_as: str


class UploadDetail(Upload):
    """One upload with what its import found; the lists are cut at 1000. Null while it is imported."""

    items: int | None = Field(default=None, examples=[198], description="images, volumes, series or slides")
    groups: int | None = Field(default=None, description="patients, slide cases or fields")
    labels: dict[str, int] | None = Field(default=None, description="items by label of the catalogue")
    refused: int | None = Field(default=None, examples=[2])
    reasons: list[Reason] | None = Field(default=None, description="why items were refused, most frequent first")
    refused_items: list[RefusedItem] | None = None
    skipped: int | None = Field(default=None, examples=[1], description=SKIPPED)
    skipped_files: list[Skipped] | None = Field(default=None, description="these files; only the sender sees them")
    duplicates: int | None = Field(default=None, examples=[0])
    duplicate_items: list[Duplicate] | None = None
    leak: Leak | None = Field(default=None, description="what lies in several splits; null where nothing does")
    catalog_unused: int | None = Field(default=None, description="rows of the catalogue that no item matched")
    catalog_unused_rows: list[int] | None = Field(
        default=None, examples=[[14, 15]], description="the first five of them; the header is row 1"
    )
    catalog_missing: dict[str, dict[str, int]] | None = Field(
        default=None,
        examples=[{"label": {"NA": 12}}],
        description="by column, the words of the catalogue that were taken as missing, and in how many rows",
    )
    catalog_without_row: int | None = Field(default=None, description="items that have no row in the catalogue")
    cautions: list[str] = Field(
        default=[],
        description="what to know before using the groups: a column of the catalogue looks like them, and is not used",
    )
    notes: list[str] = Field(default=[], description=NOTES)
    by_folder: str | None = Field(
        default=None, examples=[BY_FOLDER], description=f"{TAKEN}, by the folders of the zips"
    )
    embedding: str | None = Field(default=None, description="id of the job that embeds it, where that was asked for")


class UploadItem(Answer):
    """One readable item; its id is the same in every archive that is made from the upload."""

    id: str
    file_index: int
    entry: int | None = Field(default=None, description=ENTRY)
    name: str | None = Field(default=None, examples=["night 3/a.fits"], description=NAME)
    key: FileKey | None = Field(default=None, description=KEY)
    item: str | None = Field(default=None, description="which item of its file, where there are several")
    group: str
    label: str | None = None


class UploadItems(Answer):
    """A page of items."""

    upload: str
    total: int
    offset: int
    items: list[UploadItem]
    next: str | None = Field(default=None, description="link to the next page")


class ArchiveRequest(Request):
    """Embed an upload, or a folder of the operator's."""

    name: ArchiveName = Field(examples=["ward-3"], description="letters, digits, _ . -")
    encoder: str | None = Field(
        default=None, max_length=300, description="encoder id; may be left out where the service has only one"
    )
    upload: Id | None = Field(default=None, examples=["0b8c7e1b9a3d4c2e8f6a1b0c9d8e7f6a"])
    folder: str | None = Field(
        default=None, min_length=1, max_length=1000, description="folder below the one that the operator has opened"
    )
    catalog: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        examples=["participants.tsv"],
        description="table in `folder` with groups and labels of its files; by default the participants.tsv of a BIDS "
        "dataset. An upload has its own",
    )
    group_column: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="column of the catalogue that is the group; by default `group`",
    )
    label_column: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="column of the catalogue that is the label; by default `label`",
    )
    pool: Literal["mean", "none"] = Field(
        default="mean",
        description="mean: one row for each item; none: one for each tissue tile of a slide, with the columns whole "
        "(the slide's id), x, y and side in level-0 pixels, level0_mpp and tile_mpp; probes then answer tile by tile",
    )
    columns: list[Column] = Field(
        default=[],
        max_length=20,
        description="facts of each item that the table carries, to search by: split, samples, mpp, ...",
    )


class ArchiveDetail(Archive):
    """One embedding table with what it holds."""

    failed: int = Field(examples=[2], description="files and items that could not be used")
    failures: list[Reason]
    groups: int = Field(examples=[180])
    labels: dict[str, int] = Field(description="items by label of the catalogue")
    leak: Leak | None = Field(default=None, description="what lies in several splits; null where nothing does")
    notes: list[str] = Field(default=[], description=f"{NOTES}; of a folder")
    by_folder: str | None = Field(default=None, examples=[BY_FOLDER], description=TAKEN)


MapMethod = Literal["pca", "tsne"]


class MapState(Answer):
    """One map of a table."""

    method: MapMethod = Field(description="pca: principal components, made when first asked for; tsne: made by a job")
    state: Annotated[Literal["absent", "queued", "running", "ready"], NEWER]
    job: str | None = Field(default=None, description="the job that makes it")
    progress: float | None = Field(default=None, ge=0, le=1, examples=[0.4])


class ArchiveMap(Answer):
    """The two-dimensional maps of a table."""

    archive: str
    content: str = Field(description="names what the table holds; maps of other contents are never given")
    count: int = Field(examples=[1000])
    methods: list[MapState]


class TableColumn(Answer):
    """One column, as GET .../columns/NAME gives its values."""

    name: str = Field(examples=["label"])
    kind: Annotated[Literal["id", "text", "number"], NEWER]
    dtype: Annotated[Literal["char32", "uint8", "uint16", "uint32", "float32"], NEWER] = Field(
        description="of a value, little endian: 32 letters of an id; the place of a text among `values`, the largest "
        "number for none; a number, NaN for none"
    )
    distinct: int = Field(description="how many different values there are")
    missing: int = Field(description="rows without a value")
    values: list[str] | None = Field(default=None, description="texts, the most frequent first, at most 1,000")
    counts: list[int] | None = Field(default=None, description="rows with each of `values`")
    min: float | None = None
    max: float | None = None


class TableColumns(Answer):
    """The columns of a table, or of the predictions for one; rows are in the order of GET /v1/archives/{name}/ids."""

    archive: str
    content: str | None = Field(description="of the archive; none where it has been removed")
    count: int = Field(examples=[1000], description="rows")
    columns: list[TableColumn]


class Folder(Answer):
    """A folder that can be embedded."""

    path: str = Field(examples=["wing/east"], description="`folder` of POST /v1/archives")
    name: str = Field(examples=["east"])
    folders: int = Field(description="folders in it")
    files: int = Field(description="files in it, not in its folders")


class Folders(Answer):
    """Folders inside a folder of the operator's archives."""

    path: str = Field(description="the folder itself; empty for all archives")
    folders: list[Folder]
    truncated: bool = Field(description="whether there are more folders or files than were counted")
