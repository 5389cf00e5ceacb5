"""Verifications in the catalog: the tests that are stages of a run, and those that a user asks for afterwards.

A stage's test is recorded as running when it begins; it ends with its report, or with its run. A test that is asked for
is pending until its flow run comes to it. Whichever tells first how a test ended decides; what comes later changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, held, now
from rehost.catalog.jobs import check_version, job_row, locked_job, touch
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.records import Page, VerificationRecord
from rehost.catalog.states import TESTED_NOW, Action, RunStatus, VerificationStatus, check_action
from rehost.catalog.tables import ImageRow, RunRow, VerificationRow
from rehost.errors import ImageNotFound, JobNoImage, RehostError, VerificationNotFound, VerificationUnderWay
from rehost.ids import new_id
from rehost.verification.report import Failure, VerificationReport
from rehost.verification.subjects import trials_of


class Verifications:
    """The part of the catalog that remembers how images proved themselves."""

    _database: Database

    # --- asked for by a user --------------------------------------------------------------------------------------

    def ask_verification(self, job_id: str, *, expected: int | None = None) -> list[VerificationRecord]:
        """The images of the newest run that succeeded are to be tested again: a pending record for each test.

        Raises JobNotFound, PreconditionFailed for a job of another version than the expected one, JobInvalidStatus,
        VerificationUnderWay, and JobNoImage where no such image exists any more.
        """
        with self._database.write() as session:
            check_version(session, job_id, expected)
            job = locked_job(session, job_id)
            check_action(job_id, Action.VERIFY, job.status, job.business_status)
            other = session.scalars(_asked().where(VerificationRow.job_id == job_id).limit(1)).first()
            if other is not None:
                raise VerificationUnderWay(id=job_id, verification_id=other.id)
            rows = [
                _new_row(image, trial.subject, VerificationStatus.PENDING)
                for image in _newest_images(session, job_id)
                for trial in trials_of(image.facts)
            ]
            if not rows:
                raise JobNoImage(id=job_id, missing="image")
            session.add_all(rows)
            touch(session, job_id)
            session.flush()
            return verification_records(session, rows)

    def attach_verifications(self, ids: Sequence[str], flow_run_id: str) -> None:
        """The flow run that will do these tests was asked for."""
        with self._database.write() as session:
            for row in _rows(session, ids):
                row.flow_run_id = flow_run_id

    def withdraw_verifications(self, ids: Sequence[str]) -> bool:
        """Forget pending tests whose flow run could not be had; False, and nothing is done, where one has begun."""
        with self._database.write() as session:
            rows = _rows(session, ids)
            if any(row.status != VerificationStatus.PENDING or row.flow_run_id is not None for row in rows):
                return False
            session.execute(delete(VerificationRow).where(VerificationRow.id.in_(ids)))
            return True

    def claim_verifications(self, ids: Sequence[str], flow_run_id: str) -> list[VerificationRecord]:
        """What the flow calls first: the tests of these that are still to be done, now its own."""
        with self._database.write() as session:
            rows = [row for row in _rows(session, ids) if row.status in TESTED_NOW]
            for row in rows:
                row.flow_run_id = flow_run_id
            return verification_records(session, rows)

    def start_verification(self, id: str) -> None:
        """A test that was asked for begins; one that has ended stays so. Raises VerificationNotFound."""
        with self._database.write() as session:
            row = _row(session, id)
            if row.status == VerificationStatus.PENDING:
                row.status, row.started_at = VerificationStatus.RUNNING, now()
                _changed(session, row)

    def verifications_under_way(self) -> list[VerificationRecord]:
        """The tests that users asked for and that have not ended, oldest first, for housekeeping.

        A test that is a stage of a run is not among them: it ends with its run.
        """
        with self._database.read() as session:
            return verification_records(session, session.scalars(_asked().order_by(VerificationRow.created_at)).all())

    def verifications_of_flow_run(self, flow_run_id: str) -> list[VerificationRecord]:
        """The tests of that flow run that have not ended; for hooks, which know nothing else."""
        with self._database.read() as session:
            rows = session.scalars(_asked().where(VerificationRow.flow_run_id == flow_run_id)).all()
            return verification_records(session, rows)

    def images_being_verified(self) -> set[str]:
        """The ids of images that a test is reading, or is about to: they must not be deleted."""
        with self._database.read() as session:
            return images_being_verified(session)

    # --- any test -------------------------------------------------------------------------------------------------

    def begin_stage_verification(self, image_id: str, subject: str) -> VerificationRecord:
        """A run begins to test an image that it made. Raises ImageNotFound."""
        with self._database.write() as session:
            row = _new_row(_image(session, image_id), subject, VerificationStatus.RUNNING)
            row.started_at = row.created_at
            session.add(row)
            _changed(session, row)
            session.flush()
            return verification_records(session, [row])[0]

    def end_verification(self, id: str, report: VerificationReport) -> VerificationRecord:
        """The test of the image has this outcome, unless it ended before. Raises VerificationNotFound."""
        with self._database.write() as session:
            row = _row(session, id)
            if row.status in TESTED_NOW:
                _end(session, row, report)
            return verification_records(session, [row])[0]

    def fail_verification(self, id: str, error: RehostError) -> VerificationRecord:
        """The test came to no report, and this is why, unless it ended before. Raises VerificationNotFound."""
        with self._database.write() as session:
            row = _row(session, id)
            if row.status in TESTED_NOW:
                _end(session, row, _failure(row, error))
            return verification_records(session, [row])[0]

    def add_verification(
        self, job_id: str, run_id: str, image_id: str, report: VerificationReport, *, id: str | None = None
    ) -> VerificationRecord:
        """Remember a test that has ended; under `id` if it has one. Raises ImageNotFound."""
        with self._database.write() as session:
            row = _new_row(_image(session, image_id), report.subject, VerificationStatus.RUNNING)
            row.id, row.job_id, row.run_id = id or row.id, job_id, run_id
            row.started_at = row.created_at
            session.add(row)
            _end(session, row, report)
            session.flush()
            return verification_records(session, [row])[0]

    def verification(self, id: str) -> VerificationRecord:
        """Raises VerificationNotFound."""
        with self._database.read() as session:
            return verification_records(session, [_row(session, id)])[0]

    def verifications(
        self, job_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Page[VerificationRecord]:
        """Of one job, newest first. Raises JobNotFound, InvalidParameter."""
        with self._database.read() as session:
            job_row(session, job_id)
            return page(
                session,
                select(VerificationRow).where(VerificationRow.job_id == job_id),
                VerificationRow.created_at,
                VerificationRow.id,
                limit=limit,
                cursor=cursor,
                records=verification_records,
            )


def newest_run_with_images(session: Session, job_id: str) -> str | None:
    """The newest run of the job that succeeded and of which an image is left."""
    return session.scalars(
        select(RunRow.id)
        .join(ImageRow, ImageRow.run_id == RunRow.id)
        .where(RunRow.job_id == job_id, RunRow.status == RunStatus.SUCCEEDED, ImageRow.deleted_at.is_(None))
        .order_by(RunRow.created_at.desc())
        .limit(1)
    ).first()


def _newest_images(session: Session, job_id: str) -> list[ImageRow]:
    """The images of that run: of each kind the newest, as a stage that was tried again may have left an earlier one."""
    run_id = newest_run_with_images(session, job_id)
    rows = session.scalars(
        select(ImageRow)
        .where(ImageRow.run_id == run_id, ImageRow.deleted_at.is_(None))
        .order_by(ImageRow.created_at.desc())
        .with_for_update()  # none of them is deleted meanwhile
    )
    newest: dict[str, ImageRow] = {}
    for row in rows:
        newest.setdefault(row.kind, row)
    return list(newest.values())


def images_being_verified(session: Session) -> set[str]:
    """The ids of images that a test is reading, or is about to."""
    return set(session.scalars(select(VerificationRow.image_id).where(VerificationRow.status.in_(TESTED_NOW))))


def end_stage_verifications(session: Session, run_id: str, error: RehostError) -> None:
    """The run has ended: so has each test that was a stage of it."""
    rows = session.scalars(
        select(VerificationRow).where(
            VerificationRow.run_id == run_id,
            VerificationRow.status == VerificationStatus.RUNNING,
            VerificationRow.flow_run_id.is_(None),
        )
    )
    for row in rows.all():
        _end(session, row, _failure(row, error))


def _asked() -> Select[tuple[VerificationRow]]:
    """Tests under way that users asked for: a stage's is running from the first and has no flow run of its own."""
    return select(VerificationRow).where(
        VerificationRow.status.in_(TESTED_NOW),
        (VerificationRow.status == VerificationStatus.PENDING) | VerificationRow.flow_run_id.is_not(None),
    )


