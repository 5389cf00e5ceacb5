"""/v1/jobs/{id}/logs: whose log is asked for, what is refused, and how messages of a hostile source are shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings as hypothesis_settings, strategies as st
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

from flows.logs import read, readable
from rehost.catalog.catalog import Catalog
from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.records import Page
from rehost.errors import InvalidParameter
from tests.support.api import Orders, app, catalog, client, created, orders, refused, settings, source_id, tree

__all__ = ["Orders", "app", "catalog", "client", "orders", "settings", "source_id", "tree"]

_ENTRY = {
    "id": "1",
    "time": "2026-01-02T03:04:05Z",
    "level": "info",
    "run_id": "r-1",
    "stage": "transfer",
    "message": "begins",
}


@pytest.fixture
def job(client: TestClient, catalog: Catalog, source_id: str, orders: Orders) -> dict[str, Any]:
    """A job with two runs: one failed as flow-1, one under way as flow-2."""
    orders.answers["read_logs"] = Page[LogEntry](items=(LogEntry.model_validate(_ENTRY),), next_cursor="next", total=7)
    job = created(client, source_id, execution={"mode": "create_only"})
    for flow_run_id in ("flow-1", "flow-2"):
        run = catalog.begin_run(job["id"], kind="manual")
        catalog.attach_flow_run(run.id, flow_run_id)
        if flow_run_id == "flow-1":
            catalog.stop_run(run.id)
    return job


def asked(orders: Orders) -> tuple[dict[str, str], dict[str, Any]]:
    [(_, flow_runs, facts)] = [order for order in orders.asked if order[0] == "read_logs"]
    orders.asked.clear()
    return flow_runs, facts


def test_the_log_of_a_job_is_that_of_all_its_runs(client: TestClient, job: dict[str, Any], orders: Orders) -> None:
    answer = client.get(f"/v1/jobs/{job['id']}/logs")
    assert answer.status_code == 200
    assert answer.json() == {"items": [_ENTRY], "next_cursor": "next", "total": 7}
    runs = client.get(f"/v1/jobs/{job['id']}/runs").json()["items"]
    flow_runs, facts = asked(orders)
    assert flow_runs == {run["flow_run_id"]: run["id"] for run in runs}
    assert facts == {"level": "info", "order": "newest", "limit": 10, "cursor": None}
    query = f"?run_id={runs[1]['id']}&level=warning&order=oldest&limit=50&cursor=abc"
    assert client.get(f"/v1/jobs/{job['id']}/logs{query}").status_code == 200
    flow_runs, facts = asked(orders)
    assert flow_runs == {"flow-1": runs[1]["id"]}
    assert facts == {"level": "warning", "order": "oldest", "limit": 50, "cursor": "abc"}


def test_what_is_no_log_is_refused(client: TestClient, job: dict[str, Any], orders: Orders) -> None:
    path = f"/v1/jobs/{job['id']}/logs"
    refused(client.get("/v1/jobs/j-none/logs"), 404, "Job.NotFound")
    refused(client.get(f"{path}?run_id=r-none"), 404, "Run.NotFound")
    faults = refused(client.get(f"{path}?level=loud&order=best&limit=51"), 422, "InvalidParameter")["errors"]
    assert {fault["pointer"] for fault in faults} == {"?level", "?order", "?limit"}
    refused(client.get(f"{path}?since=1"), 422, "InvalidParameter")
    orders.away.add("read_logs")
    refused(client.get(path), 503, "Prefect.Unavailable")


class Prefect:
    """Stands in for Prefect's client: the logs of flow runs, filtered and sorted as its server does it."""

    def __init__(self, seconds: list[int]) -> None:
        self.logs = [
            Log(name="prefect.flow_runs", level=20, message=str(number), timestamp=_BEGAN + timedelta(seconds=second))
            for number, second in enumerate(seconds)
        ]
        for log in self.logs:
            log.flow_run_id = _FLOW_RUN

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Any]:
        yield self

    async def read_logs(self, wanted: LogFilter, limit: int, offset: int, sort: LogSort | None = None) -> list[Log]:
        at = wanted.timestamp
        found = [
            log
            for log in sorted(self.logs, key=lambda log: log.timestamp, reverse=sort == LogSort.TIMESTAMP_DESC)
            if (at is None or at.after_ is None or log.timestamp >= at.after_)
            and (at is None or at.before_ is None or log.timestamp <= at.before_)
        ]
        return found[offset : offset + limit]


_FLOW_RUN = UUID(int=1)
_BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), max_size=40), st.integers(1, 7), st.sampled_from(["newest", "oldest"]), st.booleans()
)
def test_every_line_is_on_one_page_whatever_is_said_meanwhile(
    seconds: list[int], limit: int, order: Any, goes_on: bool
) -> None:
    prefect, told, cursor = Prefect(seconds), list[str](), None
    while True:
        page = asyncio.run(
            read(prefect, {str(_FLOW_RUN): "r-1"}, level=LogLevel.INFO, order=order, limit=limit, cursor=cursor)
        )
        told += [entry.message for entry in page.items]
        assert page.total == len(prefect.logs)
        cursor = page.next_cursor
        if cursor is None:
            break
        if goes_on and len(prefect.logs) < 60:
            prefect.logs += Prefect([*seconds, 9]).logs[-1:]
    wanted = {str(number) for number in range(len(seconds))}
    assert wanted <= set(told)
    assert all(told.count(message) == 1 for message in wanted - {str(len(seconds))})
    if not goes_on:
        in_time = sorted(range(len(seconds)), key=lambda number: seconds[number], reverse=order == "newest")
        assert told == [str(number) for number in in_time]


def test_a_cursor_that_no_log_gave_is_refused() -> None:
    for cursor in ("", "abc", "!", "MToxOjE"):
        with pytest.raises(InvalidParameter):
            asyncio.run(read(Prefect([]), {}, level=LogLevel.INFO, order="newest", limit=1, cursor=cursor))


def test_a_message_cannot_act_on_a_terminal_or_a_page() -> None:
    assert readable("one\ntwo\tthree é 漢") == "one\ntwo\tthree é 漢"
    hostile = "\x1b[2J\r\x00\x07\x9b1m\u202egnp.exe\u2028\ud800"
    assert readable(hostile) == r"\x1b[2J\r\x00\x07\x9b1m\u202egnp.exe\u2028\ud800"
    assert readable("x" * 10_001) == "x" * 10_000 + " …"
