"""The client: a method for each thing that the service does, but keys and the audit trail, which are the operator's."""

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode

import httpx

from lejepa_med.client.errors import BusyError, JobFailedError, UnreachableError
from lejepa_med.client.files import File, Keys, sent_keys, sent_name, skipped_names, warned, with_names
from lejepa_med.client.http import Http, embed_stream, form_fields, given_fields, part
from lejepa_med.client.lab import LabClient
from lejepa_med.client.wire.common import FileKey, Job, JobDetail
from lejepa_med.client.wire.images import (
    Archive,
    ArchiveDetail,
    ArchiveId,
    EmbeddedItem,
    Embeddings,
    Encoder,
    EncoderDetail,
    Upload,
    UploadDetail,
    UploadItem,
)
from lejepa_med.client.wire.probes import (
    Application,
    Neighbourhood,
    PredictedItem,
    Probe,
    ProbeDetail,
    UncertainItem,
)


class Client(LabClient):
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

    # --- uploads, archives and search ---------------------------------------------------------------------------------

    def send_upload(
        self,
        files: Sequence[File],
        *,
        name: str | None = None,
        encoder: str | None = None,
        modality: str | None = None,
        embed: bool = False,
        archive: str | None = None,
        labels: Sequence[str | None] | None = None,
        groups: Sequence[str | None] | None = None,
        keys: Keys | None = None,
    ) -> Job:
        """Send files that become an archive, and stay in the service. The upload has the job's id.

        Args:
            files: paths, folders (a DICOM series), or (bytes, suffix).
            name: what the upload is called.
            encoder: its id; the files are read as it reads them. It may be left out where the service has only one.
            modality: such as 'mri', in place of an encoder.
            embed: make the archive `archive` (by default `name`) as well.
            archive: its name.
            labels: one for each file, or None; not for folders and zips, which may hold several items.
            groups: patient, slide case or field of each file, or None; the service stores pseudonyms.
            keys: the caller's own name of each file, which `upload_items` and `archive_items` give back to this caller;
                the service stores them sealed.

        Raises:
            ValueError: `labels` or `groups` are not one for each file, or are of a folder or zip.
        """
        given = sent_keys(files, keys)
        fields = form_fields(name=name, encoder=encoder, modality=modality, embed=embed, archive=archive, keys=given)
        catalog = _catalog(files, labels, groups) if labels is not None or groups is not None else None
        sent = self._http.json(
            "POST", "/v1/uploads", files=list(files), fields=fields, catalog=catalog, repeatable=False
        )
        return Job.read(sent)

    def uploads(self) -> list[Upload]:
        """All uploads, newest first."""
        return [Upload.read(item) for item in self._http.pages("/v1/uploads?limit=1000", name="uploads")]

    def upload(self, upload: str) -> UploadDetail:
        """One upload with what its import found."""
        return UploadDetail.read(self._http.json("GET", f"/v1/uploads/{part(upload)}"))

    def upload_items(self, upload: str, *, files: Sequence[File] = (), page: int = 1000) -> Iterator[UploadItem]:
        """The items of an upload, `page` at a time: which file has which id.

        Folders are sent under names of the client's own. With the `files` of `send_upload`, `name` is the path below
        the folder instead.
        """
        found = self._http.pages(f"/v1/uploads/{part(upload)}/items?limit={page}")
        yield from with_names(map(UploadItem.read, found), files)

    def remove_upload(self, upload: str) -> None:
        """Remove an upload's files; archives that were made from it stay.

        Raises:
            ConflictError: a job needs it.
        """
        self._http.nothing("DELETE", f"/v1/uploads/{part(upload)}")

    def archives(self) -> list[Archive]:
        """All embedding tables."""
        return [Archive.read(item) for item in self._http.json("GET", "/v1/archives")["archives"]]

    def archive(self, archive: str) -> ArchiveDetail:
        """One table with what it holds, and why items are missing in it."""
        return ArchiveDetail.read(self._http.json("GET", f"/v1/archives/{part(archive)}"))

    def embed_archive(
        self,
        name: str,
        *,
        upload: str | None = None,
        folder: str | None = None,
        encoder: str | None = None,
        columns: Sequence[str] = (),
        catalog: str | None = None,
        group_column: str | None = None,
        label_column: str | None = None,
        pool: Literal["mean", "none"] | None = None,
    ) -> Job:
        """Embed an upload, or a folder that the operator has opened, as the archive `name`.

        `catalog` is a table in the folder; without, a participants.tsv there is the catalogue. `group_column` and
        `label_column` name its columns. With `pool` "none", each tissue tile of a slide has a row with its place.

        Raises:
            ConflictError: the name is taken.
        """
        table = {"catalog": catalog, "group_column": group_column, "label_column": label_column, "pool": pool}
        body = given_fields(name=name, upload=upload, folder=folder, encoder=encoder, columns=list(columns), **table)
        return Job.read(self._http.json("POST", "/v1/archives", body=body, repeatable=False))

    def download_archive(self, archive: str, to: str | Path) -> Path:
        """Write a table as Parquet (id, group, label, vector) to the file `to`, which must not be there."""
        return self._http.download(f"/v1/archives/{part(archive)}/table", Path(to))

    def remove_archive(self, archive: str) -> None:
        """Remove an archive that a job made.

        Raises:
            ConflictError: it is the operator's, or a job reads it.
        """
        self._http.nothing("DELETE", f"/v1/archives/{part(archive)}")

    def archive_items(self, archive: str, *, page: int = 1000) -> Iterator[ArchiveId]:
        """The items of a table in its order, `page` at a time."""
        for item in self._http.pages(f"/v1/archives/{part(archive)}/ids?limit={page}"):
            yield ArchiveId.read(item)

    def search(self, archive: str, ids: Sequence[str], *, k: int = 10, **options: Any) -> list[Neighbourhood]:
        """The `k` nearest items of a table to some of its items; `options` as in the service's SearchRequest."""
        body = {"archive": archive, "ids": list(ids), "k": k, **options}
        return neighbours(self._http.json("POST", "/v1/search", body=body))

    def search_vectors(
        self, archive: str, vectors: Sequence[Sequence[float]], *, fingerprint: str, k: int = 10, **options: Any
    ) -> list[Neighbourhood]:
        """The nearest items to vectors (n, dim) of the encoder with this fingerprint."""
        given = [[float(value) for value in vector] for vector in vectors]
        body = {"archive": archive, "vectors": given, "fingerprint": fingerprint, "k": k, **options}
        return neighbours(self._http.json("POST", "/v1/search", body=body))

    def search_files(
        self, archive: str, *files: File, k: int = 10, mpp: float | None = None, keys: Keys | None = None
    ) -> list[Neighbourhood]:
        """The nearest items to files, which the table's encoder embeds; `mpp` and `keys` as of `embed`."""
        fields = form_fields(archive=archive, k=k, mpp=mpp, keys=sent_keys(files, keys))
        found = self._http.json("POST", "/v1/search", files=files, fields=fields)
        warned(found.get("cautions", []), files)
        return list(with_names(neighbours(found), files))

    # --- probes -------------------------------------------------------------------------------------------------------

    def train_probe(
        self,
        files: Sequence[File],
        labels: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        encoder: str | None = None,
        name: str | None = None,
        folds: int | None = None,
        mpp: float | None = None,
        keys: Keys | None = None,
        **options: Any,
    ) -> Job:
        """Train a probe on labelled files: `labels` and `groups` (patient, slide case, field) are one for each file.

        The probe has the job's id. An error about a file names its key. `options` are further fields of the form.
        """
        options |= {"labels": list(labels), "groups": groups, "keys": sent_keys(files, keys)}
        fields = form_fields(encoder=encoder, name=name, folds=folds, mpp=mpp, **options)
        sent = self._http.json("POST", "/v1/probes", files=list(files), fields=fields, repeatable=False)
        return _warned(Job.read(sent), files)

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
        items = _labelled(labels, groups)
        body = given_fields(archive=archive, labels=items, name=name, folds=folds, **options)
        return _warned(Job.read(self._http.json("POST", "/v1/probes", body=body, repeatable=False)))

    def add_labels(
        self,
        probe: str,
        files: Sequence[File],
        labels: Sequence[Any],
        *,
        groups: Sequence[str] | None = None,
        mpp: float | None = None,
        keys: Keys | None = None,
    ) -> Job:
        """Train the probe's next version on all its labels and those of these files; it has the job's id."""
        fields = form_fields(labels=list(labels), groups=groups, mpp=mpp, keys=sent_keys(files, keys))
        path = f"/v1/probes/{part(probe)}/labels"
        return _warned(
            Job.read(self._http.json("POST", path, files=list(files), fields=fields, repeatable=False)), files
        )

    def add_labels_on(
        self,
        probe: str,
        archive: str,
        labels: Mapping[str, Any],
        *,
        groups: Mapping[str, str] | None = None,
        allow_leak: bool = False,
    ) -> Job:
        """Train the probe's next version on all its labels and these, by id; it has the job's id."""
        body = {"archive": archive, "labels": _labelled(labels, groups), "allow_leak": allow_leak}
        path = f"/v1/probes/{part(probe)}/labels"
        return _warned(Job.read(self._http.json("POST", path, body=body, repeatable=False)))

    def uncertain(self, probe: str, archive: str, *, limit: int = 50) -> list[UncertainItem]:
        """The items of a table whose labels would teach the probe most, the first one first."""
        path, params = f"/v1/probes/{part(probe)}/uncertain", {"archive": archive, "limit": limit}
        found = self._http.json("GET", path, params=params)
        warned(found.get("cautions", []))
        return [UncertainItem.read(item) for item in found["items"]]

    def probes(self) -> list[Probe]:
        """All versions of all probes, newest first."""
        return [Probe.read(item) for item in self._http.pages("/v1/probes?limit=1000", name="probes")]

    def probe(self, probe: str) -> ProbeDetail:
        """One probe with its metrics and versions."""
        return ProbeDetail.read(self._http.json("GET", f"/v1/probes/{part(probe)}"))

    def predict_files(
        self,
        probe: str,
        files: Sequence[File],
        *,
        mpp: float | None = None,
        groups: Sequence[str | None] | None = None,
        keys: Keys | None = None,
    ) -> list[PredictedItem]:
        """A probe's answers for files; `keys` as of `embed`.

        `groups`, one for each file, marks those of groups that the probe learnt from.
        """
        path = f"/v1/probes/{part(probe)}/predictions"
        fields = form_fields(mpp=mpp, groups=groups, keys=sent_keys(files, keys))
        found = self._http.json("POST", path, files=list(files), fields=fields)
        warned(found.get("cautions", []), files)
        return list(with_names(map(PredictedItem.read, found["items"]), files))

    def predict_items(self, probe: str, archive: str, ids: Sequence[str]) -> list[PredictedItem]:
        """A probe's answers for items of a table."""
        path = f"/v1/probes/{part(probe)}/predictions"
        found = self._http.json("POST", path, body={"archive": archive, "ids": list(ids)})
        warned(found.get("cautions", []))
        return [PredictedItem.read(item) for item in found["items"]]

    def apply_probe(self, probe: str, archive: str) -> Job:
        """Predict every item of an archive. The application has the job's id."""
        path = f"/v1/probes/{part(probe)}/applications"
        return Job.read(self._http.json("POST", path, body={"archive": archive}, repeatable=False))

    def applications(self, probe: str) -> list[Application]:
        """Applications of a probe, newest first."""
        found = self._http.pages(f"/v1/probes/{part(probe)}/applications?limit=1000", name="applications")
        return [Application.read(item) for item in found]

    def application(self, application: str) -> Application:
        """One application: how many items have which label."""
        return Application.read(self._http.json("GET", f"/v1/applications/{part(application)}"))

    def remove_application(self, application: str) -> None:
        """Remove its predictions; the probe stays."""
        self._http.nothing("DELETE", f"/v1/applications/{part(application)}")

    def download_application(self, application: str, to: str | Path) -> Path:
        """Write the predictions to the file `to`, which must not be there: CSV for '.csv', else Parquet."""
        to = Path(to)
        accept = "text/csv" if to.suffix == ".csv" else "application/vnd.apache.parquet"
        return self._http.download(f"/v1/applications/{part(application)}/table", to, accept=accept)

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
        progress: Callable[[JobDetail], None] | None = None,
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


