"""Sets of labels: every change is one transaction that makes the next version, or none where somebody was faster."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select

from app.store.database import Database, persistent
from app.store.tables import LabelRow, LabelSetRow, now

CHUNK = 500  # items of one statement, below every database's limit of parameters


class LabelSetStore(Database):
    """All reads and writes of label sets."""

    @persistent
    def add_label_set(self, row: LabelSetRow) -> None:
        """Store a new set, once."""
        with self._write() as session:
            if session.get(LabelSetRow, row.id) is None:
                session.add(row)

    @persistent
    def label_set(self, set_id: str) -> LabelSetRow | None:
        """One set without its labels."""
        with self._read() as session:
            return session.get(LabelSetRow, set_id)

    @persistent
    def label_sets(self, *, archive: str | None = None, offset: int = 0, limit: int | None = None) -> list[LabelSetRow]:
        """Sets, newest first, of one archive where it is given; all of them, or `limit` from `offset` on."""
        query = select(LabelSetRow).order_by(LabelSetRow.created.desc(), LabelSetRow.id).offset(offset).limit(limit)
        if archive is not None:
            query = query.where(LabelSetRow.archive == archive)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def label_counts(self, ids: Sequence[str]) -> dict[str, int]:
        """Number of labels of each of these sets that has any."""
        query = select(LabelRow.set_id, func.count()).where(LabelRow.set_id.in_(ids), LabelRow.value.is_not(None))
        with self._read() as session:
            return {name: count for name, count in session.execute(query.group_by(LabelRow.set_id))}

    @persistent
    def labelled(self, set_id: str) -> tuple[LabelSetRow, list[LabelRow]] | None:
        """A set and its labels, of one version, in the order in which they were given."""
        query = select(LabelRow).where(LabelRow.set_id == set_id, LabelRow.value.is_not(None))
        with self._read() as session:
            if self.is_postgres:  # one snapshot for both reads, as SQLite's transactions have
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            row = session.get(LabelSetRow, set_id)
            return (
                None if row is None else (row, list(session.scalars(query.order_by(LabelRow.version, LabelRow.item))))
            )

    @persistent
    def labels_since(self, set_id: str, version: int) -> list[LabelRow]:
        """What changed after a version of a set, removed labels with the value None."""
        query = select(LabelRow).where(LabelRow.set_id == set_id, LabelRow.version > version).order_by(LabelRow.item)
        with self._read() as session:
            return list(session.scalars(query))

    @persistent
    def change_label_set(
        self,
        set_id: str,
        *,
        version: int,
        change: str,
        labels: Mapping[str, Any],
        facts: Mapping[str, Any],
        replace: bool = False,
    ) -> tuple[LabelSetRow | None, bool]:
        """Make the next version of a set, if it still has the version `version`.

        Args:
            set_id: the set.
            version: that the change was made for.
            change: a new id of this change; a repetition of it, whose answer was lost, changes nothing more.
            labels: values by item; None removes.
            facts: new values of the row's columns, such as name and classes.
            replace: remove all other labels.

        Returns:
            The set as it is afterwards, or None where there is none; and whether it was changed.
        """
        with self._write() as session:
            row = session.get(LabelSetRow, set_id, with_for_update=True)
            if row is None or row.change == change:
                return row, row is not None
            if row.version != version:
                return row, False
            row.version, row.change, row.updated = row.version + 1, change, now()
            for name, value in facts.items():
                setattr(row, name, value)
            given = dict(labels)
            if replace:
                known = select(LabelRow.item).where(LabelRow.set_id == set_id, LabelRow.value.is_not(None))
                given = {item: None for item in session.scalars(known)} | given
            items = list(given)
            for start in range(0, len(items), CHUNK):
                part = items[start : start + CHUNK]
                session.execute(delete(LabelRow).where(LabelRow.set_id == set_id, LabelRow.item.in_(part)))
                rows = [
                    {"set_id": set_id, "item": item, "value": given[item], "version": row.version, "at": row.updated}
                    for item in part
                ]
                session.execute(insert(LabelRow), rows)
            return row, True

    @persistent
    def remove_label_set(self, set_id: str) -> None:
        """Forget a set and its labels."""
        with self._write() as session:
            session.execute(delete(LabelRow).where(LabelRow.set_id == set_id))
            session.execute(delete(LabelSetRow).where(LabelSetRow.id == set_id))
