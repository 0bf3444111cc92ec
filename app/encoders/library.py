"""What there is to work with: encoders and embedding tables, found anew at each call, so new runs appear."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app.core.errors import ProblemError, log_unexpected, not_found
from app.core.settings import Settings
from app.encoders.inference import Batcher, EncoderCache, ServedEncoder, choose_device
from app.store import Store
from data_adapters.errors import UserError
from lejepa_med.errors import EncoderError
from lejepa_med.models.embed import DONE, EmbeddingTable, about, find_tables, read_info
from lejepa_med.models.folder import INFO, LoadedEncoder, find_encoders, fingerprint, load_encoder, way_back
from lejepa_med.models.own import UntrustedCodeError
from lejepa_med.training.folder import read_lines

log = logging.getLogger("lejepa_med.app")
LIST = "GET /v1/encoders lists the encoders."
LISTING_SECONDS = 1.0  # that a request may find an encoder by an earlier look into the runs directory
PUBLIC = ("version", "backbone", "objective", "spec", "formation")  # the rest may name places of the operator's machine
METRICS, ONLINE = "metrics.jsonl", "online.jsonl"  # of a run folder
HISTORIES = 8  # runs whose records are kept in memory: some MiB each
TAIL = 1 << 16  # bytes of their ends that are read; a record takes some 2 KiB
LIST_TABLES = "GET /v1/archives lists the embedding tables."


class Stamp(NamedTuple):
    """A folder's state: training writes the same folder again at each checkpoint."""

    folder: Path
    mtime_ns: int
    size: int


class History(NamedTuple):
    """Records of metrics.jsonl and online.jsonl."""

    training: Sequence[Mapping[str, Any]]
    evaluation: Sequence[Mapping[str, Any]]


