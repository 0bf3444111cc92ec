"""The application: `create_app` for any ASGI server, `serve` for `lejepa-med serve`."""

import logging
import os
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.routes import archives, embeddings, encoders, health, jobs, pages, predictions, probes
from app.schemas import Problem
from app.service import Service
from app.settings import Settings
from lejepa_med import __version__

log = logging.getLogger("lejepa_med.app")
# Libraries that read files write names and DICOM values into their messages, so only these loggers are heard.
HEARD = ("lejepa_med.app", "uvicorn.error", "dbos")
DESCRIPTION = """Embeddings from an encoder pretrained on a lab's own archive, and probes from a handful of labels.

Every error is an RFC 9457 problem document whose `remedy` says what to do.
"""


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Its lifespan takes the data directory, continues accepted jobs, and gives both back."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings)
        await run_sync(service.start)
        app.state.service = service
        try:
            yield
        finally:
            app.state.interrupted = await run_sync(service.stop)

    app = FastAPI(
        title="lejepa-med",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's documentation pages load scripts from a foreign server; ours are in routes/pages.py.
        docs_url=None,
        redoc_url=None,
        responses={422: {"model": Problem, "description": "Cannot be done as asked; `remedy` says what to change"}},
    )
    errors.install(app)
    for module in (encoders, embeddings, probes, predictions, archives, jobs, health, pages):
        app.include_router(module.router)
    app.add_middleware(Guard)
    return app


class Guard:
    """Outermost: one log line a request, security headers, and a problem document for what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            found = errors.describe(error)
            if not status:
                await errors.respond(found)(scope, receive, answer)
        # The route's pattern and not the path: a client may have put a name into it.
        route = getattr(scope.get("route"), "path", "-")
        milliseconds = 1000 * (time.perf_counter() - began)
        log.info("%s %s %s %.0f ms", scope["method"], route, status, milliseconds)


SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
]


def run(**options: Any) -> None:
    """`serve` with Settings from keyword arguments; what is not given comes from LEJEPA_ variables.

    Raises:
        UserError: see `serve`.
    """
    if not options.get("allow_unauthenticated"):
        options.pop("allow_unauthenticated", None)  # a flag that was not set says nothing; the variable decides
    serve(Settings(**options))


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM.

    Raises:
        UserError: the address would be public without any authentication.
    """
    settings.check_bind()
    quiet(settings.log_level)
    app = create_app(settings)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        # A client that stalls must not hold up the end.
        timeout_graceful_shutdown=10,
    )
    if getattr(app.state, "interrupted", False):
        # A job's step may take long. It is repeated at the next start, so the process does not wait for its thread.
        logging.shutdown()
        os._exit(0)


def _heard(record: logging.LogRecord) -> bool:
    if record.name == "dbos":
        # An exception's message, which DBOS quotes after a colon, may hold a path; errors.py logs positions.
        record.exc_info = record.exc_text = None
        record.msg, record.args = record.getMessage().partition(":")[0], ()
    return record.name.startswith(HEARD)


def quiet(level: str) -> None:
    """Log to standard error, from the heard loggers only."""
    handler = logging.StreamHandler()
    handler.addFilter(_heard)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in HEARD:
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]  # DBOS adds a handler of its own to a logger without one
        logger.propagate = True
    warnings.simplefilter("ignore")  # pydicom and others quote the values that they warn of
