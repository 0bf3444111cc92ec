"""Probes that `lejepa-med probe` wrote below the runs directory: listed and used like the service's own, only read."""

import hashlib
import logging
import re
import threading
from pathlib import Path
from typing import NamedTuple

from app.core.errors import ProblemError
from app.core.settings import Settings
from app.encoders.library import Library, Stamp, stamp_of
from app.store import ProbeRow
from data_adapters.errors import UserError
from lejepa_med.probes.probe import ARRAYS, DOCUMENT, OtherFormatError, Probe, find_probes

log = logging.getLogger("lejepa_med.app")
LOADED = 4  # probes kept in memory
ID = re.compile("[0-9a-f]{32}")  # of the service's own probes
State = tuple[Stamp, Stamp]  # of the two files of a folder, which the command may write again


class Known(NamedTuple):
    """What is known of a folder: its row and the digest of its document, or why it cannot be used."""

    row: ProbeRow | None
    digest: str
    problem: ProblemError | None


class RunProbes:
    """Probes of the runs directory by id, looked for at each call, so new ones appear. Its methods block."""

    def __init__(self, settings: Settings, library: Library) -> None:
        self._runs, self._data, self._library = settings.runs_dir.resolve(), settings.data.resolve(), library
        self._known: dict[tuple[str, State], Known] = {}
        self._loaded: dict[State, Probe] = {}
        self._lock = threading.Lock()

    def folders(self) -> dict[str, Path]:
        """Folders by id, which is the folder's place below the runs directory, in URL-safe letters."""
        if not self._runs.is_dir():
            return {}
        folders = [one for one in find_probes(self._runs) if not one.resolve().is_relative_to(self._data)]
        return {f"{name}-run" if ID.fullmatch(name) else name: one for name, one in self._library.ids(folders).items()}

    def known(self) -> dict[str, Known]:
        """All of them, the damaged ones too."""
        with self._lock:
            found = {(name, _state(folder)): folder for name, folder in self.folders().items()}
            self._known = {key: self._known.get(key) or self._look(key[0], folder) for key, folder in found.items()}
            return {name: known for (name, _), known in self._known.items()}

    def find(self, probe_id: str) -> Known | None:
        """One of them; None where there is none.

        Raises:
            ProblemError: 422, its folder is damaged.
        """
        known = None if ID.fullmatch(probe_id) else self.known().get(probe_id)
        if known is not None and known.problem is not None:
            raise known.problem
        return known

    def load(self, probe_id: str) -> Probe:
        """One of them, ready to predict.

        Raises:
            ProblemError: 422, its folder is gone or damaged.
        """
        folder = self.folders().get(probe_id)
        if folder is None or self.find(probe_id) is None:
            raise gone()
        state = _state(folder)
        with self._lock:
            if state not in self._loaded:
                while len(self._loaded) >= LOADED:
                    self._loaded.pop(next(iter(self._loaded)))
                try:
                    self._loaded[state] = Probe.load(folder)
                except UserError as error:
                    raise _damaged(error) from None
            return self._loaded[state]

    def _look(self, name: str, folder: Path) -> Known:
        try:
            content = (folder / DOCUMENT).read_bytes()
            probe = Probe.load(folder)
            row = ProbeRow(
                id=name,
                series=name,
                version=1,
                parent=None,
                kind=probe.kind,
                name=folder.name,
                encoder="",
                fingerprint=probe.encoder,
                labels=list(probe.classes),
                count=len(probe.examples.ids),
                created=(folder / DOCUMENT).stat().st_mtime,
                metrics={key: value for key, value in probe.metrics.items() if key != "split_receipt"},
                receipt=probe.metrics.get("split_receipt") or {},
            )
            return Known(row, hashlib.sha256(content).hexdigest(), None)
        except Exception as error:  # whatever is wrong with a folder, the others must be listed
            log.warning("the probe %s in the runs directory cannot be used (%s)", name, type(error).__name__)
            return Known(None, "", _damaged(error))


def gone() -> ProblemError:
    """422: a job needs a probe that the operator has removed."""
    return ProblemError(
        422,
        "probe-gone",
        "The probe is no longer in the runs directory.",
        remedy="The operator brings its folder back, or trains it again: lejepa-med probe",
    )


def _damaged(error: Exception) -> ProblemError:
    """422; the error's own words hold the folder's path, so they are not repeated."""
    if isinstance(error, OtherFormatError):
        return ProblemError(
            422,
            "probe-format",
            "The probe in the runs directory was written by another release of lejepa-med, which this one cannot read.",
            remedy="The operator trains it again: lejepa-med probe",
        )
    return ProblemError(
        422,
        "probe-unusable",
        f"The probe's folder in the runs directory is damaged: {DOCUMENT} or {ARRAYS} is missing, incomplete or "
        "changed.",
        remedy="The operator copies the folder again, or trains the probe again: lejepa-med probe",
    )


def _state(folder: Path) -> State:
    return stamp_of(folder, DOCUMENT), stamp_of(folder, ARRAYS)
