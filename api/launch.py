"""Jobs set going and stopped: the catalog and the flows brought to agree.

The catalog moves first, by compare-and-set, and is moved back where Prefect does not take the order. So of two starts
at once one reaches Prefect, and a job never shows a run that nobody was asked for.
"""

from __future__ import annotations

import contextlib
from datetime import datetime

from api.dependencies import Orchestration, await_here
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import ExecuteAt, ExecuteNow, Incremental, JobSpec
from rehost.catalog.records import Job
from rehost.catalog.states import RunKind
from rehost.errors import OrchestrationAway


def create_job(catalog: Catalog, orchestration: Orchestration, spec: JobSpec) -> Job:
    """Make the job and set it going as its `execution` says; where that fails there is no job.

    Raises what Catalog.create_job raises, and OrchestrationAway.
    """
    job = catalog.create_job(spec)
    try:
        if isinstance(spec.execution, ExecuteNow):
            return start_job(catalog, orchestration, job.id)
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
    )


def start_job(catalog: Catalog, orchestration: Orchestration, job_id: str, *, kind: RunKind = RunKind.MANUAL) -> Job:
    """Begin a run of the job. Raises JobNotFound, JobInvalidStatus, OrchestrationAway."""
    run = catalog.begin_run(job_id, kind=kind)
    job = catalog.job(job_id)
    try:
        _schedule(catalog, orchestration, job)
        flow_run_id = await_here(
            orchestration.start_run,
            job_id,
            job_name=job.name,
            source_name=catalog.source(job.source_id).name,
            kind=kind.value,
        )
    except BaseException:
        if catalog.withdraw_run(run.id):
            raise
        return catalog.job(job_id)  # only Prefect's answer was lost: the flow has the run already
    catalog.attach_flow_run(run.id, flow_run_id)
    if (timed := catalog.take_timed(job_id)) is not None:
        # It was started by hand before its time. If Prefect cannot be told, that flow run finds nothing to do.
        with contextlib.suppress(OrchestrationAway):
            await_here(orchestration.cancel_run, timed)
    return catalog.job(job_id)


def stop_job(catalog: Catalog, orchestration: Orchestration, job_id: str) -> Job:
    """Stop the job: a waiting one is Stopped at once, a syncing one when its flow run has ended.

    Raises JobNotFound, JobInvalidStatus, JobInvalidBusinessStatus, OrchestrationAway.
    """
    run = catalog.request_stop(job_id)
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
    return catalog.job(job_id)


def _schedule(catalog: Catalog, orchestration: Orchestration, job: Job) -> None:
    if job.incremental is not None and not catalog.is_scheduled(job.id):
        schedule(catalog, orchestration, job, job.incremental)


def schedule(catalog: Catalog, orchestration: Orchestration, job: Job, rule: Incremental) -> None:
    """Give the job its schedule in Prefect, in place of the one that it may have; intervals count from now on.

    Raises OrchestrationAway.
    """
    await_here(
        orchestration.schedule_job,
        job.id,
        job_name=job.name,
        source_name=catalog.source(job.source_id).name,
        interval_hours=rule.interval_hours,
        cron=rule.cron,
        timezone=rule.timezone,
    )
    catalog.scheduled(job.id)


def _take_back(catalog: Catalog, orchestration: Orchestration, job_id: str) -> None:
    timed, scheduled = catalog.take_timed(job_id), catalog.is_scheduled(job_id)
    catalog.forget_job(job_id)
    with contextlib.suppress(OrchestrationAway):
        if timed is not None:
            await_here(orchestration.cancel_run, timed)
        if scheduled:
            await_here(orchestration.unschedule_job, job_id)
