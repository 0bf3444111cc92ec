"""API keys: their form, how they are made, and how the key in a request is checked.

A key is `lj_ID_SECRET`: 64 random bits that name it, and 256 random bits of which only the SHA-256 is stored. Nobody
can guess so many random bits, so the hash needs neither a salt nor a slow function.
"""

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.store import KeyRow, Store, now, open_store
from data_adapters.errors import UserError
from lejepa_med.client.wire.common import Scope

SCOPES: tuple[Scope, ...] = get_args(Scope)
FORM = re.compile(r"lj_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()  # compared with when no key has the id
KNOWN_SECONDS = 1.0  # keys are read again after this time, so a revocation by another process takes effect within it
USED_SECONDS = 60.0  # the use of a key is written at most this often


def make_key(
    store: Store, *, name: str, scopes: Collection[Scope], days: float | None = None, key_id: str | None = None
) -> tuple[KeyRow, str]:
    """Make a key; return its row, and the key itself, which is stored nowhere.

    Args:
        store: where the row goes.
        name: whose key it is, 1 to 120 characters; administrators see it.
        scopes: what it may do, one at least; admin includes the others.
        days: time until it expires; None: never.
        key_id: 16 hexadecimal digits; None: random ones.
    """
    key_id, secret = key_id or secrets.token_hex(8), secrets.token_urlsafe(32)
    at = now()
    row = KeyRow(
        id=key_id,
        name=name,
        secret_sha256=_digest(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        created=at,
        expires=None if days is None else at + days * 86_400,
        revoked=None,
        last_used=None,
    )
    store.add_key(row)
    return row, f"lj_{key_id}_{secret}"


class KeyRing:
    """All keys, read at most once a second.

    It holds all keys, not only those that were asked for. So an unknown id is checked in the same way, and in the same
    time, as a known id with a wrong secret. `refresh` blocks while it reads the keys: call it on a thread.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, KeyRow] = {}
        self._read = -KNOWN_SECONDS
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def is_fresh(self) -> bool:
        """Whether a check needs no database now."""
        return time.monotonic() - self._read < KNOWN_SECONDS

    def refresh(self, *, at_once: bool = False) -> None:
        """Read the keys, unless they were read within the last second; `at_once` after a change by this process.

        Raises:
            ProblemError: 503, the database is away; keys that were read before do not count then.
        """
        with self._lock:
            if at_once or not self.is_fresh:
                started = time.monotonic()
                self._rows = {row.id: row for row in self._store.keys()}
                self._read = started

    def __len__(self) -> int:
        """Number of keys that were ever made. From the first one on, the service asks for keys."""
        return len(self._rows)

    def check(self, given: str) -> KeyRow:
        """Return the row of the key that was sent; call `refresh` before.

        Raises:
            ProblemError: 401, the key is unknown, revoked or expired.
        """
        match = FORM.fullmatch(given)
        key_id, secret = match.groups() if match else ("", given)
        row = self._rows.get(key_id)
        if not hmac.compare_digest(_digest(secret), NOBODY if row is None else row.secret_sha256) or row is None:
            raise unauthorized("invalid-key", "This API key is not known.", error="invalid_token")
        if row.revoked is not None:
            raise unauthorized("revoked-key", "This API key was revoked.", error="invalid_token")
        if row.expires is not None and row.expires <= now():
            raise unauthorized("expired-key", "This API key has expired.", error="invalid_token")
        return row

    def note_use(self, key_id: str) -> bool:
        """Return whether to write down a key's use now: at most once a minute."""
        at = time.monotonic()
        if at - self._used.get(key_id, -USED_SECONDS) < USED_SECONDS:
            return False
        self._used[key_id] = at
        return True


def unauthorized(kind: str, detail: str, *, error: str | None = None) -> ProblemError:
    """401, with the challenge of RFC 6750."""
    challenge = 'Bearer realm="lejepa-med"' + (f', error="{error}"' if error else "")
    remedy = (
        "Send a key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'; the operator makes one with: "
        "lejepa-med key create NAME --scopes embed"
    )
    return ProblemError(401, kind, detail, remedy=remedy, headers={"WWW-Authenticate": challenge})


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


# --- commands of the operator -----------------------------------------------------------------------------------------


def create(
    *, name: str, scopes: Sequence[str], days: float | None = None, data_dir: Path | None = None
) -> tuple[str, str]:
    """Make a key in the service's store, whether the service runs or not; return the key, and where its hash is stored.

    Raises:
        UserError: a scope or the name is wrong, or the store cannot be opened.
    """
    wrong = [scope for scope in scopes if scope not in SCOPES]
    if wrong or not scopes:
        raise UserError(
            f"'{wrong[0]}' is no scope." if wrong else "A key needs a scope.",
            remedy=f"Give one or more of --scopes {','.join(SCOPES)}; admin includes the others.",
        )
    if not 1 <= len(name.strip()) <= 120:
        raise UserError("A key's name has 1 to 120 characters.", remedy="Say whose key it is, such as 'pacs-gateway'.")
    settings = Settings(data_dir=data_dir)
    with closing(open_store(settings)) as store:
        row, key = make_key(store, name=name.strip(), scopes=[s for s in SCOPES if s in scopes], days=days)
        store.add_audit("lejepa-med key create", status=0, key_id=None, target=row.id)
    return key, "the database of LEJEPA_DATABASE_URL" if settings.database_url else str(settings.data)


def listed(*, data_dir: Path | None = None) -> list[KeyRow]:
    """All keys of the service's store.

    Raises:
        UserError: the store cannot be opened.
    """
    with closing(open_store(Settings(data_dir=data_dir))) as store:
        return store.keys()


def revoke(key_id: str, *, data_dir: Path | None = None) -> KeyRow:
    """Revoke a key; a running service refuses it within a second.

    Raises:
        UserError: there is no such key, or the store cannot be opened.
    """
    with closing(open_store(Settings(data_dir=data_dir))) as store:
        row = store.revoke_key(key_id)
        if row is None:
            raise UserError("There is no such key.", remedy="lejepa-med key list shows the ids.")
        store.add_audit("lejepa-med key revoke", status=0, key_id=None, target=row.id)
    return row
