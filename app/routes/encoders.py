"""GET /v1/encoders: what the service can embed with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response

from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import access
from app.api.service import Service
from app.core.errors import ProblemError, not_found, removed_meanwhile
from app.encoders.library import LIST, PUBLIC, modality_of, run_of
from app.routes import Running
from lejepa_med.client.wire.images import Encoder, EncoderDetail, Encoders, RunVerdict, TrainingCurve
from lejepa_med.errors import EncoderError
from lejepa_med.models.folder import fingerprint, precision_of
from lejepa_med.models.formation import formation_of
from lejepa_med.training.verdict import judge

router = APIRouter(prefix="/v1/encoders", tags=["encoders"], responses={404: PROBLEM_RESPONSES[404]})
REPORT = "report.html"  # of a run folder
CARD = 1 << 16  # letters of a model card
HTML: dict[int | str, dict[str, Any]] = {200: {"description": "HTML", "content": {"text/html": {}}}}
REPORT_HEADERS = {
    # The report has styles inside and no scripts. Sandboxed, it is of no origin and can read nothing of the service.
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


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
    folder = _folder(service, encoder_id)
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
        **_quality(service, encoder_id, folder),
    )


@router.get("/{encoder_id}/curve", summary="How an encoder was trained")
@access()
def get_curve(
    encoder_id: str,
    service: Running,
    points: Annotated[int, Query(ge=2, le=10_000, description="records of each curve at most, evenly spaced")] = 500,
) -> TrainingCurve:
    """Records of the run as curves, under the names that docs/observe.md explains; null where a record has none."""
    found = service.library.history(_folder(service, encoder_id))
    return TrainingCurve(training=_curve(found.training, points), evaluation=_curve(found.evaluation, points))


@router.get("/{encoder_id}/report", summary="The report of a run", response_class=Response, responses=HTML)
@access()
def get_report(encoder_id: str, service: Running) -> Response:
    """The page that the training wrote, with pictures of the archive. Scripts in it would not run."""
    file = run_of(_folder(service, encoder_id)) / REPORT
    missing = ProblemError(
        404,
        "no-report",
        "The encoder's folder came without the report of its run.",
        remedy="The operator copies the whole run folder into the runs directory.",
    )
    if not file.is_file():
        raise missing
    with removed_meanwhile(missing):
        return Response(file.read_bytes(), media_type="text/html", headers=REPORT_HEADERS)


def _folder(service: Service, encoder_id: str) -> Path:
    folder = service.library.encoders().get(encoder_id)
    if folder is None:
        raise not_found("encoder", remedy=LIST)
    return folder


def _quality(service: Service, encoder_id: str, folder: Path) -> dict[str, Any]:
    """The verdict on the run, its last effective rank, and the model card."""
    found = service.library.history(folder)
    rows = [row for row in found.training if "loss" in row]
    judged = judge(found.training, found.evaluation) if rows else None
    ranks = [row["backbone/effective_rank"] for row in (*rows, *found.evaluation) if "backbone/effective_rank" in row]
    card = folder / "README.md"
    return {
        "verdict": None
        if judged is None
        else RunVerdict(state=judged.state, text=judged.text, notes=list(judged.notes), advice=judged.advice),
        "effective_rank": ranks[-1] if ranks else None,
        "card": card.read_text(encoding="utf-8", errors="replace")[:CARD] if card.is_file() else None,
        "report": f"/v1/encoders/{encoder_id}/report" if (run_of(folder) / REPORT).is_file() else None,
    }


def _curve(records: Sequence[Mapping[str, Any]], points: int) -> dict[str, list[float | None]]:
    """Numbers of evenly spaced records by name."""
    places = np.unique(np.linspace(0, len(records) - 1, min(points, len(records))).round().astype(int)).tolist()
    chosen = [records[place] for place in places] if records else []
    names = dict.fromkeys(name for row in chosen for name, value in row.items() if _is_number(value))
    return {name: [row[name] if _is_number(row.get(name)) else None for row in chosen] for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
