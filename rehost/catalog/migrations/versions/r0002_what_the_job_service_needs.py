"""Versions and figures of jobs, batches, verifications as actions, keys; images and snapshots outlive their jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_UNDER_WAY = sa.text("status IN ('pending', 'running')")
_KEYS = {"fk": "%(table_name)s_%(column_0_name)s_fkey"}  # SQLite keeps no names; these are PostgreSQL's own


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="1"))
        for name in ("bytes_done", "bytes_total", "bytes_per_second"):
            jobs.add_column(sa.Column(name, sa.BigInteger))
        jobs.add_column(sa.Column("schedule_paused", sa.Boolean, nullable=False, server_default=sa.false()))
        jobs.add_column(sa.Column("expired_at", sa.DateTime))
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("batch_id", sa.String(255)))
    op.create_index(
        "one_run_under_way_per_job",
        "runs",
        ["job_id"],
        unique=True,
        sqlite_where=_UNDER_WAY,
        postgresql_where=_UNDER_WAY,
    )
    with op.batch_alter_table("snapshots", naming_convention=_KEYS) as snapshots:
        for column in ("source_id", "run_id"):
            snapshots.drop_constraint(f"snapshots_{column}_fkey", type_="foreignkey")
    with op.batch_alter_table("verifications", naming_convention=_KEYS) as verifications:
        verifications.drop_constraint("verifications_image_id_fkey", type_="foreignkey")
        verifications.alter_column("report", existing_type=sa.JSON, nullable=True)
        verifications.add_column(sa.Column("flow_run_id", sa.String(255)))
        verifications.add_column(sa.Column("started_at", sa.DateTime))
        verifications.add_column(sa.Column("ended_at", sa.DateTime))
    op.create_index("ix_verifications_flow_run_id", "verifications", ["flow_run_id"])
    with op.batch_alter_table("images", naming_convention=_KEYS) as images:
        for column in ("source_id", "job_id", "run_id"):
            images.drop_constraint(f"images_{column}_fkey", type_="foreignkey")
        for column in ("job_id", "run_id"):
            images.alter_column(column, existing_type=sa.String(255), nullable=True)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False, unique=True),
        sa.Column("scope", sa.String(255), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("last_used_at", sa.DateTime),
    )
