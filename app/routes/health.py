"""/healthz and /readyz, for load balancers and container engines."""

from fastapi import APIRouter, Response

from app.errors import log_unexpected
from app.routes import Running
from app.schemas import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Does the process live?")
async def health() -> Health:
    """Always 200 while the process answers; needs no thread, of which a busy service may have none to spare."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it work?", responses={503: {"model": Readiness}})
def ready(response: Response, service: Running) -> Readiness:
    """200 when the store can be written and the first encoders are loaded and warmed up; tells which do not load."""
    try:
        service.store.check()
        store = True
    except Exception as error:
        log_unexpected(error)
        store = False
    encoders = service.library.usable()
    is_ready = store and service.library.is_warm and any(encoders.values())
    response.status_code = 200 if is_ready else 503
    return Readiness(
        status="ready" if is_ready else "not ready", store=store, warm=service.library.is_warm, encoders=encoders
    )
