"""A job changed in the catalog and, where they hang on it, its schedule and its timed start in Prefect.

The catalog moves first, and is moved back where Prefect does not take the change.
"""

from __future__ import annotations

import contextlib
from datetime import datetime

from api import launch
from api.dependencies import Orchestration, await_here
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import ExecuteAt, ExecuteNow
from rehost.catalog.job_changes import Change
from rehost.catalog.records import Job
from rehost.catalog.states import JobStatus
from rehost.errors import OrchestrationAway

_IN_THE_SCHEDULE = frozenset({"name", "incremental", "network"})  # what Prefect's schedule of a job was made of


_IN_THE_START = frozenset({"name", "network"})  # and a timed start


def change_job(
    catalog: Catalog,
    orchestration: Orchestration,
    id: str,
    patch: object,
    moment: datetime,
    *,
    expected: int | None = None,
) -> Job:
    """Set what a merge patch says; nothing where anything of it is refused or Prefect does not answer.

    A job whose `execution` becomes `now` is started. Raises what Catalog.change_job raises, and OrchestrationAway.
    """
    change = catalog.change_job(id, patch, moment, expected=expected)
    try:
        if change.changed & _IN_THE_SCHEDULE and catalog.is_scheduled(id):
            _reschedule(catalog, orchestration, change)
        if "execution" in change.changed or (_is_timed(change.after) and change.changed & _IN_THE_START):
            _start_by_itself(catalog, orchestration, change.after)
    except BaseException:
        catalog.take_change_back(id, change)
        raise
    return catalog.job(id)


def _reschedule(catalog: Catalog, orchestration: Orchestration, change: Change) -> None:
    """The schedule as it is now; how many images are kept is no part of it. By another rule intervals count anew."""
    before, rule = change.before.incremental, change.after.incremental
    if before is None or rule is None:
        return
    other = before.model_copy(update={"max_images": rule.max_images}) != rule
    if other or change.changed & {"name", "network"}:
        since = None if other else catalog.schedule_anchor(change.after.id)
        launch.schedule(catalog, orchestration, change.after, rule, since=since)


def _is_timed(job: Job) -> bool:
    ahead = isinstance(job.execution, ExecuteAt) and job.next_run_at == job.execution.start_at
    return ahead and job.status is JobStatus.READY and not job.queued


def _start_by_itself(catalog: Catalog, orchestration: Orchestration, job: Job) -> None:
    """Call the timed start off that the job may have, and set it going as its `execution` says now."""
    execution = job.execution
    if isinstance(execution, ExecuteNow):
        launch.start_job(catalog, orchestration, job.id)  # which calls the timed start off
        return
    timed = isinstance(execution, ExecuteAt)
    new = (
        launch.start_later(catalog, orchestration, job, execution.start_at)
        if isinstance(execution, ExecuteAt)
        else None
    )
    old = catalog.take_timed(job.id)
    try:
        if old is not None:
            await_here(orchestration.cancel_run, old)
        if not timed and catalog.is_scheduled(job.id):
            await_here(orchestration.unschedule_job, job.id)
            catalog.unscheduled(job.id)
        elif timed and job.incremental is not None and not catalog.is_scheduled(job.id):
            launch.schedule(catalog, orchestration, job, job.incremental)
    except BaseException:
        if old is not None:
            catalog.timed(job.id, old)
        if new is not None:
            with contextlib.suppress(OrchestrationAway):
                await_here(orchestration.cancel_run, new)
        raise
    if new is not None:
        catalog.timed(job.id, new)
