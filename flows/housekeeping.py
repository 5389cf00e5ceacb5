"""The flow `housekeeping`: runs whose process died without a word are found, and their jobs put right.

Then jobs expire, and what jobs that are over left behind goes. It runs on a schedule, and so does `tidy` beside it: old
images and snapshots go, and what only they needed leaves the store. At the start of `rehost up`
`python -m flows.housekeeping` puts the runs right alone; at its end `python -m flows.housekeeping --stop` stops the
runs of this machine in peace, before the worker goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import time
from datetime import UTC, datetime, timedelta

from prefect import flow

from flows import orchestration
from flows.afterwards import cancelled, count_from_the_last_run, ending_marker, run_ended, start_waiting
from flows.each import each
from flows.retire import end_lost_verifications, retire_what_is_over
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Run
from rehost.catalog.schedules import ScheduledJob
from rehost.catalog.states import JobStatus, RunStatus
from rehost.errors import JobNotFound, OrchestrationAway, RunCrashed, RunInterrupted, RunNotFound
from tasks.image_care import tidy_images
from tasks.run_pass import catalog, end_owner, owner_is_alive, owner_is_dead, reap_workspaces
from tasks.store_care import tidy_store

log = logging.getLogger(__name__)

_ASKED = timedelta(minutes=2)  # after this a run that began and has no flow run will never get one
_TRIED = timedelta(minutes=30)  # so long a run whose flow runs never begin is asked for again
_ENDS = timedelta(minutes=2)  # a process that was told to end needs no longer
_DIED = "its process died"
_UNWIND_SECONDS = 30.0
_LOOK_SECONDS = 0.2


@flow(name="housekeeping", description="Runs whose process died are found, and their jobs put right.")
def housekeeping() -> int:
    """Put right what no process is left to put right; the number of runs. What fails keeps nothing else from it."""
    ended, *_ = each(put_right, retire_what_is_over, _forget_deleted_sources)
    return int(ended)


@flow(name="tidy", description="Old images and snapshots go, and what only they needed leaves the store.")
def tidy() -> None:
    """Do that in a flow of its own: a big store takes long to collect, and dead runs are to be found meanwhile."""
    each(tidy_images, tidy_store)


def _forget_deleted_sources() -> None:
    with catalog() as opened:
        opened.forget_deleted_sources()


def put_right() -> int:
    """Compare every run that is said to be under way with its flow run and its process; the number of runs ended.

    So are schedules and timed starts compared with what Prefect has of them, and queued jobs begin whose turn has come.
    Raises CatalogAway; where Prefect does not answer, only what this machine knows by itself is put right.
    """
    with catalog() as opened:
        judges = [functools.partial(_judged, opened, run) for run in opened.runs_under_way()]
        *ended, _, _, _, _ = each(
            *judges,
            functools.partial(_compare_schedules, opened),
            functools.partial(start_waiting, opened),
            end_lost_verifications,
            reap_workspaces,
        )
    return sum(ended)


def _judged(opened: Catalog, run: Run) -> bool:
    """End the run if nobody does it any more."""
    with contextlib.suppress(JobNotFound, RunNotFound):  # its job was deleted meanwhile
        return _is_ended(opened, run)
    return False


def _is_ended(opened: Catalog, run: Run) -> bool:
    if run.flow_run_id is None:
        _ask_again(opened, run)
        return False
    try:
        seen = asyncio.run(orchestration.seen(run.flow_run_id))
    except OrchestrationAway:
        seen = orchestration.Seen("UNKNOWN", None)
    if seen.is_over and owner_is_alive(run.id):
        # Whoever ends the run lets another begin, beside the process that still does this one. Prefect takes a run for
        # dead whose heartbeats it did not hear, because it was away itself: that process tells how it ends. A flow run
        # that people ended in Prefect is to end; where its process was told so it has some time for it.
        if seen.state == "GONE" or (seen.state == "CANCELLED" and seen.is_older_than(_ENDS)):
            end_owner(run.id)
        return False
    if seen.state == "CANCELLED":
        return _end(run, None)
    if seen.state == "GONE":
        return _end(run, "its flow run was deleted in Prefect")
    if seen.state in ("COMPLETED", "FAILED", "CRASHED"):
        return _end(run, f"Prefect has its flow run as {seen.state.capitalize()}")
    cancelling = seen.state == "CANCELLING"
    if owner_is_dead(run.id):
        reason = _DIED
    elif run.status is RunStatus.PENDING and seen.never_begins:
        reason = "a worker took its flow run, and no process of it began"
        if not cancelling and not _older(run.created_at, _TRIED) and _is_requeued(opened, run):
            return False
    elif run.status is RunStatus.PENDING and seen.state in ("RUNNING", "CANCELLING") and seen.is_older_than(_ASKED):
        reason = "the process of its flow run never took it"  # it waits for the catalog for a minute at most
    else:
        return False
    try:
        asyncio.run(orchestration.end_run(run.flow_run_id, cancelled=cancelling))
    except OrchestrationAway as error:
        log.warning("%s", error)
    return _end(run, None if cancelling else reason)


def _is_requeued(opened: Catalog, run: Run) -> bool:
    """Nothing was done for the run yet: it waits for its turn once more, and its flow run may not begin any more."""
    assert run.flow_run_id is not None
    try:
        asyncio.run(orchestration.end_run(run.flow_run_id, cancelled=False))
    except OrchestrationAway as error:
        log.warning("%s", error)
        return True  # the next round sees it again
    if not opened.requeue_run(run.id, flow_run_id=run.flow_run_id):
        return False
    log.warning("run %s of job %s: its flow run never began; it is asked for again", run.id, run.job_id)
    return True


def _ask_again(opened: Catalog, run: Run) -> None:
    """Whoever began the run died before Prefect was asked for its flow run: it waits for its turn once more."""
    job = opened.job(run.job_id)
    if job.status is JobStatus.RUNNING and _older(job.started_at, _ASKED) and opened.requeue_run(run.id):
        log.warning("run %s of job %s: its flow run was never made; it is asked for again", run.id, run.job_id)


def _older(moment: datetime | None, than: timedelta) -> bool:
    return moment is not None and datetime.now(UTC) - moment > than


def _compare_schedules(opened: Catalog) -> None:
    """What people did in the Prefect UI with schedules and timed starts. Raises OrchestrationAway."""
    expected = opened.scheduled_jobs()
    if not expected:
        return
    paused = asyncio.run(orchestration.paused_schedules())
    each(*(functools.partial(_compare, opened, job, paused.get(job.id)) for job in expected))


def _compare(opened: Catalog, job: ScheduledJob, paused: bool | None) -> None:
    """`paused` is what Prefect says of the job's schedule; None: it has none."""
    with contextlib.suppress(JobNotFound):  # it was deleted meanwhile
        if job.timed_flow_run_id is not None:
            _compare_timed(opened, job.id, job.timed_flow_run_id)
        if job.scheduled_since is None:
            return
        if paused is None:
            if opened.schedule_lost(job.id, job.scheduled_since):
                log.warning("the schedule of job %s was deleted in Prefect", job.id)
            return
        if paused != job.schedule_paused:
            opened.schedule_seen(job.id, paused=paused)
        if job.count_from is not None:
            count_from_the_last_run(opened, job.id)


