"""POST /v1/embeddings: files in, vectors out."""

import io
from typing import Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from app.embedding import Result
from app.errors import first_bad
from app.forms import PROBLEM_RESPONSES, TEXT_FIELDS, body_of, check_fields
from app.items import Field, sources
from app.limits import charge_items
from app.routes import Running
from app.schemas import EmbeddedItem, Embeddings
from app.service import Service
from app.uploads import Form, receive
from lejepa_med.models.folder import LoadedEncoder

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])
NPY = "application/x-npy"
NPY_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON, or with 'Accept: application/x-npy' a float32 array (items, dim) in NumPy's format",
        "content": {NPY: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    summary="Embed files",
    response_model=Embeddings,
    responses={**PROBLEM_RESPONSES, **NPY_RESPONSE},
    openapi_extra=body_of(TEXT_FIELDS),
)
async def embed(request: Request, service: Running) -> Response:
    """One vector for each image, volume, series, slide or region, in the order of the files.

    An item that cannot be read carries its own error beside the others' vectors. If no item can be read, or .npy is
    asked for and any cannot, the answer is 422 and names the item.
    """
    as_npy = NPY in request.headers.get("accept", "")
    async with receive(request, service.settings) as form:
        check_fields(form, set(TEXT_FIELDS))
        field = Field.parse(form.fields.get("region"), form.fields.get("mpp"))
        return await run_sync(_answer, service, form, field, as_npy)


def embed_form(
    service: Service, form: Form, encoder_id: str | None, field: Field
) -> tuple[str, LoadedEncoder, list[Result]]:
    """Vectors or problems of all items in a form's files. Blocks: call it on a thread."""
    encoder_id, encoder, batcher = service.library.encoder(encoder_id)
    found = sources(encoder.adapter, form.uploads, field, settings=service.settings, sandbox=service.embedding.sandbox)
    charge_items(len(found))
    return encoder_id, encoder, list(service.embedding.run(encoder.adapter, batcher, found))


def check_any(results: list[Result], *, every: bool = False) -> None:
    """422 where no item (or, with `every`, not every item) has a vector; the first bad one is named."""
    if every or all(result.problem is not None for result in results):
        for index, result in enumerate(results):
            if result.problem is not None:
                raise first_bad(result.problem, index, result.file_index)


def _answer(service: Service, form: Form, field: Field, as_npy: bool) -> Response:
    encoder_id, encoder, results = embed_form(service, form, form.fields.get("encoder") or None, field)
    check_any(results, every=as_npy)
    if as_npy:
        buffer = io.BytesIO()
        np.save(buffer, np.stack([result.vector for result in results if result.vector is not None]))
        headers = {"X-Encoder": encoder_id, "X-Encoder-Fingerprint": encoder.fingerprint}
        return Response(buffer.getvalue(), media_type=NPY, headers=headers)
    answer = Embeddings(
        encoder=encoder_id,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        items=[_item(index, result) for index, result in enumerate(results)],
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _item(index: int, result: Result) -> EmbeddedItem:
    # Nine digits give every float32 back exactly.
    vector = None if result.vector is None else [float(f"{value:.9g}") for value in result.vector]
    return EmbeddedItem(
        index=index, file_index=result.file_index, items=result.items, vector=vector, error=result.problem
    )
