"""What the catalog remembers of schedules and timed starts: Prefect keeps them, and people change them there."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from rehost.catalog.database import Database
from rehost.catalog.job import Incremental, JobSpec
from rehost.catalog.jobs import job_row
from rehost.catalog.records import Job
from rehost.catalog.states import UNDER_WAY, JobStatus
from rehost.catalog.tables import JobRow, RunRow
from rehost.settings import DEFAULT_QUEUE, Settings
from rehost.source.inventory import Record


class ScheduledJob(Record):
    """A job with a schedule or a timed start in Prefect, as the catalog has it."""

    id: str
    scheduled_since: datetime | None  # what its intervals count from; None: it has no schedule
    schedule_paused: bool
    timed_flow_run_id: str | None  # of a start that is still ahead
    count_from: datetime | None  # the end of the last run, where the schedule is to be counted from it and is not


class Schedules:
    """The part of the catalog that remembers schedules."""

    _database: Database
    _settings: Settings

    def scheduled_jobs(self) -> list[ScheduledJob]:
        """Every job that should have a schedule or a timed start in Prefect, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(JobRow)
                .where(JobRow.scheduled_since.is_not(None) | JobRow.timed_flow_run_id.is_not(None))
                .order_by(JobRow.created_at)
            ).all()
            busy = set(session.scalars(select(RunRow.job_id).where(RunRow.status.in_(UNDER_WAY))))
            return [
                ScheduledJob(
                    id=row.id,
                    scheduled_since=row.scheduled_since,
                    schedule_paused=row.schedule_paused,
                    timed_flow_run_id=row.timed_flow_run_id,
                    count_from=None if row.id in busy else _count_from(row),
                )
                for row in rows
            ]

    def count_from(self, job_id: str) -> datetime | None:
        """What the job's intervals are to be counted from, where they are not. Raises JobNotFound."""
        with self._database.read() as session:
            return _count_from(job_row(session, job_id))

    def counted_from(self, job_id: str, since: datetime) -> None:
        """The intervals of the schedule count from there; one that was taken away meanwhile stays away."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            if row.scheduled_since is not None:
                row.scheduled_since = since

    def schedule_lost(self, job_id: str, since: datetime) -> bool:
        """The schedule that counted from `since` is not in Prefect; False: the job has got another one meanwhile."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            if row.scheduled_since != since:
                return False
            row.scheduled_since, row.schedule_paused, row.version = None, False, row.version + 1
            return True

    def schedule_seen(self, job_id: str, *, paused: bool) -> None:
        """Whether the job's schedule is paused in Prefect."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            if row.schedule_paused != paused:
                row.schedule_paused, row.version = paused, row.version + 1

    def forget_timed(self, job_id: str, flow_run_id: str) -> None:
        """That start of the job will not come about: somebody took it away in Prefect."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            if row.timed_flow_run_id == flow_run_id:
                row.timed_flow_run_id, row.version = None, row.version + 1

    def work_queue(self, job: Job) -> str:
        """The Prefect work queue whose workers do the runs of the job."""
        region = self._settings.region(job.region_id)
        return region.work_queue(job.network.vswitch_id) if region is not None else DEFAULT_QUEUE


def _count_from(row: JobRow) -> datetime | None:
    """An interval counts from the end of the last run, whatever set that off; a cron expression from nothing."""
    rule: Incremental | None = JobSpec.model_validate(row.spec).incremental
    if rule is None or rule.interval_hours is None or row.scheduled_since is None or row.ended_at is None:
        return None
    if row.status not in (JobStatus.WAITING, JobStatus.IN_ERROR) or row.ended_at <= row.scheduled_since:
        return None
    return row.ended_at
