"""How jobs come to an end without a run: cut over, expired, deleted.

What hangs on a job outside the catalog (its schedule, a timed start, a change tracker on the source) is taken away by
whoever moved the job, and by housekeeping where that was not done: see `ended_with_leftovers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, now
from rehost.catalog.image_care import mark_deleted
from rehost.catalog.job import JobSpec
from rehost.catalog.jobs import Jobs, check_version, job_row, locked_job
from rehost.catalog.proof import missing_of
from rehost.catalog.records import Job
from rehost.catalog.standing import DELETED_AFTER
from rehost.catalog.states import (
    ENDED,
    RULES,
    TESTED_NOW,
    UNDER_WAY,
    Action,
    JobStatus,
    RunStatus,
    check_action,
    invalid_status,
)
from rehost.catalog.tables import JobRow, JobTagRow, RunRow, VerificationRow
from rehost.catalog.verifications import newest_run_with_images
from rehost.errors import ImageNotVerified, JobNoImage


@dataclass(frozen=True)
class Leftovers:
    """What Prefect has of a job."""

    scheduled: bool
    flow_run_ids: tuple[str, ...]  # a start that is ahead, tests of images of a job that is being deleted


class Endings:
    """A part of the catalog."""

    _database: Database

    def cut_over(self, job_id: str, *, expected: int | None = None) -> None:
        """The server has moved: a waiting job is Finished with the images that it has, and no schedule starts it again.

        Raises JobNotFound, PreconditionFailed for a job of another version than the expected one, JobInvalidStatus;
        JobNoImage where an image that was asked for is not there any more, and ImageNotVerified where its newest test
        did not pass.
        """
        with self._database.write() as session:
            check_version(session, job_id, expected)
            job = locked_job(session, job_id)
            check_action(job_id, Action.CUT_OVER, job.status, job.business_status)
            if _run_under_way(session, job_id):
                # It waits in the queue: a stop takes it out.
                raise invalid_status(job_id, "queued", Action.CUT_OVER, RULES[Action.CUT_OVER].origins)
            run_id = newest_run_with_images(session, job_id)
            missing = missing_of(session, run_id, JobSpec.model_validate(job.spec))
            if missing.images:
                raise JobNoImage(id=job_id, missing=" and no ".join(missing.images))
            if missing.proofs:
                raise ImageNotVerified(id=job_id, missing=", ".join(missing.proofs))
            job.status, job.ended_at, job.version = JobStatus.FINISHED, now(), job.version + 1

    def begin_removal(self, job_id: str, *, images: bool = False, expected: int | None = None) -> Job:
        """The job is being deleted from now on; the job as it was. A run of it that waits for its turn is taken back.

        With `images` its images are deleted with it, as ImageCare.delete_images does; where one is in use ImageInUse is
        raised and nothing is changed. Raises JobNotFound, PreconditionFailed for a job of another version than the
        expected one, JobInvalidStatus.
        """
        with self._database.write() as session:
            check_version(session, job_id, expected)
            job = locked_job(session, job_id)
            check_action(job_id, Action.DELETE, job.status, job.business_status)
            assert isinstance(self, Jobs)
            before = self.job_records(session, [job])[0]
            if images:
                mark_deleted(session, before.image_ids)
            session.execute(
                update(RunRow)
                .where(RunRow.job_id == job_id, RunRow.status.in_(UNDER_WAY))
                .values(status=RunStatus.STOPPED, ended_at=now())
            )
            job.status, job.version = JobStatus.DELETING, job.version + 1
            return before

    def finish_removal(self, job_id: str) -> list[str]:
        """Forget a job that is being deleted, with its runs and verifications; the ids of the verifications.

        Its images stay, and name it all the same. A job that is not Deleting, or not there, is left alone.
        """
        with self._database.write() as session:
            job = session.get(JobRow, job_id, with_for_update=True)
            if job is None or job.status != JobStatus.DELETING:
                return []
            tests = list(session.scalars(select(VerificationRow.id).where(VerificationRow.job_id == job_id)))
            for table in (VerificationRow, RunRow, JobTagRow):
                session.execute(delete(table).where(table.job_id == job_id))
            session.delete(job)
            return tests

    def expire_jobs(self, moment: datetime) -> list[str]:
        """The time of these jobs was over by that moment: they are Expired now. A run under way, or queued, goes on."""
        due = (
            JobRow.status.in_(RULES[Action.EXPIRE].origins),
            JobRow.valid_until <= moment,
            ~exists().where(RunRow.job_id == JobRow.id, RunRow.status.in_(UNDER_WAY)),
        )
        with self._database.write() as session:
            ids = list(session.scalars(select(JobRow.id).where(*due).with_for_update()))
            session.execute(
                update(JobRow)
                .where(JobRow.id.in_(ids), *due)
                .values(status=JobStatus.EXPIRED, expired_at=moment, version=JobRow.version + 1)
            )
            return ids

    def expired_long_ago(self, moment: datetime) -> list[str]:
        """The expired jobs that are to be deleted by that moment."""
        with self._database.read() as session:
            long_ago = select(JobRow.id).where(
                JobRow.status == JobStatus.EXPIRED, JobRow.expired_at <= moment - DELETED_AFTER
            )
            return list(session.scalars(long_ago.order_by(JobRow.expired_at)))

    def leftovers(self, job_id: str) -> Leftovers:
        """What Prefect still has of a job that is over. Raises JobNotFound."""
        with self._database.read() as session:
            job = job_row(session, job_id)
            flow_run_ids = [job.timed_flow_run_id] if job.timed_flow_run_id else []
            if job.status == JobStatus.DELETING:
                under_way = (VerificationRow.job_id == job_id, VerificationRow.status.in_(TESTED_NOW))
                flow_run_ids += filter(None, session.scalars(select(VerificationRow.flow_run_id).where(*under_way)))
            return Leftovers(job.scheduled_since is not None, tuple(dict.fromkeys(flow_run_ids)))

    def nothing_left_in_prefect(self, job_id: str) -> None:
        """That was taken away. Raises JobNotFound."""
        with self._database.write() as session:
            job = locked_job(session, job_id)
            job.scheduled_since = job.timed_flow_run_id = None
            job.schedule_paused = False

    def ended_with_leftovers(self) -> list[str]:
        """The jobs that are over and whose schedule or timed start is still there, or that are to be removed whole."""
        with self._database.read() as session:
            left = (
                (JobRow.status == JobStatus.DELETING)
                | JobRow.scheduled_since.is_not(None)
                | JobRow.timed_flow_run_id.is_not(None)
            )
            over = select(JobRow.id).where(JobRow.status.in_(ENDED), left)
            return list(session.scalars(over.order_by(JobRow.created_at)))


def _run_under_way(session: Session, job_id: str) -> bool:
    found = select(RunRow.id).where(RunRow.job_id == job_id, RunRow.status.in_(UNDER_WAY)).limit(1)
    return session.scalars(found).first() is not None