def neighbours(answer: Any) -> list[Neighbourhood]:
    """The items of a search's answer."""
    return [Neighbourhood.read(item) for item in answer["items"]]


def _catalog(files: Sequence[File], labels: Sequence[str | None] | None, groups: Sequence[str | None] | None) -> bytes:
    """The catalogue in CSV, by the names under which the files are sent."""
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(("path", "label", "group"))
    none = [None] * len(files)
    told = zip(files, none if labels is None else labels, none if groups is None else groups, strict=True)
    for number, (file, label, group) in enumerate(told):
        name = sent_name(number, file)
        if label is None and group is None:
            continue
        if name.endswith(".zip"):
            raise ValueError(f"file {number} is a folder or zip, which may hold several items, so it takes no label")
        writer.writerow((name, label or "", group or ""))
    return rows.getvalue().encode()


def _labelled(labels: Mapping[str, Any], groups: Mapping[str, str] | None) -> list[dict[str, Any]]:
    groups = groups or {}
    return [
        {"id": item, "label": label, **({"group": groups[item]} if item in groups else {})}
        for item, label in labels.items()
    ]


def _warned(job: Job, files: Sequence[File] = ()) -> Job:
    """A job that was accepted, with its cautions in the caller's names; warns of them."""
    return job.model_copy(update={"cautions": warned(job.cautions or [], files, level=4)})
