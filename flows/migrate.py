"""The flow `migrate`: one pass of a job, started by a user or at a time."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.order import Order
from flows.passing import on_cancellation, on_crashed, on_failure, run_pass


@flow(
    name="migrate",
    description="One pass of a job: preflight, snapshot, transfer, build, verify, publish.",
    on_cancellation=[on_cancellation],
    on_crashed=[on_crashed],
    on_failure=[on_failure],
    persist_result=False,
)
def migrate(order: Order) -> State[Any]:
    """Take the server of the job, as it stands now, to images that are proven to start."""
    return run_pass(order)
