"""Limits of one caller: requests and embedded items a minute, unfinished jobs, refused keys.

Token buckets on the monotonic clock: a bucket holds one minute's worth and fills evenly, so it lets a burst pass but
limits the mean. We tried the library `limits` and left it: it reads the wall clock (set back by an hour, it refuses for
an hour), and starts a thread for each single hit (1.8 ms here, against some microseconds).
"""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.core.errors import ProblemError
from app.core.settings import Settings

CALLERS = 10_000  # buckets of one kind that are kept; the one unused longest goes first


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `key_id` is None where nobody is asked for a key; `scopes` then hold admin."""

    key_id: str | None
    scopes: frozenset[str]
    address: str
    limits: "RateLimits | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Name of its buckets."""
        return f"key {self.key_id}" if self.key_id else self.address

    @property
    def is_limited(self) -> bool:
        """Whether limits apply: not to a person at this machine who needs no key."""
        return self.key_id is not None or self.address != "loopback"


_caller: ContextVar[Caller | None] = ContextVar("lejepa_med_caller", default=None)


def begin(caller: Caller) -> None:
    """Set the caller from here on, in this task and the threads that it starts."""
    _caller.set(caller)


def caller() -> Caller | None:
    """Return the caller whose request runs here; None in jobs and at the start."""
    return _caller.get()


def key_id() -> str | None:
    """Return the id of the key whose request runs here."""
    found = _caller.get()
    return found.key_id if found is not None else None


def is_owner(owner: str | None) -> bool:
    """Return whether the caller is the key `owner`, an administrator, or the service itself."""
    found = _caller.get()
    return found is None or "admin" in found.scopes or (owner is not None and owner == found.key_id)


def check_owner(owner: str | None) -> None:
    """Refuse to cancel or remove what another key asked for; administrators may. All keys read all results.

    Raises:
        ProblemError: 403.
    """
    if is_owner(owner):
        return
    raise ProblemError(
        403,
        "other-owner",
        "Another key asked for this, so only that key or an administrator ends it.",
        remedy="Use that key, or ask an administrator.",
    )


@dataclass(frozen=True)
class Left:
    """What is left of a limit: `count` now, all of it again after `seconds`."""

    name: str
    limit: int
    count: int
    seconds: int

    def headers(self) -> dict[str, str]:
        """RateLimit and RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"{self.name}";q={self.limit};w=60',
            "RateLimit": f'"{self.name}";r={self.count};t={self.seconds}',
        }


class Buckets:
    """One limit, counted for each caller on its own. Thread-safe; bounded in memory."""

    def __init__(self, name: str, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.limit = name, per_minute
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was in it, and when
        self._lock = threading.Lock()

    def take(self, who: str, count: int = 1) -> Left:
        """Take `count` out of a caller's bucket.

        A count beyond the whole bucket passes when the bucket is full, and the rest is owed: a request with many items
        must be possible, if rarely.

        Raises:
            ProblemError: 429 with Retry-After, fewer are left.
        """
        at = self._clock()
        pace = self.limit / 60
        with self._lock:
            level, since = self._levels.pop(who, (float(self.limit), at))
            level = min(self.limit, level + (at - since) * pace)
            wanted = min(count, self.limit)
            taken = level >= wanted
            if taken:
                level -= count
            self._levels[who] = (level, at)
            if len(self._levels) > CALLERS:
                self._levels.popitem(last=False)
        left = Left(self.name, self.limit, max(0, math.floor(level)), math.ceil((self.limit - level) / pace))
        if not taken:
            raise self._exhausted(left, wait=math.ceil((wanted - level) / pace))
        return left

    def _exhausted(self, left: Left, *, wait: int) -> ProblemError:
        return ProblemError(
            429,
            "too-many",
            f"More than {self.limit} {self.name} a minute.",
            remedy="Try again after the seconds in Retry-After, and send less often; the operator sets the limit.",
            headers={"Retry-After": str(max(1, wait)), **left.headers()},
        )


class RateLimits:
    """The limits of one process."""

    def __init__(self, settings: Settings) -> None:
        self.requests = Buckets("requests", settings.requests_per_minute)
        self.items = Buckets("items", settings.items_per_minute)
        self.failures = Buckets("refused keys", settings.failures_per_minute)


def charge_items(count: int) -> None:
    """Count the items that the caller embeds in this request. Jobs are not counted, since they wait for each other.

    Raises:
        ProblemError: 429.
    """
    found = _caller.get()
    if found is not None and found.limits is not None and found.limits.items.limit and found.is_limited:
        found.limits.items.take(found.name, count)


def too_many_jobs(limit: int) -> ProblemError:
    """Return the error 429 for a caller with too many unfinished jobs."""
    return ProblemError(
        429,
        "too-many-jobs",
        f"{limit} jobs of this caller have not ended.",
        remedy="Wait until some have ended (GET /v1/jobs), or cancel some; the operator sets the limit.",
        headers={"Retry-After": "30"},
    )


def place(host: str | None) -> str:
    """Return the address under which a client is counted: 'loopback', IPv4, or the /64 network of an IPv6 address."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or "unknown"
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if address.is_loopback:
        return "loopback"
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))
