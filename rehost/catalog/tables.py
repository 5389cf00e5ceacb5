"""The catalog's tables. Documents are JSON; what is filtered or compared is a column of its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, ForeignKey, Index, String, column, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from rehost.catalog.states import ENDED, UNDER_WAY

SCHEMA_VERSION = 3  # the number of the newest file in migrations/versions


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time; stored as UTC without a zone, because SQLite keeps none."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """What all tables share."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as it stands
        dict[str, Any]: JSON(none_as_null=True),
        datetime: UtcDateTime,
        str: String(255),
    }


class SchemaRow(Base):
    """One row: the version of the tables, which is the number of the last migration that they went through."""

    __tablename__ = "schema_version"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class SourceRow(Base):
    __tablename__ = "sources"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    connection: Mapped[dict[str, Any]]
    inventory: Mapped[dict[str, Any]]
    tags: Mapped[dict[str, Any]]
    state: Mapped[str]
    status_info: Mapped[str | None] = mapped_column(String(2000))
    created_at: Mapped[datetime] = mapped_column(index=True)
    discovered_at: Mapped[datetime]


_UNFINISHED = column("status", String).not_in([status.value for status in ENDED])


class JobRow(Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id"))
    region_id: Mapped[str]
    name: Mapped[str]
    image_name: Mapped[str]  # what its disk images are called, unless that name is taken
    spec: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(index=True)
    business_status: Mapped[str | None]
    progress: Mapped[int] = mapped_column(default=0)
    eta_seconds: Mapped[int | None]
    stopping: Mapped[bool] = mapped_column(default=False)
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(index=True)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    valid_until: Mapped[datetime]
    scheduled_since: Mapped[datetime | None]  # the schedule's anchor; None while no schedule is registered
    timed_flow_run_id: Mapped[str | None]  # of a start that is still ahead
    flow_run_id: Mapped[str | None]  # of the present or last run
    version: Mapped[int] = mapped_column(default=1, server_default="1")  # +1 on every change but those of progress
    bytes_done: Mapped[int | None] = mapped_column(BigInteger)
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    bytes_per_second: Mapped[int | None] = mapped_column(BigInteger)
    schedule_paused: Mapped[bool] = mapped_column(default=False, server_default=false())
    expired_at: Mapped[datetime | None]
    __table_args__ = (
        Index("one_job_name_per_region", "region_id", "name", unique=True),
        Index(
            "one_unfinished_job_per_source",
            "source_id",
            unique=True,
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
        Index(
            "one_image_name_per_unfinished_job",
            "region_id",
            "image_name",
            unique=True,
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
    )


class JobTagRow(Base):
    """The tags of jobs once more, to filter by."""

    __tablename__ = "job_tags"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(index=True)


_UNDER_WAY = column("status", String).in_([status.value for status in UNDER_WAY])


class RunRow(Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.id"), index=True)
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(index=True)
    previous_status: Mapped[str]  # the job's, before this run
    flow_run_id: Mapped[str | None] = mapped_column(index=True)
    batch_id: Mapped[str | None]  # of the request that started several jobs at once
    snapshot_id: Mapped[str | None]
    figures: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        Index(
            "one_run_under_way_per_job",
            "job_id",
            unique=True,
            sqlite_where=_UNDER_WAY,
            postgresql_where=_UNDER_WAY,
        ),
    )


class SnapshotRow(Base):
    """It lies in the store, and stays there when its source, job and run are forgotten: nothing holds it here."""

    __tablename__ = "snapshots"
    id: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(index=True)
    run_id: Mapped[str]
    figures: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


_IS_DISK = column("kind", String) == "disk"


class ImageRow(Base):
    """It outlives the job that made it, and the source: the ids of both are what is remembered of them."""

    __tablename__ = "images"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str] = mapped_column(String(512))
    region_id: Mapped[str]
    source_id: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(index=True)
    run_id: Mapped[str | None] = mapped_column(index=True)
    snapshot_id: Mapped[str | None]
    in_use: Mapped[bool] = mapped_column(default=False)  # a user keeps it, whatever the rules say
    deleted_at: Mapped[datetime | None] = mapped_column(index=True)  # nobody is shown it; its files are going
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(index=True)
    __table_args__ = (
        Index(
            "one_disk_image_name_per_region",
            "region_id",
            "name",
            unique=True,
            sqlite_where=_IS_DISK,
            postgresql_where=_IS_DISK,
        ),
    )


class VerificationRow(Base):
    """A test of an image; it outlives the image, which retention may delete."""

    __tablename__ = "verifications"
    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    image_id: Mapped[str] = mapped_column(index=True)
    flow_run_id: Mapped[str | None] = mapped_column(index=True)  # None: it is a stage of its run
    subject: Mapped[str] = mapped_column(String(2000))
    status: Mapped[str]  # pending, running, succeeded or failed
    report: Mapped[dict[str, Any] | None]  # None: it has not ended
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]  # SHA-256 of the request
    status: Mapped[int | None]  # of the first answer; None while it is being made
    body: Mapped[dict[str, Any] | None]
    location: Mapped[str | None]
    created_at: Mapped[datetime]


class ApiKeyRow(Base):
    """A key of the API: what it is checked by, never the key itself."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    scope: Mapped[str]  # read, run or admin
    hash: Mapped[str] = mapped_column(String(64), unique=True)  # SHA-256 of the key, in hex
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
