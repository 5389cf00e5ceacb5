"""What Rehost needs of a Prefect server beside its deployments: work queues, and a judge of runs that died.

`rehost up` does it at each start, after `prefect deploy`: `python -m flows.install`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import WorkQueueFilter, WorkQueueFilterName
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from flows.orchestration import SYNC, sync_deployment
from rehost.settings import settings

log = logging.getLogger(__name__)

POOL = "rehost"
ZOMBIES = "Rehost: flow runs whose process fell silent have crashed"
_SILENT = timedelta(minutes=5)  # flow runs send a heartbeat each minute (PREFECT_FLOWS_HEARTBEAT_FREQUENCY)


async def install(*, judge: bool) -> None:
    """Make what is missing. Raises what Prefect's client raises.

    `judge`: silent runs are judged by the server. It writes at every event of a flow run then, which one in SQLite
    pays with locked tables; there housekeeping sees the processes of its own machine.
    """
    async with get_client() as client:
        for queue in settings().work_queues:
            await _make_queue(client, queue)
        if judge:
            await _judge_silent_runs(client)


async def _make_queue(client: PrefectClient, queue: str) -> None:
    """The work queue, and the deployment for the schedules of its jobs: Prefect knows no queue of a single schedule."""
    named = WorkQueueFilter(name=WorkQueueFilterName(any_=[queue]))
    if not await client.read_work_queues(work_pool_name=POOL, work_queue_filter=named):
        await client.create_work_queue(name=queue, work_pool_name=POOL, description="workers in a network of Rehost")
    model = await client.read_deployment_by_name(SYNC)
    name = sync_deployment(queue)
    try:
        schedules = (await client.read_deployment_by_name(name)).schedules
    except ObjectNotFound:
        schedules = []
    log.info("work queue %s, deployment %s with %d schedules", queue, name, len(schedules))
    if schedules:
        return  # it is made anew when it has none: a deployment that is made again loses its planned runs
    await client.create_deployment(
        flow_id=model.flow_id,
        name=name.partition("/")[2],
        description=f"{model.description or ''} By the workers of the queue {queue}.",
        tags=model.tags,
        entrypoint=model.entrypoint,
        path=model.path,
        pull_steps=model.pull_steps,
        parameter_openapi_schema=model.parameter_openapi_schema,
        enforce_parameter_schema=model.enforce_parameter_schema,
        work_pool_name=POOL,
        work_queue_name=queue,
    )


async def _judge_silent_runs(client: PrefectClient) -> None:
    """A worker that died elsewhere leaves its runs Running for ever; housekeeping reads the state that this gives."""
    if await client.read_automations_by_name(ZOMBIES):
        return
    await client.create_automation(
        AutomationCore(
            name=ZOMBIES,
            description="A flow run that has sent a heartbeat sends the next one, or ends, within five minutes.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={
                    "prefect.flow-run.heartbeat",
                    *(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")),
                },
                match={"prefect.resource.id": ["prefect.flow-run.*"]},
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=_SILENT,
            ),
            actions=[
                ChangeFlowRunState(state=StateType.CRASHED, message="Its process fell silent: no heartbeat came.")
            ],
        )
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="install: %(message)s")
    asyncio.run(install(judge="--judge-silent-runs" in sys.argv[1:]))
