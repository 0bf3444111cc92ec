"""/v1/archives/{name}/map, /columns and /thumbnails: what the lab page draws of an embedding table."""

from typing import Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request, Response

from app.api import columns
from app.api.caching import KEPT, tagged
from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import access
from app.api.service import Service, new_id
from app.core.errors import ProblemError, not_found
from app.encoders.library import LIST_TABLES
from app.routes import Running
from app.routes.jobs import accepted, find_job
from app.vectors import Base
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.images import ArchiveMap, MapMethod, MapState, TableColumns
from lejepa_med.models.embed import about
from lejepa_med.models.thumbnails import FILE, Thumbnails

router = APIRouter(prefix="/v1/archives/{name}", tags=["archives"], responses={404: PROBLEM_RESPONSES[404]})
OCTETS = "application/octet-stream"
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
ROWS = {"X-Rows": {"schema": {"type": "integer"}, "description": "how many"}}
UNCHANGED: dict[str, Any] = {"description": "As the If-None-Match header has it"}
VALUES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Values of all rows, little endian", "content": {OCTETS: BINARY}, "headers": ROWS},
    304: UNCHANGED,
}
POINTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "x and y of each row, float32, little endian, -1 to 1",
        "content": {OCTETS: BINARY},
        "headers": ROWS,
    },
    304: UNCHANGED,
}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "WebP, 96 pixels at most", "content": {"image/webp": BINARY}},
    304: UNCHANGED,
}


@router.get("/thumbnails/{item_id}", summary="A small picture of an item", response_class=Response, responses=PICTURE)
@access()
def get_thumbnail(name: str, item_id: str, request: Request, service: Running) -> Response:
    """What the encoder saw of the item: the middle slice of a volume, some tiles of a slide."""
    base = service.search.base(name)
    row = base.rows_of([item_id])[0]
    if row is None:
        raise not_found("item", remedy="GET /v1/archives/{name}/ids lists the ids.")
    folder = service.library.tables().get(name)
    if folder is None:
        raise not_found("archive", remedy=LIST_TABLES)
    try:
        pictures = Thumbnails(about(folder, FILE))
        return tagged(
            request, f"{base.key}-{row}", lambda: pictures[row], media_type="image/webp", headers=None, keep=KEPT
        )
    except FileNotFoundError:
        raise ProblemError(
            404,
            "no-thumbnails",
            "The archive was embedded without thumbnails.",
            remedy="Embed it again: lejepa-med embed --thumbnails, or POST /v1/archives while LEJEPA_THUMBNAILS is on.",
        ) from None


@router.get("/map", summary="The maps of a table")
@access()
def get_map(name: str, service: Running) -> ArchiveMap:
    """Which maps there are. `POST` makes the neighbour embedding."""
    base = service.search.base(name)
    tsne = MapState(method="tsne", state="ready")
    if not service.maps.has(base.key, "tsne"):
        job = service.mapping.unfinished(base.key)
        row = None if job is None else service.store.job(job)
        tsne = MapState(method="tsne", state="absent")
        if row is not None and row.state in ("queued", "running"):
            state: Literal["queued", "running"] = "queued" if row.state == "queued" else "running"
            tsne = MapState(method="tsne", state=state, job=row.id, progress=row.progress)
    return ArchiveMap(
        archive=name,
        content=base.key,
        count=base.rows,
        methods=[MapState(method="pca", state="ready"), tsne],
    )


@router.post("/map", status_code=202, summary="Make the neighbour embedding of a table", responses=PROBLEM_RESPONSES)
@access("embed", "probe")
def create_map(name: str, response: Response, service: Running) -> Job:
    """A job places similar items together (t-SNE), up to 200,000 of them. A second request gets the first one's job."""
    known = service.mapping.unfinished(service.search.base(name).key)
    if known is not None:
        return accepted(find_job(service, known), response)
    job_id = new_id()
    service.mapping.accept_plan(job_id, name)
    return accepted(service.queue_job(job_id, service.mapping.kind), response)


@router.get("/map/points", summary="The points of a map", response_class=Response, responses=POINTS)
@access()
def get_points(name: str, request: Request, service: Running, method: MapMethod = "pca") -> Response:
    """In the order of the ids. Principal components are computed when they are first asked for."""
    base = service.search.base(name)

    def make() -> bytes:
        try:
            return service.maps.points(base, method).tobytes()
        except FileNotFoundError:
            raise ProblemError(
                404,
                "no-map",
                "The archive has no neighbour embedding yet.",
                remedy="POST /v1/archives/{name}/map makes it; method=pca is there at once.",
            ) from None

    return tagged(request, f"{base.key}-{method}", make, media_type=OCTETS, headers=_told(base))


@router.get("/columns", summary="The columns of a table")
@access()
def list_columns(name: str, service: Running) -> TableColumns:
    """Group, label and what `lejepa-med embed --columns` kept, each with its most frequent values or its range."""
    base = service.search.base(name)
    return columns_answer(name, base.key, base.table)


@router.get("/columns/{column:path}", summary="One column", response_class=Response, responses=VALUES)
@access()
def get_column(name: str, column: str, request: Request, service: Running) -> Response:
    """All values as one typed array, in the order of the ids."""
    base = service.search.base(name)
    return column_answer(request, column, base.table, tag=base.key, content=base.key)


def columns_answer(archive: str, content: str | None, table: pa.Table) -> TableColumns:
    """The columns of a table."""
    found = [columns.describe(name, table.column(name)) for name in table.column_names]
    return TableColumns(archive=archive, content=content, count=len(table), columns=found)


def column_answer(request: Request, column: str, table: pa.Table, *, tag: str, content: str | None) -> Response:
    """The values of a column; 404 where the table has no such column."""
    if column not in table.column_names:
        raise not_found("column", remedy="GET .../columns lists the columns.")
    return tagged(
        request,
        f"{tag}-{table.column_names.index(column)}",
        lambda: columns.content(column, table.column(column)),
        media_type=OCTETS,
        headers={"X-Rows": str(len(table)), **({"X-Content": content} if content else {})},
    )


def _told(base: Base) -> dict[str, str]:
    return {"X-Rows": str(base.rows), "X-Content": base.key}


def content_of(service: Service, archive: str) -> str | None:
    """The content of an archive that may have been removed."""
    try:
        return service.search.key(archive)
    except ProblemError:
        return None
