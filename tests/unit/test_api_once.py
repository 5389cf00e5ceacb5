"""The same request again: Idempotency-Key."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.support.api import JSON, Orders, app, catalog, client, job_body, orders, refused, settings, source_id, tree


def test_the_same_request_with_the_same_key_makes_one_thing(client: TestClient, tree: Path, orders: Orders) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {"connection": {"kind": "path", "root": str(tree)}, "tags": {}}
    first = client.post("/v1/sources", json=body, headers=headers)
    again = client.post("/v1/sources", content=json.dumps(body, indent=3), headers=headers | JSON)
    assert (again.status_code, again.json(), again.headers["location"]) == (
        201,
        first.json(),
        first.headers["location"],
    )
    assert client.get("/v1/sources").json()["total"] == 1
    other = {**body, "name": "other"}
    refused(client.post("/v1/sources", json=other, headers=headers), 422, "IdempotencyKey.Reused")
    job = job_body(first.json()["id"])
    refused(client.post("/v1/jobs", json=job, headers=headers), 422, "IdempotencyKey.Reused")
    jobs = [client.post("/v1/jobs", json=job, headers={"Idempotency-Key": "k2"}) for _ in range(3)]
    assert len({answer.json()["id"] for answer in jobs}) == 1
    assert orders.names() == ["start_run"]


def test_a_refused_request_leaves_its_key_free(client: TestClient, source_id: str, orders: Orders) -> None:
    headers = {"Idempotency-Key": "k1"}
    orders.away = {"start_run"}
    refused(client.post("/v1/jobs", json=job_body(source_id), headers=headers), 503, "Prefect.Unavailable")
    orders.away = set()
    assert client.post("/v1/jobs", json=job_body(source_id), headers=headers).status_code == 201


def test_of_the_same_requests_at_once_one_makes_something(client: TestClient, source_id: str, orders: Orders) -> None:
    answers: list[Any] = []
    barrier = threading.Barrier(5)

    def create() -> None:
        barrier.wait(10)
        answers.append(client.post("/v1/jobs", json=job_body(source_id), headers={"Idempotency-Key": "k1"}))

    threads = [threading.Thread(target=create) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert orders.names() == ["start_run"]
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    for answer in answers:
        if answer.status_code == 409:
            refused(answer, 409, "IdempotencyKey.Busy")


@pytest.mark.parametrize("key", ["", "k" * 65, "a\tb"])
def test_a_wrong_key_is_refused(client: TestClient, source_id: str, key: str) -> None:
    answer = client.post("/v1/jobs", json=job_body(source_id), headers={"Idempotency-Key": key})
    problem = refused(answer, 422, "InvalidParameter")
    assert problem["errors"][0]["pointer"] == "Idempotency-Key"
