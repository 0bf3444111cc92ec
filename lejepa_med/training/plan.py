"""How many steps a run has, and where each of them stands in the schedule.

With `train.epochs` the number is fixed. With `train.minutes` it is revised while the run trains, from the pace of its
recent steps, so that the run ends in time whatever else the machine does. The schedule then runs over a *progress* from
0 to 1, which every step advances by an equal share of what is left: a revision changes how fast the progress moves, but
never moves it. So the learning rate has no jump, and the last step always has the last learning rate.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning_fabric as lightning
import torch

POSITIONS = 1_000_000  # of the schedule of a run by minutes: fine enough for every number of steps
PROVISIONAL = 1_000  # steps assumed before the first one is timed
COLD = 2  # the first steps of a session pay for memory, kernels and compilation
COLD_FACTOR = 3  # so a plan made from them alone takes a step to be so much faster later
SPANS = 10  # the pace is a mean over so many spans between two looks at the clock
SPAN_SHARE, SPAN_SECONDS = 0.01, 5.0  # a span is this share of the minutes long, and no longer than this
ENDINGS, ENDING_SHARE = 5, 0.5  # how often the end is measured, and what it may take of the minutes at most
AIM = 0.98  # share of the minutes that is planned: other work that comes at the end can only delay it
TOLERANCE = 0.05  # a plan stays while it is within this share of the steps that are left
LANDING = 0.01  # share of the finished steps over which a schedule may end at the shortest: no jump even when late
SAID_STEPS, SAID_CHANGE, SAID_SHARE = 8, 0.2, 0.1  # when a plan is printed first, and when a change of it is


class Revision(NamedTuple):
    """`steps` were planned in all when `step` of them were finished, after `seconds` of training."""

    step: int
    steps: int
    seconds: float


class Plan:
    """The steps of a run and its training time, over all sessions; the clock of this session starts here.

    Args:
        minutes: what the run may take; None: the number of steps is fixed, and the loop sets it.
        clock: seconds.
    """

    def __init__(self, minutes: float | None = None, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.minutes, self.clock = minutes, clock
        self.announced = 0  # steps of the plan that the log printed first
        self.endings: list[float] = []  # what the run's end will take, in steps: a busy machine slows down both
        self.revisions: list[Revision] = [Revision(0, 0 if minutes is None else PROVISIONAL, 0.0)]
        self._reached = 0.0  # progress at the last revision
        self._began = clock()

    @property
    def steps(self) -> int:
        """Of the whole run, as planned now."""
        return self.revisions[-1].steps

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self.clock() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Of the promised minutes; None where the steps are fixed."""
        return None if self.minutes is None else self.minutes * 60 - self.seconds

    def fix(self, steps: int) -> None:
        """Set the steps of a run by epochs."""
        self.revisions = [Revision(0, steps, 0.0)]

    def end(self, step: int) -> None:
        """Finish after `step` steps, wherever the schedule stands."""
        self.revisions.append(Revision(step, step, self.seconds))

    def revise(self, revision: Revision) -> None:
        """Spread what is left of the schedule over another number of steps."""
        self._reached = self.progress(revision.step)
        self.revisions.append(revision)

    def progress(self, done: int) -> float:
        """Share of the schedule that `done` finished steps have covered; exactly 1 at the end."""
        last = self.revisions[-1]
        if done >= last.steps:
            return 1.0
        return self._reached + (1 - self._reached) * (done - last.step) / (last.steps - last.step)

    def position(self, step: int) -> tuple[int, int]:
        """Where step `step` (from 0) stands in the schedule, and how long that is, as `learning_rate` takes them."""
        if self.minutes is None:
            return step, self.steps
        return max(0, round(self.progress(step + 1) * POSITIONS) - 1), POSITIONS

    def outcome(self) -> str:
        """What was planned, and what became of it."""
        first = f": {self.announced:,} steps" if self.announced else ""
        return f"planned {self.minutes:g} minutes{first}; took {self.seconds / 60:.2f} minutes: {self.steps:,} steps"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON; nothing of a run by epochs."""
        if self.minutes is None:
            return {}
        return {
            "seconds": self.seconds,
            "announced": self.announced,
            "endings": self.endings,
            "revisions": self.revisions,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint: the schedule where it was, and its training time before that of this session."""
        if not saved:
            return
        _, *revisions = (Revision(*values) for values in saved["revisions"])
        for revision in revisions:  # in turn, so that the progress is the same number to the last bit
            self.revise(revision)
        self.announced, self.endings = saved["announced"], saved["endings"]
        self._began -= saved["seconds"]


