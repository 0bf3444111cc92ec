"""What happens by itself: uploads that are older than they are kept go, also while nobody asks anything."""

import threading
from collections.abc import Callable

from app.errors import log_unexpected

SECONDS = 600.0


class Sweeper:
    """Calls `sweep` now and every ten minutes, on a thread."""

    def __init__(self, sweep: Callable[[], None], *, seconds: float = SECONDS) -> None:
        self._sweep, self._seconds = sweep, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the sweep that runs."""
        self._end.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while True:
            try:
                self._sweep()
            except Exception as error:  # a database that is away now may be there in ten minutes
                log_unexpected(error)
            if self._end.wait(self._seconds):
                return
