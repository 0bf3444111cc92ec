"""Who may call a route: `access` declares it on the route, and the middleware enforces it before the body is read.

FastAPI reads a body before it runs a route's dependencies, so scopes as dependencies would come too late. `Auth` checks
in this order: the Host header (a foreign name that points here), the page that sent the request (a foreign site that
drives the browser), the key, the caller's limits, the key's scopes. It also writes the audit trail.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from app.api.keys import SCOPES, unauthorized
from app.api.service import Service
from app.core import errors
from app.core.errors import ProblemError
from app.core.limits import Caller, Left, begin, caller, place
from app.core.logs import request_id
from app.core.settings import Settings, is_loopback
from app.store import now, open_store
from data_adapters.errors import UserError
from lejepa_med.client.wire.common import Scope

log = logging.getLogger("lejepa_med.app")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
DAY = 86_400.0
SMALL_BODY = 64 << 10  # bytes; the server reads and drops the body of a refused request only up to this size
SCHEMES: dict[str, Any] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key: Authorization: Bearer KEY"},
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key",
    },
}

# --- who may call a route ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may call a route.

    Attributes:
        scopes: a key needs one of them; where there are none, any key does.
        is_open: no key is asked for.
        opened_by: the setting with which the operator opens the route; empty: none.
        any_host: the route also answers under a Host name that is not allowed.
        changes: successful calls go to the audit trail; reading never does.
    """

    scopes: tuple[Scope, ...] = ()
    is_open: bool = False
    opened_by: str = ""
    any_host: bool = False
    changes: bool = True


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_declared: dict[Callable[..., Any], Access] = {}


def access(
    *scopes: Scope, is_open: bool = False, opened_by: str = "", any_host: bool = False, changes: bool = True
) -> Callable[[Endpoint], Endpoint]:
    """Declare who may call a route; a decorator of its function. The arguments are the fields of `Access`.

    `@access("embed", "probe")` admits keys with either scope, `@access()` any key. Every key may read results, because
    they are the whole lab's.
    """
    wanted = Access(scopes=scopes, is_open=is_open, opened_by=opened_by, any_host=any_host, changes=changes)

    def declare(endpoint: Endpoint) -> Endpoint:
        _declared[endpoint] = wanted
        return endpoint

    return declare


def access_of(route: BaseRoute) -> Access | None:
    """Return what was declared for a route, or None."""
    endpoint = getattr(route, "endpoint", None)
    return None if endpoint is None else _declared.get(endpoint)


def check_declared(routes: Iterable[BaseRoute]) -> None:
    """Refuse to start with a route that does not declare who may call it.

    Raises:
        UserError: names these routes.
    """
    missing = [_text(route) for route in each_route(routes) if access_of(route) is None]
    if missing:
        raise UserError(
            f"Nothing declares who may call {', '.join(missing)}.",
            remedy="Put @access(...) of app/api/security.py on the function of each of these routes.",
        )


async def admitted() -> None:
    """Every route depends on this second lock: without a caller, the middleware did not match the route."""
    if caller() is None:
        raise RuntimeError("a request reached its route without passing the middleware's checks")


