"""Several jobs in one request: an answer for each, and those that find no place are queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rehost.catalog.catalog import Catalog
from rehost.settings import Region, Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import MEMBERS, Orders, app, catalog, client, created, orders, refused

__all__ = ["app", "catalog", "client", "orders"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", regions={"local": Region(max_running_jobs=2)})


@pytest.fixture
def jobs(client: TestClient, catalog: Catalog) -> list[str]:
    """Four jobs that wait for a start."""
    return [
        created(client, source(catalog, n), name=f"web{n}", execution={"mode": "create_only"})["id"] for n in range(4)
    ]


def source(catalog: Catalog, number: int) -> str:
    inventory = Inventory(hostname=f"web{number}", os_id="debian", architecture="x86_64")
    return catalog.add_source(PathConnection(root=f"/srv/{number}"), inventory).id


def batch(client: TestClient, verb: str, ids: list[str]) -> list[dict[str, Any]]:
    answer = client.post(f"/v1/jobs/{verb}", json={"job_ids": ids})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    assert [item["job_id"] for item in items] == ids
    return items


def test_each_job_gets_the_answer_that_it_would_get_alone(
    client: TestClient, catalog: Catalog, jobs: list[str], orders: Orders
) -> None:
    catalog.begin_run(jobs[1], kind="manual")
    items = batch(client, "start", [jobs[0], jobs[1], "j-none", jobs[2]])
    assert [item["ok"] for item in items] == [True, False, False, True]
    assert [item["job"] and item["job"]["status"] for item in items] == ["Running", None, None, "Ready"]
    assert set(items[1]["error"]) == MEMBERS
    assert [(item["error"]["code"], item["error"]["status"]) for item in items[1:3]] == [
        ("Job.InvalidStatus", 409),
        ("Job.NotFound", 404),
    ]
    assert items[1]["error"]["instance"] == f"/v1/jobs/{jobs[1]}/start"
    assert orders.names() == ["start_run"], "a queued job was asked of Prefect"


def test_what_is_queued_begins_when_another_job_of_the_region_is_stopped(
    client: TestClient, catalog: Catalog, jobs: list[str], orders: Orders
) -> None:
    batch(client, "start", jobs)
    assert [client.get(f"/v1/jobs/{id}").json()["status"] for id in jobs] == ["Running", "Running", "Ready", "Ready"]
    run = catalog.claim_run(jobs[0], flow_run_id="flow-1")
    catalog.stop_run(run.id)
    items = batch(client, "stop", [jobs[2], jobs[0]])
    assert [item["ok"] for item in items] == [True, False]
    assert items[1]["error"]["code"] == "Job.InvalidStatus"
    assert client.get(f"/v1/jobs/{jobs[3]}").json()["status"] == "Running"
    assert [id for name, id, _ in orders.asked if name == "start_run"] == [jobs[0], jobs[1], jobs[3]]


def test_a_queued_job_whose_turn_prefect_does_not_take_stays_queued(
    client: TestClient, catalog: Catalog, jobs: list[str], orders: Orders
) -> None:
    batch(client, "start", jobs)
    catalog.stop_run(catalog.claim_run(jobs[0], flow_run_id="flow-1").id)
    orders.away = {"start_run"}
    batch(client, "stop", [jobs[2]])
    assert client.get(f"/v1/jobs/{jobs[3]}").json()["status"] == "Ready"
    admitted = catalog.admit_run()
    assert admitted is not None and admitted.job_id == jobs[3]


@pytest.mark.parametrize(
    ("ids", "pointer"),
    [
        ([], "/job_ids"),
        (["j-1"] * 2, "/job_ids"),
        ([f"j-{n}" for n in range(51)], "/job_ids"),
        (["j" * 65], "/job_ids/0"),
        (["j\0"], "/job_ids/0"),
        ("j-1", "/job_ids"),
    ],
    ids=["none", "twice", "51", "no id", "a NUL", "no list"],
)
@pytest.mark.parametrize("verb", ["start", "stop"])
def test_one_to_fifty_jobs_are_named_each_once(client: TestClient, verb: str, ids: Any, pointer: str) -> None:
    problem = refused(client.post(f"/v1/jobs/{verb}", json={"job_ids": ids}), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
