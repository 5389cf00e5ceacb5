"""Images that were deleted and whose files are still to be removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("images", sa.Column("deleted_at", sa.DateTime))
    op.create_index("ix_images_deleted_at", "images", ["deleted_at"])
