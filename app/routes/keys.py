"""/v1/keys and /v1/audit: who may use the service, and who did what."""

from datetime import UTC, datetime
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response

from app.api.keys import make_key
from app.api.openapi import PROBLEM_RESPONSES, json_only
from app.api.security import access
from app.core import limits
from app.core.errors import ProblemError, not_found
from app.routes import Running
from app.store import AuditRow, KeyRow
from app.uploads.bodies import json_body
from lejepa_med.client.wire.common import Audit, AuditLine, Key, KeyRequest, Keys, NewKey

MANY = 1000  # of one page


def administrator() -> str:
    """The id of the administrator's key. Without keys everybody is one, and then nobody may lock the others out.

    Raises:
        ProblemError: 403, the request came without a key.
    """
    found = limits.key_id()
    if found is None:
        raise ProblemError(
            403,
            "first-key",
            "The first key is made by the operator.",
            remedy="On the service's machine: lejepa-med key create NAME --scopes admin",
        )
    return found


router = APIRouter(prefix="/v1", tags=["keys"])
Administrator = Annotated[str, Depends(administrator)]


@router.post(
    "/keys",
    status_code=201,
    summary="Make an API key",
    responses={413: PROBLEM_RESPONSES[413]},
    openapi_extra=json_only(KeyRequest),
)
@access("admin")
async def create_key(request: Request, response: Response, service: Running, by: Administrator) -> NewKey:
    """The answer holds the key; it is shown this once, and only a hash of it is kept."""
    wanted = await json_body(request, KeyRequest, service.settings)
    row, key = await run_sync(
        lambda: make_key(service.store, name=wanted.name, scopes=wanted.scopes, days=wanted.expires_days)
    )
    await run_sync(lambda: service.keys.refresh(at_once=True))
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return NewKey(**_facts(row).model_dump(), key=key)


@router.get("/keys", summary="List the API keys")
@access("admin")
def list_keys(service: Running, by: Administrator) -> Keys:
    """All keys, oldest first, without their secrets."""
    return Keys(keys=[_facts(row) for row in service.store.keys()])


@router.delete("/keys/{key_id}", summary="Revoke an API key", responses={404: PROBLEM_RESPONSES[404]})
@access("admin")
def revoke_key(key_id: str, service: Running, by: Administrator) -> Key:
    """The key is refused from now on. A key does not revoke itself, so that one administrator stays."""
    if key_id == by:
        raise ProblemError(
            403,
            "own-key",
            "A key does not revoke itself.",
            remedy="Use another administrator's key, or on the service's machine: lejepa-med key revoke ID",
        )
    row = service.store.revoke_key(key_id)
    if row is None:
        raise not_found("key", remedy="GET /v1/keys lists the keys.")
    service.keys.refresh(at_once=True)
    return _facts(row)


@router.get("/audit", summary="Who did what")
@access("admin")
def list_audit(
    service: Running,
    since: datetime | None = None,
    until: datetime | None = None,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=MANY)] = 100,
) -> Audit:
    """Requests that changed something or were refused, newest first: never their contents. `next` is the next page."""
    first, last = (None if at is None else _seconds(at) for at in (since, until))
    rows = service.store.audit(limit=limit, since=first, until=last, before=before)
    given = "".join(f"&{name}={at:.6f}" for name, at in (("since", first), ("until", last)) if at is not None)
    more = f"/v1/audit?limit={limit}&before={rows[-1].id}{given}" if len(rows) == limit else None
    return Audit(lines=[_line(row) for row in rows], next=more)


def _facts(row: KeyRow) -> Key:
    return Key.model_validate(
        {
            "id": row.id,
            "name": row.name,
            "scopes": row.scopes,
            **{
                name: None if at is None else _time(at)
                for name, at in (
                    ("created", row.created),
                    ("expires", row.expires),
                    ("revoked", row.revoked),
                    ("last_used", row.last_used),
                )
            },
        }
    )


def _line(row: AuditRow) -> AuditLine:
    return AuditLine(
        id=row.id,
        at=_time(row.at),
        key_id=row.key_id,
        action=row.action,
        target=row.target,
        status=row.status,
        request_id=row.request_id,
    )


def _seconds(at: datetime) -> float:
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
