"""The flow `retire`: what a job that is over left behind is taken away; with a job that is being deleted, all of it.

A job is over for the catalog first. What follows here can be done again: by this flow, by a cut-over, by housekeeping.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import orchestration
from flows.each import each
from flows.order import JobOrder
from rehost.catalog import retirement
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job, VerificationRecord
from rehost.catalog.states import ENDED, JobStatus
from rehost.errors import (
    CatalogAway,
    JobInvalidStatus,
    JobNotFound,
    OrchestrationAway,
    RehostError,
    VerificationCrashed,
    VerificationNotFound,
)
from rehost.settings import settings
from rehost.source.connect import DiskConnection
from rehost.source.tracked_pass import remove_tracker
from tasks.run_pass import catalog, owner_is_alive, owner_is_dead

log = logging.getLogger(__name__)

_NEVER_ASKED = timedelta(minutes=10)  # after this a test without a flow run will never get one


@flow(name="retire", description="What a job that is over left behind is taken away.", persist_result=False)
def retire(order: JobOrder) -> State[Any]:
    """Take away the job's schedule and its change tracker; a job that is being deleted is forgotten."""
    told = retire_job(order.job_id)
    return Completed(message=told or "Nothing of the job is left behind.")


def retire_job(job_id: str) -> str | None:
    """Do that; what could not be done, for people, or None. A job that is not over is left alone.

    The change tracker is asked to go once: a server that was cut over is often off by then, and a tracker ends by
    itself (docs/change-tracking.md).
    """
    try:
        with catalog() as opened:
            job = opened.job(job_id)
    except JobNotFound:
        return None
    if job.status not in ENDED:
        return None
    try:
        with catalog() as opened:
            retirement.out_of_prefect(
                opened,
                job_id,
                lambda flow_run_id: asyncio.run(orchestration.cancel_run(flow_run_id)),
                lambda id: asyncio.run(orchestration.unschedule_job(id)),
            )
    except OrchestrationAway as error:
        log.warning("%s is taken out of Prefect later: %s", job_id, error)
        return f"{error.message} What is left of {job_id} there goes later."
    told = _remove_tracker(job)
    if told is not None:
        log.warning("%s", told)
    if job.status is JobStatus.DELETING:
        with catalog() as opened:
            retirement.forget_job(opened, settings(), job_id)
    return told


def _remove_tracker(job: Job) -> str | None:
    if not job.disks.change_tracking:
        return None
    try:
        with catalog() as opened:
            connection = opened.source(job.source_id).connection
        return None if isinstance(connection, DiskConnection) else remove_tracker(connection, job.id)
    except CatalogAway:
        raise
    except RehostError as error:  # it keeps no job from going
        return f"{error.message} {error.remedy}"


def retire_what_is_over() -> int:
    """For housekeeping: jobs expire, expired ones are deleted, and what is left of jobs that are over goes; how many.

    Raises CatalogAway.
    """
    moment = datetime.now(UTC)
    with catalog() as opened:
        expired = opened.expire_jobs(moment)
        for id in expired:
            log.warning("job %s: its time is over", id)
        for id in opened.expired_long_ago(moment):
            with contextlib.suppress(JobInvalidStatus, JobNotFound):  # somebody else was faster
                opened.begin_removal(id)
        over = dict.fromkeys([*expired, *opened.ended_with_leftovers()])
    each(*(functools.partial(_retire, id) for id in over))
    return len(over)


def _retire(job_id: str) -> None:
    with contextlib.suppress(JobNotFound):  # the API has done it meanwhile
        retire_job(job_id)


def end_lost_verifications() -> int:
    """For housekeeping: tests that users asked for and that nobody does any more have failed; how many.

    Raises CatalogAway; where Prefect does not answer, only what this machine knows by itself is put right.
    """
    with catalog() as opened:
        return sum(each(*(functools.partial(_judged, opened, test) for test in opened.verifications_under_way())))


def _judged(opened: Catalog, test: VerificationRecord) -> bool:
    """The test has failed if nobody does it any more."""
    if test.flow_run_id is None:
        return datetime.now(UTC) - test.created_at > _NEVER_ASKED and _fail(opened, test, "its flow run was never made")
    try:
        seen = asyncio.run(orchestration.seen(test.flow_run_id))
    except OrchestrationAway:
        seen = orchestration.Seen("UNKNOWN", None)
    if seen.is_over:
        # A process that lives reads the image, and tells how its test ends.
        told = f"Prefect has its flow run as {seen.state.capitalize()}"
        return not owner_is_alive(test.id) and _fail(opened, test, told)
    if owner_is_dead(test.id):
        reason = "its process died"
    elif test.status == "pending" and seen.never_begins:
        reason = "a worker took its flow run, and no process of it began"
    else:
        return False
    try:
        asyncio.run(orchestration.end_run(test.flow_run_id, cancelled=seen.state == "CANCELLING"))
    except OrchestrationAway as error:
        log.warning("%s", error)
    return _fail(opened, test, reason)


def _fail(opened: Catalog, test: VerificationRecord, reason: str) -> bool:
    log.warning("verification %s of job %s: %s", test.id, test.job_id, reason)
    with contextlib.suppress(JobNotFound, VerificationNotFound):  # its job was deleted meanwhile
        opened.fail_verification(test.id, VerificationCrashed(reason=reason))
    return True
