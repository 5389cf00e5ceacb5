"""Jobs in the catalog: made, listed, shown as they stand."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rehost.catalog import cron
from rehost.catalog.bandwidth import limit_at
from rehost.catalog.database import Database, held, now, one_at_a_time
from rehost.catalog.faults import Fault, fault_of, raise_faults
from rehost.catalog.job import ExecuteAt, Incremental, JobSpec
from rehost.catalog.names import name_from
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.queue import Wait, queued
from rehost.catalog.records import Job, Page, VerificationSummary
from rehost.catalog.sources import source_row, unfinished_job
from rehost.catalog.standing import Standing, next_step, status_info
from rehost.catalog.states import (
    ENDED,
    TESTED_NOW,
    BusinessStatus,
    JobStatus,
    RunKind,
    SourceState,
    VerificationStatus,
    startable,
)
from rehost.catalog.tables import ImageRow, JobRow, JobTagRow, SourceRow, VerificationRow
from rehost.errors import (
    ImageNameUsedByJob,
    JobNameDuplicate,
    JobNotFound,
    JobQuotaExceeded,
    PreconditionFailed,
    SourceHasUnfinishedJob,
    SourceNotFound,
    SourceStateInvalid,
)
from rehost.ids import new_id
from rehost.settings import Settings
from rehost.verification.report import Failure

MAX_JOBS = 1000
_JOBS_LOCK = 0x5245_484F_4A4F  # PostgreSQL's advisory lock of whoever makes a job: "REHOJO"
VALID_DAYS = 30


class Jobs:
    """The part of the catalog that remembers jobs."""

    _database: Database
    _settings: Settings

    def create_job(self, spec: JobSpec) -> Job:
        """Make a job in Ready. What rules.py judges has been judged; what only one job may have is judged here.

        Raises SourceNotFound, SourceStateInvalid, SourceHasUnfinishedJob, JobNameDuplicate, ImageNameUsedByJob,
        JobQuotaExceeded.
        """
        for attempt in range(2):
            try:
                with self._database.write() as session:
                    one_at_a_time(session, _JOBS_LOCK)  # so that what is counted stays true
                    raise_faults(list(conflicts(session, spec)))
                    row = self._new_row(session, spec)
                    session.add(row)
                    session.flush()
                    session.add_all(JobTagRow(job_id=row.id, key=k, value=v) for k, v in spec.tags.items())
                    return self.job_records(session, [row])[0]
            except IntegrityError:
                # Another writer was faster (PostgreSQL); the second look sees what it wrote and tells the rule.
                if attempt:
                    raise
        raise AssertionError("unreachable")

    def job_conflicts(
        self, spec: JobSpec, *, in_use: bool = True, faulty: Collection[str] = frozenset()
    ) -> list[Fault]:
        """What create_job would refuse, all of it; without `in_use` a source in use is no conflict.

        `faulty` are fields of the job that are wrong already: what hangs on them is not judged.
        """
        with self._database.read() as session:
            return list(conflicts(session, spec, in_use=in_use, faulty=faulty))

    def _new_row(self, session: Session, spec: JobSpec) -> JobRow:
        moment = now()
        spec = filled(spec, str(source_row(session, spec.source_id).inventory.get("hostname", "")), moment)
        assert spec.name is not None and spec.valid_until is not None
        return JobRow(
            id=new_id("j"),
            source_id=spec.source_id,
            region_id=spec.region_id,
            name=spec.name,
            image_name=image_name_of(spec),
            spec=spec.model_dump(mode="json"),
            status=JobStatus.READY,
            progress=0,
            stopping=False,
            created_at=moment,
            valid_until=spec.valid_until,
        )

    def bandwidth_limit(self, id: str, moment: datetime) -> int:
        """The limit in KB/s that counts for a transfer of the job at that moment; 0: none. Raises JobNotFound."""
        with self._database.read() as session:
            return limit_at(JobSpec.model_validate(job_row(session, id).spec).replication, moment)

    def job(self, id: str) -> Job:
        """Raises JobNotFound."""
        with self._database.read() as session:
            return self.job_records(session, [job_row(session, id)])[0]

    def jobs_of(self, ids: Sequence[str]) -> dict[str, Job]:
        """These jobs by their ids, in one look; those that are not there are left out."""
        with self._database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(ids)))
            return {job.id: job for job in self.job_records(session, list(rows))}

    def jobs(
        self,
        *,
        status: JobStatus | None = None,
        business_status: BusinessStatus | None = None,
        source_id: str | None = None,
        name: str | None = None,
        region_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = DEFAULT_LIMIT,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Newest first; the filters are joined by AND. Raises InvalidParameter."""
        query = select(JobRow)
        for column, wanted in (
            (JobRow.status, status),
            (JobRow.business_status, business_status),
            (JobRow.source_id, source_id),
            (JobRow.name, name),
            (JobRow.region_id, region_id),
        ):
            if wanted is not None:
                query = query.where(column == wanted)
        for key, value in (tags or {}).items():
            tagged = select(JobTagRow.job_id).where(JobTagRow.key == key, JobTagRow.value == value)
            query = query.where(JobRow.id.in_(tagged))
        with self._database.read() as session:
            return page(
                session, query, JobRow.created_at, JobRow.id, limit=limit, cursor=cursor, records=self.job_records
            )

    def is_scheduled(self, job_id: str) -> bool:
        """Whether a schedule of the job is registered. Raises JobNotFound."""
        with self._database.read() as session:
            return job_row(session, job_id).scheduled_since is not None

    def scheduled(self, job_id: str, since: datetime | None = None) -> None:
        """The schedule of an incremental job is registered: its intervals count from that time, or from now."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            if row.scheduled_since is None:
                row.schedule_paused = False
            row.scheduled_since = since or now()

    def unscheduled(self, job_id: str) -> None:
        """The schedule of the job is gone."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            row.scheduled_since, row.schedule_paused = None, False

    def timed(self, job_id: str, flow_run_id: str) -> None:
        """The first run of the job starts by itself, as that flow run."""
        with self._database.write() as session:
            job_row(session, job_id).timed_flow_run_id = flow_run_id

    def take_timed(self, job_id: str) -> str | None:
        """The flow run of a start that is still ahead; the job forgets it. None where there is none."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            found, row.timed_flow_run_id = row.timed_flow_run_id, None
            return found

    def forget_job(self, job_id: str) -> None:
        """Undo create_job for a job that nothing has run for, because it could not be started."""
        with self._database.write() as session:
            row = job_row(session, job_id)
            for tag in session.scalars(select(JobTagRow).where(JobTagRow.job_id == job_id)):
                session.delete(tag)
            session.flush()
            session.delete(row)

    def job_records(self, session: Session, rows: Sequence[JobRow]) -> list[Job]:
        """The records of rows, with what hangs on them."""
        ids = [row.id for row in rows]
        images: dict[str, list[str]] = {}
        for job_id, image_id in session.execute(
            select(ImageRow.job_id, ImageRow.id)
            .where(ImageRow.job_id.in_(ids), ImageRow.deleted_at.is_(None))
            .order_by(ImageRow.created_at)
        ):
            images.setdefault(job_id, []).append(image_id)
        latest: dict[str, VerificationSummary] = {}
        newest = (
            select(func.max(VerificationRow.created_at))
            .where(VerificationRow.job_id.in_(ids))
            .group_by(VerificationRow.job_id)
        )
        for row in session.scalars(
            select(VerificationRow).where(VerificationRow.job_id.in_(ids), VerificationRow.created_at.in_(newest))
        ):
            latest[row.job_id] = VerificationSummary(
                id=row.id, image_id=row.image_id, subject=row.subject, status=row.status, created_at=row.created_at
            )
        waits = queued(session, self._settings, ids)
        return [self._record(row, tuple(images.get(row.id, ())), latest.get(row.id), waits) for row in rows]

    def _record(
        self,
        row: JobRow,
        image_ids: tuple[str, ...],
        verification: VerificationSummary | None,
        waits: Mapping[str, Wait | None],
    ) -> Job:
        spec = JobSpec.model_validate(row.spec)
        status = JobStatus(row.status)
        business_status = BusinessStatus(row.business_status) if row.business_status else None
        error = Failure.model_validate(row.error) if row.error else None
        next_run_at = self._next_run_at(row, spec)
        standing = Standing(
            status,
            business_status,
            queued=row.id in waits,
            wait=waits.get(row.id),
            stopping=row.stopping,
            next_run_at=next_run_at,
            schedule_paused=row.schedule_paused,
            start_lost=isinstance(spec.execution, ExecuteAt) and row.timed_flow_run_id is None,
            verifying=verification is not None and verification.status in TESTED_NOW,
            verification_failed=verification is not None and verification.status == VerificationStatus.FAILED,
            error=error,
            expired_at=row.expired_at,
        )
        asked = {name: getattr(spec, name) for name in JobSpec.model_fields}
        return Job(
            **{
                **asked,
                "id": row.id,
                "status": status,
                "business_status": business_status,
                "version": row.version,
                "queued": row.id in waits,
                "progress": row.progress,
                "eta_seconds": row.eta_seconds,
                "bytes_done": row.bytes_done,
                "bytes_total": row.bytes_total,
                "bytes_per_second": row.bytes_per_second,
                "status_info": status_info(standing),
                "error": error,
                "next_run_at": next_run_at,
                "image_ids": image_ids,
                "latest_verification": verification,
                "created_at": row.created_at,
                "started_at": row.started_at,
                "ended_at": row.ended_at,
                "prefect_url": self._prefect_url(row.flow_run_id or row.timed_flow_run_id),
                "next_step": next_step(standing),
            }
        )

    def _next_run_at(self, row: JobRow, spec: JobSpec) -> datetime | None:
        if row.timed_flow_run_id and isinstance(spec.execution, ExecuteAt) and row.status == JobStatus.READY:
            return spec.execution.start_at
        if spec.incremental is None or row.scheduled_since is None or row.schedule_paused:
            return None
        if JobStatus(row.status) not in (*startable(RunKind.SCHEDULE), JobStatus.RUNNING):
            return None
        return next_scheduled(spec.incremental, row.scheduled_since, now(), self._settings.hour_seconds)

    def _prefect_url(self, flow_run_id: str | None) -> str | None:
        return f"{self._settings.prefect_ui_url}/runs/flow-run/{flow_run_id}" if flow_run_id else None


def filled(spec: JobSpec, hostname: str, moment: datetime) -> JobSpec:
    """The job with a name and an end, where it was asked for without."""
    name = spec.name or f"{name_from(hostname)}-{secrets.token_hex(4)}"
    return spec.model_copy(
        update={"name": name, "valid_until": spec.valid_until or moment + timedelta(days=VALID_DAYS)}
    )


def image_name_of(spec: JobSpec) -> str:
    """What the disk images of a job are called, unless that name is taken."""
    return (spec.targets.image.name if spec.targets.image else None) or spec.name or ""


def conflicts(
    session: Session, spec: JobSpec, *, in_use: bool = True, faulty: Collection[str] = frozenset()
) -> Iterator[Fault]:
    """What of a new job only one job may have, and another one has; what it names and is not there."""
    lock = held(session, key=True)
    source = None if "source_id" in faulty else session.get(SourceRow, spec.source_id, with_for_update=lock)
    if source is None and "source_id" not in faulty:
        yield fault_of(SourceNotFound(id=spec.source_id), "/source_id")
    if source is not None and source.state != SourceState.AVAILABLE:
        state = SourceStateInvalid(id=source.id, state=source.state, allowed=SourceState.AVAILABLE)
        yield fault_of(state, "/source_id")
    if in_use and source is not None and (holder := unfinished_job(session, source.id)) is not None:
        yield fault_of(SourceHasUnfinishedJob(id=source.id, job_id=holder.id), "/source_id")
    if (session.scalar(select(func.count()).select_from(JobRow)) or 0) >= MAX_JOBS:
        yield fault_of(JobQuotaExceeded(limit=MAX_JOBS), "")
    if "region_id" not in faulty:
        yield from name_conflicts(session, spec, faulty=faulty)


def name_conflicts(
    session: Session, spec: JobSpec, *, but: str | None = None, faulty: Collection[str] = frozenset()
) -> Iterator[Fault]:
    """Names of the job that others in its region have; `but` is the id of the job itself, where it exists."""
    others = select(JobRow).where(JobRow.region_id == spec.region_id, JobRow.id != (but or ""))
    name = None if "name" in faulty else spec.name
    if name and session.scalars(others.where(JobRow.name == name)).first() is not None:
        yield fault_of(JobNameDuplicate(region_id=spec.region_id, name=name), "/name")
    named = spec.targets.image.name if spec.targets.image else None
    if wanted := None if "targets" in faulty else named or name:
        unfinished = others.where(JobRow.image_name == wanted, JobRow.status.not_in(ENDED))
        if (other := session.scalars(unfinished).first()) is not None:
            yield fault_of(
                ImageNameUsedByJob(name=wanted, job_id=other.id), "/targets/image/name" if named else "/name"
            )


def next_scheduled(rule: Incremental, since: datetime, moment: datetime, hour_seconds: float) -> datetime | None:
    """The first run of a schedule after that moment; intervals are counted from `since`."""
    if rule.cron is not None:
        return cron.parse(rule.cron).next_after(moment, rule.timezone or "UTC")
    assert rule.interval_hours is not None
    interval = timedelta(seconds=rule.interval_hours * hour_seconds)
    return since + interval * max(1, (moment - since) // interval + 1)


def job_row(session: Session, id: str) -> JobRow:
    """Raises JobNotFound."""
    row = session.get(JobRow, id, with_for_update=held(session))
    if row is None:
        raise JobNotFound(id=id)
    return row


def locked_job(session: Session, id: str) -> JobRow:
    """The job, which no other writer changes before this transaction ends. Raises JobNotFound."""
    row = session.get(JobRow, id, with_for_update=True)
    if row is None:
        raise JobNotFound(id=id)
    return row


def check_version(session: Session, id: str, expected: int | None) -> None:
    """Raises PreconditionFailed for a job of another version than the expected one (None: any will do), JobNotFound.

    The version cannot move any more before this transaction ends.
    """
    if expected is not None and (version := locked_job(session, id).version) != expected:
        raise PreconditionFailed(what=f"job {id}", version=version, wanted=expected)


def touch(session: Session, id: str) -> None:
    """Something of the job that a user can see has changed."""
    session.execute(update(JobRow).where(JobRow.id == id).values(version=JobRow.version + 1))
