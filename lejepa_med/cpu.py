"""How PyTorch uses a CPU: its threads and how they wait, adapted to what else runs on the machine; freed memory.

Threads share each operator in equal parts and meet at its end. Where another process holds one of their cores, all wait
for the late thread, and they wait by spinning, which takes time from it. So two threads beside one busy process are
slower than one thread (benchmarks/results/contention-cpu.md).
"""

import ctypes
import os
import sys
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import torch

from data_adapters.machine import Machine, free_cores

FIRST_LOOK, LOOK = 0.5, 2.0  # seconds between two readings of the load
QUIET, BUSY = 0.2, 0.35  # missing cores at which a load ends and begins; a system uses some by itself
WORTH = 0.75  # missing cores; beside more, all threads that spin are never the fastest
CHANGED = 0.5  # cores by which another load differs
AGAIN = 60.0  # seconds until the choices are compared again under the same load, and ten times what that took
ROUNDS, UNITS, SECONDS = 2, 2, 0.3  # of a comparison; each choice gets so many units and seconds in a round, at least
BETTER = 0.95  # a choice replaces the present one when it needs less than this part of its time
MOST_WORKERS = 8  # each needs a few hundred MB
ALIKE = 0.8  # units compared differ in size by this factor at most
STRANGERS = 50  # units of other sizes after which a comparison is given up


class Choice(NamedTuple):
    """A number of threads, and whether they sleep at once when they wait for each other."""

    threads: int
    sleep: bool = False


