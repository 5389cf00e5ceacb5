"""What Prefect logged for flow runs, in our own words."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
    LogFilterLevel,
    LogFilterTimestamp,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.records import Page
from rehost.catalog.stages import USUAL_SECONDS
from rehost.errors import InvalidParameter

Prefect = Callable[[], AbstractAsyncContextManager[PrefectClient]]
Order = Literal["newest", "oldest"]

_STAGES = sorted((*USUAL_SECONDS, "report"), key=len, reverse=True)
_CHARACTERS = 10_000  # of one message
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACE = re.compile(r"(\d{1,17}):(\d{1,6})")  # microseconds since the epoch, how many of that moment were given


async def read(
    prefect: Prefect, flow_runs: dict[str, str], *, level: LogLevel, order: Order, limit: int, cursor: str | None
) -> Page[LogEntry]:
    """A page of what was logged. `flow_runs`: flow run id → what it is called here (a run, a verification).

    A cursor is a moment and how many entries of it were given, so that what is logged meanwhile moves nothing. Raises
    InvalidParameter for a wrong cursor, and what `prefect` raises.
    """
    at, given = _decode(cursor) if cursor is not None else (None, 0)
    ids = [UUID(id) for id in flow_runs if _is_uuid(id)]
    if not ids:
        return Page[LogEntry](items=(), total=0)
    found = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=ids),
        level=LogFilterLevel(ge_=level.number),
    )
    timestamp = None
    if at is not None:
        timestamp = LogFilterTimestamp(after_=at) if order == "oldest" else LogFilterTimestamp(before_=at)
    sort = LogSort.TIMESTAMP_ASC if order == "oldest" else LogSort.TIMESTAMP_DESC
    async with prefect() as client:
        logs = await client.read_logs(
            found.model_copy(update={"timestamp": timestamp}), limit=limit + 1, offset=given, sort=sort
        )
        stages = await _stages(client, {log.task_run_id for log in logs if log.task_run_id})
        total = await _count(client, found)
    shown = logs[:limit]
    entries = tuple(_entry(log, flow_runs, stages) for log in shown)
    following = None
    if len(logs) > limit:
        last = shown[-1].timestamp
        same = sum(log.timestamp == last for log in shown)
        following = _encode(last, same + (given if at == last else 0))
    return Page[LogEntry](items=entries, next_cursor=following, total=total)


def readable(message: str) -> str:
    """A message without anything that acts on a terminal or a page: only line breaks and tabs are left as they are."""
    cut = message[:_CHARACTERS] + (" …" if len(message) > _CHARACTERS else "")
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in cut)


def _entry(log: Log, flow_runs: dict[str, str], stages: dict[UUID, str]) -> LogEntry:
    return LogEntry(
        id=str(log.id),
        time=log.timestamp,
        level=_level(log.level),
        run_id=flow_runs[str(log.flow_run_id)],
        stage=stages.get(log.task_run_id) if log.task_run_id else None,
        message=readable(log.message),
    )


def _level(number: int) -> LogLevel:
    return next((level for level in reversed(LogLevel) if number >= level.number), LogLevel.DEBUG)


async def _stages(client: PrefectClient, ids: Collection[UUID]) -> dict[UUID, str]:
    """The stage of each task run."""
    if not ids:
        return {}
    wanted = TaskRunFilter(id=TaskRunFilterId(any_=list(ids)))
    runs = await client.read_task_runs(task_run_filter=wanted, limit=len(ids))
    return {run.id: _stage(run.name) for run in runs}


def _stage(name: str) -> str:
    """Prefect calls a task run by its task and three digits, where nothing else was said."""
    return next((stage for stage in _STAGES if name == stage or name.startswith(f"{stage}-")), readable(name))


async def _count(client: PrefectClient, wanted: LogFilter) -> int:
    """How many there are. Prefect does not say: the place of the last one is closed in on."""

    async def more_than(number: int) -> bool:
        return bool(await client.read_logs(wanted, limit=1, offset=number))

    high = 64
    while await more_than(high):
        high *= 4
    low = -1 if high == 64 else high // 4  # more than `low`, not more than `high`
    while high - low > 1:
        middle = (low + high) // 2
        if await more_than(middle):
            low = middle
        else:
            high = middle
    return high


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _encode(at: datetime, given: int) -> str:
    plain = datetime.fromisoformat(at.isoformat())  # Prefect's times are of another class, whose differences are too
    micros = (plain - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{micros}:{given}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, int]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError(text)
        return _EPOCH + timedelta(microseconds=int(found[1])), int(found[2])
    except (ValueError, binascii.Error, OverflowError) as error:
        detail = "is not a cursor that this log gave"
        raise InvalidParameter(f"cursor {detail}.", [("?cursor", detail)]) from error
