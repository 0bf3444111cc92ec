"""Predictions may come from a probe of the runs directory, which has no row and a longer id."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
FOREIGN = "fk_predictions_probe_id"


def upgrade() -> None:
    """Let predictions name any probe."""
    with op.batch_alter_table("predictions", naming_convention={"fk": "fk_%(table_name)s_%(column_0_name)s"}) as table:
        table.drop_constraint(FOREIGN, type_="foreignkey")
        table.alter_column("probe_id", existing_type=sa.String(32), type_=sa.String(300), existing_nullable=False)


def downgrade() -> None:
    """Remove what the older schema has no place for."""
    op.execute("DELETE FROM predictions WHERE probe_id NOT IN (SELECT id FROM probes)")
    with op.batch_alter_table("predictions") as table:
        table.alter_column("probe_id", existing_type=sa.String(300), type_=sa.String(32), existing_nullable=False)
        table.create_foreign_key(FOREIGN, "probes", ["probe_id"], ["id"])
