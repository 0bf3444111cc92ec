"""When the next evaluation during training is due: never more than a share of the run's time."""

import time
from collections.abc import Callable

from lejepa_med.config import MonitorConfig


class Spacing:
    """Keeps `spent <= share * elapsed`, counting the evaluation about to start at the cost of the last one.

    The first one's cost comes from `estimate`. Time is counted from the start of this session of the run.
    """

    def __init__(self, config: MonitorConfig, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.config, self.clock = config, clock
        self.started = clock()
        self.spent = 0.0
        self.cost: float | None = None
        self._epoch = 0.0
        self._time = self.started

    def resume(self, epoch: float) -> None:
        """Start at this epoch."""
        self._epoch = epoch

    def estimate(self, seconds: float, *, share: float) -> None:
        """`seconds` were spent on that share of a first evaluation."""
        self.spent += seconds
        self.cost = seconds * max(0.0, 1 / share - 1)

    def allowance(self) -> float:
        """Seconds that may be spent now."""
        return self.config.share * (self.clock() - self.started) - self.spent

    def due(self, epoch: float) -> bool:
        """Whether the interval has passed and the share is kept."""
        c = self.config
        if not c.online or c.share == 0 or self.cost is None or self.cost > self.allowance():
            return False
        return epoch - self._epoch >= c.every_epochs and self.clock() - self._time >= 60 * c.every_minutes

    def done(self, seconds: float, *, epoch: float) -> None:
        """An evaluation took `seconds`."""
        self.spent += seconds
        self.cost = seconds
        self._epoch, self._time = epoch, self.clock()
