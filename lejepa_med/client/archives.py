"""Uploads, embedded archives, and the search in them."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lejepa_med.client.calls import Calls, form_fields, given_fields, part
from lejepa_med.client.files import File, Keys, sent_keys, sent_name, warned, with_names
from lejepa_med.client.wire.common import Job
from lejepa_med.client.wire.images import Archive, ArchiveDetail, ArchiveId, Upload, UploadDetail, UploadItem
from lejepa_med.client.wire.probes import Neighbourhood


class ArchiveCalls(Calls):
    """The part of the client about archives."""

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
    ) -> Job:
        """Embed an upload, or a folder that the operator has opened, as the archive `name`.

        `catalog` is a table in the folder; without, a participants.tsv there is the catalogue. `group_column` and
        `label_column` name its columns.

        Raises:
            ConflictError: the name is taken.
        """
        table = {"catalog": catalog, "group_column": group_column, "label_column": label_column}
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
