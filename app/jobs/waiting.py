"""Requests that wait for the end of a job: one look at the database every 50 ms serves them all."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.middleware import WAITED
from app.store import UNFINISHED

LOOK_SECONDS = 0.05  # between two looks: the most that an end is heard of late
AWAY_SECONDS = 0.5  # after which a request notices that its client has gone, or that the service is to end
MOST = 256  # requests that wait at the same time; further ones are answered at once, as if they had not asked to wait

States = Callable[[Sequence[str]], Mapping[str, tuple[str, str]]]
"""(kind, state) of those of the jobs that exist: `Store.job_states`."""


class JobWaits:
    """All requests of one process that wait; of its event loop only."""

    def __init__(self, states: States) -> None:
        self._states = states
        self._events: dict[str, set[asyncio.Event]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def until_ended(self, job_id: str, request: Request, seconds: float) -> None:
        """Return when the job has ended or is gone; at the latest after `seconds`, or when nobody waits any more."""
        if sum(map(len, self._events.values())) >= MOST:
            return
        began, event = time.monotonic(), asyncio.Event()
        self._events.setdefault(job_id, set()).add(event)
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        try:
            while (rest := began + seconds - time.monotonic()) > 0:
                if request.app.state.drain.since is not None or await request.is_disconnected():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(rest, AWAY_SECONDS))
                    return
        finally:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]
            request.scope[WAITED] = time.monotonic() - began

    async def _watch(self) -> None:
        while self._events:
            await asyncio.sleep(LOOK_SECONDS)
            ids = list(self._events)
            try:
                states = await run_in_threadpool(self._states, ids)
            except Exception:  # the database is away: each request finds out by itself, and answers 503
                states = {}
            for job_id in ids:
                if states.get(job_id, ("", ""))[1] not in UNFINISHED:
                    for event in self._events.get(job_id, ()):
                        event.set()
        self._watcher = None
