"""uvicorn, with a drain between the signal and the end."""

import signal
from types import FrameType

import uvicorn

from app.middleware import Drain

FLUSH_SECONDS = 2  # for the last bytes of answers, after the drain
STOP_SECONDS = 7  # for jobs and threads, after that; or for a start that hangs


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
