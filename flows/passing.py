"""One pass along the way from source to image: the order of the stages, and what becomes of the job.

Both deployments, `migrate` and `sync`, run this; they differ in what sets them off.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Completed, Failed

from flows.afterwards import cancelled, run_ended
from flows.order import Order
from rehost.catalog.records import Run
from rehost.catalog.states import BusinessStatus, RunStatus
from rehost.errors import JobInvalidStatus, JobNotFound, RehostError, RunCrashed
from tasks.build import build_container, build_disk
from tasks.image_care import forget_old_images
from tasks.preflight import preflight
from tasks.publish import publish
from tasks.report import report_run
from tasks.run_pass import Pass, catalog, open_pass
from tasks.snapshot import snapshot
from tasks.store_care import forget_old_snapshots
from tasks.transfer import transfer
from tasks.verify import verify_boot, verify_container

_PR_SET_PDEATHSIG = 1


def run_pass(order: Order) -> State[Any]:
    """Do one pass of the job and leave its state in the catalog; the state that the flow run ends in."""
    log = get_run_logger()
    die_with_the_worker()
    flow_run_id = str(this_flow_run.id)
    try:
        with catalog() as opened:
            run = opened.claim_run(order.job_id, flow_run_id=flow_run_id, kind=order.kind)
    except (JobInvalidStatus, JobNotFound) as error:
        # A schedule may find its job running, stopped or gone: then there is nothing to do, and nothing went wrong.
        log.warning("%s: %s", error.code, error.message)
        return Completed(message=f"Nothing was done. {error.code}: {error.message}")
    if run.status is RunStatus.PENDING:
        log.warning("as many jobs run as may: run %s waits for its turn", run.id)
        return Completed(message="Nothing was done. The job is queued; another flow run begins when its turn has come.")
    try:
        return _do(order, run)
    finally:
        run_ended(order.job_id)


def _do(order: Order, run: Run) -> State[Any]:
    try:
        return _passed(order, run)
    except TerminationSignal:  # it may come while an error is being told
        with catalog() as opened:
            cancelled(opened, run)
        raise
    except BaseException as error:
        with catalog() as opened:
            opened.fail_run(run.id, RunCrashed(reason=f"{type(error).__name__}: {error}"))
        raise


def _passed(order: Order, run: Run) -> State[Any]:
    log = get_run_logger()
    try:
        with open_pass(run) as this:
            _stages(this)
            with catalog() as opened:
                opened.set_stage(order.job_id, BusinessStatus.CLEANING)
        with catalog() as opened:
            opened.finish_run(run.id)
        _say_next(order.job_id)
        forget_old_images()
        forget_old_snapshots()
    except RehostError as error:
        log.error("%s: %s %s", error.code, error.message, error.remedy)
        with catalog() as opened:
            opened.fail_run(run.id, error)
        _say_next(order.job_id)
        return Failed(message=f"{error.code}: {error.message} {error.remedy}")
    return Completed(message="Every image that was asked for exists and proved itself.")


def _say_next(job_id: str) -> None:
    with contextlib.suppress(RehostError):  # what is said last changes nothing
        with catalog() as opened:
            job = opened.job(job_id)
        get_run_logger().info("The job is %s. %s", job.status, job.next_step)


def die_with_the_worker() -> None:
    """A pass whose worker was killed would run on with nobody to stop it; prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stages(this: Pass) -> None:
    targets, verified = this.job.targets, this.job.verification.enabled
    preflight(this)
    _at(this, BusinessStatus.SYNCING)
    table, holding = snapshot(this)
    snapshot_id, moved = transfer(this, table, holding)
    _at(this, BusinessStatus.PROCESSING)
    disk = build_disk(this, snapshot_id) if targets.image else None
    container = build_container(this, snapshot_id) if targets.container_image else None
    reports = []
    if disk is not None and verified:
        reports += [verify_boot(this, disk, snapshot_id, firmware) for firmware in disk.boot_modes]
    if container is not None and verified:
        reports += [verify_container(this, container, snapshot_id)]
    if container is not None:
        container = publish(this, container)
    report_run(this, moved, holding.consistency, disk, container, reports)


def _at(this: Pass, stage: BusinessStatus) -> None:
    with catalog() as opened:
        opened.set_stage(this.job.id, stage)


def on_cancellation(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The flow run was cancelled: so is the run, even where its process could not say so itself."""
    with catalog() as opened:
        run = opened.run_of_flow_run(str(flow_run.id))
        if run is not None:
            cancelled(opened, run)
    if run is not None:
        run_ended(run.job_id)


def on_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The flow run failed. What failed in a stage has been told already; this is for what failed around the stages."""
    on_crashed(flow, flow_run, state)


def on_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The process of the flow run died: the job says so, and a start goes on from what arrived."""
    with catalog() as opened:
        run = opened.run_of_flow_run(str(flow_run.id))
        if run is not None:
            opened.fail_run(run.id, RunCrashed(reason=state.message or "its process ended without a word"))
    if run is not None:
        run_ended(run.job_id)
