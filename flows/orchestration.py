"""The face of the flows for the rest of Rehost: start, schedule, cancel, look up, in our own words.

Everything here talks to the Prefect server of PREFECT_API_URL and raises OrchestrationAway where it does not answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import DeploymentSchedule, State, StateType, WorkerStatus
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, Scheduled

from flows import logs
from flows.order import JobOrder, Order, VerifyOrder
from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.records import Page
from rehost.errors import OrchestrationAway
from rehost.settings import DEFAULT_QUEUE, settings

MIGRATE = "migrate/migrate"
SYNC = "sync/sync"
CUT_OVER = "cut-over/cut-over"
VERIFY = "verify/verify"
RETIRE = "retire/retire"
POOL = "rehost"  # the work pool that prefect.yaml names
_BEGINS = timedelta(minutes=2)  # after this a flow run that a worker took and that has not begun will never do so


def sync_deployment(work_queue: str) -> str:
    """The deployment that holds the schedules of jobs of that work queue."""
    return SYNC if work_queue == DEFAULT_QUEUE else f"{SYNC}-{work_queue}"


Kind = Literal["manual", "schedule", "cut_over"]


@contextlib.asynccontextmanager
async def _prefect() -> AsyncIterator[PrefectClient]:
    url = PREFECT_API_URL.value()
    if not url:
        raise OrchestrationAway(url="PREFECT_API_URL", reason="it is not set")
    try:
        async with get_client() as client:
            yield client
    except (httpx.HTTPError, RuntimeError) as error:
        raise OrchestrationAway(url=url, reason=str(error) or type(error).__name__) from error
    except ObjectNotFound as error:
        raise OrchestrationAway(url=url, reason="it knows no deployment of Rehost; `rehost up` makes them") from error


async def start_run(
    job_id: str,
    *,
    job_name: str,
    source_name: str,
    kind: Kind,
    at: datetime | None = None,
    work_queue: str = DEFAULT_QUEUE,
) -> str:
    """Ask for one pass of the job, now or at a time, by the workers of that queue; the id of the flow run."""
    order = Order(job_id=job_id, job_name=job_name, source_name=source_name, kind=kind)
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(CUT_OVER if kind == "cut_over" else MIGRATE)
        flow_run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"order": order.model_dump()},
            name=order.run_name,
            tags=order.tags,
            state=Scheduled(scheduled_time=at) if at else None,
            work_queue_name=work_queue,
        )
    return str(flow_run.id)


async def start_verification(
    job_id: str, *, job_name: str, source_name: str, verification_ids: Sequence[str], work_queue: str = DEFAULT_QUEUE
) -> str:
    """Ask for tests of images of the job, by the workers of that queue; the id of the flow run."""
    order = VerifyOrder(
        job_id=job_id, job_name=job_name, source_name=source_name, verification_ids=tuple(verification_ids)
    )
    return await _start(VERIFY, order, "verify", work_queue)


async def start_retirement(job_id: str, *, job_name: str, source_name: str, work_queue: str = DEFAULT_QUEUE) -> str:
    """Ask for the end of what a job that is over left behind; the id of the flow run."""
    order = JobOrder(job_id=job_id, job_name=job_name, source_name=source_name)
    return await _start(RETIRE, order, "retire", work_queue)


async def _start(name: str, order: JobOrder, what: str, work_queue: str) -> str:
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(name)
        flow_run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"order": order.model_dump(mode="json")},
            name=order.name(what),
            tags=order.tags,
            work_queue_name=work_queue,
        )
    return str(flow_run.id)


async def cancel_run(flow_run_id: str) -> None:
    """Ask Prefect to stop the flow run, if it is there; it ends within seconds, and what arrived is kept."""
    async with _prefect() as client:
        with contextlib.suppress(ObjectNotFound):
            await client.set_flow_run_state(UUID(flow_run_id), State(type=StateType.CANCELLING))


async def schedule_job(
    job_id: str,
    *,
    job_name: str,
    source_name: str,
    since: datetime,
    interval_hours: int | None = None,
    cron: str | None = None,
    timezone: str | None = None,
    work_queue: str = DEFAULT_QUEUE,
) -> None:
    """Give the job its schedule on the sync deployment of that queue, or change the one that it has.

    Either `interval_hours` (an hour lasts REHOST_HOUR_SECONDS), counted from `since`, or `cron` (five fields, in
    `timezone`). It is seen, and can be paused, in the Prefect UI; a change leaves it paused where it is.
    """
    order = Order(job_id=job_id, job_name=job_name, source_name=source_name, kind="schedule")
    schedule: IntervalSchedule | CronSchedule
    if interval_hours is not None:
        schedule = _interval(interval_hours, since)
    else:
        schedule = CronSchedule(cron=cron or "", timezone=timezone or "UTC")
    async with _prefect() as client:
        target = await client.read_deployment_by_name(sync_deployment(work_queue))
        active = True
        for deployment, present in await _schedules_of(client, job_id):
            active = present.active
            if deployment == target.id:
                async with _planned(client, deployment):
                    await client.update_deployment_schedule(
                        deployment, present.id, schedule=schedule, parameters={"order": order.model_dump()}
                    )
                return
            async with _planned(client, deployment):
                await client.delete_deployment_schedule(deployment, present.id)
        create = DeploymentScheduleCreate(
            schedule=schedule, active=active, parameters={"order": order.model_dump()}, slug=job_id
        )
        await client.create_deployment_schedules(target.id, [create])


async def count_from(job_id: str, *, since: datetime, interval_hours: int) -> bool:
    """The intervals of the job's schedule count from `since` from now on; False: it has no schedule."""
    found = False
    async with _prefect() as client:
        for deployment, present in await _schedules_of(client, job_id):
            schedule = _interval(interval_hours, since)
            async with _planned(client, deployment):
                # An update that names no parameters takes those away that the schedule has.
                await client.update_deployment_schedule(
                    deployment, present.id, schedule=schedule, parameters=present.parameters
                )
            found = True
    return found


