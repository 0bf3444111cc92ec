"""What jobs make: probes, archives, predictions; and what they were made from: encoders, uploads."""

from typing import Any

from sqlalchemy import delete, func, select

from app.store.database import Database, persistent
from app.store.tables import ArchiveRow, EncoderRow, PredictionRow, ProbeRow, UploadRow, now


class ResultStore(Database):
    """All reads and writes of results."""

    # --- probes -----------------------------------------------------------------------------------------------------

    @persistent
    def probe(self, probe_id: str) -> ProbeRow | None:
        """One version of a probe."""
        with self._read() as session:
            return session.get(ProbeRow, probe_id)

    @persistent
    def probes(self, *, offset: int = 0, limit: int | None = None) -> list[ProbeRow]:
        """Versions of all probes, newest first; all of them, or `limit` from `offset` on."""
        query = select(ProbeRow).order_by(ProbeRow.created.desc(), ProbeRow.id).offset(offset).limit(limit)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def versions(self, series: str) -> list[ProbeRow]:
        """The versions of one probe, newest first."""
        query = select(ProbeRow).where(ProbeRow.series == series).order_by(ProbeRow.version.desc())
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def latest_version(self, series: str) -> int:
        """The highest version of a probe; 0 before the first. A job that makes the next one takes this plus 1."""
        with self._read() as session:
            return session.scalar(select(func.max(ProbeRow.version)).where(ProbeRow.series == series)) or 0

    # --- archives and predictions -----------------------------------------------------------------------------------

    @persistent
    def archive(self, name: str) -> ArchiveRow | None:
        """An archive that the service made, by name."""
        with self._read() as session:
            return session.scalar(select(ArchiveRow).where(ArchiveRow.name == name))

    @persistent
    def archives(self) -> list[ArchiveRow]:
        """Archives that the service made, by name."""
        with self._read() as session:
            return list(session.scalars(select(ArchiveRow).order_by(ArchiveRow.name)))

    @persistent
    def remove_archive(self, archive_id: str) -> None:
        """Forget an archive that the service made; its folder goes first."""
        with self._write() as session:
            session.execute(delete(ArchiveRow).where(ArchiveRow.id == archive_id))

    @persistent
    def prediction(self, prediction_id: str) -> PredictionRow | None:
        """One application of a probe to an archive."""
        with self._read() as session:
            return session.get(PredictionRow, prediction_id)

    @persistent
    def predictions(
        self, probe_id: str | None = None, *, offset: int = 0, limit: int | None = None
    ) -> list[PredictionRow]:
        """Applications of a probe, or of all, newest first; all of them, or `limit` from `offset` on."""
        query = select(PredictionRow).order_by(PredictionRow.created.desc(), PredictionRow.id)
        query = query.offset(offset).limit(limit)
        if probe_id is not None:
            query = query.where(PredictionRow.probe_id == probe_id)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def remove_prediction(self, prediction_id: str) -> None:
        """Forget an application; its folder goes first."""
        with self._write() as session:
            session.execute(delete(PredictionRow).where(PredictionRow.id == prediction_id))

    # --- uploads and encoders ---------------------------------------------------------------------------------------

    @persistent
    def add_upload(self, row: UploadRow) -> None:
        """Note a received upload, once."""
        with self._write() as session:
            session.merge(row)

    @persistent
    def upload(self, upload_id: str) -> UploadRow | None:
        """One upload."""
        with self._read() as session:
            return session.get(UploadRow, upload_id)

    @persistent
    def uploads(self, *, offset: int = 0, limit: int | None = None) -> list[UploadRow]:
        """Uploads, newest first; all of them, or `limit` from `offset` on."""
        query = select(UploadRow).order_by(UploadRow.created.desc(), UploadRow.id).offset(offset).limit(limit)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def remove_upload(self, upload_id: str) -> None:
        """Forget an upload; its folder goes first."""
        with self._write() as session:
            session.execute(delete(UploadRow).where(UploadRow.id == upload_id))

    @persistent
    def see_encoder(self, fingerprint: str, *, name: str, modality: str, dim: int, info: dict[str, Any]) -> None:
        """Note an encoder that was loaded."""
        with self._write() as session:
            row = session.get(EncoderRow, fingerprint, with_for_update=True)
            at = now()
            if row is None:
                row = EncoderRow(fingerprint=fingerprint, first_seen=at)
                session.add(row)
            row.name, row.modality, row.dim, row.info, row.last_seen = name, modality, dim, info, at

    @persistent
    def seen_encoder(self, fingerprint: str) -> EncoderRow | None:
        """What is known of an encoder, also when its run folder is gone."""
        with self._read() as session:
            return session.get(EncoderRow, fingerprint)
