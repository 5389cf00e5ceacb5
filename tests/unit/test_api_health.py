"""/healthz, /readyz, /metrics"""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from sqlalchemy import insert

from api.app import create_app
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.records import Figures
from rehost.catalog.scopes import Scope
from rehost.catalog.tables import RunRow
from rehost.settings import Settings
from tests.support.api import Orders, app, catalog, client, created, orders, refused, settings, source_id, tree


class Built(BaseModel):
    """What an image.json says of its files."""

    disks: list[dict[str, int]] = [{"file_size": 3}, {"file_size": 4}]


def states(answer: Any) -> dict[str, str]:
    return {check["name"]: check["state"] for check in answer.json()["checks"]}


def test_ready_is_who_has_all_services(client: TestClient, orders: Orders) -> None:
    orders.answers["workers_online"] = 2
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok"), answer.text
    assert states(answer) == {"catalog": "ok", "prefect": "ok", "worker": "ok", "store": "ok"}


def test_each_service_that_is_away_is_named(
    client: TestClient, orders: Orders, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders.answers["workers_online"] = 0
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert states(answer) == {"catalog": "ok", "prefect": "ok", "worker": "away", "store": "ok"}
    orders.away = {"workers_online"}
    assert states(client.get("/readyz"))["prefect"] == "away"
    orders.away = set()

    async def silent() -> int:
        await anyio.sleep_forever()
        return 1

    monkeypatch.setattr("api.readiness.CHECK_SECONDS", 0.05)
    orders.answers["workers_online"] = silent
    monkeypatch.setattr(orders, "workers_online", silent, raising=False)
    assert states(client.get("/readyz"))["prefect"] == "away"
    monkeypatch.setattr("api.readiness.CHECK_SECONDS", 10)
    monkeypatch.setattr("api.readiness.os.access", lambda path, mode: False)
    assert states(client.get("/readyz"))["store"] == "away"
    monkeypatch.setattr(Catalog, "ping", lambda self: (_ for _ in ()).throw(ZeroDivisionError("inner")))
    refused(client.get("/readyz"), 500, "Internal")


def test_a_store_that_hangs_keeps_few_threads_however_many_ask(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, asked = threading.Event(), []

    def hang(settings: Settings) -> None:
        asked.append(settings)
        hangs.wait(60)

    monkeypatch.setattr("api.readiness._look", hang)
    monkeypatch.setattr("api.readiness.CHECK_SECONDS", 0.02)
    try:
        for _ in range(20):
            assert states(client.get("/readyz"))["store"] == "away"
    finally:
        hangs.set()
    assert len(asked) <= 8


def figures(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_what_the_catalog_has(client: TestClient, source_id: str, catalog: Catalog) -> None:
    job = created(client, source_id)
    run = catalog.claim_run(job["id"], flow_run_id="flow-1")
    moved = Figures(bytes_on_wire=5_000_000_000, bytes_new=7)
    catalog.record_snapshot(run.id, "n-" + "a" * 20, moved)
    catalog.add_image(job["id"], run.id, Built(), id="m-" + "a" * 20, kind="disk", name="web")
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    found = figures(answer.text)
    assert found["rehost_jobs local Running"] == 1
    assert found["rehost_runs manual running"] == 1
    assert found["rehost_run_bytes on_wire"] == 5_000_000_000
    assert found["rehost_sources in_use"] == 1
    assert found["rehost_images disk local"] == 1
    assert found["rehost_image_bytes disk local"] == 7
    assert found["rehost_http_requests_total POST /v1/jobs 201"] == 1
    client.get("/v1/jobs/no/such/thing/at/all")
    client.request("BREW", "/v1/jobs")
    again = client.get("/metrics").text
    assert found.keys() <= figures(again).keys()
    assert figures(again)["rehost_http_requests_total GET none 404"] == 1
    assert not re.search("BREW|such", again), "what callers make up makes no series"


def test_metrics_tell_the_queue_and_how_long_runs_lasted(client: TestClient, source_id: str, catalog: Catalog) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    began = now() - timedelta(hours=2)
    row = {"job_id": job["id"], "source_id": source_id, "previous_status": "Ready", "created_at": began}
    with catalog._database.write() as session:
        for number, seconds in enumerate((100, 20)):
            ended = {"status": "failed", "started_at": began, "ended_at": began + timedelta(seconds=seconds)}
            session.execute(insert(RunRow).values(**row, **ended, id=f"r-{number}", kind="manual"))
        session.execute(insert(RunRow).values(**row, id="r-9", kind="schedule", status="pending"))
    found = figures(client.get("/metrics").text)
    assert found["rehost_run_seconds_count manual failed"] == 2
    assert found["rehost_run_seconds_sum manual failed"] == pytest.approx(120, abs=2)
    assert found["rehost_jobs_queued local"] == 1
    assert found["rehost_oldest_queued_seconds local"] == pytest.approx(7200, abs=120)


def test_metrics_need_a_key_where_there_are_keys_and_the_probes_do_not(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with Catalog.open(settings) as catalog:
        key = catalog.add_api_key("prometheus", Scope.READ)
    with TestClient(create_app(settings), base_url="http://rehost.example.org") as client:
        refused(client.get("/metrics"), 401, "Unauthenticated")
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/healthz").status_code == 200