class Library:
    """Encoders by id, loaded on demand, and embedding tables by name. Its methods block; call them on threads.

    `own_tables` gives the tables that the service made, beside those of the runs directory.
    """

    def __init__(self, settings: Settings, *, own_tables: Callable[[], Mapping[str, Path]] = dict) -> None:
        self._own_tables = own_tables
        self._settings = settings
        self._runs = settings.runs_dir.resolve()
        self._device = choose_device(settings.device)
        self._cache: EncoderCache[Stamp, ServedEncoder] = EncoderCache(
            self._load,
            capacity=settings.loaded_encoders,
            queue_items=settings.queue_items,
            queue_bytes=settings.queue_bytes,
            batch_images=settings.batch_images,
        )
        self._loads: dict[Stamp, bool] = {}  # how the latest load of each encoder ended
        self._listed: tuple[float, dict[str, Path]] = (-LISTING_SECONDS, {})
        self._tables: dict[Stamp, EmbeddingTable] = {}
        self._histories: dict[tuple[Stamp, Stamp], History] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._warmer: threading.Thread | None = None
        self._warm = threading.Event()

    def close(self) -> None:
        """End the encoders' workers."""
        self._closing.set()
        if self._warmer is not None:
            self._warmer.join(timeout=30.0)  # a thread inside of torch at the interpreter's end would abort the process
        self._cache.close()

    # --- readiness --------------------------------------------------------------------------------------------------

    @property
    def is_warm(self) -> bool:
        """Whether the warm-up has ended."""
        return self._warm.is_set()

    def start_warm_up(self, readers: Callable[[], None]) -> None:
        """On a thread, start the readers, load the encoders that find room, and run each at the common batch sizes."""
        self._warmer = threading.Thread(target=self._warm_up, args=(readers,), name="warm-up", daemon=True)
        self._warmer.start()

    def _warm_up(self, readers: Callable[[], None]) -> None:
        try:
            readers()
        except ProblemError:
            pass  # the service is being stopped
        except Exception as error:  # the first request tries again, and gets the error
            log_unexpected(error)
        for folder in list(self.encoders().values())[: self._settings.loaded_encoders]:
            if self._closing.is_set():
                return
            try:
                encoder, batcher = self._cache.get(stamp_of(folder, INFO))
                for item in encoder.warm_up_items():
                    if self._closing.is_set():
                        return
                    batcher.submit(item).result()
            except ProblemError:
                continue  # its queue is full already: nothing is left to warm up
            except Exception as error:  # whatever is wrong with a folder, the service must go on with the others
                log_unexpected(error)
        self._warm.set()

    def usable(self) -> dict[str, bool]:
        """By encoder id, whether its latest load went well; of one not loaded yet, whether its folder is whole."""
        found = self.encoders()
        return {
            name: self._loads.get(stamp_of(folder, INFO), bool(self.info(folder))) for name, folder in found.items()
        }

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
        known = self._known(encoder_id)
        if encoder_id is None:
            if len(known) != 1:
                if not known:
                    raise UserError(
                        "The service has no encoder: no run folder with one lies in its runs directory.",
                        remedy="The operator trains one (lejepa-med pretrain ARCHIVE --out RUNS/NAME), or copies a run "
                        "folder there.",
                    )
                raise UserError(
                    f"The service has {len(known)} encoders, so the request must name one.",
                    remedy=f"Give the field 'encoder'. {LIST}",
                )
            encoder_id = next(iter(known))
        if encoder_id not in known:
            raise not_found("encoder", remedy=LIST)
        encoder, batcher = self._cache.get(stamp_of(known[encoder_id], INFO))
        return encoder_id, encoder.loaded, batcher

    def _known(self, encoder_id: str | None) -> dict[str, Path]:
        """Encoder folders by id; looked for again where the last look is old or does not show the one wanted."""
        at, known = self._listed
        folder = known.get(encoder_id or "")
        stale = time.monotonic() - at > LISTING_SECONDS
        if stale or (encoder_id is not None and (folder is None or not (folder / INFO).is_file())):
            self._listed = (time.monotonic(), self.encoders())
        return self._listed[1]

    def info(self, folder: Path) -> dict[str, Any]:
        """lejepa_med.json of an encoder folder; empty where it is damaged or its weights are missing."""
        try:
            info = json.loads((folder / INFO).read_bytes())
            fingerprint(info)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return info if (folder / "model.safetensors").is_file() else {}

    def metrics(self, folder: Path) -> dict[str, dict[str, Any]]:
        """The last record of training and of the evaluations beside it, from the run of an encoder's folder."""
        run = run_of(folder)
        return {"training": _last_record(run / METRICS), "evaluation": _last_record(run / ONLINE)}

    def history(self, folder: Path) -> History:
        """All records of the run of an encoder's folder, oldest first; empty where the folder came without its run."""
        run = run_of(folder)
        stamp = (stamp_of(run, METRICS), stamp_of(run, ONLINE))
        if stamp not in self._histories:
            while len(self._histories) >= HISTORIES:
                self._histories.pop(next(iter(self._histories)), None)
            self._histories[stamp] = History(read_lines(run / METRICS), read_lines(run / ONLINE))
        return self._histories[stamp]

    def encoder_of(self, wanted: str) -> str | None:
        """The id of the encoder with this fingerprint, or None."""
        for encoder_id, folder in self.encoders().items():
            info = self.info(folder)
            if info and fingerprint(info) == wanted:
                return encoder_id
        return None

    def with_fingerprint(self, wanted: str) -> tuple[str, LoadedEncoder, Batcher]:
        """The encoder with this fingerprint, loaded.

        Raises:
            ProblemError: 422, it is not in the runs directory any more.
        """
        return self.encoder(self.present(wanted))

    def present(self, wanted: str) -> str:
        """The id of the encoder with this fingerprint.

        Raises:
            ProblemError: 422, it is not in the runs directory any more.
        """
        encoder_id = self.encoder_of(wanted)
        if encoder_id is None:
            for name, folder in self.encoders().items():
                info = self.info(folder)
                if info and (commands := way_back(info, wanted)):
                    raise ProblemError(
                        422,
                        "encoder-gone",
                        f"This was made with the encoder '{name}' when its vectors were formed or computed otherwise.",
                        remedy=f"Embed and train again; or the operator goes back with: {commands}.",
                    )
            raise ProblemError(
                422,
                "encoder-gone",
                "The encoder that this needs is no longer in the runs directory.",
                remedy="The operator brings its run folder back; or embed and train again with a present encoder.",
            )
        return encoder_id

    def see(self, store: Store, wanted: str) -> None:
        """Note in the store what is known of an encoder by whose vectors a result was made."""
        encoder_id = self.encoder_of(wanted)
        if encoder_id is not None:
            info = self.info(self.encoders()[encoder_id])
            public = {key: info[key] for key in PUBLIC if key in info}
            store.see_encoder(wanted, name=encoder_id, modality=modality_of(info), dim=info["dim"], info=public)

    def _check_adapter(self, folder: Path) -> None:
        """Refuse an adapter whose Python file came with the runs; one elsewhere on this machine is the operator's.

        Raises:
            UntrustedCodeError: it did, and the operator has not allowed it.
        """
        named = str(self.info(folder).get("adapter", {}).get("adapter", "")).rpartition(":")[0]
        if named.endswith(".py") and not self._settings.allow_code and Path(named).resolve().is_relative_to(self._runs):
            raise UntrustedCodeError("The encoder's adapter lies in the runs directory.")

    def _load(self, stamp: Stamp) -> ServedEncoder:
        try:
            self._check_adapter(stamp.folder)
            encoder = load_encoder(stamp.folder, device=self._device, trusted=self._settings.allow_code)
            if stamp_of(stamp.folder, INFO) != stamp:
                # Training has put new weights there: one request's vectors must come from one encoder.
                raise ProblemError(
                    503,
                    "encoder-replaced",
                    "The encoder is being replaced by a newer one of the same run.",
                    remedy="Try again.",
                    headers={"Retry-After": "1"},
                )
        except ProblemError:
            raise
        except UntrustedCodeError:
            self._loads[stamp] = False
            log.warning("an encoder brings a Python file of its own, which is run with LEJEPA_ALLOW_CODE=true only")
            raise ProblemError(
                422,
                "code-not-allowed",
                "This encoder brings a Python file of its own, which this service has not been allowed to run.",
                remedy="The operator reads the file, and starts the service (and its workers) with --allow-code or "
                "LEJEPA_ALLOW_CODE=true if everything in the runs directory can be trusted.",
            ) from None
        except UserError as error:  # an adapter that is not installed here, say: its words are for the operator
            self._loads[stamp] = False
            raise EncoderError(error.cause, remedy=error.remedy) from error
        except Exception:
            self._loads[stamp] = False
            raise
        self._loads[stamp] = True
        return ServedEncoder(encoder, self._settings)

    # --- embedding tables -------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, Path]:
        """Embedding tables by name; a table of the runs directory gives way to one of the service's own."""
        own = self._own_tables()
        found = _ids(find_tables(self._runs), self._runs, taken=own) if self._runs.is_dir() else {}
        return dict(sorted({**found, **own}.items()))

    def ids(self, folders: list[Path]) -> dict[str, Path]:
        """Folders below the runs directory by the ids under which clients know them."""
        return _ids(folders, self._runs)

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
        return stamp_of(folder, about(folder, DONE).relative_to(folder).as_posix())

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