class Pace:
    """Seconds of a step: the mean over the recent spans but the slowest, which had a hiccup or a checkpoint."""

    def __init__(self) -> None:
        self.spans: deque[tuple[int, float]] = deque(maxlen=SPANS)
        self.steps = 0

    def add(self, steps: int, seconds: float) -> None:
        """`steps` took `seconds`, with the waiting for data and all that the loop did between them."""
        if self.steps <= COLD < self.steps + steps:
            self.spans.clear()
        self.steps += steps
        self.spans.append((steps, seconds))

    @property
    def warm(self) -> bool:
        """Whether a step after the first ones is timed."""
        return self.steps > COLD

    @property
    def seconds(self) -> float:
        """The estimate; before there is a warm step, a part of the faster cold one."""
        ordered = sorted(self.spans, key=lambda span: span[1] / span[0])
        if not self.warm:
            return ordered[0][1] / ordered[0][0] / COLD_FACTOR
        kept = ordered[: max(1, len(ordered) - 1)] if len(ordered) > 2 else ordered
        return sum(seconds for _, seconds in kept) / sum(steps for steps, _ in kept)


def steps_that_fit(*, done: int, planned: int, seconds: float, pace: float) -> int:
    """Steps in all when `done` of `planned` are finished, `seconds` are left and a step takes `pace`.

    At least one more; and where time is over, as many as the schedule needs to end without a jump.
    """
    landing = min(planned - done, math.ceil(LANDING * done))
    return done + max(1, landing, round(seconds / pace))


def seconds_for_steps(minutes: float, *, left: float, ending: float) -> float:
    """Of the seconds `left` of a run of so many minutes, those that steps may take; its end takes `ending` seconds."""
    return left - (1 - AIM) * 60 * minutes - min(ending, ENDING_SHARE * minutes * 60)


class Planner:
    """Revises the plan of a run by minutes. Rank 0 measures and decides; all ranks change their plan at one step.

    Args:
        fabric: of the run.
        plan: of the run; one by epochs is left alone.
        ending: measures what the end of the run will take after its last step, in seconds; called on rank 0.
        say: prints a line.
    """

    def __init__(
        self, fabric: lightning.Fabric, plan: Plan, *, ending: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self.fabric, self.plan, self.say = fabric, plan, say
        self.pace = Pace()
        self._measure_ending = ending
        self._check = self._looked = -1  # after which step to look next, and looked last
        self._time = plan.clock()
        self._said = (plan.steps if plan.announced else 0, plan.seconds)

    def after(self, step: int) -> None:
        """Look at the clock after `step` finished steps if that is due; every rank calls this after every step."""
        if self.plan.minutes is None or step == self.plan.steps:
            return
        if self._looked < 0:  # the first step of this session
            self._looked = step - 1
        if step < self._check:
            return
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()
        found = self._decide(step) if self.fabric.is_global_zero else None
        if self.fabric.world_size > 1:
            found = self.fabric.broadcast(found)
        assert found is not None
        revision, self._check = found
        if revision is not None:
            self.plan.revise(Revision(*revision))

    def _decide(self, step: int) -> tuple[Revision | None, int]:
        """The revision where one is needed, and after which step to look again."""
        now, plan, seconds = self.plan.clock(), self.plan, self.plan.seconds
        assert plan.minutes is not None and plan.seconds_left is not None
        self.pace.add(step - self._looked, now - self._time)
        self._looked = step
        pace = self.pace.seconds
        if len(plan.endings) < ENDINGS and self.pace.warm:
            plan.endings.append(self._measure_ending() / pace)
        ending = statistics.median(plan.endings) * pace if plan.endings else 0.0
        left = seconds_for_steps(plan.minutes, left=plan.seconds_left, ending=ending)
        steps = steps_that_fit(done=step, planned=plan.steps, seconds=left, pace=pace)
        provisional = len(plan.revisions) == 1
        close = abs(steps - plan.steps) <= TOLERANCE * (plan.steps - step)
        kept = not provisional and (close or not self.pace.warm)
        steps = plan.steps if kept else steps
        self._announce(step, steps, pace)
        span = min(SPAN_SHARE * plan.minutes * 60, SPAN_SECONDS) / pace
        check = step + max(1, min(int(span), (steps - step) // 4)) if self.pace.warm else step + 1
        self._time = self.plan.clock()  # without the time of measuring the end
        return None if kept else Revision(step, steps, seconds), check

    def _announce(self, step: int, steps: int, pace: float) -> None:
        """Print the first plan, and one that differs much from what was printed last."""
        plan, (said, when) = self.plan, self._said
        assert plan.minutes is not None
        text = f"planned {plan.minutes:g} minutes: {steps:,} steps"
        if not said and self.pace.steps >= SAID_STEPS:
            plan.announced = steps
            self.say(f"{text} ({pace:.2f} s each)")
        elif said and abs(steps - said) > SAID_CHANGE * said and plan.seconds - when > SAID_SHARE * plan.minutes * 60:
            self.say(f"{text}, in place of {said:,}, since a step takes {pace:.2f} s now")
        else:
            return
        self._said = (steps, plan.seconds)
