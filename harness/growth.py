"""How much memory this process and all below it take at their most, beyond what they had at the start."""

import threading
from collections import defaultdict
from pathlib import Path

PAUSE = 0.01  # seconds between two looks


class Growth:
    """Within the block a thread looks again and again; `bytes` is the largest growth that it saw.

    Proportional set sizes are summed, so that pages which a forked process shares are counted once. Linux only.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._root = pid
        self.bytes = 0
        self._ended = threading.Event()

    def __enter__(self) -> "Growth":
        self._before = total(self._root)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(PAUSE):
            self.bytes = max(self.bytes, total(self._root) - self._before)


def total(root: int | None = None) -> int:
    """Bytes of the process `root` (by default this one) and of all its descendants."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children[int(after[1])].append(int(stat.parent.name))
    waiting, found = [root or int(Path("/proc/self").resolve().name)], 0
    while waiting:
        pid = waiting.pop()
        waiting += children[pid]
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                if line.startswith("Pss:"):
                    found += int(line.split()[1]) << 10
        except OSError:
            continue
    return found
