"""The face of the flows for the rest of Rehost: start, schedule, cancel, look up, in our own words.

Everything here talks to the Prefect server of PREFECT_API_URL and raises OrchestrationAway where it does not answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, Scheduled

from flows import logs
from flows.order import JobOrder, Order, VerifyOrder
from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.records import Page
from rehost.errors import OrchestrationAway
from rehost.settings import settings

MIGRATE = "migrate/migrate"
SYNC = "sync/sync"
CUT_OVER = "cut-over/cut-over"
VERIFY = "verify/verify"
RETIRE = "retire/retire"

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


async def start_run(job_id: str, *, job_name: str, source_name: str, kind: Kind, at: datetime | None = None) -> str:
    """Ask for one pass of the job, now or at a time; the id of the flow run."""
    order = Order(job_id=job_id, job_name=job_name, source_name=source_name, kind=kind)
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(CUT_OVER if kind == "cut_over" else MIGRATE)
        flow_run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"order": order.model_dump()},
            name=order.run_name,
            tags=order.tags,
            state=Scheduled(scheduled_time=at) if at else None,
        )
    return str(flow_run.id)


async def start_verification(job_id: str, *, job_name: str, source_name: str, verification_ids: Sequence[str]) -> str:
    """Ask for tests of images of the job; the id of the flow run."""
    order = VerifyOrder(
        job_id=job_id, job_name=job_name, source_name=source_name, verification_ids=tuple(verification_ids)
    )
    return await _start(VERIFY, order, "verify")


async def start_retirement(job_id: str, *, job_name: str, source_name: str) -> str:
    """Ask for the end of what a job that is over left behind; the id of the flow run."""
    return await _start(RETIRE, JobOrder(job_id=job_id, job_name=job_name, source_name=source_name), "retire")


async def _start(name: str, order: JobOrder, what: str) -> str:
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(name)
        flow_run = await client.create_flow_run_from_deployment(
            deployment.id, parameters={"order": order.model_dump(mode="json")}, name=order.name(what), tags=order.tags
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
    interval_hours: int | None = None,
    cron: str | None = None,
    timezone: str | None = None,
) -> None:
    """Give the job its schedule on the sync deployment, in place of the one that it may have.

    Either `interval_hours` (an hour lasts REHOST_HOUR_SECONDS) or `cron` (five fields, in `timezone`). It is seen, and
    can be paused, in the Prefect UI.
    """
    order = Order(job_id=job_id, job_name=job_name, source_name=source_name, kind="schedule")
    schedule: IntervalSchedule | CronSchedule
    if interval_hours is not None:
        interval = timedelta(seconds=interval_hours * settings().hour_seconds)
        schedule = IntervalSchedule(interval=interval, anchor_date=datetime.now().astimezone() + interval)
    else:
        schedule = CronSchedule(cron=cron or "", timezone=timezone or "UTC")
    await unschedule_job(job_id)
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(SYNC)
        create = DeploymentScheduleCreate(
            schedule=schedule, active=True, parameters={"order": order.model_dump()}, slug=job_id
        )
        await client._client.post(
            f"/deployments/{deployment.id}/schedules", json=[create.model_dump(mode="json", exclude_unset=True)]
        )


async def unschedule_job(job_id: str) -> None:
    """Take the job's schedule away; nothing happens where it has none."""
    async with _prefect() as client:
        deployment = await client.read_deployment_by_name(SYNC)
        for schedule in deployment.schedules:
            if schedule.slug == job_id:
                await client.delete_deployment_schedule(deployment.id, schedule.id)


async def run_state(flow_run_id: str) -> str:
    """What Prefect says of the flow run: SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLED, …"""
    async with _prefect() as client:
        try:
            flow_run = await client.read_flow_run(UUID(flow_run_id))
        except ObjectNotFound:
            return "CRASHED"  # it was deleted, or belonged to another Prefect server: nobody runs it
    return flow_run.state_type.value if flow_run.state_type else "UNKNOWN"


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
