"""GET /v1/probes/{id}/uncertain: what to label next."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query

from app.forms import PROBLEM_RESPONSES
from app.routes import Running
from app.routes.predictions import answer_of
from app.routes.probes import check_same_encoder, find_probe
from app.routes.search import columns_of
from app.schemas_probes import Uncertain, UncertainItem
from app.service import Service
from lejepa_med.probes.probe import most_uncertain

router = APIRouter(prefix="/v1/probes/{probe_id}/uncertain", tags=["probes"])


@router.get(
    "",
    summary="What to label next",
    response_model_exclude_none=True,
    responses={status: PROBLEM_RESPONSES[status] for status in (404, 422)},
)
async def list_uncertain(
    probe_id: str,
    service: Running,
    archive: Annotated[str, Query(description="name of an embedding table, see GET /v1/archives")],
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Uncertain:
    """The unlabelled items of a table whose labels would teach the probe most, the first one first.

    They are uncertain and unlike the labelled ones and each other, so the list is not twenty pictures of one thing.
    """
    return await run_sync(_answer, service, probe_id, archive, limit)


def _answer(service: Service, probe_id: str, archive: str, limit: int) -> Uncertain:
    row = find_probe(service, probe_id)
    table = service.library.table(archive)
    check_same_encoder(row, table.encoder)
    probe = service.training.probe(row.id)
    chosen = most_uncertain(probe, table.vectors, table.ids, limit=limit, groups=table.groups)
    rows = [candidate.row for candidate in chosen]
    ids, groups = [table.ids[row] for row in rows], [table.groups[row] for row in rows]
    found = probe.predict(table.vectors[rows], ids=ids, groups=groups) if chosen else []
    base = service.search.base(archive)
    places = {name: row for name, row in zip(ids, base.rows_of(ids), strict=True) if row is not None}
    columns = dict(zip(places, columns_of(base, list(places.values())), strict=True))
    items = [
        UncertainItem(
            index=index,
            id=ids[index],
            group=groups[index],
            distance=candidate.distance,
            columns=columns.get(ids[index], {}),  # none where the table was written anew at this moment
            **answer_of(given),
        )
        for index, (candidate, given) in enumerate(zip(chosen, found, strict=True))
    ]
    return Uncertain(probe=row.id, archive=archive, cautions=table.info.get("cautions", []), items=items)
