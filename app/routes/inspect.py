"""POST /v1/inspect: one file, as the encoder sees it, beside what it resembles and what every probe says of it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from fastapi import APIRouter, Request
from torch import Tensor

from app.api.openapi import PROBLEM_RESPONSES, TEXT_FIELDS, body_of
from app.api.security import access
from app.api.service import Service
from app.core.errors import ProblemError, as_error, first_bad, not_found
from app.core.limits import charge_items
from app.encoders.library import modality_of
from app.jobs.train_probe import file_id
from app.routes import Running
from app.routes.embeddings import run_waiting
from app.routes.predictions import answer_of
from app.routes.search import hits_of, query_of, require_encoder
from app.store import ProbeRow
from app.uploads.bodies import Form, check_fields, parse_field, receive
from app.uploads.embedding import Result
from app.uploads.file_items import Area, RequestItem, cautions_of, read_names, request_items
from app.vectors import normalised
from data_adapters.base import Adapter, BaseAdapter
from lejepa_med.client.wire.inspection import MOST_PARTS, InspectedPart, Inspection, Neighbour, ProbePrediction
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.models.patches import PATCH_SIDE, attention_maps, patch_maps
from lejepa_med.models.thumbnails import shown_parts, webp
from lejepa_med.plot import data_uri
from lejepa_med.spectrum import pca_rgb

router = APIRouter(prefix="/v1/inspect", tags=["embeddings"])
PROBES = 50  # that answer, the newest first
PARTS = 64  # by default
ENLARGED = 8 * PATCH_SIDE**2  # pixels of all parts together to which a CNN's are enlarged, so that its maps are fine
STRIDE = 32  # of a CNN's last map
QUALITY = 90  # of WebP: the picture is looked at closely
FIELDS: dict[str, dict[str, Any]] = {
    **{name: TEXT_FIELDS[name] for name in ("encoder", "region", "mpp")},
    "archive": {"type": "string", "description": "an embedding table of this encoder, where neighbours are looked for"},
    "k": {"type": "integer", "default": 10, "description": "neighbours, 1 to 100"},
    "item": {"type": "integer", "default": 0, "description": "which item, where the file holds several"},
    "parts": {
        "type": "integer",
        "default": PARTS,
        "description": f"slices, tiles or planes of the answer at most, evenly spaced; 1 to {MOST_PARTS}",
    },
    "overlay": {"type": "boolean", "default": True, "description": "compute the features and attention of each patch"},
}


@router.post(
    "",
    summary="Look at a file",
    response_model_exclude_none=True,
    responses=PROBLEM_RESPONSES,
    openapi_extra=body_of(FIELDS),
)
@access("embed", "probe", changes=False)
async def inspect(request: Request, service: Running) -> Inspection:
    """The pixels that the encoder sees, its features and attention, neighbours, and the answers of its probes.

    `files` is one file; a zip may hold the files of a series.
    """
    async with receive(request, service.settings) as form:
        check_fields(form, set(FIELDS))
        return await run_waiting(service, partial(_inspect, service, form))


def _inspect(service: Service, form: Form) -> Inspection:
    if len(form.uploads) != 1:
        raise ProblemError(
            422,
            "one-file",
            f"The request holds {len(form.uploads)} files.",
            remedy="Send one file; a zip may hold the files of a series.",
        )
    encoder_id, encoder, batcher = service.library.encoder(form.fields.get("encoder") or None)
    base = service.search.base(form.fields["archive"]) if form.fields.get("archive") else None
    if base is not None:
        require_encoder(base, encoder.fingerprint)
    source, count, place = _item(service, form, encoder.adapter)
    assert source.pixels is not None
    (result,) = service.embedding.run(encoder.adapter, batcher, [source])
    if result.problem is not None or result.vector is None:
        raise as_error(result.problem) if result.problem is not None else RuntimeError("an item without an answer")
    neighbours = None
    if base is not None:
        k = parse_field(form, "k", Annotated[int, Ge(1), Le(100)], 10)
        found = service.search.search(base, query_of(base, normalised(result.vector[None]), k, []))
        hits = [hit.model_dump() for hit in hits_of(base, found, 0)]
        neighbours = [Neighbour(**hit, distance=float(np.sqrt(max(0.0, 2 - 2 * hit["score"])))) for hit in hits]
    predictions = _predictions(service, encoder.fingerprint, result, file_id(form.uploads[0].path), form)
    most = parse_field(form, "parts", Annotated[int, Ge(1), Le(MOST_PARTS)], PARTS)
    seen = _look(service, encoder, source.pixels, most, overlay=parse_field(form, "overlay", bool, True))
    return Inspection(
        encoder=encoder_id,
        fingerprint=encoder.fingerprint,
        modality=modality_of(encoder.info),
        name=source.name,
        item=place,
        items=count,
        unit=_unit(encoder.adapter, source.pixels),
        width=source.pixels.shape[-1],
        height=source.pixels.shape[-2],
        archive=None if base is None else form.fields["archive"],
        neighbours=neighbours,
        predictions=predictions,
        novel=any(one.note for one in predictions) if predictions else None,
        cautions=cautions_of(encoder.adapter, [source]),
        **vars(seen),
    )


def _item(service: Service, form: Form, adapter: Adapter) -> tuple[RequestItem, int, int]:
    """The item that is asked for, with its pixels; how many the file holds; which it is."""
    found = request_items(
        adapter,
        form.uploads,
        Area.parse(form.fields.get("region"), form.fields.get("mpp")),
        settings=service.settings,
        sandbox=service.embedding.sandbox,
        names=read_names(form, service.settings),
        pixels=True,
    )
    charge_items(1)
    place = parse_field(form, "item", Annotated[int, Ge(0)], 0)
    if place >= len(found):
        raise not_found("item in the file", remedy=f"The file holds {len(found)}; `item` counts from 0.")
    source = found[place]
    if source.problem is not None:
        raise first_bad(source.problem, place, source.file_index, name=source.name)
    if source.pixels is None:
        assert source.record is not None
        source = replace(source, pixels=service.embedding.sandbox.prepare(adapter, source.record))
    return source, len(found), place


@dataclass(frozen=True)
class _Seen:
    """The parts of an item, and why something is not shown."""

    parts: list[InspectedPart]
    count: int
    shown: str
    features_note: str | None
    attention_note: str | None


def _look(service: Service, encoder: LoadedEncoder, pixels: Tensor, most: int, *, overlay: bool) -> _Seen:
    """Some parts, evenly spaced, with colours that compare between them."""
    depth = pixels.shape[2] if pixels.ndim == 5 else 1
    count = len(pixels) * depth
    places = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
    pictures, shown = shown_parts(encoder.adapter, pixels, places)
    colours: Sequence[np.ndarray] | None = None
    attention: Sequence[np.ndarray] | None = None
    if overlay:
        whole = sorted({place // depth for place in places})
        with service.looking:  # one at a time: passes beside those of the encoder's own worker
            side = int((ENLARGED / len(whole)) ** 0.5) // STRIDE * STRIDE
            features = patch_maps(encoder, pixels[whole], side=min(PATCH_SIDE, side))
            looked = attention_maps(encoder, pixels[whole])
        inside = [(whole.index(place // depth), place % depth) for place in places]
        if features is not None:
            colours = list(pca_rgb(_planes(features, inside, depth)))
        if looked is not None:
            attention = _grey(_planes(looked[..., None], inside, depth)[..., 0])
    parts = [
        InspectedPart(
            index=place,
            image=f"data:image/webp;base64,{base64.b64encode(webp(pictures[k], quality=QUALITY)).decode()}",
            features=None if colours is None else data_uri(colours[k]),
            attention=None if attention is None else data_uri(attention[k]),
        )
        for k, place in enumerate(places)
    ]
    no_features = "The backbone gives vectors only." if overlay and colours is None else None
    no_attention = "This backbone has no attention to its patches." if overlay and attention is None else None
    return _Seen(parts, count, shown, no_features, no_attention)


def _planes(maps: np.ndarray, inside: Sequence[tuple[int, int]], depth: int) -> np.ndarray:
    """(n, h, w, dim), or (n, d, h, w, dim) of volumes of `depth` planes -> (parts, h, w, dim)."""
    if maps.ndim == 4:
        return np.stack([maps[item] for item, _ in inside])
    return np.stack([maps[item, plane * maps.shape[1] // depth] for item, plane in inside])


def _grey(maps: np.ndarray) -> list[np.ndarray]:
    """(n, h, w) as grey levels, with one scale for all, so that parts compare."""
    low, high = float(maps.min()), float(np.percentile(maps, 99.5))
    scaled = np.clip((maps - low) / ((high - low) or 1.0), 0, 1)
    return list(np.rint(255 * scaled).astype(np.uint8))


def _unit(adapter: Adapter, pixels: Tensor) -> Literal["image", "slice", "tile", "plane"]:
    if pixels.ndim == 5:
        return "plane"
    if isinstance(adapter, BaseAdapter) and adapter.reads_regions:
        return "tile"
    return "slice" if isinstance(adapter, BaseAdapter) and adapter.most_images > 1 else "image"


def _predictions(service: Service, fingerprint: str, result: Result, content: str, form: Form) -> list[ProbePrediction]:
    """What the newest version of each probe of this encoder says."""
    newest: dict[str, ProbeRow] = {}
    own = [one.row for one in service.training.run_probes.known().values() if one.row is not None]
    for row in sorted([*service.store.probes(), *own], key=lambda row: (-row.created, -row.version)):
        if row.fingerprint == fingerprint:
            newest.setdefault(row.series, row)
    assert result.vector is not None
    found = []
    for row in list(newest.values())[:PROBES]:
        try:
            probe = service.training.probe(row.id)
        except ProblemError:
            continue  # damaged, or of another release: GET /v1/probes says so
        (given,) = probe.predict(
            result.vector[None],
            ids=None if form.fields.get("region") else [content],  # another region of a slide is another image
            groups=[result.group or content],
        )
        told = {"probe": row.id, "probe_name": row.name, "kind": row.kind}
        found.append(ProbePrediction.model_validate({"index": 0, **told, **answer_of(given)}))
    return found
