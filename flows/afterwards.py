"""What follows the end of a run, whoever ends it: the schedule counts from it, and the next queued jobs begin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from flows import orchestration
from rehost.catalog import admission
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job, Run
from rehost.errors import JobNotFound, RehostError, RunInterrupted
from rehost.settings import settings
from tasks.run_pass import catalog

log = logging.getLogger(__name__)


def run_ended(job_id: str) -> None:
    """A run of that job has ended. Where this fails, say because Prefect is away, housekeeping makes up for it."""
    try:
        with catalog() as opened:
            with contextlib.suppress(JobNotFound):  # its place is free all the same
                count_from_the_last_run(opened, job_id)
            start_waiting(opened)
    except RehostError as error:
        log.warning("what follows this run is left to housekeeping: %s", error)


def count_from_the_last_run(opened: Catalog, job_id: str) -> None:
    """The intervals of the job's schedule count from the end of its last run, whatever set that off.

    Raises JobNotFound, CatalogAway, OrchestrationAway.
    """
    since = opened.count_from(job_id)
    rule = opened.job(job_id).incremental
    if since is None or rule is None or rule.interval_hours is None:
        return
    if asyncio.run(orchestration.count_from(job_id, since=since, interval_hours=rule.interval_hours)):
        opened.counted_from(job_id, since)
    else:
        opened.unscheduled(job_id)


def ending_marker() -> Path:
    """A file that is there while the services of this machine end: nothing begins that they would have to end too."""
    return settings().home / ".ending"


def cancelled(opened: Catalog, run: Run) -> None:
    """The run was cancelled: it is stopped. If it ends with the services it is InError, and a schedule goes on."""
    if ending_marker().exists() and not opened.is_stopping(run.job_id):
        opened.fail_run(run.id, RunInterrupted())
    else:
        opened.stop_run(run.id)


def start_waiting(opened: Catalog) -> list[Run]:
    """Let the queued jobs begin whose turn has come. Raises CatalogAway, OrchestrationAway."""
    if ending_marker().exists():
        return []

    def ask(run: Run, job: Job) -> str:
        return asyncio.run(
            orchestration.start_run(
                job.id,
                job_name=job.name,
                source_name=opened.source(job.source_id).name,
                kind=run.kind.value,
                work_queue=opened.work_queue(job),
            )
        )

    return admission.start_waiting(opened, ask)
