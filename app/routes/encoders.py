"""GET /v1/encoders: what the service can embed with."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import access
from app.core.errors import ProblemError, not_found
from app.encoders.library import LIST, PUBLIC, modality_of
from app.routes import Running
from lejepa_med.client.wire.images import Encoder, EncoderDetail, Encoders
from lejepa_med.errors import EncoderError
from lejepa_med.models.folder import fingerprint, precision_of
from lejepa_med.models.formation import formation_of

router = APIRouter(prefix="/v1/encoders", tags=["encoders"], responses={404: PROBLEM_RESPONSES[404]})


@router.get("", summary="List the encoders")
@access()
def list_encoders(service: Running) -> Encoders:
    """Encoders of the runs directory; a new run appears by itself."""
    library = service.library
    return Encoders(encoders=[Encoder(**_facts(i, f, library.info(f))) for i, f in library.encoders().items()])


@router.get("/{encoder_id}", summary="One encoder")
@access()
def get_encoder(encoder_id: str, service: Running) -> EncoderDetail:
    """What the encoder expects and gives."""
    folder = service.library.encoders().get(encoder_id)
    if folder is None:
        raise not_found("encoder", remedy=LIST)
    info = service.library.info(folder)
    if not info:
        raise ProblemError(
            422, "encoder-unusable", "The encoder's folder is damaged.", remedy="The operator copies the folder again."
        )
    return EncoderDetail(
        **_facts(encoder_id, folder, info),
        fingerprint=fingerprint(info),
        precision=precision_of(info),
        dim=info["dim"],
        image_size=formation_of(info).size,
        formation=vars(formation_of(info)),
        dims=info["spec"].get("dims", 2),
        channels=info["spec"]["channels"],
        info={key: info[key] for key in PUBLIC if key in info},
        metrics=service.library.metrics(folder),
    )


def _facts(encoder_id: str, folder: Path, info: dict[str, Any]) -> dict[str, Any]:
    name = folder.resolve().parent.name if folder.name == "encoder" else folder.name
    facts = {"id": encoder_id, "name": name, "modality": modality_of(info), "available": bool(info)}
    return {**facts, "vectors": _vectors(info) if info else ""}


def _vectors(info: dict[str, Any]) -> str:
    """How vectors are formed, or that a newer release is needed for it, which must not hide the other encoders."""
    try:
        return formation_of(info).text(dims=info["spec"].get("dims", 2))
    except EncoderError as error:
        return str(error)