def _new_row(image: ImageRow, subject: str, status: VerificationStatus) -> VerificationRow:
    assert image.job_id is not None and image.run_id is not None, "only images of jobs that are there are tested"
    return VerificationRow(
        id=new_id("v"),
        job_id=image.job_id,
        run_id=image.run_id,
        image_id=image.id,
        subject=subject[:2000],
        status=status,
        created_at=now(),
    )


def _end(session: Session, row: VerificationRow, report: VerificationReport) -> None:
    row.subject = report.subject[:2000]
    row.status = report.status
    row.report = report.model_dump(mode="json")
    row.ended_at = now()
    _changed(session, row)


def _changed(session: Session, row: VerificationRow) -> None:
    """The job shows its newest verification: it has changed with it."""
    touch(session, row.job_id)


def _failure(row: VerificationRow, error: RehostError) -> VerificationReport:
    return VerificationReport(subject=row.subject, status="failed", error=Failure.of(error))


def _image(session: Session, id: str) -> ImageRow:
    row = session.get(ImageRow, id, with_for_update=True)
    if row is None or row.deleted_at is not None:
        raise ImageNotFound(id=id)
    return row


def _row(session: Session, id: str) -> VerificationRow:
    row = session.get(VerificationRow, id)
    if row is None:
        raise VerificationNotFound(id=id)
    if (lock := held(session)) is not None:
        job_row(session, row.job_id)  # first, as everybody does
        session.refresh(row, with_for_update=lock)
    return row


def _rows(session: Session, ids: Sequence[str]) -> Sequence[VerificationRow]:
    return session.scalars(
        select(VerificationRow)
        .where(VerificationRow.id.in_(ids))
        .order_by(VerificationRow.created_at)
        .with_for_update()
    ).all()


def verification_records(session: Session, rows: Sequence[VerificationRow]) -> list[VerificationRecord]:
    """The records of rows."""
    return [
        VerificationRecord.model_validate(
            {
                **(row.report or {"subject": row.subject}),
                "status": row.status,
                "id": row.id,
                "job_id": row.job_id,
                "run_id": row.run_id,
                "image_id": row.image_id,
                "flow_run_id": row.flow_run_id,
                "created_at": row.created_at,
                "started_at": row.started_at,
                "ended_at": row.ended_at,
            }
        )
        for row in rows
    ]
