"""How far a scan is: one look at and one check of every file."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


class Meter:
    """Counts files and tells `progress` (files done, files in all)."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.total = self._looked = self._checked = 0

    def looked(self) -> None:
        """One more file was looked at."""
        self._looked += 1
        self._tell()

    def checked(self, files: int = 1) -> None:
        """A record of so many files was checked, or a file refused."""
        self._checked += files
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:  # many items of one file count once
            done = min(self._looked, self.total) + min(self._checked, self.total)
            self.progress(min(self.total, done // 2), self.total)
