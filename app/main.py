"""The application: `create_app` for any ASGI server, `serve` for `lejepa-med serve`."""

import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI

from app.api import openapi
from app.api.openapi import PROBLEM_RESPONSES
from app.api.security import Auth, admitted, check_bind, check_declared, document_access
from app.api.service import Service
from app.core import errors, logs, metrics
from app.core.metrics import Traced
from app.core.middleware import Drain, Guard
from app.core.settings import Settings
from app.routes import (
    applications,
    archives,
    embeddings,
    encoders,
    folders,
    health,
    inspect,
    jobs,
    keys,
    label_sets,
    maps,
    pages,
    predictions,
    probes,
    qualities,
    search,
    uploads,
)
from lejepa_med import __version__, ending

HEAD_BYTES = 16 << 10  # of a request's target and headers
FLUSH_SECONDS = 2  # for the last bytes of answers, after the drain
STOP_SECONDS = 7  # for jobs and threads, after that; or for a start that hangs
DESCRIPTION = """Embeddings from an encoder pretrained on a lab's own archive, and probes from a handful of labels.

Every error is an RFC 9457 problem document whose `remedy` says what to do.
"""


class Documented(FastAPI):
    """FastAPI with an example request, and the scope it needs, for every operation in its document."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; made once."""
        document = super().openapi()
        if "securitySchemes" not in document["components"]:  # FastAPI keeps the document that it made
            openapi.add_examples(document)
            document_access(document, self.routes)
        return document


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Its lifespan takes the data directory, continues accepted jobs, and gives both back.

    Raises:
        UserError: traces are to be sent, but the extra 'otel' is not installed.
    """
    traces = metrics.Telemetry() if metrics.traces_wanted() else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            check_declared(app.routes)
            service = Service(settings)
            await run_sync(service.start)
        except Exception as error:
            app.state.refused = errors.at_start(error)
            if app.state.refused is None:
                errors.log_unexpected(error)
            raise
        app.state.service = service
        try:
            yield
        finally:
            app.state.interrupted = await run_sync(service.stop)
            if traces is not None:
                await run_sync(traces.stop)

    app = Documented(
        title="lejepa-med",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's documentation pages load scripts from a foreign server; ours are in routes/pages.py.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(admitted)],
        responses={status: PROBLEM_RESPONSES[status] for status in (401, 403, 421, 422, 429, 503)},
    )
    errors.install(app)
    for module in (
        encoders,
        embeddings,
        inspect,
        probes,
        predictions,
        applications,
        uploads,
        archives,
        folders,
        maps,
        label_sets,
        qualities,
        search,
        jobs,
        keys,
        health,
        pages,
    ):
        app.include_router(module.router)
    app.state.drain = Drain()
    app.add_middleware(Auth)
    app.add_middleware(Guard, drain=app.state.drain)
    if traces is not None:
        app.add_middleware(Traced, telemetry=traces)
    return app


class Server(uvicorn.Server):
    """A server that goes on answering while requests are in flight, at most `seconds`, after SIGTERM or SIGINT.

    uvicorn alone would close its socket first, so that a load balancer could not read 'draining' from /readyz.
    A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, *, drain: Drain, seconds: float) -> None:
        super().__init__(config)
        self._drain, self._seconds = drain, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal; go at the second."""
        if self._drain.since is None:
            self._drain.begin()
        else:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; asked ten times a second."""
        return await super().on_tick(counter) or self._drain.is_over(self._seconds)


def run(**options: Any) -> None:
    """`serve` with Settings from keyword arguments; what is not given comes from LEJEPA_ variables.

    Raises:
        UserError: see `serve`.
    """
    if not options.get("allow_unauthenticated"):
        options.pop("allow_unauthenticated", None)  # a flag that was not set says nothing; the variable decides
    serve(Settings(**options))


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM; then requests in flight are finished, within a limit.

    Raises:
        UserError: the address would be public and nobody asked for a key, or the service cannot start as it is set.
    """
    check_bind(settings)
    logs.configure(level=settings.log_level, format=settings.log_format)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http="h11",
        h11_max_incomplete_event_size=HEAD_BYTES,
        # A client that stalls must not hold up the end.
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    server = Server(config, drain=app.state.drain, seconds=settings.drain_seconds)
    ending.set_limit(settings.drain_seconds + FLUSH_SECONDS + STOP_SECONDS)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to end where the lifespan or the socket fails
        refused = getattr(app.state, "refused", None)
        if refused is not None:
            raise refused from None
        raise
    if getattr(app.state, "interrupted", False):
        # A job's step may take long. It is repeated at the next start, so the process does not wait for its thread.
        logging.shutdown()
        os._exit(0)
