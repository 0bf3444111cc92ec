"""Middleware around every request (id, log line, metrics, security headers), and the drain before the end."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import errors, logs, metrics
from app.core.errors import ProblemError

log = logging.getLogger("lejepa_med.app")

WAITED = "lejepa.waited"  # in a request's scope: seconds that it waited for a job, which do not count as work

SECURITY_HEADERS = [  # of the OWASP list; Strict-Transport-Security belongs to the proxy that speaks TLS
    (b"x-content-type-options", b"nosniff"),
    (b"x-permitted-cross-domain-policies", b"none"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        b"img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
]


class Drain:
    """Whether the service is ending, and how many requests it still answers."""

    def __init__(self) -> None:
        self.since: float | None = None  # time.monotonic()
        self.in_flight = 0

    def begin(self) -> None:
        """Refuse new work from now on."""
        self.since = self.since or time.monotonic()

    def is_over(self, seconds: float) -> bool:
        """Whether the process may end: nothing is in flight, or `seconds` have passed since the beginning."""
        return self.since is not None and (self.in_flight == 0 or time.monotonic() - self.since > seconds)

    def refuses(self, method: str) -> bool:
        """Whether a request is refused as new work. Reading goes on, and so does cancelling a job."""
        return self.since is not None and method not in ("GET", "HEAD", "OPTIONS", "DELETE")


class Guard:
    """The outermost middleware: id, log line, metrics, security headers, a problem document for unexpected errors."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app, self.drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        method = metrics.method_word(scope["method"])
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        reference = logs.begin_request(given.decode("latin-1"))

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                identity = (b"x-request-id", reference.encode())
                own = {name for name, _ in message["headers"]}  # a route may be stricter, or let a picture be kept
                added = [header for header in SECURITY_HEADERS if header[0] not in own]
                message["headers"] = [*message["headers"], *added, identity]
            await send(message)

        with metrics.IN_FLIGHT.track_inprogress():
            self.drain.in_flight += 1
            try:
                if self.drain.refuses(method):
                    raise draining()
                if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                    raise errors.nul("The address")
                await self.app(scope, receive, answer)
            except Exception as error:
                found = errors.describe(error)
                if not status:
                    headers = error.headers if isinstance(error, ProblemError) else None
                    await errors.respond(found, headers)(scope, receive, answer)
            finally:
                self.drain.in_flight -= 1
        # The route's pattern and not the path: a client may have put a name into it.
        route = getattr(scope.get("route"), "path", "-")
        seconds = time.perf_counter() - began - scope.get(WAITED, 0.0)
        metrics.saw_request(method=method, route=route, status=status, seconds=seconds)
        fields = {"method": method, "route": route, "status": status, "milliseconds": round(1000 * seconds, 1)}
        log.info("%s %s %s %.0f ms", method, route, status, 1000 * seconds, extra=fields)


def draining() -> ProblemError:
    """Return the error 503 of a process that ends soon; the next one, or another replica, takes the work."""
    return ProblemError(
        503,
        "draining",
        "The service is being stopped and takes no new work.",
        remedy="Try again after the seconds in Retry-After.",
        headers={"Retry-After": "5", "Connection": "close"},
    )
