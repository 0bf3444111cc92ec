"""/healthz and /readyz, for load balancers and container engines."""

from fastapi import APIRouter, Response

from app.errors import log_unexpected
from app.routes import Running
from app.schemas import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Does the process live?")
def health() -> Health:
    """Always 200 while the process answers."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it work?", responses={503: {"model": Readiness}})
def ready(response: Response, service: Running) -> Readiness:
    """200 when the store can be written and at least one encoder loads; the encoders that do not are told."""
    try:
        service.store.check()
        store = True
    except Exception as error:
        log_unexpected(error)
        store = False
    service.embedding.warm()
    library = service.library
    encoders = {encoder_id: library.loadable(encoder_id, folder) for encoder_id, folder in library.encoders().items()}
    is_ready = store and any(encoders.values())
    response.status_code = 200 if is_ready else 503
    return Readiness(status="ready" if is_ready else "not ready", store=store, encoders=encoders)
