"""Maps of embedding tables: (N, 2) float32 points of each method, kept in maps/KEY/ of the data directory.

KEY names the content of a table, so a map of a table that was written anew is never shown; `Indexes` removes it.
"""

import threading
from pathlib import Path

import numpy as np

from app.core.settings import Settings
from app.vectors.indexes import Indexes
from data_adapters.atomic import new_file
from lejepa_med.client.wire.images import MapMethod
from lejepa_med.search.base import Base
from lejepa_med.search.projection import Progress, framed, neighbour_embedding, principal

FOLDER = "maps"


class Maps:
    """Reads and makes maps. Methods block; call them on threads."""

    def __init__(self, settings: Settings, search: Indexes) -> None:
        self._folder = settings.data / FOLDER
        self._search = search
        self._making = threading.Lock()  # several people open a new archive's map at the same time

    def key(self, name: str) -> str:
        """The name of a table's content; ProblemError as `Indexes.base`."""
        return self._search.key(name)

    def has(self, key: str, method: MapMethod) -> bool:
        """Whether a map is there."""
        return self._file(key, method).is_file()

    def points(self, base: Base, method: MapMethod) -> np.ndarray:
        """The points of a table's map, (N, 2) little-endian float32 in [-1, 1]; those of "pca" are made if absent.

        Raises:
            FileNotFoundError: the neighbour embedding has not been made.
        """
        file = self._file(base.key, method)
        if method == "pca" and not file.is_file():
            with self._making:
                if not file.is_file():
                    _write(file, principal(base.vectors))
        found: np.ndarray = np.load(file, allow_pickle=False)
        return found

    def make(self, base: Base, *, progress: Progress) -> None:
        """Make the neighbour embedding of a table, once."""
        if not self.has(base.key, "tsne"):
            _write(self._file(base.key, "tsne"), neighbour_embedding(base.vectors, progress=progress))

    def _file(self, key: str, method: MapMethod) -> Path:
        return self._folder / key / f"{method}.npy"


def _write(file: Path, points: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with new_file(file) as draft, draft.open("wb") as stream:
        np.save(stream, framed(points))
