"""Workers that end in a job are counted, and the database knows its data directory."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the count and the name."""
    op.add_column("jobs", sa.Column("losses", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "pair",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(32), nullable=False),
    )


def downgrade() -> None:
    """Remove both. A dead job has no place in the older schema: it failed."""
    op.drop_table("pair")
    op.execute("UPDATE jobs SET state = 'failed' WHERE state = 'dead'")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("losses")
