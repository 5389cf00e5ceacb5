"""Server-sent events: what they are, when they end, how many may be open, and what they cost the catalog."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api import events
from api.app import create_app
from api.events import Hub
from api.serve import Server
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Figures, Job
from rehost.errors import CatalogAway, JobNotFound, StreamsTooMany
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import Orders, app, catalog, client, created, orders, refused, settings, source_id, tree

__all__ = ["Orders", "app", "catalog", "client", "orders", "settings", "source_id", "tree"]

_WAIT_SECONDS = 60.0


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each with its fields; comments are events of their own."""
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, Any] = {}
        for line in filter(None, block.split("\n")):
            name, _, value = line.partition(": ")
            fields[name or "comment"] = json.loads(value) if name == "data" else value
        if fields and set(fields) != {"retry"}:
            found.append(fields)
    return found


def fail(catalog: Catalog, job_id: str) -> None:
    [run] = [run for run in catalog.runs_under_way() if run.job_id == job_id]
    catalog.fail_run(run.id, CatalogAway(reason="a test"))


def test_a_job_that_rests_answers_its_result_at_once(client: TestClient, source_id: str) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    answer = client.get(f"/v1/jobs/{job['id']}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    progress, result = parsed(answer.text)
    assert (progress["event"], result["event"]) == ("progress", "result")
    assert progress["data"]["type"] == "job.progress"
    assert (progress["data"]["job_id"], progress["data"]["status"]) == (job["id"], "Ready")
    assert result["data"] == {"type": "job.result", "job": client.get(f"/v1/jobs/{job['id']}").json()}


def test_who_has_the_result_is_told_not_to_come_back(client: TestClient, source_id: str) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    path = f"/v1/jobs/{job['id']}/events"
    progress, result = parsed(client.get(path).text)
    assert client.get(path, headers={"Last-Event-ID": result["id"]}).status_code == 204
    [again] = parsed(client.get(path, headers={"Last-Event-ID": progress["id"]}).text)
    assert again == result
    assert parsed(client.get(path, headers={"Last-Event-ID": "of another job"}).text) == [progress, result]


def test_what_cannot_be_followed_is_refused_before_anything_is_sent(
    client: TestClient, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(client.get("/v1/jobs/j-none/events"), 404, "Job.NotFound")
    job = created(client, source_id)
    refused(client.get(f"/v1/jobs/{job['id']}/events?follow=true"), 422, "InvalidParameter")
    refused(client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x" * 101}), 422, "InvalidParameter")
    monkeypatch.setattr(events, "MAX_STREAMS", 0)
    answer = client.get(f"/v1/jobs/{job['id']}/events")
    refused(answer, 429, "Streams.TooMany")
    assert answer.headers["retry-after"] == "5"


def test_events_tell_of_changes_until_the_run_has_ended(
    client: TestClient, catalog: Catalog, source_id: str, app: FastAPI
) -> None:
    app.state.hub._look_seconds = 0.01
    job = created(client, source_id)
    catalog.claim_run(job["id"], flow_run_id="flow-1")
    looked = threading.Event()
    look = catalog.jobs_of

    def seen(ids: Any) -> dict[str, Job]:
        found = look(ids)
        looked.set()
        return found

    catalog.jobs_of = seen  # type: ignore[method-assign]

    def work() -> None:
        for percent in (10, 20):
            looked.clear()
            assert looked.wait(_WAIT_SECONDS)
            catalog.set_progress(job["id"], percent, 5, bytes_done=percent, bytes_total=100, bytes_per_second=2.4)
            looked.clear()  # whoever looks now sees it
            assert looked.wait(_WAIT_SECONDS)
            looked.clear()
            assert looked.wait(_WAIT_SECONDS)
        fail(catalog, job["id"])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = parsed(client.get(f"/v1/jobs/{job['id']}/events").text)
    finally:
        thread.join(_WAIT_SECONDS)
    told = [event["data"] for event in found if event["event"] == "progress"]
    assert [data["progress"] for data in told if data["status"] == "Running"] == [0, 10, 20]
    assert (told[1]["bytes_done"], told[1]["bytes_total"], told[1]["bytes_per_second"]) == (10, 100, 2)
    assert told[1]["eta_seconds"] == 5
    assert (told[-1]["status"], told[-1]["bytes_done"]) == ("InError", None)
    assert found[-1]["data"]["job"]["error"]["code"] == "Catalog.Unavailable"
    assert len({event["id"] for event in found}) == len(found)


# --- the hub alone ----------------------------------------------------------------------------------------------


def in_a_hub(catalog: Catalog, work: Callable[[Hub], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        hub = Hub(catalog, look_seconds=0.01)
        try:
            await asyncio.wait_for(work(hub), _WAIT_SECONDS)
        finally:
            await hub.aclose()

    asyncio.run(whole())


async def opened(hub: Hub, job_id: str) -> AsyncIterator[bytes]:
    stream = await hub.stream(job_id, None)
    assert stream is not None
    assert (await anext(stream)).startswith(b"retry: ")
    return stream


def test_many_followers_cost_one_look(
    client: TestClient, catalog: Catalog, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = created(client, source_id)["id"]
    looks: list[list[str]] = []
    look = catalog.jobs_of

    def counted(ids: Any) -> dict[str, Job]:
        looks.append(list(ids))
        return look(ids)

    monkeypatch.setattr(catalog, "jobs_of", counted)

    async def work(hub: Hub) -> None:
        streams = [await opened(hub, job_id) for _ in range(100)]
        for stream in streams:
            assert b'"Running"' in await anext(stream)
        before = len(looks)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        while len(looks) < before + 3:
            await asyncio.sleep(0.01)
        assert all(ids == [job_id] for ids in looks)
        catalog.set_progress(job_id, 7)
        told = await asyncio.gather(*waiting)
        assert len(looks) < before + 60  # and not a hundred for each change
        assert len(set(told)) == 1
        assert b'"progress": 7' in told[0]
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert not hub._followed

    in_a_hub(catalog, work)


def test_a_stream_more_than_there_may_be_is_refused_and_a_closed_one_makes_room(
    client: TestClient, catalog: Catalog, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = created(client, source_id)["id"]
    monkeypatch.setattr(events, "MAX_STREAMS", 2)

    async def work(hub: Hub) -> None:
        first, _ = await opened(hub, job_id), await opened(hub, job_id)
        with pytest.raises(StreamsTooMany):
            await hub.stream(job_id, None)
        await first.aclose()  # type: ignore[attr-defined]
        await opened(hub, job_id)

    in_a_hub(catalog, work)


def test_a_follower_that_went_away_is_forgotten(client: TestClient, catalog: Catalog, source_id: str) -> None:
    job_id = created(client, source_id)["id"]

    async def work(hub: Hub) -> None:
        stream = await opened(hub, job_id)
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()  # as the server does it when the line is closed
        await asyncio.wait([waiting])
        assert (hub._streams, hub._followed) == (0, {})

    in_a_hub(catalog, work)


def test_silence_is_filled_with_comments_and_a_catalog_that_is_away_with_patience(
    client: TestClient, catalog: Catalog, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = created(client, source_id)["id"]
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.05)
    look, away = catalog.jobs_of, [True]

    def sometimes(ids: Any) -> dict[str, Job]:
        if away:
            raise CatalogAway(reason="a test")
        return look(ids)

    monkeypatch.setattr(catalog, "jobs_of", sometimes)

    async def work(hub: Hub) -> None:
        stream = await opened(hub, job_id)
        await anext(stream)
        catalog.set_progress(job_id, 9)
        assert await anext(stream) == b": alive\n\n"
        away.clear()
        async for event in stream:
            if event != b": alive\n\n":
                assert b'"progress": 9' in event
                break

    in_a_hub(catalog, work)


def test_streams_end_when_the_api_does_and_when_the_job_is_gone(
    client: TestClient, catalog: Catalog, source_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ALIVE_SECONDS", 3600)
    job_id = created(client, source_id, execution={"mode": "create_only"})["id"]
    run = catalog.begin_run(job_id, kind="manual")

    async def close(hub: Hub) -> None:
        stream = await opened(hub, job_id)
        await anext(stream)
        asyncio.get_running_loop().call_later(0.05, hub.close)
        assert [event async for event in stream] == []

    in_a_hub(catalog, close)

    async def gone(hub: Hub) -> None:
        stream = await opened(hub, job_id)
        await anext(stream)
        catalog.withdraw_run(run.id)
        catalog.forget_job(job_id)
        last = [event async for event in stream][-1]
        assert last.startswith((b"event: gone\n", b"event: result\n"))
        with pytest.raises(JobNotFound):
            await hub.stream(job_id, None)

    in_a_hub(catalog, gone)


def test_who_comes_after_a_change_is_not_told_what_was_before(
    client: TestClient, catalog: Catalog, source_id: str
) -> None:
    """A follower that lingers keeps an old state; a new one is told the present, and does not end with the old."""
    job_id = created(client, source_id, targets={"image": {}}, verification={"enabled": False})["id"]

    async def work(hub: Hub) -> None:
        lingering = await opened(hub, job_id)
        await anext(lingering)
        hub._look_seconds = 3600  # nobody looks from now on
        [run] = catalog.runs_under_way()
        catalog.add_image(job_id, run.id, Figures(), id="m-" + job_id[2:], kind="disk", name=f"i{job_id}")
        catalog.finish_run(run.id)
        seen = [event async for event in await opened(hub, job_id)]
        assert b'"Finished"' in seen[0]
        assert seen[-1].startswith(b"event: result\n")

    in_a_hub(catalog, work)


# --- over a real line -------------------------------------------------------------------------------------------


class Ready(Server):
    """The API's own server, which says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()


@pytest.fixture
def served(settings: Settings) -> Iterator[tuple[Ready, threading.Thread, str, FastAPI]]:
    """A running server, its thread, its address, its application. It would wait for open answers for ever."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings)
    server = Ready(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert server.answers.wait(_WAIT_SECONDS)
    yield server, thread, f"http://127.0.0.1:{listening.getsockname()[1]}", app
    app.state.hub.close()
    server.should_exit = True
    thread.join(_WAIT_SECONDS)


def running_job(catalog: Catalog) -> str:
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    source = catalog.add_source(PathConnection(root="/srv/web1"), inventory)
    spec = JobSpec.model_validate({"source_id": source.id, "region_id": "local", "execution": {"mode": "create_only"}})
    job = catalog.create_job(spec)
    catalog.begin_run(job.id, kind="manual")
    return job.id


def test_a_server_that_is_stopped_ends_its_streams_by_itself(
    served: tuple[Ready, threading.Thread, str, FastAPI],
) -> None:
    server, thread, address, app = served
    job_id = running_job(app.state.catalog)
    with httpx.stream("GET", f"{address}/v1/jobs/{job_id}/events", timeout=_WAIT_SECONDS, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert "event: progress" in lines
        server.should_exit = True
        assert "event: result" not in list(lines)  # and it ended without an error
    thread.join(_WAIT_SECONDS)
    assert not thread.is_alive()


def test_a_client_that_closes_its_line_is_noticed(served: tuple[Ready, threading.Thread, str, FastAPI]) -> None:
    _, _, address, app = served
    job_id = running_job(app.state.catalog)
    hub: Hub = app.state.hub
    with httpx.stream("GET", f"{address}/v1/jobs/{job_id}/events", timeout=_WAIT_SECONDS, trust_env=False) as answer:
        lines = answer.iter_lines()
        assert "event: progress" in lines
        assert hub._streams == 1
    deadline = time.monotonic() + _WAIT_SECONDS
    while hub._streams:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_asks_for_the_headers_alone_gets_no_stream(client: TestClient, catalog: Catalog, source_id: str) -> None:
    job_id = created(client, source_id)["id"]
    answer = client.head(f"/v1/jobs/{job_id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
