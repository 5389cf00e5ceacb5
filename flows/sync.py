"""The flow `sync`: the next pass of an incremental job, started by its schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.order import Order
from flows.passing import on_cancellation, on_crashed, on_failure, run_pass


@flow(
    name="sync",
    flow_run_name="{order.run_name}",
    description="The next pass of an incremental job; only what changed on the source is sent.",
    on_cancellation=[on_cancellation],
    on_crashed=[on_crashed],
    on_failure=[on_failure],
    persist_result=False,
)
def sync(order: Order) -> State[Any]:
    """Bring the images of the job in step with its server."""
    return run_pass(order)