def _compare_timed(opened: Catalog, job_id: str, flow_run_id: str) -> None:
    seen = asyncio.run(orchestration.seen(flow_run_id))
    if seen.never_begins:
        asyncio.run(orchestration.end_run(flow_run_id, cancelled=False))
    if seen.is_over or seen.never_begins:
        log.warning("the timed start of job %s will not come about: Prefect has it as %s", job_id, seen.state)
        opened.forget_timed(job_id, flow_run_id)


def _end(run: Run, reason: str | None) -> bool:
    """With a reason the run crashed, without one it was stopped."""
    with catalog() as opened:
        if reason is None:
            cancelled(opened, run)
        elif reason == _DIED and ending_marker().exists():
            opened.fail_run(run.id, RunInterrupted())
        else:
            opened.fail_run(run.id, RunCrashed(reason=reason))
    log.warning("run %s of job %s: %s", run.id, run.job_id, reason or "it was stopped")
    run_ended(run.job_id)
    return True


def stop_here() -> None:
    """Stop every run that a process of this machine does, wait until each has said so, and put right what is left.

    What had arrived is kept. Raises CatalogAway, OrchestrationAway.
    """
    ending_marker().touch()
    with catalog() as opened:
        here = {run.id: run.flow_run_id for run in opened.runs_under_way() if owner_is_alive(run.id)}
        for flow_run_id in here.values():
            if flow_run_id is not None:
                asyncio.run(orchestration.cancel_run(flow_run_id))
        deadline = time.monotonic() + _UNWIND_SECONDS
        while here.keys() & {run.id for run in opened.runs_under_way()} and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    put_right()
    for flow_run_id in here.values():
        # The worker that would say so to Prefect is about to go.
        if flow_run_id is not None and asyncio.run(orchestration.seen(flow_run_id)).state == "CANCELLING":
            asyncio.run(orchestration.end_run(flow_run_id, cancelled=True))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="housekeeping: %(message)s")
    if "--stop" in sys.argv[1:]:
        stop_here()
    else:
        put_right()  # a run that began while the services ended, and died with them, was interrupted
        ending_marker().unlink(missing_ok=True)
        with catalog() as waiting:
            start_waiting(waiting)
