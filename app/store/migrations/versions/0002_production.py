"""Keys, audit, workers, archives, uploads, predictions, encoders; versions of probes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
TABLES = ("audit", "keys", "predictions", "archives", "uploads", "encoders", "workers")


def upgrade() -> None:
    """Add them; every probe so far becomes version 1 of itself."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("key_id", sa.String(32)))
        jobs.add_column(sa.Column("executor", sa.String(100)))
    with op.batch_alter_table("probes") as probes:
        probes.add_column(sa.Column("series", sa.String(32)))
        probes.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="1"))
        probes.add_column(sa.Column("parent", sa.String(32)))
        probes.add_column(sa.Column("kind", sa.String(20), nullable=False, server_default="classification"))
        probes.add_column(sa.Column("key_id", sa.String(32)))
    op.execute("UPDATE probes SET series = id")
    with op.batch_alter_table("probes") as probes:
        probes.alter_column("series", existing_type=sa.String(32), nullable=False)
        probes.alter_column("version", existing_type=sa.Integer, server_default=None)
        probes.alter_column("kind", existing_type=sa.String(20), server_default=None)
        probes.create_unique_constraint("uq_probes_series_version", ["series", "version"])
    op.create_table(
        "workers",
        sa.Column("executor", sa.String(100), primary_key=True),
        sa.Column("beat", sa.Integer, nullable=False),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )
    op.create_table(
        "encoders",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("modality", sa.String(200), nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("info", sa.JSON, nullable=False),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("modality", sa.String(200), nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False, index=True),
        sa.Column("key_id", sa.String(32)),
    )
    op.create_table(
        "archives",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("upload_id", sa.String(32)),
        sa.Column("encoder", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False, index=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False, index=True),
        sa.Column("key_id", sa.String(32)),
        sa.UniqueConstraint("name", name="uq_archives_name"),
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("probe_id", sa.String(32), sa.ForeignKey("probes.id"), nullable=False, index=True),
        sa.Column("archive", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False, index=True),
        sa.Column("key_id", sa.String(32)),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("revoked", sa.Float),
        sa.Column("last_used", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("key_id", sa.String(32)),
        sa.Column("action", sa.String(120), nullable=False),
        sa.Column("target", sa.String(200)),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String(40)),
    )


def downgrade() -> None:
    """Remove them, and every version of a probe but the first: the older service would show them as probes."""
    for table in TABLES:
        op.drop_table(table)
    op.execute("DELETE FROM probes WHERE version > 1 OR kind <> 'classification'")
    with op.batch_alter_table("probes") as probes:
        probes.drop_constraint("uq_probes_series_version", type_="unique")
        for column in ("series", "version", "parent", "kind", "key_id"):
            probes.drop_column(column)
    op.execute("DELETE FROM jobs WHERE kind <> 'train-probe'")
    with op.batch_alter_table("jobs") as jobs:
        for column in ("key_id", "executor"):
            jobs.drop_column(column)