def run_of(folder: Path) -> Path:
    """The run folder of an encoder folder; the folder itself where it came without its run."""
    return folder.parent if folder.name.startswith("encoder") else folder


def _last_record(file: Path) -> dict[str, Any]:
    """The last whole line of a .jsonl file, which a run may be writing; empty where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # cut off by the seek, or not written to its end
        if isinstance(found, dict):
            return found
    return {}


def modality_of(info: Mapping[str, Any]) -> str:
    """What clients call an encoder's adapter: a lab's own is known by file or module, its class name is enough."""
    return str(info.get("adapter", {}).get("adapter", "unknown")).rpartition(":")[2].rpartition("/")[2]


def _ids(folders: list[Path], root: Path, *, inner: str = "", taken: Container[str] = ()) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        place = folder.parent if inner and folder.name == inner and folder != root else folder
        relative = place.resolve().relative_to(root).as_posix() if place.resolve().is_relative_to(root) else place.name
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name if relative == "." else relative).strip("-.") or "run"
        unique, number = name, 2
        while unique in found or unique in taken:
            unique, number = f"{name}-{number}", number + 1
        found[unique] = folder
    return dict(sorted(found.items()))


def stamp_of(folder: Path, document: str) -> Stamp:
    """The state of a folder by its document; 0 where it has none."""
    try:
        stat = (folder / document).stat()
    except OSError:
        return Stamp(folder, 0, 0)
    return Stamp(folder, stat.st_mtime_ns, stat.st_size)
