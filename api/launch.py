"""Jobs set going and stopped: the catalog and the flows brought to agree.

The catalog moves first, by compare-and-set, and is moved back where Prefect does not take the order. So of two starts
at once one reaches Prefect, and a job never shows a run that nobody was asked for.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from api.dependencies import Orchestration, await_here
from rehost.catalog import admission
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import ExecuteAt, ExecuteNow, Incremental, JobSpec
from rehost.catalog.records import Job, Run
from rehost.catalog.states import JobStatus, RunKind
from rehost.errors import OrchestrationAway


def create_job(catalog: Catalog, orchestration: Orchestration, spec: JobSpec, *, batch_id: str | None = None) -> Job:
    """Make the job and set it going as its `execution` says; where that fails there is no job.

    `batch_id` is that of a request that makes several jobs at once. Raises what Catalog.create_job raises, and
    OrchestrationAway.
    """
    job = catalog.create_job(spec)
    try:
        if isinstance(spec.execution, ExecuteNow):
            return start_job(catalog, orchestration, job.id, batch_id=batch_id)
        if isinstance(spec.execution, ExecuteAt):
            catalog.timed(job.id, start_later(catalog, orchestration, job, spec.execution.start_at))
            _schedule(catalog, orchestration, job)
    except BaseException:
        _take_back(catalog, orchestration, job.id)
        raise
    return catalog.job(job.id)


def start_later(catalog: Catalog, orchestration: Orchestration, job: Job, at: datetime) -> str:
    """Ask for the job's first run at that time; the id of its flow run. Raises OrchestrationAway."""
    return await_here(
        orchestration.start_run,
        job.id,
        job_name=job.name,
        source_name=catalog.source(job.source_id).name,
        kind="manual",
        at=at,
        work_queue=catalog.work_queue(job),
    )


def start_job(
    catalog: Catalog,
    orchestration: Orchestration,
    job_id: str,
    *,
    kind: RunKind = RunKind.MANUAL,
    batch_id: str | None = None,
    expected: int | None = None,
) -> Job:
    """Begin a run of the job, or queue it where no place is free.

    `batch_id` is that of a request that starts several jobs at once, `expected` the version that the job has to
    have. Raises JobNotFound, PreconditionFailed, JobInvalidStatus, OrchestrationAway.
    """
    run = catalog.begin_run(job_id, kind=kind, batch_id=batch_id, expected=expected)
    job = catalog.job(job_id)
    was_scheduled = catalog.is_scheduled(job_id)
    try:
        _schedule(catalog, orchestration, job)
        if job.status is JobStatus.RUNNING:  # else it is queued
            flow_run_id = _ask(catalog, orchestration, run, job)
            catalog.attach_flow_run(run.id, flow_run_id)
    except BaseException:
        if catalog.withdraw_run(run.id):
            if not was_scheduled and catalog.is_scheduled(job_id):
                # Nobody was told that the job will start by itself.
                with contextlib.suppress(OrchestrationAway):
                    await_here(orchestration.unschedule_job, job_id)
                    catalog.unscheduled(job_id)
            raise
        return catalog.job(job_id)  # only Prefect's answer was lost: the flow has the run already
    if (timed := catalog.take_timed(job_id)) is not None:
        # It was started by hand before its time. If Prefect cannot be told, that flow run finds nothing to do.
        with contextlib.suppress(OrchestrationAway):
            await_here(orchestration.cancel_run, timed)
    return catalog.job(job_id)


def start_waiting(catalog: Catalog, orchestration: Orchestration) -> None:
    """Let the queued jobs begin whose turn has come; where Prefect does not take one, housekeeping tries again."""
    with contextlib.suppress(OrchestrationAway):
        admission.start_waiting(catalog, lambda run, job: _ask(catalog, orchestration, run, job))


def _ask(catalog: Catalog, orchestration: Orchestration, run: Run, job: Job) -> str:
    return await_here(
        orchestration.start_run,
        job.id,
        job_name=job.name,
        source_name=catalog.source(job.source_id).name,
        kind=run.kind.value,
        work_queue=catalog.work_queue(job),
    )


def stop_job(catalog: Catalog, orchestration: Orchestration, job_id: str, *, expected: int | None = None) -> Job:
    """Stop the job: a waiting one is Stopped at once, a syncing one when its flow run has ended.

    A queued one leaves the queue.

    Raises JobNotFound, PreconditionFailed, JobInvalidStatus, JobInvalidBusinessStatus, OrchestrationAway.
    """
    run = catalog.request_stop(job_id, expected=expected)
    if run is not None:
        try:
            if run.flow_run_id is not None:
                await_here(orchestration.cancel_run, run.flow_run_id)
        except BaseException:
            catalog.keep_running(job_id)
            raise
    if catalog.job(job_id).incremental is not None:
        # A schedule that stays behind starts nothing: a stopped job is started by a user alone.
        with contextlib.suppress(OrchestrationAway):
            await_here(orchestration.unschedule_job, job_id)
            catalog.unscheduled(job_id)
    start_waiting(catalog, orchestration)
    return catalog.job(job_id)


def _schedule(catalog: Catalog, orchestration: Orchestration, job: Job) -> None:
    if job.incremental is not None and not catalog.is_scheduled(job.id):
        schedule(catalog, orchestration, job, job.incremental)


def schedule(
    catalog: Catalog, orchestration: Orchestration, job: Job, rule: Incremental, *, since: datetime | None = None
) -> None:
    """Give the job its schedule in Prefect, in place of the one that it may have.

    Intervals count from `since`, or from now on. Raises OrchestrationAway.
    """
    since = since or datetime.now(UTC)
    await_here(
        orchestration.schedule_job,
        job.id,
        job_name=job.name,
        source_name=catalog.source(job.source_id).name,
        since=since,
        interval_hours=rule.interval_hours,
        cron=rule.cron,
        timezone=rule.timezone,
        work_queue=catalog.work_queue(job),
    )
    catalog.scheduled(job.id, since)


def _take_back(catalog: Catalog, orchestration: Orchestration, job_id: str) -> None:
    timed, scheduled = catalog.take_timed(job_id), catalog.is_scheduled(job_id)
    catalog.forget_job(job_id)
    with contextlib.suppress(OrchestrationAway):
        if timed is not None:
            await_here(orchestration.cancel_run, timed)
        if scheduled:
            await_here(orchestration.unschedule_job, job_id)