class Threads:
    """Chooses the threads of torch's operators. Call `step` after each unit of work inside the `with` block.

    On a quiet machine all usable cores compute and nothing is tried. Where other processes (loader workers are such)
    leave fewer, a few units are timed with each sensible choice, and the fastest holds until the load changes or a
    minute has passed. A given count holds for ever, and so do OMP_NUM_THREADS and MKL_NUM_THREADS.

    Another number of threads changes the order of sums, so results differ by float rounding. The way of waiting changes
    no result.
    """

    def __init__(
        self,
        given: int | None = None,
        *,
        active: bool = True,
        ranks: int = 1,
        most: int | None = None,
        machine: Machine | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Change nothing yet.

        Args:
            given: a fixed count.
            active: False where a GPU computes.
            ranks: processes on this machine that work at one pace and share its cores. They compare nothing.
            most: threads at most; None: as many as torch has now.
            machine: where cores and load are read.
            clock: gives seconds.
        """
        self._machine, self._clock, self._compare = machine or Machine(), clock, ranks == 1
        self._before = torch.get_num_threads()
        fixed = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        self.automatic = given is None and active and not fixed
        self._most = given or self._before
        if self.automatic:
            self._most = max(1, min(most or self._before, self._machine.cores // ranks))
        self.choice = self._settled = Choice(self._most)
        self._team = _IdleTeam(self._machine.cpus)
        self._comparison: _Comparison | None = None
        self._again = 0.0  # when the choices are compared again
        self._load: float | None = None  # cores that were missing at the present choice; None: no load, or not read yet
        self._fresh = False  # whether the present choice was compared, and its load is still to be read
        self._odd = 0  # readings in a row that do not fit the present choice
        self._told = self._most
        self._since = self._looked = clock()
        self._pause, self._read = FIRST_LOOK, self._machine.read()

    def __enter__(self) -> Self:
        torch.set_num_threads(self.choice.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._team.end()
        torch.set_num_threads(self._before)

    @property
    def count(self) -> int:
        """Threads of the next unit."""
        return self.choice.threads

    def begin(self) -> None:
        """Start a unit where the time since the last one was no work, or another thread of Python did that one."""
        self._since = self._clock()
        torch.set_num_threads(self.choice.threads)  # PyTorch keeps the number for each thread of Python

    def step(self, size: int = 1) -> str:
        """Note that a unit of work is done, and choose for the next one.

        Args:
            size: of the unit, such as its number of images. Units of about one size are compared, by time an image.

        Returns:
            A sentence where another count holds from now on, else nothing.
        """
        now = self._clock()
        seconds, self._since = now - self._since, now
        if not self.automatic or self._most == 1:
            return ""
        if self._comparison is not None:
            self._compared(self._comparison, now, seconds, size)
        elif now - self._looked >= self._pause:
            self._look(now, size)
        if self._comparison is not None or self.count == self._told:
            return ""
        why = "the fastest beside what else runs on this machine" if self._fresh else "since the cores are free again"
        text = f"CPU threads: {self.count} instead of {self._told}, {why}."
        self._told = self.count
        return text

    def started(self, saved: int | None) -> str:
        """What to say at the start of a run whose interrupted part ended with `saved` threads; None: a new run."""
        text = ""
        if self.automatic and self._most > 1:
            text = f"CPU threads: {self._most}, fewer while other processes need the cores."
        if saved is not None and saved != self.count:
            text = text or f"CPU threads: {self.count}."
            text += f" The interrupted part ended with {saved}, so results agree with it only up to float rounding."
        return text

    def _look(self, now: float, size: int) -> None:
        """Read the load, and begin a comparison where it is another one than before."""
        reading = self._machine.read()
        free = self._machine.free(self._read, reading)
        self._looked, self._pause, self._read = now, LOOK, reading
        if free is None:
            return
        missing = self._most - free
        if missing < (BUSY if self._settled == Choice(self._most) and self._load is None else QUIET):
            self._odd += 1
            if self._odd > 1:  # a pause of a neighbour is no end of the load
                self._load, self._fresh, self._odd = None, False, 0
                self._settle(Choice(self._most))
            return
        if not self._compare:
            self._load, self._odd = missing, 0
            self._settle(Choice(self._most, sleep=True))
            return
        if self._fresh:
            self._load, self._fresh = missing, False
        self._odd = self._odd + 1 if self._load is not None and abs(missing - self._load) > CHANGED else 0
        if self._load is None or self._odd > 1 or now >= self._again:
            self._odd = 0
            self._comparison = _Comparison(choices(self._most, free), size=size, began=now)
            self._apply(self._comparison.left.popleft())

    def _compared(self, comparison: "_Comparison", now: float, seconds: float, size: int) -> None:
        """Take a unit into the comparison; at its end the fastest choice holds."""
        if not ALIKE * comparison.size <= size <= comparison.size / ALIKE:
            comparison.strangers += 1
            if comparison.strangers < STRANGERS:
                return
        elif not comparison.add(self.choice, seconds, size):
            return
        elif comparison.left:
            self._apply(comparison.left.popleft())
            return
        self._settle(comparison.fastest(self._settled))
        self._comparison, self._load, self._fresh = None, None, True
        self._again = now + max(AGAIN, 10 * (now - comparison.began))
        self._looked, self._read = now, self._machine.read()

    def _settle(self, choice: Choice) -> None:
        self._settled = choice
        self._apply(choice)

    def _apply(self, choice: Choice) -> None:
        if choice != self.choice:
            self.choice = choice
            torch.set_num_threads(choice.threads)
            self._team.set(choice.sleep)


def loader_workers(given: int | None, *, on_gpu: bool = False, ranks: int = 1) -> int:
    """Processes that read ahead: `given`, or chosen from the cores that are free now.

    Beside a CPU that trains, half of them, since workers take from the threads whatever they use. One keeps up as long
    as reading costs less than computing. Beside a GPU, all but one.
    """
    if given is not None:
        return given
    free = free_cores() // ranks
    return max(1, min(MOST_WORKERS, free - 1 if on_gpu else free // 2))


def choices(most: int, free: float) -> list[Choice]:
    """What is worth a trial where `free` cores are left: all threads asleep while they wait, or one for each free core.

    All threads win a larger share of the cores beside many neighbours; the free cores alone win beside few.
    """
    fitting = max(1, min(most, int(free + 0.5)))
    found = [Choice(most, sleep=True), Choice(fitting), Choice(fitting, sleep=True)]
    if most - free < WORTH:
        found.append(Choice(most))
    return list(dict.fromkeys(choice if choice.threads > 1 else Choice(1) for choice in found))


class _Comparison:
    """Units timed with several choices in turn."""

    def __init__(self, found: Iterable[Choice], *, size: int, began: float) -> None:
        self.left = deque(list(found) * ROUNDS)
        self.size, self.began, self.strangers = size, began, 0
        self._turn: list[tuple[float, int]] = []  # seconds and sizes of the units of the present turn
        self._seconds: dict[Choice, list[float]] = defaultdict(list)

    def add(self, choice: Choice, seconds: float, size: int) -> bool:
        """Take a unit; returns whether this choice's turn is over."""
        self._turn.append((seconds, size))
        timed = self._turn[1:]  # the first unit after a change starts threads and prepares kernels
        if len(timed) < UNITS or sum(seconds for seconds, _ in timed) < SECONDS:
            return False
        self._seconds[choice] += [seconds / size for seconds, size in timed]
        self._turn = []
        return True

    def fastest(self, present: Choice) -> Choice:
        """The choice with the least time a unit; the present one unless another is clearly faster."""
        # without the slowest, which may hold a checkpoint or an evaluation
        means = {choice: sum(sorted(seconds)[:-1]) / (len(seconds) - 1) for choice, seconds in self._seconds.items()}
        best = min(means, key=means.__getitem__, default=present)
        return best if present not in means or means[best] < BETTER * means[present] else present


class _IdleTeam:
    """A second team of threads that does nothing, so that GNU OpenMP counts more threads than cores.

    There a waiting thread looks 100 times before it sleeps, instead of 300,000 times (see GOMP_SPINCOUNT in libgomp's
    manual). The environment variables for this are read once, when torch is imported; a team can come and go. With
    other OpenMP libraries it changes nothing.
    """

    def __init__(self, threads: int) -> None:
        self._threads = max(2, threads)
        self.end: Callable[[], object] = lambda: None

    def set(self, there: bool) -> None:
        """Start or end the team."""
        self.end()
        if there:
            end, ready = threading.Event(), threading.Event()
            threading.Thread(target=_idle, args=(self._threads, ready, end), daemon=True).start()
            ready.wait()
            self.end = weakref.finalize(self, end.set)


def _idle(threads: int, ready: threading.Event, end: threading.Event) -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.zeros(threads << 16).sum()  # large enough that each thread of the team gets a part
    torch.set_num_threads(usual)  # what new threads of Python begin with
    ready.set()
    end.wait()


# mallopt's numbers in glibc's malloc.h, and sizes that no activation reaches
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
TRIM, MMAP = 2**31 - 1, 2**30  # bytes


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next pass, and say whether it will.

    By default it returns blocks above 32 MiB to the system and asks for them again in the next step or batch, which
    then fills each page with zeros: 90,000 page faults a step of resnet18 at 4 x 64 views of 64 px, and two fifths of
    the time of embedding with eight views (benchmarks/cpu_settings.py). Other threads than the first would still do so
    above 64 MiB, so threads that start from now on share its memory. Elsewhere than on Linux with glibc nothing is
    done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = {M_MMAP_THRESHOLD: MMAP, M_TRIM_THRESHOLD: TRIM, M_ARENA_MAX: 1}
    return mallopt is not None and all([mallopt(*setting) for setting in wanted.items()])
