"""Tables of the metadata store. Every change here comes with a migration; a test compares the two."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

UNFINISHED = ("queued", "running")


class Base(DeclarativeBase):
    """All tables. Times are seconds since 1970, UTC; ids are 128 random bits in hex where not said otherwise."""

    # Named constraints: SQLite's migrations copy a table and must be able to name what they drop.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class JobRow(Base):
    """One job. `state` changes only as `app.store.jobs.TRANSITIONS` allows, so every job has exactly one outcome."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(16), index=True)
    stage: Mapped[str] = mapped_column(String(40), default="")
    progress: Mapped[float] = mapped_column(default=0.0)
    created: Mapped[float] = mapped_column(index=True)
    started: Mapped[float | None]  # of the running attempt
    start_progress: Mapped[float] = mapped_column(default=0.0)  # where that attempt began, for the ETA
    finished: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    result: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    key_id: Mapped[str | None] = mapped_column(String(32))  # API key that asked for it; None without keys
    worker: Mapped[str | None] = mapped_column(String(100))  # of the running or last attempt; None while it waits
    losses: Mapped[int] = mapped_column(default=0)  # workers in a row that ended in it before it got any further


class EventRow(Base):
    """One line of a job's log."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    at: Mapped[float]
    message: Mapped[str] = mapped_column(String(200))


class WorkerRow(Base):
    """A service or worker process. `heartbeat` counts up while it lives: others compare counts, as clocks may jump."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(100), primary_key=True)  # HOST-PID-RANDOM
    heartbeat: Mapped[int] = mapped_column(default=0)
    started: Mapped[float]
    seen: Mapped[float]  # for people; nothing is decided by it


class DirectoryRow(Base):
    """The name of the data directory that the database belongs to; the directory holds it, too."""

    __tablename__ = "directory"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(32))


class EncoderRow(Base):
    """An encoder that this service has seen, by fingerprint: results outlive the run folder that they came from."""

    __tablename__ = "encoders"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))  # its id when it was last seen
    modality: Mapped[str] = mapped_column(String(200))
    dim: Mapped[int]
    info: Mapped[dict[str, Any]] = mapped_column(JSON)  # public part of lejepa_med.json
    first_seen: Mapped[float]
    last_seen: Mapped[float]


class UploadRow(Base):
    """Files that were sent to become an archive; they lie in uploads/<id>/ of the data directory."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    modality: Mapped[str] = mapped_column(String(200))
    files: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))  # over the files' contents in their order
    created: Mapped[float] = mapped_column(index=True)
    key_id: Mapped[str | None] = mapped_column(String(32))


class ArchiveRow(Base):
    """An embedding table that the service made; it lies in archives/<id>/ of the data directory."""

    __tablename__ = "archives"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # of the job that made it
    name: Mapped[str] = mapped_column(String(120), unique=True)
    upload_id: Mapped[str | None] = mapped_column(String(32))
    encoder: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    count: Mapped[int]
    dim: Mapped[int]
    created: Mapped[float] = mapped_column(index=True)
    key_id: Mapped[str | None] = mapped_column(String(32))


class ProbeRow(Base):
    """One version of a probe; never changed. Its weights and examples lie in probes/<id>/ of the data directory."""

    __tablename__ = "probes"
    __table_args__ = (UniqueConstraint("series", "version"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # of the job that made it
    series: Mapped[str] = mapped_column(String(32))  # id of the first version
    version: Mapped[int] = mapped_column(default=1)  # 1, 2, ... within the series
    parent: Mapped[str | None] = mapped_column(String(32))  # version whose labels this one took over
    kind: Mapped[str] = mapped_column(String(20), default="classification")
    name: Mapped[str] = mapped_column(String(120))
    encoder: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[list[str]] = mapped_column(JSON)
    count: Mapped[int]
    created: Mapped[float] = mapped_column(index=True)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    receipt: Mapped[dict[str, Any]] = mapped_column(JSON)
    key_id: Mapped[str | None] = mapped_column(String(32))


class PredictionRow(Base):
    """A probe applied to a whole archive; the table lies in predictions/<id>/ of the data directory."""

    __tablename__ = "predictions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # of the job that made it
    probe_id: Mapped[str] = mapped_column(String(300), index=True)  # of the table probes, or of the runs directory
    archive: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64))
    count: Mapped[int]
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(index=True)
    key_id: Mapped[str | None] = mapped_column(String(32))


class LabelSetRow(Base):
    """Labels that people give to the items of an archive, saved under a name."""

    __tablename__ = "label_sets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    archive: Mapped[str] = mapped_column(String(300), index=True)
    kind: Mapped[str] = mapped_column(String(20))  # of the probes that learn from it
    classes: Mapped[list[str]] = mapped_column(JSON)  # in the order in which people see them
    version: Mapped[int]  # counts the changes
    change: Mapped[str] = mapped_column(String(32))  # id of the request that made this version
    created: Mapped[float] = mapped_column(index=True)
    updated: Mapped[float]
    key_id: Mapped[str | None] = mapped_column(String(32))


class LabelRow(Base):
    """The label of one item in a set. A removed one stays with the value null, so that a change can be told of it."""

    __tablename__ = "labels"

    set_id: Mapped[str] = mapped_column(ForeignKey("label_sets.id", ondelete="CASCADE"), primary_key=True)
    item: Mapped[str] = mapped_column(String(200), primary_key=True)
    value: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))  # a text, a list of texts, or a number
    version: Mapped[int]  # of the set that brought it
    at: Mapped[float]


class KeyRow(Base):
    """An API key. Only a hash of its secret is kept: it has 256 random bits, so one SHA-256 cannot be guessed."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created: Mapped[float]
    expires: Mapped[float | None]
    revoked: Mapped[float | None]
    last_used: Mapped[float | None]


class AuditRow(Base):
    """Who did what: every request that changed something or was refused for want of a right."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(index=True)
    key_id: Mapped[str | None] = mapped_column(String(32))
    action: Mapped[str] = mapped_column(String(120))  # method and route pattern, or a command of the operator
    target: Mapped[str | None] = mapped_column(String(200))  # id of what was made, changed or removed
    status: Mapped[int]
    request_id: Mapped[str | None] = mapped_column(String(40))


def now() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()
