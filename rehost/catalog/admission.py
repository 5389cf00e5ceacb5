"""Queued runs get their places: whoever ends a run lets the next ones begin, and housekeeping where they could not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, now
from rehost.catalog.jobs import job_row
from rehost.catalog.queue import lock_queue, turns
from rehost.catalog.records import Job, Run
from rehost.catalog.runs import move_to_running, restore_job, run_records
from rehost.catalog.states import JobStatus, RunKind, RunStatus, startable
from rehost.catalog.tables import JobRow, RunRow
from rehost.errors import RunNotFound
from rehost.settings import Settings


class Admission:
    """The part of the catalog that gives places to runs that wait for one."""

    _database: Database
    _settings: Settings

    def admit_run(self) -> Run | None:
        """Give a free place to the run that waits longest for one: its job is Running. None: nobody's turn has come.

        Whoever calls it asks for the flow run, and gives the place back (`requeue_run`) where that fails.
        """
        with self._database.write() as session:
            lock_queue(session)
            _drop_hopeless(session)
            for id in turns(session, self._settings):
                run = session.get(RunRow, id)
                # None: it was taken back since it was counted.
                if run is not None and move_to_running(session, run, None):
                    return run_records(session, [run])[0]
            return None

    def requeue_run(self, run_id: str, *, flow_run_id: str | None = None) -> bool:
        """A run that got its place and no flow run, or that one, which never began, waits again.

        One that a flow has claimed is left alone: False.
        """
        with self._database.write() as session:
            lock_queue(session)
            run = session.get(RunRow, run_id)
            if run is None or run.status != RunStatus.PENDING or run.flow_run_id != flow_run_id:
                return False
            job = job_row(session, run.job_id)
            if job.status != JobStatus.RUNNING:
                return False
            run.flow_run_id = None  # should it begin after all, it finds that the run is not its own
            restore_job(session, job, run)
            return True


def _drop_hopeless(session: Session) -> None:
    """A job that came into a state in which no run may begin leaves the queue."""
    rows = session.execute(
        select(RunRow, JobRow.status)
        .join(JobRow, JobRow.id == RunRow.job_id)
        .where(RunRow.status == RunStatus.PENDING, JobRow.status != JobStatus.RUNNING)
    )
    for run, status in rows.all():
        if status not in startable(RunKind(run.kind)):
            run.status, run.ended_at = RunStatus.STOPPED, now()
    session.flush()


class WaitingRoom(Protocol):
    """What start_waiting asks of the catalog."""

    def admit_run(self) -> Run | None: ...
    def requeue_run(self, run_id: str) -> bool: ...
    def attach_flow_run(self, run_id: str, flow_run_id: str) -> None: ...
    def job(self, id: str) -> Job: ...


def start_waiting(catalog: WaitingRoom, ask: Callable[[Run, Job], str]) -> list[Run]:
    """Let every run begin whose turn has come; `ask` asks for its flow run and gives its id. The runs that began.

    Where asking fails the run waits again, and what `ask` raised is raised.
    """
    begun: list[Run] = []
    while (run := catalog.admit_run()) is not None:
        try:
            flow_run_id = ask(run, catalog.job(run.job_id))
        except BaseException:
            catalog.requeue_run(run.id)
            raise
        with contextlib.suppress(RunNotFound):  # who asked for the run took it back; its flow run finds that out
            catalog.attach_flow_run(run.id, flow_run_id)
        begun.append(run)
    return begun
