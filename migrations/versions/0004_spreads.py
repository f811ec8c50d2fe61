"""How far the scores of a group differ, by iteration and reward."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column("metric", sa.Column("spreads", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("metric", "spreads")
