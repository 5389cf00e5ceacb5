"""Jobs over the API: made, started, stopped, changed; what it asks of Prefect is written down by a stand-in."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures
from rehost.errors import OrchestrationAway, StoreNoSpace
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


def test_a_job_starts_at_once_and_answers_every_field(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, name="web", description="The shop", tags={"team": "web"})
    assert set(job) == {
        *("source_id", "region_id", "name", "description", "targets", "disks", "exclude", "execution", "incremental"),
        *("consistency", "hooks"),
        *("network", "replication", "verification", "tags", "valid_until", "id", "status", "business_status"),
        *("queued", "version", "bytes_done", "bytes_total", "bytes_per_second"),
        *("progress", "eta_seconds", "status_info", "error", "next_run_at", "image_ids", "latest_verification"),
        *("created_at", "started_at", "ended_at", "prefect_url", "next_step"),
        *("bytes_done", "bytes_total", "bytes_per_second"),
    }
    assert (job["status"], job["business_status"], job["progress"]) == ("Running", "Preparing", 0)
    facts = {"job_name": "web", "source_name": "web1", "kind": "manual", "work_queue": "default"}
    assert orders.asked == [("start_run", job["id"], facts)]
    assert job["prefect_url"].endswith("/runs/flow-run/flow-1")
    runs = client.get(f"/v1/jobs/{job['id']}/runs").json()
    assert [(run["kind"], run["status"], run["flow_run_id"]) for run in runs["items"]] == [
        ("manual", "pending", "flow-1")
    ]
    assert client.get(f"/v1/sources/{source_id}").json()["state"] == "in_use"


def test_a_dry_run_answers_the_plan_and_makes_nothing(client: TestClient, source_id: str, orders: Orders) -> None:
    answer = client.post("/v1/jobs?dry_run=true", json=job_body(source_id, name="web"))
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["dry_run"], plan["hostname"], plan["image_name"]) == (True, "web1", "web")
    assert client.get("/v1/jobs").json()["total"] == 0
    assert orders.asked == []
    created(client, source_id, name="other")
    warned = client.post("/v1/jobs?dry_run=true", json=job_body(source_id, name="web")).json()
    assert any("unfinished job" in warning for warning in warned["warnings"])
    taken = client.post("/v1/jobs?dry_run=true", json=job_body(source_id, name="other"))
    refused(taken, 409, "JobName.Duplicate")


def test_a_dry_run_walks_the_source_where_it_is_asked_to(client: TestClient, source_id: str, tree: Path) -> None:
    (tree / "var").mkdir()
    (tree / "var/data").write_bytes(b"x" * 5000)
    assert client.post(f"/v1/sources/{source_id}/discover").status_code == 200
    body = job_body(source_id, exclude=["/etc/hostname"])
    assert client.post("/v1/jobs?dry_run=true", json=body).json()["survey"] is None
    answer = client.post("/v1/jobs?dry_run=true&scan=true", json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert plan["survey"]["complete"] is True
    (volume,) = plan["survey"]["volumes"]
    assert plan["bytes_to_read"] == volume["bytes_to_read"] == plan["survey"]["bytes_to_read"] >= 5000
    assert plan["survey"]["left_out"][0]["bytes"] == len("web1\n")
    assert plan["estimate"]["seconds"] >= 0
    assert client.get("/v1/jobs").json()["total"] == 0
    told = refused(client.post("/v1/jobs?scan=true", json=body), 422, "InvalidParameter")
    assert told["errors"][0]["pointer"] == "?scan"


def test_a_job_that_only_is_created_waits_for_its_start(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    assert (job["status"], job["started_at"], orders.asked) == ("Ready", None, [])
    assert job["name"].startswith("web1-")
    assert job["next_step"] == "Start the job."
    started = client.post(f"/v1/jobs/{job['id']}/start").json()
    assert started["status"] == "Running"
    refused(client.post(f"/v1/jobs/{job['id']}/start"), 409, "Job.InvalidStatus")
    assert orders.names() == ["start_run"]


def test_two_starts_at_once_make_one_run(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, execution={"mode": "create_only"})
    statuses: list[int] = []
    barrier = threading.Barrier(6)

    def start() -> None:
        barrier.wait(10)
        statuses.append(client.post(f"/v1/jobs/{job['id']}/start").status_code)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [200] + [409] * 5
    assert orders.names() == ["start_run"]


def test_the_bandwidth_of_a_job_is_changed_while_it_runs(client: TestClient, source_id: str) -> None:
    job = created(client, source_id)
    window = {"from": "22:00", "to": "06:00", "limit_kbps": 0}
    change = {"replication": {"bandwidth_limit_kbps": 500, "bandwidth_calendar": [window]}}
    answer = client.patch(f"/v1/jobs/{job['id']}", json=change)
    assert answer.status_code == 200, answer.text
    replication = client.get(f"/v1/jobs/{job['id']}").json()["replication"]
    assert answer.json()["replication"] == replication
    assert replication["bandwidth_limit_kbps"] == 500
    assert replication["bandwidth_calendar"][0]["from"] == "22:00"
    change["replication"]["bandwidth_calendar"] = [window, window]
    told = refused(client.patch(f"/v1/jobs/{job['id']}", json=change), 422, "InvalidParameter")
    assert told["errors"][0]["pointer"] == "/replication/bandwidth_calendar"
    refused(client.patch("/v1/jobs/j-none", json={"replication": {}}), 404, "Job.NotFound")


def test_a_timed_job_is_a_flow_run_that_is_still_ahead(client: TestClient, source_id: str, orders: Orders) -> None:
    at = datetime.now(UTC) + timedelta(hours=2)
    job = created(client, source_id, execution={"mode": "at", "start_at": at.isoformat()})
    assert job["status"] == "Ready"
    assert datetime.fromisoformat(job["next_run_at"]) == at
    assert orders.asked[0][2]["at"] == at
    client.post(f"/v1/jobs/{job['id']}/start")
    assert orders.names() == ["start_run", "start_run", "cancel_run"], "started by hand, the timed run is called off"


def test_an_incremental_job_gets_its_schedule_with_its_first_start(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog
) -> None:
    job = created(client, source_id, incremental={"interval_hours": 6}, verification={"enabled": False})
    assert orders.names() == ["schedule_job", "start_run"]
    assert orders.asked[0][2]["interval_hours"] == 6
    run = catalog.claim_run(job["id"], flow_run_id="flow-2")
    catalog.add_image(job["id"], run.id, Figures(), id="m-" + "a" * 20, kind="disk", name="i1")
    catalog.finish_run(run.id)
    waiting = client.get(f"/v1/jobs/{job['id']}").json()
    assert waiting["status"] == "Waiting"
    assert waiting["next_run_at"] is not None
    assert client.post(f"/v1/jobs/{job['id']}/start").status_code == 200
    assert orders.names().count("schedule_job") == 1


def test_a_stop_cancels_the_flow_run_and_the_state_follows_it(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog
) -> None:
    job = created(client, source_id, incremental={"cron": "0 3 * * *"})
    stop = f"/v1/jobs/{job['id']}/stop"
    refused(client.post(stop), 409, "Job.InvalidBusinessStatus")
    run = catalog.claim_run(job["id"], flow_run_id="flow-2")
    catalog.set_stage(job["id"], "Syncing")
    answer = client.post(stop).json()
    assert (answer["status"], answer["status_info"]) == ("Running", "The run is being stopped.")
    assert [(name, which) for name, which, _ in orders.asked[2:]] == [
        ("cancel_run", "flow-2"),
        ("unschedule_job", job["id"]),
    ]
    catalog.stop_run(run.id)
    assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "Stopped"
    refused(client.post(stop), 409, "Job.InvalidStatus")


def test_a_start_that_prefect_did_not_take_leaves_no_schedule(
    client: TestClient, orders: Orders, catalog: Catalog, source_id: str
) -> None:
    again = {"incremental": {"interval_hours": 1}, "execution": {"mode": "create_only"}}
    job = created(client, source_id, **again)
    orders.away = {"start_run"}
    assert client.post(f"/v1/jobs/{job['id']}/start").status_code == 503
    assert not catalog.is_scheduled(job["id"]), "or it would start by itself in an hour"
    assert orders.names()[-1] == "unschedule_job"


def test_nothing_is_started_and_nothing_stays_where_prefect_is_away(
    client: TestClient, source_id: str, orders: Orders
) -> None:
    orders.away = {"start_run"}
    answer = client.post("/v1/jobs", json=job_body(source_id, incremental={"interval_hours": 1}))
    problem = refused(answer, 503, "Prefect.Unavailable")
    assert problem["retryable"] is True
    assert client.get("/v1/jobs").json()["total"] == 0
    assert orders.names() == ["schedule_job", "unschedule_job"]
    job = created(client, source_id, execution={"mode": "create_only"})
    refused(client.post(f"/v1/jobs/{job['id']}/start"), 503, "Prefect.Unavailable")
    left = client.get(f"/v1/jobs/{job['id']}").json()
    assert {**left, "version": 0} == {**job, "version": 0}
    assert client.get(f"/v1/jobs/{job['id']}/runs").json()["total"] == 0


def test_a_job_whose_flow_has_begun_is_running_though_the_answer_was_lost(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start_and_lose_the_answer(job_id: str, **facts: Any) -> str:
        catalog.claim_run(job_id, flow_run_id="flow-9")
        raise OrchestrationAway(url="http://prefect", reason="the connection broke")

    monkeypatch.setattr(orders, "start_run", start_and_lose_the_answer)
    job = created(client, source_id)
    assert job["status"] == "Running"
    assert job["prefect_url"].endswith("flow-9")


def test_a_stop_that_prefect_did_not_hear_is_no_stop(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog
) -> None:
    job = created(client, source_id)
    catalog.claim_run(job["id"], flow_run_id="flow-1")
    catalog.set_stage(job["id"], "Syncing")
    orders.away = {"cancel_run"}
    refused(client.post(f"/v1/jobs/{job['id']}/stop"), 503, "Prefect.Unavailable")
    assert client.get(f"/v1/jobs/{job['id']}").json()["status_info"] != "The run is being stopped."


def test_a_failed_job_says_why_and_starts_again(
    client: TestClient, source_id: str, orders: Orders, catalog: Catalog
) -> None:
    job = created(client, source_id)
    run = catalog.claim_run(job["id"], flow_run_id="flow-1")
    catalog.fail_run(run.id, StoreNoSpace(path="/store"))
    failed = client.get(f"/v1/jobs/{job['id']}").json()
    assert (failed["status"], failed["error"]["code"]) == ("InError", "Store.NoSpace")
    assert set(failed["error"]) == {"code", "message", "remedy", "retryable"}
    assert client.post(f"/v1/jobs/{job['id']}/start").json()["error"] is None
    statuses = [run["status"] for run in client.get(f"/v1/jobs/{job['id']}/runs").json()["items"]]
    assert statuses == ["pending", "failed"], "newest first"


def test_a_source_has_one_unfinished_job_and_names_are_unique(
    client: TestClient, source_id: str, catalog: Catalog
) -> None:
    first = created(client, source_id, name="web", targets={"image": {"name": "golden"}})
    refused(client.post("/v1/jobs", json=job_body(source_id)), 409, "Source.HasUnfinishedJob")
    source = catalog.source(source_id)
    other = catalog.add_source(source.connection, source.inventory).id
    refused(client.post("/v1/jobs", json=job_body(other, name="web")), 409, "JobName.Duplicate")
    same_image = job_body(other, targets={"image": {"name": "golden"}})
    problem = refused(client.post("/v1/jobs", json=same_image), 409, "ImageName.UsedByJob")
    assert first["id"] in problem["detail"]
    assert client.post("/v1/jobs", json=job_body(other)).status_code == 201


def test_what_is_unknown_is_not_found(client: TestClient, source_id: str) -> None:
    refused(client.get("/v1/sources/s-none"), 404, "Source.NotFound")
    refused(client.post("/v1/sources/s-none/discover"), 404, "Source.NotFound")
    refused(client.get("/v1/images/m-none"), 404, "Image.NotFound")
    for path in ("", "/runs", "/images", "/verifications"):
        refused(client.get(f"/v1/jobs/j-none{path}"), 404, "Job.NotFound")
    for action in ("start", "stop"):
        refused(client.post(f"/v1/jobs/j-none/{action}"), 404, "Job.NotFound")
    refused(client.post("/v1/jobs", json=job_body("s-none")), 404, "Source.NotFound")
    refused(client.post("/v1/jobs", json={"source_id": source_id, "region_id": "mars"}), 404, "Region.NotFound")


def test_all_faults_of_a_job_come_in_one_answer(client: TestClient, source_id: str) -> None:
    body = job_body(source_id, name="1", colour="red", replication={"compress_level": 10})
    problem = refused(client.post("/v1/jobs", json=body), 422, "InvalidParameter")
    assert {fault["pointer"] for fault in problem["errors"]} == {"/name", "/colour", "/replication/compress_level"}


def test_a_fault_with_a_code_of_its_own_answers_that_code(client: TestClient, source_id: str) -> None:
    body = job_body(source_id, disks={"data": [{"index": 3}]})
    problem = refused(client.post("/v1/jobs", json=body), 422, "DataDiskIndex.Invalid")
    assert problem["errors"][0]["pointer"] == "/disks/data/0/index"


@pytest.mark.parametrize("name", ["source_id", "region_id"])
def test_an_id_with_a_nul_is_refused_before_the_catalog_is_asked(client: TestClient, source_id: str, name: str) -> None:
    problem = refused(client.post("/v1/jobs", json=job_body(source_id) | {name: "x\0"}), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in problem["errors"]] == [f"/{name}"]
