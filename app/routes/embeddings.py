"""POST /v1/embeddings: files in, vectors out."""

import json
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from itertools import chain
from typing import Annotated, Any, NamedTuple, TypeVar

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from app.api.formats import (
    JSON,
    NPY,
    STREAMS,
    AnswerHead,
    VectorRow,
    VectorStream,
    negotiate,
    rows_of,
    whole_json,
    whole_npy,
)
from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service
from app.core.errors import ProblemError, first_bad
from app.core.limits import charge_items
from app.encoders.inference import busy
from app.routes import Running
from app.uploads.bodies import Form, check_fields, receive
from app.uploads.embedding import Result
from app.uploads.file_items import Area, cautions_of, read_names, request_items
from lejepa_med.client.wire.common import Skipped
from lejepa_med.client.wire.images import Embeddings

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])
FIELDS = {
    **TEXT_FIELDS,
    "pool": {
        "type": "string",
        "enum": ["mean", "none"],
        "default": "mean",
        "description": "mean: one vector an item; none: one for each of its slices or tiles, numbered by `part`",
    },
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    **PROBLEM_RESPONSES,
    200: {
        "description": "In the media type that the Accept header asks for; JSON by default. .npy is float32 (vectors, "
        "dim). Lines of JSON, Arrow and Parquet are sent while the vectors are computed; a line is one of the JSON "
        "answer's items, the tables have the columns index, file_index, name, key, part, vector and error (a JSON "
        "problem). X-Skipped-Files counts the files in zips that are no images, X-Cautions is the JSON answer's list "
        "`cautions`; the tables have it in their metadata as well.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (NPY, *STREAMS)},
    },
    406: {
        "description": "The Accept header names no media type of the service",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}
T = TypeVar("T")


class Started(NamedTuple):
    """Embedding under way: what holds for all items, their results as they are taken, and what in zips is no image."""

    head: AnswerHead
    results: Iterator[Result]
    skipped: list[Skipped]


async def accepted(request: Request) -> str:
    """The answer's media type, settled before the body is read."""
    return negotiate(",".join(request.headers.getlist("accept")))


async def received(request: Request, service: Running) -> AsyncIterator[Form]:
    """The form; its files are kept until the last byte of the answer is sent."""
    async with receive(request, service.settings) as form:
        yield form


@router.post("", summary="Embed files", response_model=Embeddings, responses=RESPONSES, openapi_extra=body_of(FIELDS))
@access("embed", changes=False)
async def embed(
    service: Running, kind: Annotated[str, Depends(accepted)], form: Annotated[Form, Depends(received)]
) -> Response:
    """One vector for each image, volume, series, slide or region, in the order of the files.

    An item that cannot be read carries its own error beside the others' vectors. If no item can be read, or .npy is
    asked for and any cannot, the answer is 422 and names the item.
    """
    check_fields(form, set(FIELDS))
    field = Area.parse(form.fields.get("region"), form.fields.get("mpp"))
    pooled = _pooled(form)
    if kind in STREAMS:
        return await _stream(service, form, field, pooled=pooled, kind=kind)
    return await run_waiting(service, partial(_whole, service, form, field, pooled=pooled, kind=kind))


def _pooled(form: Form) -> bool:
    pool = form.fields.get("pool") or "mean"
    if pool not in ("mean", "none"):
        raise ProblemError(422, "invalid-request", "pool is neither mean nor none.", remedy="Leave it out for mean.")
    return pool == "mean"


async def run_waiting(service: Service, function: "partial[T]") -> T:
    """Run on a thread that may wait for vectors.

    Raises:
        ProblemError: 503, as many requests wait as the encoders' queue has places.
    """
    if service.waiting.available_tokens < 1:
        raise busy()
    return await run_sync(function, limiter=service.waiting)


def start(
    service: Service, form: Form, encoder_id: str | None, field: Area, *, pooled: bool = True, patient: bool = False
) -> Started:
    """Begin to embed all items in a form's files: headers are read, vectors are computed as they are taken. Blocks."""
    names = read_names(form, service.settings)
    encoder_id, encoder, batcher = service.library.encoder(encoder_id)
    found = request_items(
        encoder.adapter,
        form.uploads,
        field,
        settings=service.settings,
        sandbox=service.embedding.sandbox,
        names=names,
        pixels=True,
    )
    charge_items(len(found))
    entrance = batcher if pooled else batcher.unpooled()
    cautions = cautions_of(encoder.adapter, found)
    head = AnswerHead(encoder_id, encoder.fingerprint, encoder.precision, encoder.dim, cautions)
    return Started(head, service.embedding.run(encoder.adapter, entrance, found, patient=patient), names.skipped)


class Embedded(NamedTuple):
    """Vectors or problems of all items of a request, what in its zips is no image, and what to know of the vectors."""

    results: list[Result]
    skipped: list[Skipped] | None
    cautions: list[str]


def embed_form(service: Service, form: Form, encoder_id: str | None, field: Area) -> Embedded:
    """Embed all items in a form's files. Blocks: call it on a thread."""
    head, found, skipped = start(service, form, encoder_id, field)
    return Embedded(list(found), skipped or None, list(head.cautions))


def check_any(results: list[Result], *, every: bool = False) -> None:
    """422 where no item (or, with `every`, not every item) has a vector; the first bad one is named."""
    if every or all(result.problem is not None for result in results):
        for index, result in enumerate(results):
            if result.problem is not None:
                raise first_bad(result.problem, index, result.file_index, name=result.name, key=result.key)


def _whole(service: Service, form: Form, field: Area, *, pooled: bool, kind: str) -> Response:
    head, found, skipped = start(service, form, form.fields.get("encoder") or None, field, pooled=pooled)
    results = list(found)
    form.remove()  # on this thread already: another one would cost as much as the removal
    check_any(results, every=kind == NPY)
    rows = [row for index, result in enumerate(results) for row in rows_of(index, result)]
    content = whole_npy(rows) if kind == NPY else whole_json(head, rows, skipped)
    return Response(content, media_type=kind, headers=None if kind == JSON else _headers(head, len(skipped)))


def _headers(head: AnswerHead, skipped: int) -> dict[str, str]:
    return {
        **({"X-Skipped-Files": str(skipped)} if skipped else {}),
        **({"X-Cautions": json.dumps(head.cautions)} if head.cautions else {}),
        "X-Encoder": head.encoder,
        "X-Encoder-Fingerprint": head.fingerprint,
        "X-Encoder-Precision": head.precision,
    }


async def _stream(service: Service, form: Form, field: Area, *, pooled: bool, kind: str) -> Response:
    """An answer that is sent while it is computed; its status waits for the first item that can be read."""
    head, pieces, skipped = await run_waiting(service, partial(_begin, service, form, field, pooled=pooled, kind=kind))

    async def body() -> AsyncIterator[bytes]:
        try:
            while (piece := await run_sync(next, pieces, None, limiter=service.waiting)) is not None:
                if piece:
                    yield piece
        finally:
            with CancelScope(shield=True):
                await run_sync(pieces.close)

    return StreamingResponse(body(), media_type=kind, headers=_headers(head, skipped))


def _begin(
    service: Service, form: Form, field: Area, *, pooled: bool, kind: str
) -> tuple[AnswerHead, Generator[bytes, None, None], int]:
    # Patient: once bytes are sent, a full queue can no longer be told by the status, so the stream slows down.
    encoder_id = form.fields.get("encoder") or None
    head, found, skipped = start(service, form, encoder_id, field, pooled=pooled, patient=True)
    first: list[Result] = []
    for result in found:
        first.append(result)
        if result.problem is None:
            break
    check_any(first)
    rows = (row for index, result in enumerate(chain(first, found)) for row in rows_of(index, result))
    return head, _pieces(STREAMS[kind](head), rows), len(skipped)


def _pieces(answer: VectorStream, rows: Iterator[VectorRow]) -> Generator[bytes, None, None]:
    for row in rows:
        yield answer.add(row)
    yield answer.end()
