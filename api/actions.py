"""What follows the first image: tests of it, the cut-over, the end of the job.

As in launch.py the catalog moves first. What then cannot be taken out of Prefect, because that is away, harms nothing
(a run of a job that is over finds nothing to do) and is made up for by housekeeping.
"""

from __future__ import annotations

import contextlib

from api import launch
from api.dependencies import Orchestration, await_here
from rehost.catalog import retirement
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job
from rehost.catalog.states import RunKind
from rehost.errors import JobNotFound, OrchestrationAway
from rehost.images.removal import remove_deleted
from rehost.settings import Settings


def verify_job(catalog: Catalog, orchestration: Orchestration, job_id: str, *, expected: int | None = None) -> Job:
    """Have the newest images of the job tested again.

    Raises JobNotFound, PreconditionFailed, JobInvalidStatus, VerificationUnderWay, JobNoImage, OrchestrationAway.
    """
    ids = [test.id for test in catalog.ask_verification(job_id, expected=expected)]
    job = catalog.job(job_id)
    try:
        flow_run_id = await_here(
            orchestration.start_verification,
            job_id,
            job_name=job.name,
            source_name=catalog.source(job.source_id).name,
            verification_ids=ids,
            work_queue=catalog.work_queue(job),
        )
    except BaseException:
        if catalog.withdraw_verifications(ids):
            raise
        return catalog.job(job_id)  # only Prefect's answer was lost: the flow has begun
    catalog.attach_verifications(ids, flow_run_id)
    return catalog.job(job_id)


def cut_over_job(
    catalog: Catalog, orchestration: Orchestration, job_id: str, *, sync: bool, expected: int | None = None
) -> Job:
    """The server moves: with `sync` after one last run, else now. No schedule starts the job again.

    Raises JobNotFound, PreconditionFailed, JobInvalidStatus; with `sync` OrchestrationAway, else JobNoImage,
    ImageNotVerified.
    """
    if sync:
        return launch.start_job(catalog, orchestration, job_id, kind=RunKind.CUT_OVER, expected=expected)
    catalog.cut_over(job_id, expected=expected)
    with contextlib.suppress(OrchestrationAway):
        _out_of_prefect(catalog, orchestration, job_id)
        job = catalog.job(job_id)
        if job.disks.change_tracking:
            _start_retirement(catalog, orchestration, job)
    return catalog.job(job_id)


def delete_job(
    catalog: Catalog,
    orchestration: Orchestration,
    settings: Settings,
    job_id: str,
    *,
    images: bool = False,
    expected: int | None = None,
) -> None:
    """Remove the job with all that hangs on it; its images only where that is asked for.

    Where something has to be taken off its server first, or Prefect is away, it is Deleting until that is done.
    Raises JobNotFound, PreconditionFailed, JobInvalidStatus; with `images` ImageInUse, and then nothing is done.
    """
    job = catalog.begin_removal(job_id, images=images, expected=expected)
    if images:
        remove_deleted(catalog, settings)
    with contextlib.suppress(OrchestrationAway, JobNotFound):  # not found: housekeeping was faster
        _out_of_prefect(catalog, orchestration, job_id)
        if job.disks.change_tracking:
            _start_retirement(catalog, orchestration, job)
        else:
            retirement.forget_job(catalog, settings, job_id)


def _out_of_prefect(catalog: Catalog, orchestration: Orchestration, job_id: str) -> None:
    retirement.out_of_prefect(
        catalog,
        job_id,
        lambda flow_run_id: await_here(orchestration.cancel_run, flow_run_id),
        lambda id: await_here(orchestration.unschedule_job, id),
    )


def _start_retirement(catalog: Catalog, orchestration: Orchestration, job: Job) -> None:
    await_here(
        orchestration.start_retirement,
        job.id,
        job_name=job.name,
        source_name=catalog.source(job.source_id).name,
        work_queue=catalog.work_queue(job),
    )
