"""The flow `housekeeping`: runs whose process died without a word are found, and their jobs put right.

Then old images and snapshots go, and what only they needed leaves the store. It runs on a schedule. At the start of
`rehost up` `python -m flows.housekeeping` puts the runs right alone; at its end `python -m flows.housekeeping --stop`
stops the runs of this machine in peace before their worker goes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from datetime import UTC, datetime, timedelta

from prefect import flow

from flows import orchestration
from rehost.catalog.records import Run
from rehost.errors import OrchestrationAway, RunCrashed
from tasks.image_care import tidy_images
from tasks.run_pass import catalog, owner_is_alive, owner_is_dead, reap_workspaces
from tasks.store_care import tidy_store

log = logging.getLogger(__name__)

_NEVER_ASKED = timedelta(minutes=10)  # after this a run without a flow run will never get one
_UNWIND_SECONDS = 30.0
_LOOK_SECONDS = 0.2


@flow(name="housekeeping", description="Runs whose process died are found, and their jobs put right.")
def housekeeping() -> int:
    """Put right what no process is left to put right; the number of runs."""
    ended = put_right()
    tidy_images()
    tidy_store()
    return ended


def put_right() -> int:
    """Compare every run that is said to be under way with its flow run and its process; the number of runs ended.

    Raises CatalogAway; where Prefect does not answer, only what this machine knows by itself is put right.
    """
    with catalog() as opened:
        ended = sum(_judged(run) for run in opened.runs_under_way())
    reap_workspaces()
    return ended


def _judged(run: Run) -> bool:
    """End the run if nobody does it any more."""
    if run.flow_run_id is None:
        if datetime.now(UTC) - run.created_at < _NEVER_ASKED:
            return False
        return _end(run, "its flow run was never made")
    try:
        state = asyncio.run(orchestration.run_state(run.flow_run_id))
    except OrchestrationAway:
        state = "UNKNOWN"
    if state == "CANCELLED":
        return _end(run, None)
    if state in ("COMPLETED", "FAILED", "CRASHED"):
        return _end(run, f"Prefect has its flow run as {state.capitalize()}")
    if not owner_is_dead(run.id):
        return False
    cancelling = state == "CANCELLING"
    try:
        asyncio.run(orchestration.end_run(run.flow_run_id, cancelled=cancelling))
    except OrchestrationAway as error:
        log.warning("%s", error)
    return _end(run, None if cancelling else "its process died")


def _end(run: Run, reason: str | None) -> bool:
    """With a reason the run crashed, without one it was stopped."""
    with catalog() as opened:
        if reason is None:
            opened.stop_run(run.id)
        else:
            opened.fail_run(run.id, RunCrashed(reason=reason))
    log.warning("run %s of job %s: %s", run.id, run.job_id, reason or "it was stopped")
    return True


def stop_here() -> None:
    """Stop every run that a process of this machine does, wait until each has said so, and put right what is left.

    What had arrived is kept. Raises CatalogAway, OrchestrationAway.
    """
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
        if flow_run_id is not None and asyncio.run(orchestration.run_state(flow_run_id)) == "CANCELLING":
            asyncio.run(orchestration.end_run(flow_run_id, cancelled=True))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="housekeeping: %(message)s")
    if "--stop" in sys.argv[1:]:
        stop_here()
    else:
        put_right()