def _interval(hours: int, since: datetime) -> IntervalSchedule:
    interval = timedelta(seconds=hours * settings().hour_seconds)
    return IntervalSchedule(interval=interval, anchor_date=since + interval)


@contextlib.asynccontextmanager
async def _planned(client: PrefectClient, deployment: UUID) -> AsyncIterator[None]:
    """Change a schedule of that deployment inside the block, and have its next runs planned at once.

    Such a change takes away the planned runs of all schedules of the deployment, and the server plans them anew within
    a minute: the run of another job that is due in between would never be.
    """
    began = datetime.now(UTC)
    yield
    await client._client.post(f"/deployments/{deployment}/schedule", json={"start_time": began.isoformat()})


async def unschedule_job(job_id: str) -> None:
    """Take the job's schedule away; nothing happens where it has none."""
    async with _prefect() as client:
        for deployment, present in await _schedules_of(client, job_id):
            async with _planned(client, deployment):
                await client.delete_deployment_schedule(deployment, present.id)


async def paused_schedules() -> dict[str, bool]:
    """Every job that has a schedule, and whether that is paused."""
    async with _prefect() as client:
        return {present.slug: not present.active for _, present in await _schedules_of(client) if present.slug}


async def _schedules_of(client: PrefectClient, job_id: str | None = None) -> list[tuple[UUID, DeploymentSchedule]]:
    """The schedules of a job, or of all, and their deployments."""
    deployments = await client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=["sync"])))
    return [
        (deployment.id, schedule)
        for deployment in deployments
        for schedule in deployment.schedules
        if job_id is None or schedule.slug == job_id
    ]


@dataclass(frozen=True)
class Seen:
    """What Prefect says of a flow run."""

    state: str  # SCHEDULED, PENDING, RUNNING, CANCELLING, COMPLETED, FAILED, CRASHED, CANCELLED; GONE: it was deleted
    since: datetime | None

    @property
    def is_over(self) -> bool:
        """Prefect takes nobody to be at it."""
        return self.state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", "GONE")

    @property
    def never_begins(self) -> bool:
        """A worker took it and died before a process of it began: nobody takes it again."""
        return self.state == "PENDING" and self.is_older_than(_BEGINS)

    def is_older_than(self, age: timedelta) -> bool:
        """Whether it has been in that state for longer."""
        return self.since is not None and datetime.now(UTC) - self.since > age


async def seen(flow_run_id: str) -> Seen:
    """What Prefect says of the flow run; one of another Prefect server is GONE too: nobody runs it."""
    async with _prefect() as client:
        try:
            flow_run = await client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            return Seen("GONE", None)
    state = flow_run.state
    return Seen(state.type.value, state.timestamp) if state else Seen("UNKNOWN", None)


async def end_run(flow_run_id: str, *, cancelled: bool) -> None:
    """Tell Prefect that the process of the flow run is gone: it is Cancelled, or Crashed."""
    state = State(type=StateType.CANCELLED) if cancelled else Crashed(message="Its process died.")
    async with _prefect() as client:
        await client.set_flow_run_state(UUID(flow_run_id), state, force=True)


async def read_logs(
    flow_runs: dict[str, str], *, level: LogLevel, order: logs.Order, limit: int, cursor: str | None
) -> Page[LogEntry]:
    """What was logged for these flow runs (their id → what they are called here), a page of it.

    Raises InvalidParameter for a wrong cursor.
    """
    return await logs.read(_prefect, flow_runs, level=level, order=order, limit=limit, cursor=cursor)


async def workers_online() -> int:
    """How many workers of the pool take runs now."""
    async with _prefect() as client:
        workers = await client.read_workers_for_work_pool(POOL)
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)
