"""The client: a method for each thing that the service does, but keys and the audit trail, which are the operator's."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import httpx

from lejepa_med.client.archives import ArchiveCalls
from lejepa_med.client.calls import form_fields, given_fields, part
from lejepa_med.client.errors import BusyError, JobFailedError, UnreachableError
from lejepa_med.client.files import File, Keys, sent_keys, skipped_names, warned, with_names
from lejepa_med.client.http import Http
from lejepa_med.client.probes import ProbeCalls
from lejepa_med.client.stream import embed_stream
from lejepa_med.client.wire.common import FileKey, Job, JobDetail
from lejepa_med.client.wire.images import EmbeddedItem, Embeddings, Encoder, EncoderDetail


class Client(ArchiveCalls, ProbeCalls):
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
        return EncoderDetail.read(self._http.json("GET", f"/v1/encoders/{part(encoder)}"))

    def embed(
        self,
        *files: File,
        encoder: str | None = None,
        region: tuple[int, int, int, int] | None = None,
        mpp: float | None = None,
        pool: str | None = None,
        keys: Keys | None = None,
    ) -> Embeddings:
        """The vectors of files, in one request.

        Args:
            files: paths, folders (a DICOM series), or (bytes, suffix).
            encoder: its id; may be left out where the service has only one.
            region: x, y, width, height of a slide, pixels of the largest level.
            mpp: um per pixel of the largest level, where the file does not say.
            pool: 'none' for one vector a slice or tile; the service's default is their mean.
            keys: the caller's own name of each file, which its items carry as `key`.
        """
        given = sent_keys(files, keys)
        fields = form_fields(encoder=encoder, region=_region(region), mpp=mpp, pool=pool, keys=given)
        found = Embeddings.read(self._http.json("POST", "/v1/embeddings", files=files, fields=fields))
        return found.model_copy(
            update={
                "items": list(with_names(found.items, files)),
                "skipped": skipped_names(found.skipped or [], files),
                "cautions": warned(found.cautions, files),
            }
        )

    def embed_many(
        self,
        files: Iterable[File],
        *,
        encoder: str | None = None,
        mpp: float | None = None,
        pool: str | None = None,
        keys: Iterable[FileKey | Mapping[str, FileKey] | None] | None = None,
        batch: int = 32,
    ) -> Iterator[EmbeddedItem]:
        """The vectors of any number of files, as they come, in their order; a bad file gives an item with `error`.

        `batch` files go in one request. `index` and `file_index` count over all files, `keys` go along with them. A
        request whose connection breaks is sent again, and what was given before is not given twice. A kind of caution
        is warned of once, with the numbers of its first request.
        """
        fields = form_fields(encoder=encoder, mpp=mpp, pool=pool)
        return embed_stream(self._http, files, keys, fields=fields, batch=batch)

    # --- jobs -------------------------------------------------------------------------------------------------------

    def jobs(self, *, state: str | None = None, kind: str | None = None, limit: int = 100) -> list[Job]:
        """Up to `limit` jobs, newest first; of one state ('dead') or kind ('train-probe') where it is given."""
        query = urlencode(given_fields(state=state, kind=kind, limit=min(limit, 1000)))
        found = self._http.pages(f"/v1/jobs?{query}", name="jobs")
        return [Job.read(item) for item in islice(found, limit)]

    def job(self, job: Job | str, *, wait: float = 0) -> JobDetail:
        """A job as it stands, with its log; with `wait` when it has ended, or after that many seconds (at most 30)."""
        return JobDetail.read(self._http.json("GET", f"/v1/jobs/{_id(job)}", params=given_fields(wait=wait or None)))

    def cancel(self, job: Job | str) -> Job:
        """Cancel a job.

        Raises:
            ConflictError: it has ended.
        """
        # Repeated after a broken connection it would be refused as ended, although it was this call that ended it.
        return Job.read(self._http.json("DELETE", f"/v1/jobs/{_id(job)}", repeatable=False))

    def retry(self, job: Job | str) -> Job:
        """Queue a job again that is dead: its tries were used up by faults that may have passed.

        Raises:
            ConflictError: it is not dead.
        """
        return Job.read(self._http.json("POST", f"/v1/jobs/{_id(job)}/retry", repeatable=False))

    def wait(
        self,
        job: Job | str,
        *,
        progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,
        poll: float = 1.0,
    ) -> JobDetail:
        """The job once it has succeeded; a restart of the service in between does no harm.

        The service answers as soon as the job has ended, so `poll` delays nothing but `progress`.

        Args:
            job: or its id.
            progress: called with the job each time it has moved.
            timeout: seconds; None waits for ever.
            poll: seconds between two looks, at most 30.

        Raises:
            JobFailedError: it failed, was cancelled, or is dead.
            TimeoutError: it has not ended in time; it goes on.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen: tuple[str, str, float] | None = None
        patience = 0.0  # the first look is at once
        while True:
            asked = time.monotonic()
            found = self.job(job, wait=patience)
            now = (found.state, found.stage, found.progress)
            if progress is not None and now != seen:
                progress(found)
            seen = now
            if found.state == "succeeded":
                return found
            if found.has_ended:
                raise JobFailedError(found)
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"The job has not ended within {timeout} s; it goes on.")
            time.sleep(max(0.0, asked + patience - time.monotonic()))  # a busy service may answer without waiting
            patience = min(poll, 30.0) if end is None else max(0.0, min(poll, 30.0, end - time.monotonic()))

    def is_ready(self) -> bool:
        """Whether the service can work now; asks once."""
        try:
            self._http.json("GET", "/readyz", retries=0)
        except (BusyError, UnreachableError):
            return False
        return True


def _region(region: tuple[int, int, int, int] | None) -> str | None:
    return None if region is None else ",".join(map(str, region))


def _id(job: Job | str) -> str:
    return part(job.id if isinstance(job, Job) else job)
