"""POST /v1/search: the nearest items of an embedding table, by cosine; GET /v1/search/indexes: how they are found."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service
from app.core.errors import ProblemError
from app.routes import Running
from app.routes.embeddings import check_any, embed_form
from app.uploads.bodies import Form, check_fields, is_json, json_body, parse_field, receive
from app.uploads.file_items import Area
from app.vectors import NONE, Base, Condition, Found, Query, normalised
from lejepa_med.client.wire.probes import (
    Filters,
    Hit,
    NeighbourCount,
    Neighbourhood,
    SearchAnswer,
    SearchIndex,
    SearchIndexes,
    SearchRequest,
)

router = APIRouter(prefix="/v1/search", tags=["search"])
HITS = 100_000  # of one answer: queries times k
FIELDS = {
    **TEXT_FIELDS,
    "encoder": {"type": "string", "description": "encoder id, checked against the table's; by default the table's"},
    "archive": {"type": "string", "description": "the embedding table that is searched"},
    "k": {"type": "integer", "default": 10, "description": "neighbours of each item, 1 to 1000"},
    "filters": {
        "type": "string",
        "description": "JSON list of conditions, as in the JSON body",
        "examples": ['[{"column": "label", "in": ["spiral", "elliptical"]}]'],
    },
}


@router.post(
    "",
    summary="Find similar items",
    response_model_exclude_none=True,
    responses=PROBLEM_RESPONSES,
    openapi_extra=body_of(FIELDS, required=("archive",), model=SearchRequest),
)
@access("embed", "probe", changes=False)
async def search(request: Request, service: Running) -> SearchAnswer:
    """The k nearest items of a table to ids or vectors (JSON), or to files, which are embedded first (multipart).

    Only vectors of the encoder that made the table can be compared with it; others are refused with 422.
    """
    if is_json(request):
        wanted = await json_body(request, SearchRequest, service.settings)
        return await run_sync(_by_json, service, wanted)
    async with receive(request, service.settings) as form:
        check_fields(form, set(FIELDS))
        return await run_sync(_by_files, service, form)


@router.get("/indexes", summary="How each table is searched")
@access()
def list_indexes(service: Running) -> SearchIndexes:
    """The index of every table, with its recall as measured when it was built."""
    found = []
    for name, info in service.library.table_infos().items():
        try:
            state = service.search.state(name, info["embedded"])
        except ProblemError:
            continue  # removed, or written anew, at this moment
        report = state.report
        found.append(
            SearchIndex(
                archive=name,
                rows=info["embedded"],
                backend=state.backend,
                state=state.state,
                recall=report.recall if report else 1.0 if state.backend == "exact" else None,
                sample=report.sample if report else None,
                build_seconds=report.seconds if report else None,
                built=datetime.fromtimestamp(report.built, UTC) if report else None,
                note=state.note or None,
            )
        )
    return SearchIndexes(indexes=found)


def _by_json(service: Service, wanted: SearchRequest) -> SearchAnswer:
    if (wanted.ids is None) == (wanted.vectors is None):
        raise ProblemError(
            422, "invalid-request", "A search needs either ids or vectors.", remedy="Give one of 'ids' and 'vectors'."
        )
    base = service.search.base(wanted.archive)
    if wanted.vectors is not None:
        vectors = _given_vectors(wanted, base)
        query = query_of(base, vectors, wanted.k, wanted.filters)
        return _answer(wanted.archive, base, query, service)
    ids = wanted.ids or []
    source = base if wanted.ids_of in (None, wanted.archive) else service.search.base(wanted.ids_of)
    require_encoder(base, source.encoder)
    rows = source.rows_of(ids)
    for index, row in enumerate(rows):
        if row is None:
            raise ProblemError(
                422,
                "unknown-id",
                f"The archive has no item with the id at position {index}.",
                remedy="GET /v1/archives/{name}/ids lists the ids.",
                index=index,
            )
    chosen = np.array(rows, np.int64)
    groups: list[str] = source.table["group"].take(chosen).to_pylist() if wanted.leave_out_own_group else []
    codes = base.codes_of(groups) if groups else {}
    query = query_of(
        base,
        np.ascontiguousarray(source.vectors[chosen]),
        wanted.k,
        wanted.filters,
        # An id is that of a file, so the same item of another table of this archive is itself too.
        own_rows=[NONE if row is None else row for row in (rows if source is base else base.rows_of(ids))],
        own_groups=[codes.get(group, NONE) for group in groups] if groups else None,
    )
    return _answer(wanted.archive, base, query, service, ids)


def _given_vectors(wanted: SearchRequest, base: Base) -> np.ndarray:
    if wanted.fingerprint is None:
        raise ProblemError(
            422,
            "invalid-request",
            "The vectors come without the fingerprint of their encoder, so they cannot be compared.",
            remedy="Give 'fingerprint' as POST /v1/embeddings answered it.",
        )
    require_encoder(base, wanted.fingerprint)
    if wanted.leave_out_own_group or wanted.ids_of is not None:
        raise ProblemError(
            422,
            "invalid-request",
            "'leave_out_own_group' and 'ids_of' are for a search by ids: a vector has no group and no table.",
            remedy="Leave out 'leave_out_own_group' and 'ids_of'; a filter with 'not_in' on group leaves out groups.",
        )
    assert wanted.vectors is not None
    for index, vector in enumerate(wanted.vectors):
        if len(vector) != base.dim or not 1e-30 < max(map(abs, vector)) < 1e30:
            raise ProblemError(
                422,
                "invalid-request",
                f"The vector at position {index} has {len(vector)} numbers where the archive's have {base.dim}, or "
                "they are all zero or beyond 1e30.",
                remedy="Send the vector as POST /v1/embeddings answered it.",
                index=index,
            )
    return normalised(np.array(wanted.vectors, np.float64))


def _by_files(service: Service, form: Form) -> SearchAnswer:
    name = form.fields.get("archive", "")
    k = parse_field(form, "k", NeighbourCount, 10)
    filters = parse_field(form, "filters", Filters, [])
    field = Area.parse(form.fields.get("region"), form.fields.get("mpp"))
    base = service.search.base(name)
    encoder_id = form.fields.get("encoder") or service.library.present(base.encoder)
    require_encoder(base, service.library.encoder(encoder_id)[1].fingerprint)
    results, skipped, cautions = embed_form(service, form, encoder_id, field)
    check_any(results)
    good = [(index, result) for index, result in enumerate(results) if result.vector is not None]
    vectors = normalised(np.stack([result.vector for _, result in good if result.vector is not None]))
    answer = _answer(name, base, query_of(base, vectors, k, filters), service)
    found = {index: item for (index, _), item in zip(good, answer.items, strict=True)}
    items = [
        Neighbourhood(
            index=index,
            file_index=result.file_index,
            name=result.name,
            key=result.key,
            hits=found[index].hits if index in found else [],
            error=result.problem,
        )
        for index, result in enumerate(results)
    ]
    return answer.model_copy(update={"items": items, "skipped": skipped, "cautions": cautions})


def require_encoder(base: Base, fingerprint: str) -> None:
    """422 where vectors of an encoder cannot be compared with a table."""
    if fingerprint != base.encoder:
        raise ProblemError(
            422,
            "other-encoder",
            "The archive was embedded with another encoder than the vectors, ids or files that are compared with it.",
            remedy="GET /v1/archives lists each table's encoder and fingerprint. Embed with that encoder, or search a "
            "table of yours.",
        )


def query_of(
    base: Base,
    vectors: np.ndarray,
    k: int,
    filters: Sequence[Condition],
    *,
    own_rows: Sequence[int] | None = None,
    own_groups: Sequence[int] | None = None,
) -> Query:
    """A search for vectors (n, dim) of length 1, checked for its size."""
    if len(vectors) * k > HITS:
        raise ProblemError(
            422,
            "invalid-request",
            f"The answer would hold more than {HITS} neighbours.",
            remedy="Ask for fewer items or a smaller k at a time.",
        )
    none = np.full(len(vectors), NONE, np.int64)
    return Query(
        vectors=vectors,
        k=k,
        conditions=filters,
        own_rows=none if own_rows is None else np.array(own_rows, np.int64),
        own_groups=none if own_groups is None else np.array(own_groups, np.int64),
    )


def _answer(name: str, base: Base, query: Query, service: Service, ids: Sequence[str] = ()) -> SearchAnswer:
    found = service.search.search(base, query)
    return SearchAnswer(
        archive=name,
        fingerprint=base.encoder,
        backend=found.backend,
        recall=found.recall,
        note=found.note or None,
        items=[
            Neighbourhood(index=index, id=ids[index] if ids else None, hits=hits_of(base, found, index))
            for index in range(len(query.vectors))
        ],
    )


def hits_of(base: Base, found: Found, index: int) -> list[Hit]:
    """The neighbours of one query."""
    ids, groups = (base.table[name].take(found.rows[index]).to_pylist() for name in ("id", "group"))
    told = zip(ids, groups, found.scores[index], columns_of(base, found.rows[index]), strict=True)
    return [Hit(id=item, group=group, score=float(score), columns=kept) for item, group, score, kept in told]


def columns_of(base: Base, rows: Sequence[int] | np.ndarray) -> list[dict[str, str | bool | int | float | None]]:
    """Label, and what `lejepa-med embed --columns` kept, of some rows of a table."""
    found = base.table.select(list(base.columns)).take(np.asarray(rows, np.int64)).to_pylist()
    return [{name: _finite(value) for name, value in row.items()} for row in found]


def _finite(value: str | bool | int | float | None) -> str | bool | int | float | None:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
