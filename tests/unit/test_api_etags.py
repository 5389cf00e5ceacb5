"""ETags of jobs: what they move with, and what depends on them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rehost.catalog.catalog import Catalog
from tests.support.api import (
    Orders,
    app,
    catalog,
    client,
    created,
    job_body,
    orders,
    refused,
    settings,
    source_id,
    tree,
)


def test_a_jobs_version_is_its_etag_wherever_it_is_answered(client: TestClient, source_id: str) -> None:
    body = job_body(source_id, execution={"mode": "create_only"})
    made = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"})
    job = made.json()
    path = f"/v1/jobs/{job['id']}"
    assert made.headers["etag"] == f'"{job["version"]}"'
    assert client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).headers["etag"] == made.headers["etag"]
    assert client.get(path).headers["etag"] == made.headers["etag"]
    assert client.head(path).headers["etag"] == made.headers["etag"]
    changed = client.patch(path, json={"description": "Other"})
    assert changed.json()["version"] > job["version"]
    assert changed.headers["etag"] == f'"{changed.json()["version"]}"'
    started = client.post(f"{path}/start")
    assert started.json()["version"] > changed.json()["version"]
    assert started.headers["etag"] == f'"{started.json()["version"]}"'
    assert "etag" not in client.get("/v1/jobs").headers


def test_who_has_the_job_as_it_is_gets_it_not_again(client: TestClient, source_id: str) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    path, tag = f"/v1/jobs/{job['id']}", f'"{job["version"]}"'
    for known in (tag, f"W/{tag}", f'"0", {tag}', "*"):
        answer = client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    for other in ('"0"', "nonsense", tag.strip('"')):
        assert client.get(path, headers={"If-None-Match": other}).status_code == 200
    running = client.post(f"{path}/start").headers["etag"]
    assert client.get(path, headers={"If-None-Match": running}).status_code == 200, "its progress moves no version"


def test_a_change_of_a_version_that_is_over_is_refused(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog
) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    path, seen = f"/v1/jobs/{job['id']}", {"If-Match": f'"{job["version"]}"'}
    assert client.patch(path, json={"description": "Mine"}, headers=seen).status_code == 200
    orders.asked.clear()
    for method, at, body in (
        ("PATCH", path, {"description": "Lost"}),
        ("POST", f"{path}/start", None),
        ("POST", f"{path}/stop", None),
        ("POST", f"{path}/verify", None),
        ("POST", f"{path}/cut-over", None),
        ("DELETE", path, None),
    ):
        for wrong in (seen, {"If-Match": "nonsense"}, {"If-Match": f'W/"{catalog.job(job["id"]).version}"'}):
            told = refused(client.request(method, at, json=body, headers=wrong), 412, "Precondition.Failed")
            assert f"version {catalog.job(job['id']).version} now" in told["detail"]
    assert client.get(path).json()["description"] == "Mine"
    assert orders.asked == []
    refused(client.post("/v1/jobs/j-none/start", headers=seen), 404, "Job.NotFound")
    now = {"If-Match": f'"7", {client.get(path).headers["etag"]}'}
    assert client.post(f"{path}/start", headers=now).status_code == 200
    assert client.patch(path, json={"description": "Any"}, headers={"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "action", "step"),
    [
        ("POST", "/start", "begin_run"),
        ("POST", "/stop", "request_stop"),
        ("POST", "/verify", "ask_verification"),
        ("POST", "/cut-over", "cut_over"),
        ("DELETE", "", "begin_removal"),
    ],
)
def test_a_change_between_the_look_at_the_version_and_the_action_is_seen(
    client: TestClient,
    source_id: str,
    orders: Orders,
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    action: str,
    step: str,
) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    act = getattr(catalog, step)

    def somebody_was_faster(*given: Any, **named: Any) -> Any:
        catalog.change_job(job["id"], {"description": "Theirs"}, datetime.now(UTC))
        return act(*given, **named)

    monkeypatch.setattr(catalog, step, somebody_was_faster)
    seen = {"If-Match": f'"{job["version"]}"'}
    refused(client.request(method, f"/v1/jobs/{job['id']}{action}", headers=seen), 412, "Precondition.Failed")
    assert (catalog.job(job["id"]).status, orders.asked) == ("Ready", [])
