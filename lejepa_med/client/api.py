"""The client: a method for each thing that the service does."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from lejepa_med.client.errors import BusyError, JobFailedError, UnreachableError
from lejepa_med.client.files import File
from lejepa_med.client.http import Http
from lejepa_med.client.models import (
    Archive,
    ArchiveItem,
    EmbeddedItem,
    Embeddings,
    Encoder,
    EncoderDetail,
    Job,
    Neighbours,
    Prediction,
    Probe,
)
from lejepa_med.client.stream import embed_stream


class Client:
    """One service at `url`, such as http://127.0.0.1:8000. Safe to use from several threads.

    Every method raises `ServiceError` (its subclasses tell what kind) where the service refuses, and `UnreachableError`
    where it does not answer; both after `retries` more tries where trying again is right: after 503 or 429 with
    Retry-After, where no connection was made, and where one broke and the request may be repeated.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        http: httpx.Client | None = None,
    ) -> None:
        """Connect when first asked.

        Args:
            url: the service's address.
            key: API key, where the service wants one.
            timeout: seconds without a byte after which a request is given up.
            retries: tries after the first.
            http: an httpx.Client of your own, for proxies, certificates or other transports.
        """
        self._http = Http(url, key=key, timeout=timeout, retries=retries, http=http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    # --- encoders and embeddings ------------------------------------------------------------------------------------

    def encoders(self) -> list[Encoder]:
        """All encoders."""
        return [Encoder.read(item) for item in self._http.json("GET", "/v1/encoders")["encoders"]]

    def encoder(self, encoder: str) -> EncoderDetail:
        """One encoder with what it expects and gives."""
        return EncoderDetail.read(self._http.json("GET", f"/v1/encoders/{_part(encoder)}"))

    def embed(
        self,
        *files: File,
        encoder: str | None = None,
        region: tuple[int, int, int, int] | None = None,
        mpp: float | None = None,
        pool: str | None = None,
    ) -> Embeddings:
        """The vectors of files, in one request.

        Args:
            files: paths, folders (a DICOM series), or (bytes, suffix).
            encoder: its id; may be left out where the service has only one.
            region: x, y, width, height of a slide, pixels of the largest level.
            mpp: um per pixel of the largest level, where the file does not say.
            pool: 'none' for one vector a slice or tile; the service's default is their mean.
        """
        fields = _fields(encoder=encoder, region=_region(region), mpp=mpp, pool=pool)
        return Embeddings.read(self._http.json("POST", "/v1/embeddings", files=files, fields=fields))

    def embed_many(
        self, files: Iterable[File], *, encoder: str | None = None, pool: str | None = None, batch: int = 32
    ) -> Iterator[EmbeddedItem]:
        """The vectors of any number of files, as they come, in their order; a bad file gives an item with `error`.

        `batch` files go in one request. `index` and `file_index` count over all files. A request whose connection
        breaks is sent again, and what was given before is not given twice.
        """
        fields = _fields(encoder=encoder, pool=pool)
        return embed_stream(self._http, files, fields=fields, batch=batch)

    # --- archives and search ----------------------------------------------------------------------------------------

    def archives(self) -> list[Archive]:
        """All embedding tables."""
        return [Archive.read(item) for item in self._http.json("GET", "/v1/archives")["archives"]]

    def archive_items(self, archive: str, *, page: int = 1000) -> Iterator[ArchiveItem]:
        """The items of a table in its order, `page` at a time."""
        link: str | None = f"/v1/archives/{_part(archive)}/ids?limit={page}"
        while link:
            found = self._http.json("GET", link)
            yield from (ArchiveItem.read(item) for item in found["items"])
            link = found.get("next")

    def search(self, archive: str, ids: Sequence[str], *, k: int = 10, **options: Any) -> list[Neighbours]:
        """The `k` nearest items of a table to some of its items; `options` as in the service's SearchRequest."""
        body = {"archive": archive, "ids": list(ids), "k": k, **options}
        return _neighbours(self._http.json("POST", "/v1/search", body=body))

    def search_vectors(
        self, archive: str, vectors: Sequence[Sequence[float]], *, fingerprint: str, k: int = 10, **options: Any
    ) -> list[Neighbours]:
        """The nearest items to vectors (n, dim) of the encoder with this fingerprint."""
        given = [[float(value) for value in vector] for vector in vectors]
        body = {"archive": archive, "vectors": given, "fingerprint": fingerprint, "k": k, **options}
        return _neighbours(self._http.json("POST", "/v1/search", body=body))

    def search_files(self, archive: str, *files: File, k: int = 10) -> list[Neighbours]:
        """The nearest items to files, which the table's encoder embeds."""
        fields = _fields(archive=archive, k=k)
        return _neighbours(self._http.json("POST", "/v1/search", files=files, fields=fields))

    # --- probes and predictions -------------------------------------------------------------------------------------

    def train_probe(
        self,
        files: Sequence[File],
        labels: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        encoder: str | None = None,
        name: str | None = None,
        folds: int | None = None,
        **options: Any,
    ) -> Job:
        """Train a probe on labelled files: `labels` and `groups` (patient, slide case, field) are one for each file.

        The probe has the job's id. `options` are further fields of the service's form.
        """
        fields = _fields(encoder=encoder, name=name, folds=folds, labels=list(labels), groups=groups, **options)
        sent = self._http.json("POST", "/v1/probes", files=list(files), fields=fields, repeatable=False)
        return Job.read(sent)

    def train_probe_on(
        self,
        archive: str,
        labels: Mapping[str, Any],
        *,
        groups: Mapping[str, str] | None = None,
        name: str | None = None,
        folds: int | None = None,
        **options: Any,
    ) -> Job:
        """Train a probe on embedded items: `labels`, and `groups` where the table's do not do, by id.

        The probe has the job's id. `options` are further fields of the service's ProbeRequest.
        """
        groups = groups or {}
        items = [
            {"id": item, "label": label, **({"group": groups[item]} if item in groups else {})}
            for item, label in labels.items()
        ]
        given = {"name": name, "folds": folds, **options}
        body = {
            "archive": archive,
            "labels": items,
            **{key: value for key, value in given.items() if value is not None},
        }
        return Job.read(self._http.json("POST", "/v1/probes", body=body, repeatable=False))

    def probes(self) -> list[Probe]:
        """All probes, newest first."""
        return [Probe.read(item) for item in self._http.json("GET", "/v1/probes")["probes"]]

    def probe(self, probe: str) -> Probe:
        """One probe with its metrics."""
        return Probe.read(self._http.json("GET", f"/v1/probes/{_part(probe)}"))

    def predict_files(self, probe: str, files: Sequence[File], *, mpp: float | None = None) -> list[Prediction]:
        """A probe's answers for files."""
        path = f"/v1/probes/{_part(probe)}/predictions"
        found = self._http.json("POST", path, files=list(files), fields=_fields(mpp=mpp))
        return [Prediction.read(item) for item in found["items"]]

    def predict_items(self, probe: str, archive: str, ids: Sequence[str]) -> list[Prediction]:
        """A probe's answers for items of a table."""
        path = f"/v1/probes/{_part(probe)}/predictions"
        found = self._http.json("POST", path, body={"archive": archive, "ids": list(ids)})
        return [Prediction.read(item) for item in found["items"]]

    # --- jobs -------------------------------------------------------------------------------------------------------

    def jobs(self, *, limit: int = 100) -> list[Job]:
        """Jobs, newest first."""
        return [Job.read(item) for item in self._http.json("GET", "/v1/jobs", params={"limit": limit})["jobs"]]

    def job(self, job: Job | str) -> Job:
        """A job as it stands, with its log."""
        return Job.read(self._http.json("GET", f"/v1/jobs/{_id(job)}"))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job.

        Raises:
            ConflictError: it has ended.
        """
        # Repeated after a broken connection it would be refused as ended, although it was this call that ended it.
        return Job.read(self._http.json("DELETE", f"/v1/jobs/{_id(job)}", repeatable=False))

    def wait(
        self,
        job: Job | str,
        *,
        progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,
        poll: float = 0.5,
    ) -> Job:
        """The job once it has succeeded; a restart of the service in between does no harm.

        Args:
            job: or its id.
            progress: called with the job each time it has moved.
            timeout: seconds; None waits for ever.
            poll: seconds between two looks.

        Raises:
            JobFailedError: it failed or was cancelled.
            TimeoutError: it has not ended in time; it goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen: tuple[str, str, float] | None = None
        while True:
            found = self.job(job)
            now = (found.state, found.stage, found.progress)
            if progress is not None and now != seen:
                progress(found)
            seen = now
            if found.state == "succeeded":
                return found
            if found.has_ended:
                raise JobFailedError(found)
            if end is not None and time.monotonic() + poll > end:
                raise TimeoutError(f"The job has not ended within {timeout} s; it goes on.")
            time.sleep(poll)

    def is_ready(self) -> bool:
        """Whether the service can work now; asks once."""
        try:
            self._http.json("GET", "/readyz", retries=0)
        except (BusyError, UnreachableError):
            return False
        return True


def _neighbours(answer: Any) -> list[Neighbours]:
    return [Neighbours.read(item) for item in answer["items"]]


def _fields(**given: Any) -> dict[str, str]:
    """Form fields: text as it is, everything else as JSON, and nothing for None."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }


def _region(region: tuple[int, int, int, int] | None) -> str | None:
    return None if region is None else ",".join(map(str, region))


def _part(name: str) -> str:
    return quote(name, safe="")


def _id(job: Job | str) -> str:
    return _part(job.id if isinstance(job, Job) else job)
