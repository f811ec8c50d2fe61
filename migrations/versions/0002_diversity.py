"""How far the images of a group differ, by iteration."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column("metric", sa.Column("diversity", sa.Double(), nullable=True))


def downgrade() -> None:
    """Undo the change."""
    op.drop_column("metric", "diversity")
