"""The flow `cut-over`: the last pass of an incremental job; when it has succeeded the job is Finished."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.order import Order
from flows.passing import on_cancellation, on_crashed, on_failure, run_pass
from flows.retire import retire_job
from rehost.catalog.states import JobStatus
from rehost.errors import JobNotFound
from tasks.run_pass import catalog


@flow(
    name="cut-over",
    description="The last pass of an incremental job, after which its schedule and its change tracker go.",
    on_cancellation=[on_cancellation],
    on_crashed=[on_crashed],
    on_failure=[on_failure],
    persist_result=False,
)
def cut_over(order: Order) -> State[Any]:
    """Bring the images in step with the server for the last time. Where that fails the schedule stays."""
    state = run_pass(order)
    try:
        with catalog() as opened:
            finished = opened.job(order.job_id).status is JobStatus.FINISHED
    except JobNotFound:
        finished = False
    if finished:
        retire_job(order.job_id)
    return state
