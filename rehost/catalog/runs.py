"""Runs in the catalog, and with them the only places where a job's state changes.

A run begins in `begin_run`, whoever asks: one compare-and-set update moves the job to Running, so that of two starts
at once one wins. The API begins a run, asks for the flow run, and takes the run back (`withdraw_run`) where that
fails; the flow then claims the run (`claim_run`). A flow run that a schedule started finds none and begins its own.
Where no place is free (queue.py) the job keeps its status and its run waits, pending, for somebody to give it one.
A run ends once, in `finish_run`, `fail_run` or `stop_run`; the first of them decides and the others change nothing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, held, now
from rehost.catalog.job import ExecuteAt, JobSpec
from rehost.catalog.jobs import check_version, job_row
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.proof import missing_of
from rehost.catalog.queue import lock_queue, turns
from rehost.catalog.records import Figures, Page, Run, Snapshot
from rehost.catalog.run_figures import STAGE_SECONDS
from rehost.catalog.states import (
    RULES,
    UNDER_WAY,
    Action,
    BusinessStatus,
    JobStatus,
    RunKind,
    RunStatus,
    check_action,
    invalid_status,
    leading_to,
    startable,
)
from rehost.catalog.tables import ImageRow, JobRow, RunRow, SnapshotRow
from rehost.catalog.verifications import end_stage_verifications
from rehost.errors import (
    JobInvalidStatus,
    RehostError,
    RunIncomplete,
    RunNotFound,
    VerificationCrashed,
)
from rehost.ids import new_id
from rehost.settings import Settings
from rehost.verification.report import Failure

_STAGES = list(BusinessStatus)
_NO_BYTES: dict[str, None] = {"bytes_done": None, "bytes_total": None, "bytes_per_second": None}


class Runs:
    """The part of the catalog that remembers runs and moves jobs from state to state."""

    _database: Database
    _settings: Settings

    # --- a run begins ---------------------------------------------------------------------------------------------

    def begin_run(
        self, job_id: str, *, kind: RunKind | str, batch_id: str | None = None, expected: int | None = None
    ) -> Run:
        """Make a pending run, and move the job to Running, Preparing if a place is free; else the job is queued.

        `batch_id` is that of the request that starts several jobs at once. Raises JobNotFound, PreconditionFailed for a
        job of another version than the expected one, JobInvalidStatus.
        """
        with self._database.write() as session:
            lock_queue(session)
            check_version(session, job_id, expected)
            return run_records(session, [self._begin(session, job_id, RunKind(kind), None, batch_id)])[0]

    def attach_flow_run(self, run_id: str, flow_run_id: str) -> None:
        """The flow run that will do this run was asked for; one that has claimed it already stays."""
        with self._database.write() as session:
            row = _run_row(session, run_id)
            job = job_row(session, row.job_id)
            # One that was put back into the queue meanwhile is asked for again when its turn comes.
            if row.flow_run_id is None and job.status == JobStatus.RUNNING:
                row.flow_run_id = job.flow_run_id = flow_run_id
                job.version += 1

    def withdraw_run(self, run_id: str) -> bool:
        """Take a pending run back, and the job to the state before it: its flow run could not be had.

        A run that a flow has claimed meanwhile is left alone: False.
        """
        with self._database.write() as session:
            row = _run_row(session, run_id)
            if row.status != RunStatus.PENDING:
                return False
            job = job_row(session, row.job_id)
            if job.status == JobStatus.RUNNING:
                restore_job(session, job, row)
            session.delete(row)
            return True

    def claim_run(self, job_id: str, *, flow_run_id: str, kind: RunKind | str = RunKind.MANUAL) -> Run:
        """What a flow calls first: the run that is now its own.

        It is the run that was begun for it; or the one that it claimed before, when the flow run is tried again; or a
        new one of that kind, when a schedule or a timed start is behind it. One that is still pending has to wait for
        its turn, and another flow run will do it. Raises JobNotFound, and JobInvalidStatus where another flow run has
        the job, or the job may not run now: the flow then has nothing to do.
        """
        with self._database.write() as session:
            lock_queue(session)
            job = job_row(session, job_id)
            if job.timed_flow_run_id == flow_run_id:
                job.timed_flow_run_id = None
            row = _run_under_way(session, job_id)
            if row is not None and row.flow_run_id not in (None, flow_run_id):
                raise _invalid_status(job, "another run", startable(RunKind(kind)))
            if row is None:
                row = self._begin(session, job_id, RunKind(kind), flow_run_id, None)
            elif job.status != JobStatus.RUNNING:
                self._begin_in_turn(session, row, flow_run_id)
            session.refresh(job)
            if job.status != JobStatus.RUNNING:
                return run_records(session, [row])[0]
            row.status = RunStatus.RUNNING
            row.flow_run_id = job.flow_run_id = flow_run_id
            row.started_at = row.started_at or now()
            job.started_at = row.started_at
            job.business_status = BusinessStatus.PREPARING
            session.flush()
            return run_records(session, [row])[0]

    def _begin(
        self, session: Session, job_id: str, kind: RunKind, flow_run_id: str | None, batch_id: str | None
    ) -> RunRow:
        lock_queue(session)
        job = job_row(session, job_id)
        allowed = startable(kind)
        if kind is RunKind.SCHEDULE and _before_its_time(job):
            raise _invalid_status(job, "a scheduled run before the first one", startable(RunKind.MANUAL))
        if job.status not in allowed:
            raise _invalid_status(job, "start", allowed)
        if _run_under_way(session, job_id) is not None:
            raise JobInvalidStatus(id=job_id, status="queued", action="start", allowed=", ".join(allowed))
        row = RunRow(
            id=new_id("r"),
            job_id=job_id,
            source_id=job.source_id,
            kind=kind,
            status=RunStatus.PENDING,
            previous_status=job.status,
            batch_id=batch_id,
            created_at=now(),
        )
        job.version += 1
        session.add(row)
        session.flush()
        self._begin_in_turn(session, row, flow_run_id)
        return row

    def _begin_in_turn(self, session: Session, row: RunRow, flow_run_id: str | None) -> None:
        """The run begins if its turn has come; else it waits. The queue is locked."""
        if row.id in turns(session, self._settings):
            move_to_running(session, row, flow_run_id)

    # --- while it is under way ------------------------------------------------------------------------------------

    def set_stage(self, job_id: str, business_status: BusinessStatus | str) -> None:
        """What the running job is at. Raises JobInvalidStatus where it is not running any more."""
        wanted = BusinessStatus(business_status)
        with self._database.write() as session:
            changed = session.execute(
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status == JobStatus.RUNNING)
                .values(business_status=wanted, version=JobRow.version + 1)
            )
            if _rows(changed) == 0:
                raise _invalid_status(job_row(session, job_id), f"stage {wanted}", (JobStatus.RUNNING,))

    def record_snapshot(self, run_id: str, snapshot_id: str, figures: Figures) -> Snapshot:
        """The transfer of this run is complete: the snapshot is in the store. Recording it again changes nothing."""
        with self._database.write() as session:
            run = _run_row(session, run_id)
            row = session.get(SnapshotRow, snapshot_id)
            if row is None:
                row = SnapshotRow(
                    id=snapshot_id,
                    source_id=run.source_id,
                    run_id=run_id,
                    figures=figures.model_dump(),
                    created_at=now(),
                )
                session.add(row)
            run.snapshot_id, run.figures = row.id, row.figures
            return _snapshot_record(row)

    def latest_snapshot(self, source_id: str) -> str | None:
        """The newest complete snapshot of the source: the parent of the next one. None where there is none."""
        with self._database.read() as session:
            return session.scalars(
                select(SnapshotRow.id)
                .where(SnapshotRow.source_id == source_id)
                .order_by(SnapshotRow.created_at.desc(), SnapshotRow.id.desc())
                .limit(1)
            ).first()

    def request_stop(self, job_id: str, *, expected: int | None = None) -> Run | None:
        """A user wants the job to stop. The run to cancel; or None: the job waited and is Stopped now.

        A queued job leaves the queue; it is what it was, but for Waiting, which becomes Stopped as ever. Raises
        JobNotFound, PreconditionFailed for a job of another version than the expected one, JobInvalidStatus (Running
        and Waiting are allowed), JobInvalidBusinessStatus (Syncing is).
        """
        with self._database.write() as session:
            lock_queue(session)
            check_version(session, job_id, expected)
            job = job_row(session, job_id)
            left = job.status != JobStatus.RUNNING and (row := _run_under_way(session, job_id)) is not None
            if left:
                session.delete(row)
                job.version += 1
                session.flush()
            waiting = (
                update(JobRow)
                .where(JobRow.id == job_id, JobRow.status == JobStatus.WAITING)
                .values(status=JobStatus.STOPPED, version=JobRow.version + 1)
            )
            if _rows(session.execute(waiting)) or left:
                return None
            syncing = (
                update(JobRow)
                .where(
                    JobRow.id == job_id,
                    JobRow.status == JobStatus.RUNNING,
                    JobRow.business_status == BusinessStatus.SYNCING,
                )
                .values(stopping=True, version=JobRow.version + 1)
            )
            if _rows(session.execute(syncing)):
                row = _run_under_way(session, job_id)
                assert row is not None
                return run_records(session, [row])[0]
            session.refresh(job)
            check_action(job_id, Action.STOP, job.status, job.business_status)
            raise _invalid_status(job, Action.STOP, RULES[Action.STOP].origins)  # it has just moved on

    def is_stopping(self, job_id: str) -> bool:
        """Whether somebody asked the running job to stop. Raises JobNotFound."""
        with self._database.read() as session:
            return job_row(session, job_id).stopping

    def keep_running(self, job_id: str) -> None:
        """Undo request_stop for a running job: its flow run could not be cancelled."""
        with self._database.write() as session:
            job = job_row(session, job_id)
            job.stopping, job.version = False, job.version + 1

    # --- it ends --------------------------------------------------------------------------------------------------

    def finish_run(self, run_id: str) -> Run:
        """The run did all that was asked: the job is Finished, or Waiting if it is incremental and was not cut over.

        Where a stop was asked for and came too late, an incremental job is Stopped all the same: its schedule is gone.
        Raises RunIncomplete where an image that was asked for is not recorded, or its verification has not succeeded.
        """
        with self._database.write() as session:
            run = _run_row(session, run_id)
            if run.status in UNDER_WAY:
                job = job_row(session, run.job_id)
                spec = JobSpec.model_validate(job.spec)
                missing = missing_of(session, run_id, spec)
                if lacking := [f"a {image}" for image in missing.images] + list(missing.proofs):
                    raise RunIncomplete(missing=", ".join(lacking))
                goes_on = spec.incremental is not None and run.kind != RunKind.CUT_OVER
                between = JobStatus.STOPPED if job.stopping else JobStatus.WAITING
                after = between if goes_on else JobStatus.FINISHED
                _end(session, run, RunStatus.SUCCEEDED, after, None)
            return run_records(session, [run])[0]

    def fail_run(self, run_id: str, error: RehostError) -> Run:
        """The run failed: the job is InError and tells why."""
        with self._database.write() as session:
            run = _run_row(session, run_id)
            if run.status in UNDER_WAY:
                _end(session, run, RunStatus.FAILED, JobStatus.IN_ERROR, Failure.of(error))
            return run_records(session, [run])[0]

    def stop_run(self, run_id: str) -> Run:
        """The run was stopped: so is the job."""
        with self._database.write() as session:
            run = _run_row(session, run_id)
            if run.status in UNDER_WAY:
                _end(session, run, RunStatus.STOPPED, JobStatus.STOPPED, None)
            return run_records(session, [run])[0]

    # --- looked up ------------------------------------------------------------------------------------------------

    def run(self, id: str) -> Run:
        """Raises RunNotFound."""
        with self._database.read() as session:
            return run_records(session, [_run_row(session, id)])[0]

    def runs(self, job_id: str, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[Run]:
        """The runs of a job, newest first. Raises JobNotFound, InvalidParameter."""
        with self._database.read() as session:
            job_row(session, job_id)
            query = select(RunRow).where(RunRow.job_id == job_id)
            return page(session, query, RunRow.created_at, RunRow.id, limit=limit, cursor=cursor, records=run_records)

    def run_of_flow_run(self, flow_run_id: str) -> Run | None:
        """The newest run that this flow run did or does; for hooks, which know nothing else."""
        with self._database.read() as session:
            row = session.scalars(
                select(RunRow).where(RunRow.flow_run_id == flow_run_id).order_by(RunRow.created_at.desc()).limit(1)
            ).first()
            return None if row is None else run_records(session, [row])[0]

    def runs_under_way(self) -> list[Run]:
        """Every pending or running run, oldest first: housekeeping compares them with the flow runs."""
        with self._database.read() as session:
            rows = session.scalars(select(RunRow).where(RunRow.status.in_(UNDER_WAY)).order_by(RunRow.created_at))
            return run_records(session, list(rows))


def move_to_running(session: Session, run: RunRow, flow_run_id: str | None) -> bool:
    """Begin a pending run. False where the job has left the status from which the run was asked for."""
    job = job_row(session, run.job_id)
    previous = job.status
    moved = session.execute(
        update(JobRow)
        # The state that was read, so that `previous_status` is what restore_job must bring back.
        .where(JobRow.id == job.id, JobRow.status == previous, JobRow.status.in_(startable(RunKind(run.kind))))
        .values(
            status=JobStatus.RUNNING,
            business_status=BusinessStatus.PREPARING,
            progress=0,
            eta_seconds=None,
            **_NO_BYTES,
            stopping=False,
            error=None,
            started_at=now(),
            ended_at=None,
            flow_run_id=flow_run_id,
            version=JobRow.version + 1,
        )
    )
    session.refresh(job)
    if not _rows(moved):
        return False
    run.previous_status, run.flow_run_id = previous, flow_run_id
    session.flush()
    return True


def restore_job(session: Session, job: JobRow, run: RunRow) -> None:
    """Bring back what the job was before that run."""
    job.status, job.business_status, job.stopping = run.previous_status, None, False
    before = session.scalars(
        select(RunRow).where(RunRow.job_id == job.id, RunRow.id != run.id).order_by(RunRow.created_at.desc())
    ).first()
    job.started_at = before.started_at if before else None
    job.ended_at = before.ended_at if before else None
    job.flow_run_id = before.flow_run_id if before else None
    job.error = before.error if before else None
    job.version += 1
    job.progress = 100 if before is not None and before.status == RunStatus.SUCCEEDED else 0


def _before_its_time(job: JobRow) -> bool:
    """A timed start is still ahead: the schedule of an incremental job has to wait for it."""
    execution = JobSpec.model_validate(job.spec).execution
    return job.status == JobStatus.READY and isinstance(execution, ExecuteAt) and now() < execution.start_at


def _end(session: Session, run: RunRow, status: RunStatus, job_status: JobStatus, error: Failure | None) -> None:
    moment = now()
    told: dict[str, Any] | None = error.model_dump() if error else None
    ended = session.execute(
        update(RunRow)
        .where(RunRow.id == run.id, RunRow.status.in_(UNDER_WAY))
        .values(status=status, ended_at=moment, error=told)
    )
    if _rows(ended) == 0:
        session.refresh(run)
        return
    values: dict[str, Any] = {
        "status": job_status,
        "business_status": None,
        "eta_seconds": None,
        **_NO_BYTES,
        "stopping": False,
        "error": told,
        "ended_at": moment,
        "version": JobRow.version + 1,
    }
    if status is RunStatus.SUCCEEDED:
        values["progress"] = 100
    session.execute(
        update(JobRow)
        .where(JobRow.id == run.job_id, JobRow.status.in_([s for s in leading_to(job_status) if s in _RUNNING]))
        .values(**values)
    )
    end_stage_verifications(session, run.id, _cause(told))
    session.refresh(run)


def _cause(told: dict[str, Any] | None) -> RehostError:
    """Why a test that was a stage of the run ended with it."""
    return VerificationCrashed(reason=f"its run ended ({told['code'] if told else 'it was stopped'})")


_RUNNING = (JobStatus.RUNNING,)


def _run_under_way(session: Session, job_id: str) -> RunRow | None:
    return session.scalars(
        select(RunRow).where(RunRow.job_id == job_id, RunRow.status.in_(UNDER_WAY)).order_by(RunRow.created_at.desc())
    ).first()


def _run_row(session: Session, id: str) -> RunRow:
    row = session.get(RunRow, id)
    if row is None:
        raise RunNotFound(id=id)
    if (lock := held(session)) is not None:
        job_row(session, row.job_id)  # which is held now; the run as it stands after whoever held it before
        session.refresh(row, with_for_update=lock)
    return row


def _invalid_status(job: JobRow, action: str, allowed: tuple[JobStatus, ...]) -> JobInvalidStatus:
    return invalid_status(job.id, job.status, action, allowed)


def _rows(result: Any) -> int:
    return int(result.rowcount)


def _snapshot_record(row: SnapshotRow) -> Snapshot:
    return Snapshot(
        id=row.id,
        source_id=row.source_id,
        run_id=row.run_id,
        created_at=row.created_at,
        figures=Figures.model_validate(row.figures),
    )


def run_records(session: Session, rows: list[RunRow] | Any) -> list[Run]:
    """The records of rows."""
    images: dict[str, list[str]] = {}
    for run_id, image_id in session.execute(
        select(ImageRow.run_id, ImageRow.id)
        .where(ImageRow.run_id.in_([row.id for row in rows]), ImageRow.deleted_at.is_(None))
        .order_by(ImageRow.created_at)
    ):
        images.setdefault(run_id, []).append(image_id)
    return [_run_record(row, tuple(images.get(row.id, ()))) for row in rows]


def _run_record(row: RunRow, image_ids: tuple[str, ...]) -> Run:
    told = dict(row.figures or {})
    stage_seconds = told.pop(STAGE_SECONDS, {})
    figures = Figures.model_validate(told) if told else None
    moved: dict[str, datetime | int | None] = {
        name: getattr(figures, name) if figures is not None else None for name in Figures.model_fields
    }
    return Run.model_validate(
        {
            "id": row.id,
            "job_id": row.job_id,
            "source_id": row.source_id,
            "kind": row.kind,
            "status": row.status,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
            "snapshot_id": row.snapshot_id,
            "image_ids": image_ids,
            **moved,
            "stage_seconds": stage_seconds,
            "flow_run_id": row.flow_run_id,
            "error": row.error,
        }
    )
