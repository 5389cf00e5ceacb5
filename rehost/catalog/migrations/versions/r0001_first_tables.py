"""The tables that the catalog began with."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_UNFINISHED = sa.text("status NOT IN ('Finished', 'Expired', 'Deleting')")
_IS_DISK = sa.text("kind = 'disk'")


def upgrade() -> None:
    op.create_table("schema_version", sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
    _sources()
    _jobs()
    _runs()
    _images()
    op.create_table(
        "idempotency_keys",
        _id("key"),
        _text("fingerprint"),
        sa.Column("status", sa.Integer),
        _json("body", nullable=True),
        _text("location", nullable=True),
        _time("created_at"),
    )


def _sources() -> None:
    op.create_table(
        "sources",
        _id(),
        _text("name"),
        _text("description", nullable=True),
        _json("connection"),
        _json("inventory"),
        _json("tags"),
        _text("state"),
        _text("status_info", length=2000, nullable=True),
        _time("created_at"),
        _time("discovered_at"),
    )
    op.create_index("ix_sources_created_at", "sources", ["created_at"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        _id(),
        _text("source_id", of="sources"),
        _text("region_id"),
        _text("name"),
        _text("image_name"),
        _json("spec"),
        _text("status"),
        _text("business_status", nullable=True),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("eta_seconds", sa.Integer),
        sa.Column("stopping", sa.Boolean, nullable=False),
        _json("error", nullable=True),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("ended_at", nullable=True),
        _time("valid_until"),
        _time("scheduled_since", nullable=True),
        _text("timed_flow_run_id", nullable=True),
        _text("flow_run_id", nullable=True),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.create_index("one_job_name_per_region", "jobs", ["region_id", "name"], unique=True)
    for name, columns in (
        ("one_unfinished_job_per_source", ["source_id"]),
        ("one_image_name_per_unfinished_job", ["region_id", "image_name"]),
    ):
        op.create_index(name, "jobs", columns, unique=True, sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED)
    op.create_table(
        "job_tags",
        sa.Column("job_id", sa.String(255), sa.ForeignKey("jobs.id"), primary_key=True),
        _id("key"),
        _text("value"),
    )
    op.create_index("ix_job_tags_value", "job_tags", ["value"])


def _runs() -> None:
    op.create_table(
        "runs",
        _id(),
        _text("job_id", of="jobs"),
        _text("source_id", of="sources"),
        _text("kind"),
        _text("status"),
        _text("previous_status"),
        _text("flow_run_id", nullable=True),
        _text("snapshot_id", nullable=True),
        _json("figures", nullable=True),
        _json("error", nullable=True),
        _time("created_at"),
        _time("started_at", nullable=True),
        _time("ended_at", nullable=True),
    )
    for column in ("flow_run_id", "source_id", "job_id", "status"):
        op.create_index(f"ix_runs_{column}", "runs", [column])
    op.create_table(
        "snapshots",
        _id(),
        _text("source_id", of="sources"),
        _text("run_id", of="runs"),
        _json("figures"),
        _time("created_at"),
    )
    op.create_index("ix_snapshots_source_id", "snapshots", ["source_id"])


def _images() -> None:
    op.create_table(
        "images",
        _id(),
        _text("kind"),
        _text("name", length=512),
        _text("region_id"),
        _text("source_id", of="sources"),
        _text("job_id", of="jobs"),
        _text("run_id", of="runs"),
        _text("snapshot_id", nullable=True),
        sa.Column("in_use", sa.Boolean, nullable=False),
        _json("facts"),
        _time("created_at"),
    )
    for column in ("job_id", "run_id", "created_at"):
        op.create_index(f"ix_images_{column}", "images", [column])
    op.create_index(
        "one_disk_image_name_per_region",
        "images",
        ["region_id", "name"],
        unique=True,
        sqlite_where=_IS_DISK,
        postgresql_where=_IS_DISK,
    )
    op.create_table(
        "verifications",
        _id(),
        _text("job_id", of="jobs"),
        _text("run_id", of="runs"),
        _text("image_id", of="images"),
        _text("subject", length=2000),
        _text("status"),
        _json("report"),
        _time("created_at"),
    )
    for column in ("job_id", "run_id", "image_id"):
        op.create_index(f"ix_verifications_{column}", "verifications", [column])


def _id(name: str = "id") -> sa.Column[str]:
    return sa.Column(name, sa.String(255), primary_key=True)


def _text(name: str, *, length: int = 255, nullable: bool = False, of: str | None = None) -> sa.Column[str]:
    keys = [sa.ForeignKey(f"{of}.id")] if of else []
    return sa.Column(name, sa.String(length), *keys, nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime, nullable=nullable)  # UTC, without a zone
