"""Labels for new files or embedded items (/v1/probes/{id}/predictions), and what to label next (.../uncertain)."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service
from app.jobs.labels import groups_of, rows_of
from app.jobs.train_probe import file_id
from app.routes import Running
from app.routes.embeddings import check_any, embed_form, run_waiting
from app.routes.probes import check_same_encoder, find_probe
from app.routes.search import columns_of
from app.uploads.bodies import Form, check_fields, is_json, json_body, receive
from app.uploads.file_items import Area
from data_adapters.identity import group_id
from lejepa_med.client.wire.probes import PredictedItem, PredictionRequest, Predictions, Uncertain, UncertainItem
from lejepa_med.models.embed import EmbeddingTable
from lejepa_med.probes.probe import Candidate, Prediction, Probe, most_uncertain

router = APIRouter(prefix="/v1/probes/{probe_id}", tags=["probes"])
ANSWERS = [field.name for field in dataclasses.fields(Prediction)]
FIELDS = {
    **{name: TEXT_FIELDS[name] for name in ("region", "mpp", "keys")},
    "groups": {
        "type": "string",
        "description": "JSON list with the patient, slide case or field of each file, as when the probe was trained: "
        "files of groups that it learnt from are then marked; null where it is not known",
    },
}


@router.post(
    "/predictions",
    summary="Predict",
    response_model_exclude_none=True,
    responses=PROBLEM_RESPONSES,
    openapi_extra=body_of(FIELDS, model=PredictionRequest),
)
@access("embed", "probe", changes=False)
async def predict(probe_id: str, request: Request, service: Running) -> Predictions:
    """Predictions for files (multipart), or for ids of an embedding table (JSON).

    Each has a novelty (how unlike the labelled images it is) and an uncertainty (how much its label would teach).
    Images that the probe learnt from, and others of their groups, are marked by `seen` and get the answer of the part
    of the cross-validation that has seen neither. A file's group is known only where `groups` names it.
    """
    if is_json(request):
        wanted = await json_body(request, PredictionRequest, service.settings)
        return await run_sync(_of_archive, service, probe_id, wanted)
    async with receive(request, service.settings) as form:
        check_fields(form, set(FIELDS))
        return await run_waiting(service, partial(_of_files, service, probe_id, form))


def _of_archive(service: Service, probe_id: str, wanted: PredictionRequest) -> Predictions:
    row = find_probe(service, probe_id)
    table = service.library.table(wanted.archive)
    check_same_encoder(row, table.encoder)
    probe = service.training.probe(row.id)
    rows = rows_of(wanted.ids, table.ids)
    found = probe.predict(table.vectors[rows], ids=wanted.ids, groups=[table.groups[place] for place in rows])
    items = [
        PredictedItem(index=index, id=name, **answer_of(given))
        for index, (name, given) in enumerate(zip(wanted.ids, found, strict=True))
    ]
    notes, cautions = probe.remarks(found) or None, table.info.get("cautions", [])
    return Predictions(probe=row.id, items=items, notes=notes, cautions=cautions)


def _of_files(service: Service, probe_id: str, form: Form) -> Predictions:
    row = find_probe(service, probe_id)
    encoder_id = service.library.present(row.fingerprint)
    field = Area.parse(form.fields.get("region"), form.fields.get("mpp"))
    groups = groups_of(form)
    files = [file_id(upload.path) for upload in form.uploads]
    results, skipped, cautions = embed_form(service, form, encoder_id, field)
    check_any(results)
    probe = service.training.probe(row.id)
    vectors = [result.vector for result in results if result.vector is not None]
    places = [result.file_index for result in results if result.vector is not None]
    own = [result.group for result in results if result.vector is not None]
    known = set(probe.examples.groups)
    given = probe.predict(
        np.stack(vectors),
        # Another region of a slide that was learnt from is another image of its group.
        ids=[files[place] for place in places] if field.region is None else None,
        groups=[_group(groups[place], group or files[place], known) for place, group in zip(places, own, strict=True)],
    )
    found = iter(given)
    items = [
        PredictedItem(
            index=index,
            file_index=result.file_index,
            name=result.name,
            key=result.key,
            **({"error": result.problem} if result.problem is not None else answer_of(next(found))),
        )
        for index, result in enumerate(results)
    ]
    notes = probe.remarks(given) or None
    return Predictions(probe=row.id, items=items, notes=notes, cautions=cautions, skipped=skipped)


def _group(given: str | None, own: str, known: set[str]) -> str:
    """As an example's group is stored; `own` is what the file itself says, and those of tables are pseudonyms."""
    return own if given is None else given if given in known else group_id(given)


def answer_of(given: Prediction) -> dict[str, Any]:
    """A prediction's fields on the wire."""
    return {name: getattr(given, name) for name in ANSWERS} | {"note": given.note or None}


@router.get(
    "/uncertain",
    summary="What to label next",
    response_model_exclude_none=True,
    responses={status: PROBLEM_RESPONSES[status] for status in (404, 422)},
)
@access()
async def list_uncertain(
    probe_id: str,
    service: Running,
    archive: Annotated[str, Query(description="name of an embedding table, see GET /v1/archives")],
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Uncertain:
    """The unlabelled items of a table whose labels would teach the probe most, the first one first.

    They are uncertain and unlike the labelled ones and each other, so the list is not twenty pictures of one thing.
    """
    return await run_sync(_most_uncertain, service, probe_id, archive, limit)


def _most_uncertain(service: Service, probe_id: str, archive: str, limit: int) -> Uncertain:
    row = find_probe(service, probe_id)
    table = service.library.table(archive)
    check_same_encoder(row, table.encoder)
    probe = service.training.probe(row.id)
    chosen = most_uncertain(probe, table.vectors, table.ids, limit=limit, groups=table.groups)
    items = uncertain_items(service, probe, archive, table, chosen)
    return Uncertain(probe=row.id, archive=archive, cautions=table.info.get("cautions", []), items=items)


def uncertain_items(
    service: Service, probe: Probe, archive: str, table: EmbeddingTable, chosen: Sequence[Candidate]
) -> list[UncertainItem]:
    """What a probe says of rows of a table that are to be labelled next."""
    rows = [candidate.row for candidate in chosen]
    ids, groups = [table.ids[row] for row in rows], [table.groups[row] for row in rows]
    found = probe.predict(table.vectors[rows], ids=ids, groups=groups) if chosen else []
    base = service.search.base(archive)
    places = {name: row for name, row in zip(ids, base.rows_of(ids), strict=True) if row is not None}
    columns = dict(zip(places, columns_of(base, list(places.values())), strict=True))
    return [
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
