"""GET /v1/archives: embedding tables, whose items can be labelled and predicted without sending files."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.forms import PROBLEM_RESPONSES
from app.routes import Running
from app.schemas import Archive, ArchiveId, ArchiveIds, Archives

router = APIRouter(prefix="/v1/archives", tags=["archives"])


@router.get("", summary="List the embedding tables")
def list_archives(service: Running) -> Archives:
    """Tables that `lejepa-med embed` wrote into the runs directory."""
    library = service.library
    return Archives(
        archives=[
            Archive(
                name=name,
                count=info["embedded"],
                dim=info["dim"],
                fingerprint=info["encoder"],
                encoder=library.encoder_of(info["encoder"]),
            )
            for name, info in library.table_infos().items()
        ]
    )


@router.get("/{name}/ids", summary="Ids of a table", responses={404: PROBLEM_RESPONSES[404]})
def list_ids(
    name: str,
    service: Running,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> ArchiveIds:
    """A page of ids; manifest.parquet on the operator's machine tells which file an id is."""
    table = service.library.table(name)
    end = min(offset + limit, len(table.ids))
    return ArchiveIds(
        archive=name,
        total=len(table.ids),
        offset=offset,
        items=[ArchiveId(id=table.ids[row], group=table.groups[row]) for row in range(offset, end)],
        next=f"/v1/archives/{name}/ids?offset={end}&limit={limit}" if end < len(table.ids) else None,
    )
