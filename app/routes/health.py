"""/healthz and /readyz, for load balancers and container engines."""

from typing import Literal

from fastapi import APIRouter, Request, Response

from app.errors import log_unexpected
from app.routes import Running
from app.security import access
from lejepa_med.client.wire.common import Health, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Does the process live?")
@access(is_open=True, any_host=True)
async def health() -> Health:
    """Always 200 while the process answers; needs no thread, of which a busy service may have none to spare."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it work?", responses={503: {"model": Readiness}})
@access(is_open=True, any_host=True)
def ready(request: Request, response: Response, service: Running) -> Readiness:
    """200 when the store can be written and the first encoders are loaded and warmed up; tells which do not load.

    503 'draining' after SIGTERM: requests in flight are finished, and new work goes elsewhere.
    """
    try:
        service.store.check()
        store = True
    except Exception as error:
        log_unexpected(error)
        store = False
    encoders = service.library.usable()
    is_draining = request.app.state.drain.since is not None
    is_ready = store and service.library.is_warm and any(encoders.values()) and not is_draining
    response.status_code = 200 if is_ready else 503
    status: Literal["ready", "not ready", "draining"] = (
        "draining" if is_draining else "ready" if is_ready else "not ready"
    )
    return Readiness(status=status, store=store, warm=service.library.is_warm, encoders=encoders)
