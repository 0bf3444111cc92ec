"""The job that makes the neighbour embedding of a table, for its map."""

from collections.abc import Iterator
from functools import partial

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.jobs.base import JobKind, Step, check_unchanged
from app.store import Store
from app.vectors.indexes import Indexes
from app.vectors.maps import FOLDER, Maps

MOST_ROWS = 200_000  # of a map


class MapArchive(JobKind):
    """The points lie in maps/KEY/, with the key of the table's content; nothing lies under the job's id."""

    kind = "map-archive"
    results = FOLDER

    def __init__(self, settings: Settings, store: Store, search: Indexes, maps: Maps) -> None:
        super().__init__(settings, store)
        self._search, self._maps = search, maps

    def steps(self, job_id: str) -> Iterator[Step]:
        """One step, which looks for a cancellation at every tenth iteration."""
        yield partial(self._make, job_id)

    def finish(self, job_id: str) -> None:
        """Give the job its success."""
        self.succeed(job_id, f"/v1/archives/{self.read_plan(job_id)['archive']}/map", ())

    def accept_plan(self, job_id: str, archive: str) -> None:
        """Make the job's inputs durable.

        Raises:
            ProblemError: 404 or 422, no such archive, or one that is too large.
        """
        base = self._search.base(archive)
        if base.rows > MOST_ROWS:
            raise ProblemError(
                422,
                "too-many",
                f"The archive has {base.rows:,} items, and a neighbour embedding is made of {MOST_ROWS:,} at most.",
                remedy="Use the map of principal components, or embed a part of the archive as an archive of its own.",
            )
        draft = self._settings.temporary(job_id)
        draft.parent.mkdir(exist_ok=True)
        self.accept(job_id, draft, {"archive": archive, "key": base.key})

    def unfinished(self, key: str) -> str | None:
        """The job that makes the map of a table's content now, or will."""
        for row in self._store.unfinished():
            if row.kind == self.kind:
                try:
                    if self.read_plan(row.id)["key"] == key:
                        return row.id
                except OSError:
                    continue  # it ended at this moment
        return None

    def _make(self, job_id: str) -> None:
        plan = self.read_plan(job_id)
        base = self._search.base(plan["archive"])
        check_unchanged(plan["key"], base.key, remedy="Ask for the map again.")
        self._maps.make(base, progress=lambda share: self.note_progress(job_id, share, "placing"))
