"""Who may ask: the middleware that admits or refuses every request before its body is read, and keeps the audit trail.

In this order: the Host header (a foreign name that points here), the page that sent it (a foreign site that drives the
browser), the key, the caller's limits, the key's scopes.
"""

import logging
import time
from contextlib import closing

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.errors import ProblemError
from app.keys import SCOPES, unauthorized
from app.limits import Caller, Left, begin, place
from app.logs import request_id
from app.policy import READING, Rule, rule_for
from app.service import Service
from app.settings import Settings, is_loopback
from app.store import now, open_store
from data_adapters.errors import UserError

log = logging.getLogger("lejepa_med.app")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
DAY = 86_400.0


class Auth:
    """Admits or refuses, tells the rest of the service who asks, and writes down what was changed or refused."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._pruned = -DAY

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service: Service = scope["app"].state.service
        headers, method = Headers(scope=scope), scope["method"]
        rule = rule_for(method, scope["path"])
        key_id: str | None = None
        left: Left | None = None
        try:
            if not (rule and rule.path in ("/healthz", "/readyz")):  # probes of an orchestrator name an address
                await self._check_host(service, headers)
            if rule is not None:
                if method not in READING:
                    check_site(headers)
                caller = await self._caller(service, rule, scope, headers)
                key_id = caller.key_id
                if not rule.is_open and caller.is_limited and service.limits.requests.limit:
                    left = service.limits.requests.take(caller.name)
                check_scopes(caller, rule)
                begin(caller)
        except ProblemError as error:
            error = self._limited(service, scope, error)
            if error.problem.status in (401, 403) and rule is not None:
                await self._write(service, f"{method} {rule.path}", error.problem.status, key_id, None)
            await errors.respond(error.problem, error.headers)(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status: int = message["status"]
                if rule is not None and method not in READING and _is_audited(rule, status):
                    # before the answer leaves, so that nothing is acknowledged that is not written down
                    found = Headers(raw=message["headers"]).get("location", "").rpartition("/")[2]
                    target = found or next(iter(scope.get("path_params", {}).values()), None)
                    pattern = getattr(scope.get("route"), "path", rule.path)
                    await self._write(service, f"{method} {pattern}", status, key_id, target)
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
            return  # whoever points a foreign name at this address has no key
        name = headers.get("host", "").lower()
        name = name if name.endswith("]") else name.rpartition(":")[0] or name
        if name not in LOOPBACK_NAMES | settings.hosts:
            raise ProblemError(
                421,
                "wrong-host",
                "The service does not answer under the name in the request's Host header.",
                remedy="Use http://127.0.0.1 with the port, or the operator lists the name in LEJEPA_ALLOWED_HOSTS.",
            )

    async def _caller(self, service: Service, rule: Rule, scope: Scope, headers: Headers) -> Caller:
        client = scope.get("client")
        address = place(client[0] if client else None)
        if rule.is_open or (rule.path == "/metrics" and service.settings.metrics_open):
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

    def _limited(self, service: Service, scope: Scope, error: ProblemError) -> ProblemError:
        """The refusal of a key or a page, or after too many from one address 429, which nobody writes down."""
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
        except Exception as error:  # the request was carried out, so it gets its answer; the log keeps the line
            log.error("audit %s %s key %s target %s could not be stored", action, status, key_id, target)
            errors.log_unexpected(error)


async def _asks(service: Service) -> bool:
    """Whether requests need a key now: a key that is made while the service runs closes it."""
    if service.settings.auth == "off":
        return False
    if not service.keys.is_fresh:
        await run_sync(service.keys.refresh)
    return len(service.keys) > 0 or not service.settings.asks_nobody


def _is_audited(rule: Rule, status: int) -> bool:
    """Refusals always; else what changed something, or may have before it failed."""
    return status in (401, 403) or (rule.changes and (status < 400 or status >= 500))


def check_site(headers: Headers) -> None:
    """Refuse what a browser sends on behalf of another site's page.

    As Go's http.CrossOriginProtection: Sec-Fetch-Site, which no page can forge, else Origin against Host. Programs that
    are no browsers send neither.

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


def check_scopes(caller: Caller, rule: Rule) -> None:
    """Refuse a caller whose key has none of the scopes that the rule asks for.

    Raises:
        ProblemError: 403 that names what is missing.
    """
    if rule.is_open or not rule.scopes or "admin" in caller.scopes or caller.scopes & set(rule.scopes):
        return
    names = " or ".join(f"'{scope}'" for scope in rule.scopes)
    raise ProblemError(
        403,
        "missing-scope",
        f"This API key lacks the scope {names}.",
        remedy="Use a key that has it; the operator makes one with: "
        f"lejepa-med key create NAME --scopes {rule.scopes[0]}",
        headers={
            "WWW-Authenticate": f'Bearer realm="lejepa-med", error="insufficient_scope", scope="{rule.scopes[0]}"'
        },
    )


def check_bind(settings: Settings) -> None:
    """Refuse to listen to other machines before there is a key to ask for. With auth 'on' nobody gets in without one.

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
