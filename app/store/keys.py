"""API keys and the audit trail."""

from sqlalchemy import delete, exists, select, update

from app.store.database import Database, persistent
from app.store.tables import AuditRow, KeyRow, now


class KeyStore(Database):
    """All reads and writes of keys and of the audit trail. A key's row is never removed, so its id stays known."""

    @persistent
    def add_key(self, row: KeyRow) -> None:
        """Note a new key."""
        with self._write() as session:
            session.merge(row)

    @persistent
    def keys(self) -> list[KeyRow]:
        """All keys, also expired and revoked ones, oldest first."""
        with self._read() as session:
            return list(session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id)))

    @persistent
    def has_keys(self) -> bool:
        """Whether a key was ever made."""
        with self._read() as session:
            return bool(session.scalar(select(exists().where(KeyRow.id.is_not(None)))))

    @persistent
    def revoke_key(self, key_id: str) -> KeyRow | None:
        """End a key now, keeping the time of an earlier revocation; None where there is no such key."""
        with self._write() as session:
            row = session.get(KeyRow, key_id, with_for_update=True)
            if row is not None:
                row.revoked = row.revoked or now()
            return row

    @persistent
    def use_key(self, key_id: str) -> None:
        """Note that a key was used now."""
        with self._write() as session:
            session.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used=now()))

    # --- audit trail ------------------------------------------------------------------------------------------------

    @persistent
    def add_audit(
        self, action: str, *, status: int, key_id: str | None, target: str | None = None, request_id: str | None = None
    ) -> None:
        """Add a line to the audit trail."""
        row = AuditRow(
            at=now(),
            key_id=key_id,
            action=action[:120],
            target=None if target is None else target[:200],
            status=status,
            request_id=request_id,
        )
        with self._write() as session:
            session.add(row)

    @persistent
    def audit(
        self, *, limit: int, since: float | None = None, until: float | None = None, before: int | None = None
    ) -> list[AuditRow]:
        """Lines of the audit trail, newest first; `before` is the id of the last line of the page before."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if since is not None:
            query = query.where(AuditRow.at >= since)
        if until is not None:
            query = query.where(AuditRow.at < until)
        if before is not None:
            query = query.where(AuditRow.id < before)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def prune_audit(self, *, before: float) -> None:
        """Forget lines that are older than a time."""
        with self._write() as session:
            session.execute(delete(AuditRow).where(AuditRow.at < before))