def each_route(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield the routes of an app, also those of included routers, which newer FastAPI releases keep as one entry."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from each_route(included.routes)


def _match(request: AsgiScope) -> tuple[Route, dict[str, Any]] | None:
    """Return the route of a request and the parameters in its path; None where no route has this path.

    A path that has routes, but none for the method, is guarded like its first route: it answers 405 to known callers.
    """
    other_method: tuple[Route, dict[str, Any]] | None = None
    for route in each_route(request["app"].routes):
        match, found = route.matches(request)
        if match == Match.NONE:
            continue
        assert isinstance(route, Route)
        if match == Match.FULL:
            return route, found["path_params"]
        other_method = other_method or (route, found["path_params"])
    return other_method


def _text(route: BaseRoute) -> str:
    methods = sorted(getattr(route, "methods", None) or {"?"})
    return f"{'/'.join(methods)} {getattr(route, 'path', type(route).__name__)}"


def document_access(openapi: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Write into an OpenAPI document, in place, how keys are sent and which scopes each operation asks for.

    The empty alternative is there because a service on loopback asks nobody before there is a key.
    """
    openapi["components"]["securitySchemes"] = SCHEMES
    known = {
        (route.path_format, method.lower()): access_of(route)
        for route in each_route(routes)
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            found = known[path, method]
            if found is None or found.is_open:
                operation["security"] = []
                continue
            operation["security"] = [{}, *({name: []} for name in SCHEMES)]
            asked = " or ".join(f"`{scope}`" for scope in found.scopes) or "any"
            operation["description"] = f"{operation.get('description', '')}\n\nScope: {asked}".strip()


# --- the middleware ---------------------------------------------------------------------------------------------------


class Auth:
    """Middleware that admits or refuses each request, sets its caller, and writes changes and refusals to the trail."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._pruned = -DAY

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service: Service = scope["app"].state.service
        headers, method = Headers(scope=scope), scope["method"]
        matched = _match(scope)
        wanted = None if matched is None else access_of(matched[0])
        if matched is not None and wanted is None:
            raise RuntimeError(f"nothing declares who may call {_text(matched[0])}")
        action = "" if matched is None else f"{method} {matched[0].path}"
        key_id: str | None = None
        left: Left | None = None
        try:
            if wanted is None or not wanted.any_host:
                await self._check_host(service, headers)
            if wanted is not None:
                if method not in READING:
                    check_site(headers)
                asking = await self._caller(service, wanted, scope, headers)
                key_id = asking.key_id
                if not wanted.is_open and asking.is_limited and service.limits.requests.limit:
                    left = service.limits.requests.take(asking.name)
                check_scopes(asking, wanted)
                begin(asking)
        except ProblemError as error:
            error = self._limited(service, scope, error)
            if error.problem.status in (401, 403) and wanted is not None:
                await self._write(service, action, error.problem.status, key_id, None)
            # otherwise the server would take the whole body from the network to drop it
            closing_header = {"Connection": "close"} if _has_large_body(headers) else {}
            await errors.respond(error.problem, {**error.headers, **closing_header})(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status: int = message["status"]
                if matched is not None and wanted is not None and method not in READING and _is_audited(wanted, status):
                    # before the answer leaves, so that nothing is acknowledged that is not written down
                    found = Headers(raw=message["headers"]).get("location", "").rpartition("/")[2]
                    target = found or next(iter(matched[1].values()), None)
                    await self._write(service, action, status, key_id, target)
                if left is not None:
                    extra = [(name.lower().encode(), value.encode()) for name, value in left.headers().items()]
                    message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self.app(scope, receive, answer)

    async def _check_host(self, service: Service, headers: Headers) -> None:
        settings = service.settings
        if not settings.hosts and not is_loopback(settings.host):
            return
        if not settings.hosts and await _asks(service):
            return  # a page that points a foreign name at this address has no key
        name = headers.get("host", "").lower()
        name = name if name.endswith("]") else name.rpartition(":")[0] or name
        if name not in LOOPBACK_NAMES | settings.hosts:
            raise ProblemError(
                421,
                "wrong-host",
                "The service does not answer under the name in the request's Host header.",
                remedy="Use http://127.0.0.1 with the port, or the operator lists the name in LEJEPA_ALLOWED_HOSTS.",
            )

    async def _caller(self, service: Service, wanted: Access, scope: AsgiScope, headers: Headers) -> Caller:
        client = scope.get("client")
        address = place(client[0] if client else None)
        if wanted.is_open or (wanted.opened_by and getattr(service.settings, wanted.opened_by)):
            return Caller(key_id=None, scopes=frozenset(SCOPES), address=address)
        if not await _asks(service):
            return Caller(key_id=None, scopes=frozenset(SCOPES), address=address, limits=service.limits)
        kind, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise unauthorized("key-missing", "This route needs an API key.")
        row = service.keys.check(given)
        if service.keys.note_use(row.id):
            await run_sync(service.store.use_key, row.id)
        return Caller(key_id=row.id, scopes=frozenset(row.scopes), address=address, limits=service.limits)

    def _limited(self, service: Service, scope: AsgiScope, error: ProblemError) -> ProblemError:
        """Return the refusal of a key or page; after too many from one address 429, which gets no line in the trail."""
        if error.problem.status != 401 and not error.problem.type.endswith(":cross-site"):
            return error
        try:
            client = scope.get("client")
            service.limits.failures.take(place(client[0] if client else None))
        except ProblemError as limit:
            return limit
        return error

    async def _write(self, service: Service, action: str, status: int, key_id: str | None, target: str | None) -> None:
        try:
            if time.monotonic() - self._pruned > DAY:
                self._pruned = time.monotonic()
                oldest = now() - DAY * service.settings.audit_days
                await run_sync(lambda: service.store.prune_audit(before=oldest))
            asked = request_id()
            await run_sync(
                lambda: service.store.add_audit(action, status=status, key_id=key_id, target=target, request_id=asked)
            )
        except Exception as error:  # the request was carried out, so it gets its answer, and the log gets the line
            log.error("audit %s %s key %s target %s could not be stored", action, status, key_id, target)
            errors.log_unexpected(error)


async def _asks(service: Service) -> bool:
    """Return whether requests need a key now. The first key closes a running service."""
    if service.settings.auth == "off":
        return False
    if not service.keys.is_fresh:
        await run_sync(service.keys.refresh)
    return len(service.keys) > 0 or not service.settings.asks_nobody


def _is_audited(wanted: Access, status: int) -> bool:
    """Return whether an answer gets a line: each refusal, and what changed something or may have before it failed."""
    return status in (401, 403) or (wanted.changes and (status < 400 or status >= 500))


def _has_large_body(headers: Headers) -> bool:
    """Whether a request's body is larger than `SMALL_BODY`, or of unknown size."""
    declared = headers.get("content-length", "")
    return "transfer-encoding" in headers or (declared.isdigit() and int(declared) > SMALL_BODY)


def check_site(headers: Headers) -> None:
    """Refuse what a browser sends on behalf of another site's page.

    As Go's http.CrossOriginProtection: it reads Sec-Fetch-Site, which no page can forge, else compares Origin with
    Host. Programs other than browsers send neither.

    Raises:
        ProblemError: 403.
    """
    site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "")
    if site in ("same-origin", "none") or (not site and not origin):
        return
    if not site and origin.partition("://")[2].lower() == headers.get("host", "").lower():
        return
    raise ProblemError(
        403,
        "cross-site",
        "The page of another site may not change anything here.",
        remedy="Send the request from a program, or from a page of this service.",
    )


def check_scopes(caller: Caller, wanted: Access) -> None:
    """Refuse a caller whose key has none of the scopes that the route asks for.

    Raises:
        ProblemError: 403, names the missing scopes.
    """
    if wanted.is_open or not wanted.scopes or "admin" in caller.scopes or caller.scopes & set(wanted.scopes):
        return
    names = " or ".join(f"'{scope}'" for scope in wanted.scopes)
    raise ProblemError(
        403,
        "missing-scope",
        f"This API key lacks the scope {names}.",
        remedy="Use a key that has it; the operator makes one with: "
        f"lejepa-med key create NAME --scopes {wanted.scopes[0]}",
        headers={
            "WWW-Authenticate": f'Bearer realm="lejepa-med", error="insufficient_scope", scope="{wanted.scopes[0]}"'
        },
    )


# --- the address to listen on -----------------------------------------------------------------------------------------


def check_bind(settings: Settings) -> None:
    """Refuse to listen to other machines before the first key is made. With auth 'on' nobody gets in without a key.

    Raises:
        UserError: a non-loopback host, without a key in the store and without `allow_unauthenticated`.
    """
    if is_loopback(settings.host) or settings.allow_unauthenticated or settings.auth == "on":
        return
    make = "lejepa-med key create NAME --scopes admin"
    if settings.auth == "off":
        raise UserError(
            f"Nobody would be asked for a key on '{settings.host}', which other machines may reach.",
            remedy=f"Leave out --auth off and make a key ({make}), or, behind an authenticating proxy or on a network "
            "that you trust, add --allow-unauthenticated (LEJEPA_ALLOW_UNAUTHENTICATED=1).",
        )
    if (settings.data.is_dir() or settings.database_url) and _has_keys(settings):
        return
    raise UserError(
        f"There is no API key yet, so nothing listens on '{settings.host}', which other machines may reach.",
        remedy=f"Make a key with the same --data-dir ({make}) and start again; or use --host 127.0.0.1; or, behind an "
        "authenticating proxy, --allow-unauthenticated (LEJEPA_ALLOW_UNAUTHENTICATED=1).",
    )


def _has_keys(settings: Settings) -> bool:
    with closing(open_store(settings)) as store:
        return store.has_keys()
