"""What the runs directory offers: encoders and embedding tables, found anew at each call, so new runs appear."""

import json
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import ProblemError, log_unexpected, not_found
from app.inference import Batcher, EncoderCache
from app.settings import Settings
from data_adapters.errors import UserError
from lejepa_med.embed import DONE, EmbeddingTable, find_tables, read_info
from lejepa_med.errors import EncoderError
from lejepa_med.models.folder import INFO, LoadedEncoder, find_encoders, fingerprint, load_encoder

LIST = "GET /v1/encoders lists the encoders."
LIST_TABLES = "GET /v1/archives lists the embedding tables."


class Stamp(NamedTuple):
    """A folder's state: training writes the same folder again at each checkpoint."""

    folder: Path
    mtime_ns: int
    size: int


class Library:
    """Encoders by id, loaded on demand, and embedding tables by name. Its methods block; call them on threads."""

    def __init__(self, settings: Settings) -> None:
        self._runs = settings.runs_dir.resolve()
        self._device = settings.device
        self._cache: EncoderCache[Stamp, LoadedEncoder] = EncoderCache(
            self._load,
            capacity=settings.loaded_encoders,
            queue_items=settings.queue_items,
            batch_images=settings.batch_images,
        )
        self._loadable: dict[Stamp, bool] = {}
        self._tables: dict[Stamp, EmbeddingTable] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the encoders' workers."""
        self._cache.close()

    # --- encoders ---------------------------------------------------------------------------------------------------

    def encoders(self) -> dict[str, Path]:
        """Encoder folders by id. The id is the run's place below the runs directory, in URL-safe letters."""
        return _ids(find_encoders(self._runs), self._runs, inner="encoder") if self._runs.is_dir() else {}

    def encoder(self, encoder_id: str | None) -> tuple[str, LoadedEncoder, Batcher]:
        """An encoder by id, or the only one where no id is given.

        Raises:
            ProblemError: 404, no such encoder.
            UserError: none or several are there and no id is given; or the folder cannot be loaded.
        """
        known = self.encoders()
        if encoder_id is None:
            if len(known) != 1:
                raise UserError(
                    f"The service has {len(known)} encoders, so the request must name one.",
                    remedy=f"Give the field 'encoder'. {LIST}"
                    if known
                    else "The operator puts a run folder with an encoder into the runs directory.",
                )
            encoder_id = next(iter(known))
        if encoder_id not in known:
            raise not_found("encoder", remedy=LIST)
        encoder, batcher = self._cache.get(_stamp(known[encoder_id], INFO))
        return encoder_id, encoder, batcher

    def info(self, folder: Path) -> dict[str, Any]:
        """lejepa_med.json of an encoder folder; empty where it is damaged or its weights are missing."""
        try:
            info = json.loads((folder / INFO).read_bytes())
            fingerprint(info)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return info if (folder / "model.safetensors").is_file() else {}

    def encoder_of(self, wanted: str) -> str | None:
        """The id of the encoder with this fingerprint, or None."""
        for encoder_id, folder in self.encoders().items():
            info = self.info(folder)
            if info and fingerprint(info) == wanted:
                return encoder_id
        return None

    def loadable(self, encoder_id: str, folder: Path) -> bool:
        """Whether the encoder loads; tried once for each state of the folder."""
        stamp = _stamp(folder, INFO)
        if stamp not in self._loadable:
            try:
                self._cache.get(stamp)
            except Exception as error:  # whatever is wrong with a folder, the service must go on with the others
                log_unexpected(error)
                self._loadable[stamp] = False
        return self._loadable[stamp]

    def _load(self, stamp: Stamp) -> LoadedEncoder:
        try:
            encoder = load_encoder(stamp.folder, device=self._device)
        except UserError as error:  # an adapter that is not installed here, say: its words are for the operator
            raise EncoderError(error.cause, remedy=error.remedy) from error
        self._loadable[stamp] = True
        return encoder

    # --- embedding tables -------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, Path]:
        """Embedding tables by name."""
        return _ids(find_tables(self._runs), self._runs) if self._runs.is_dir() else {}

    def table_infos(self) -> dict[str, dict[str, Any]]:
        """embedding.json of every finished table, by name."""
        found = {}
        for name, folder in self.tables().items():
            try:
                found[name] = read_info(folder)
            except UserError:
                continue  # removed, or written anew, at this moment
        return found

    def table_stamp(self, name: str) -> Stamp:
        """Folder and state of a table by name.

        Raises:
            ProblemError: 404, no such table.
        """
        folder = self.tables().get(name)
        if folder is None:
            raise not_found("archive", remedy=LIST_TABLES)
        return _stamp(folder, DONE)

    def table(self, name: str) -> EmbeddingTable:
        """A table by name.

        Raises:
            ProblemError: 404, no such table; 422, it cannot be read.
        """
        stamp = self.table_stamp(name)
        with self._lock:
            if stamp not in self._tables:
                while len(self._tables) >= 4:
                    self._tables.pop(next(iter(self._tables)))
                try:
                    self._tables[stamp] = EmbeddingTable.open(stamp.folder)
                except Exception as error:
                    raise unusable(error) from None
            return self._tables[stamp]


def unusable(error: Exception) -> ProblemError:
    """422 for a table that cannot be read; the error's words are for the operator and hold the folder's path."""
    return ProblemError(
        422,
        "archive-unusable",
        "The embedding table cannot be read.",
        remedy="The operator embeds the archive again: lejepa-med embed",
        reference=log_unexpected(error),
    )


def _ids(folders: list[Path], root: Path, *, inner: str = "") -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        place = folder.parent if inner and folder.name == inner and folder != root else folder
        relative = place.resolve().relative_to(root).as_posix() if place.resolve().is_relative_to(root) else place.name
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name if relative == "." else relative).strip("-.") or "run"
        unique, number = name, 2
        while unique in found:
            unique, number = f"{name}-{number}", number + 1
        found[unique] = folder
    return dict(sorted(found.items()))


def _stamp(folder: Path, document: str) -> Stamp:
    try:
        stat = (folder / document).stat()
    except OSError:
        return Stamp(folder, 0, 0)
    return Stamp(folder, stat.st_mtime_ns, stat.st_size)
