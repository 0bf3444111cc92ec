"""What a search asks and answers, on the wire. Fields are added, never renamed."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, FiniteFloat

from app.schemas import CAUTIONS, KEY, NAME, SKIPPED, Key, Problem, Skipped, Strict
from app.vectors import BackendName, Condition

Neighbours = Annotated[int, Field(ge=1, le=1000)]
Filters = Annotated[list[Condition], Field(max_length=50)]
QUERIES = 1000  # of one request
HITS = 100_000  # of one answer: queries times k


class SearchRequest(Strict):
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
    k: Neighbours = Field(default=10, description="neighbours of each item, at most")
    filters: Filters = Field(default=[], description="conditions on group, label and the table's further columns")
    leave_out_own_group: bool = Field(
        default=False, description="no neighbours of the item's own patient, slide or field; for `ids`"
    )


class Hit(BaseModel):
    """One neighbour."""

    id: str
    group: str
    score: float = Field(examples=[0.93], description="cosine of the two vectors, -1 to 1")
    columns: dict[str, str | bool | int | float | None] = Field(
        examples=[{"label": "spiral", "mpp": 0.5}], description="label, and what `lejepa-med embed --columns` kept"
    )


class Neighbourhood(BaseModel):
    """The neighbours of one item, the nearest first, or why there are none."""

    index: int = Field(description="position among the items of this answer")
    id: str | None = Field(default=None, description="the id that was asked for; it is not its own neighbour")
    file_index: int | None = Field(default=None, description="position of its file in the request")
    name: str | None = Field(default=None, description=NAME)
    key: Key | None = Field(default=None, description=KEY)
    hits: list[Hit] = []
    error: Problem | None = None


class SearchAnswer(BaseModel):
    """Neighbours, in the order of the ids, vectors or files."""

    archive: str
    fingerprint: str = Field(description="fingerprint of the encoder whose vectors were compared")
    backend: BackendName
    recall: float = Field(description="recall at 10 of the index, measured when it was built; 1 where exact")
    note: str | None = Field(default=None, description="why the answer is exact although the table has an index")
    cautions: list[str] = Field(default=[], description=f"{CAUTIONS}; of files")
    items: list[Neighbourhood]
    skipped: list[Skipped] | None = Field(default=None, description=SKIPPED)


class SearchIndex(BaseModel):
    """How a table is searched."""

    archive: str
    rows: int = Field(examples=[1000])
    backend: BackendName
    state: Literal["absent", "building", "ready", "failed"] = Field(
        description="absent: the first search makes it, and is answered exactly meanwhile"
    )
    recall: float | None = Field(default=None, description="recall at 10 against the exact answer; 1 where exact")
    sample: int | None = Field(default=None, description="items of the table with which recall was measured")
    build_seconds: float | None = None
    built: datetime | None = None
    note: str | None = None


class SearchIndexes(BaseModel):
    """All tables, by name."""

    indexes: list[SearchIndex]
