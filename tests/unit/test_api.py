"""The API on a real catalog and a real `path` source.

What it asks of Prefect is written down by a stand-in that takes the place of flows.orchestration; the real one is
tested end to end, where a Prefect server runs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text, update

from api.app import create_app
from api.dependencies import get_orchestration
from api.limits import MAX_REQUEST_BYTES
from api.serve import check_bind_address
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import SourceRow
from rehost.errors import InvalidParameter, OrchestrationAway, StoreNoSpace
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from rehost.verification.report import VerificationReport

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "remedy", "retryable", "errors"}


@dataclass
class Orders:
    """Stands in for flows.orchestration: writes down what is asked, or is away."""

    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    away: set[str] = field(default_factory=set)

    def _ask(self, what: str, which: str, facts: dict[str, Any]) -> None:
        if what in self.away:
            raise OrchestrationAway(url="http://prefect", reason="refused")
        self.asked.append((what, which, facts))

    async def start_run(self, job_id: str, **facts: Any) -> str:
        self._ask("start_run", job_id, facts)
        return f"flow-{len(self.asked)}"

    async def cancel_run(self, flow_run_id: str) -> None:
        self._ask("cancel_run", flow_run_id, {})

    async def schedule_job(self, job_id: str, **facts: Any) -> None:
        self._ask("schedule_job", job_id, facts)

    async def unschedule_job(self, job_id: str) -> None:
        self._ask("unschedule_job", job_id, {})

    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def app(settings: Settings, orders: Orders) -> FastAPI:
    app = create_app(settings)
    app.dependency_overrides[get_orchestration] = lambda: orders
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An API for requests that are refused: nothing is ever stored in it."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("empty")))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def catalog(app: FastAPI, client: TestClient) -> Catalog:
    found = app.state.catalog
    assert isinstance(found, Catalog)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "web1"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("web1\n")
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    (root / "bin").mkdir()
    return root


@pytest.fixture
def source_id(catalog: Catalog, tree: Path) -> str:
    """A source that was discovered before."""
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    return catalog.add_source(PathConnection(root=str(tree)), inventory).id


def job_body(source_id: str, **fields: Any) -> dict[str, Any]:
    return {"source_id": source_id, "region_id": "local", **fields}


def created(client: TestClient, source_id: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=job_body(source_id, **fields))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == MEMBERS
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["remedy"]
    return dict(body)


# --- sources ------------------------------------------------------------------------------------------------------


def test_registering_a_source_discovers_what_it_is(client: TestClient, tree: Path) -> None:
    body = {"connection": {"kind": "path", "root": str(tree)}, "description": "(shop) front", "tags": {"team": "web"}}
    answer = client.post("/v1/sources", json=body)
    assert answer.status_code == 201
    source = answer.json()
    assert answer.headers["location"] == f"/v1/sources/{source['id']}"
    assert source["inventory"]["hostname"] == "web1"
    assert source["inventory"]["os_id"] == "debian"
    assert (source["name"], source["state"], source["tags"]) == ("web1", "available", {"team": "web"})
    assert source["created_at"].endswith("Z")
    assert client.get(f"/v1/sources/{source['id']}").json() == source


def test_a_source_that_cannot_be_reached_is_not_stored(client: TestClient, tmp_path: Path) -> None:
    answer = client.post("/v1/sources", json={"connection": {"kind": "path", "root": str(tmp_path / "none")}})
    assert answer.json()["code"].startswith("Source.")
    refused(answer, answer.status_code, answer.json()["code"])
    assert client.get("/v1/sources").json()["total"] == 0


def test_a_source_that_went_away_becomes_unavailable_and_comes_back(
    client: TestClient, source_id: str, tree: Path, tmp_path: Path
) -> None:
    tree.rename(tmp_path / "elsewhere")
    answer = client.post(f"/v1/sources/{source_id}/discover")
    assert answer.status_code == 409
    shown = client.get(f"/v1/sources/{source_id}").json()
    assert shown["state"] == "unavailable"
    assert shown["status_info"]
    assert shown["inventory"]["hostname"] == "web1", "what was known is kept"
    refused(client.post("/v1/jobs", json=job_body(source_id)), 409, "SourceState.Invalid")
    (tmp_path / "elsewhere").rename(tree)
    (tree / "etc/hostname").write_text("web2\n")
    again = client.post(f"/v1/sources/{source_id}/discover").json()
    assert (again["state"], again["status_info"], again["inventory"]["hostname"]) == ("available", None, "web2")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/connection"),
        ({"connection": {"kind": "ftp"}}, "/connection"),
        ({"connection": {"kind": "ssh"}}, "/connection/host"),
        ({"connection": {"kind": "ssh", "host": "-oProxyCommand=x"}}, "/connection/host"),
        ({"connection": {"kind": "path", "root": "/x", "sudo": True}}, "/connection/sudo"),
        ({"connection": {"kind": "path", "root": "/x"}, "colour": 1}, "/colour"),
        ({"connection": {"kind": "path", "root": "/x"}, "description": "d" * 257}, "/description"),
        ({"connection": {"kind": "path", "root": "/x"}, "name": "x"}, "/name"),
    ],
    ids=str,
)
def test_a_wrong_source_is_refused_with_a_pointer(empty: TestClient, body: dict[str, Any], pointer: str) -> None:
    problem = refused(empty.post("/v1/sources", json=body), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_starts_at_once_and_answers_every_field(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, name="web", description="The shop", tags={"team": "web"})
    assert set(job) == {
        *("source_id", "region_id", "name", "description", "targets", "disks", "exclude", "execution", "incremental"),
        *("consistency", "hooks"),
        *("network", "replication", "verification", "tags", "valid_until", "id", "status", "business_status"),
        *("progress", "eta_seconds", "status_info", "error", "next_run_at", "image_ids", "latest_verification"),
        *("created_at", "started_at", "ended_at", "prefect_url", "next_step"),
    }
    assert (job["status"], job["business_status"], job["progress"]) == ("Running", "Preparing", 0)
    assert orders.asked == [("start_run", job["id"], {"job_name": "web", "source_name": "web1", "kind": "manual"})]
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
    told = refused(client.patch(f"/v1/jobs/{job['id']}", json={"name": "other"}), 422, "InvalidParameter")
    assert {error["pointer"] for error in told["errors"]} == {"/name", "/replication"}
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
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
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


# --- lists --------------------------------------------------------------------------------------------------------


def test_lists_page_without_gaps_while_something_is_added(client: TestClient, source_id: str, catalog: Catalog) -> None:
    source = catalog.source(source_id)
    ids = [source_id, *(catalog.add_source(source.connection, source.inventory).id for _ in range(11))]
    page = client.get("/v1/sources").json()
    assert set(page) == {"items", "next_cursor", "total"}
    assert (len(page["items"]), page["total"]) == (10, 12)
    catalog.add_source(source.connection, source.inventory)
    seen = [item["id"] for item in page["items"]]
    while page["next_cursor"]:
        page = client.get("/v1/sources", params={"limit": 1, "cursor": page["next_cursor"]}).json()
        seen += [item["id"] for item in page["items"]]
    assert seen == ids[::-1], "newest first, each once"
    assert page["total"] == 13


def test_pages_have_no_gaps_where_many_things_are_of_one_moment(
    client: TestClient, source_id: str, catalog: Catalog
) -> None:
    source = catalog.source(source_id)
    for _ in range(4):
        catalog.add_source(source.connection, source.inventory)
    with catalog._database.write() as session:
        session.execute(update(SourceRow).values(created_at=source.created_at))
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(f"/v1/sources?limit=2{cursor and '&cursor=' + cursor}").json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 5


@pytest.mark.parametrize("path", ["/v1/sources", "/v1/jobs", "/v1/images", "/v1/regions"])
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "?limit"),
        ("limit=51", "?limit"),
        ("limit=x", "?limit"),
        ("cursor=%00", "?cursor"),
        ("cursor=aGVsbG8", "?cursor"),
        ("colour=red", "?colour"),
    ],
)
def test_wrong_places_and_unknown_parameters_are_refused(empty: TestClient, path: str, query: str, name: str) -> None:
    problem = refused(empty.get(f"{path}?{query}"), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in problem["errors"]] == [name]
    assert empty.get(f"{path}?limit=50").status_code == 200


def test_unknown_parameters_are_refused_everywhere(client: TestClient, source_id: str) -> None:
    refused(client.get(f"/v1/sources/{source_id}?x=1"), 422, "InvalidParameter")
    refused(client.post(f"/v1/sources/{source_id}/discover?x=1"), 422, "InvalidParameter")
    refused(client.post("/v1/jobs?dryrun=true", json=job_body(source_id)), 422, "InvalidParameter")
    refused(client.get("/healthz?x=1"), 422, "InvalidParameter")


def test_jobs_are_filtered_and_the_filters_are_joined_by_and(
    client: TestClient, source_id: str, catalog: Catalog
) -> None:
    source = catalog.source(source_id)
    other = catalog.add_source(source.connection, source.inventory).id
    first = created(client, source_id, name="one", tags={"team": "web", "url": "a:b"})
    second = created(client, other, name="two", tags={"team": "web"}, execution={"mode": "create_only"})

    def found(query: str) -> list[str]:
        return [job["id"] for job in client.get(f"/v1/jobs?{query}").json()["items"]]

    assert found("status=Running") == [first["id"]]
    assert found("business_status=Preparing") == [first["id"]]
    assert found("name=two") == [second["id"]]
    assert found(f"source_id={other}") == [second["id"]]
    assert found("region_id=local") == [second["id"], first["id"]]
    assert found("region_id=mars") == []
    assert found("tag=team:web") == [second["id"], first["id"]]
    assert found("tag=team:web&tag=url:a:b") == [first["id"]]
    assert found("tag=team:web&status=Ready") == [second["id"]]
    refused(client.get("/v1/jobs?status=Sleeping"), 422, "InvalidParameter")
    refused(client.get("/v1/jobs?tag=team"), 422, "InvalidParameter")


def test_images_and_verifications_are_shown_with_what_is_known(
    client: TestClient, source_id: str, catalog: Catalog
) -> None:
    job = created(client, source_id)
    run = catalog.claim_run(job["id"], flow_run_id="flow-1")
    image_id = "m-" + "a" * 20
    catalog.add_image(job["id"], run.id, Figures(files_total=7), id=image_id, kind="disk", name="web")
    catalog.add_verification(job["id"], run.id, image_id, VerificationReport(subject="bios", status="succeeded"))
    catalog.finish_run(run.id)
    image = client.get(f"/v1/images/{image_id}").json()
    assert (image["id"], image["kind"], image["name"], image["in_use"]) == (image_id, "disk", "web", False)
    assert image["files_total"] == 7, "what its image.json says"
    assert client.get("/v1/images").json()["items"] == [image]
    assert client.get(f"/v1/jobs/{job['id']}/images").json()["items"] == [image]
    [verification] = client.get(f"/v1/jobs/{job['id']}/verifications").json()["items"]
    assert verification["id"].startswith("v-")
    assert {"status", "checks", "accelerator", "boot_seconds", "evidence"} <= set(verification)
    shown = client.get(f"/v1/jobs/{job['id']}").json()
    assert (shown["status"], shown["image_ids"]) == (JobStatus.FINISHED, [image_id])
    assert shown["latest_verification"]["status"] == "succeeded"
    assert client.get(f"/v1/sources/{source_id}").json()["state"] == "available"


def test_regions_are_those_of_the_settings(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "regions": {"lab": {"registry": "127.0.0.1:5000"}}})
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        page = client.get("/v1/regions").json()
        assert [(r["id"], r["registry"], r["max_running_jobs"]) for r in page["items"]] == [
            ("local", None, 50),
            ("lab", "127.0.0.1:5000", 50),
        ]
        first = client.get("/v1/regions?limit=1").json()
        second = client.get(f"/v1/regions?limit=1&cursor={first['next_cursor']}").json()
        assert [r["id"] for r in first["items"] + second["items"]] == ["local", "lab"]
        assert second["next_cursor"] is None


# --- the same request again ---------------------------------------------------------------------------------------


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


JSON = {"Content-Type": "application/json"}


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


# --- every error is a problem -------------------------------------------------------------------------------------


def test_errors_of_the_framework_are_problems_too(empty: TestClient) -> None:
    refused(empty.get("/v1/nothing"), 404, "Route.NotFound")
    refused(empty.get("/v1/sources/"), 404, "Route.NotFound")
    assert empty.put("/v1/sources").headers["allow"] == "GET, POST"
    refused(empty.put("/v1/sources"), 405, "Method.NotAllowed")
    for content in (b"{", b"", b"\xff\xfe", b"[" * 100_000):
        refused(empty.post("/v1/sources", content=content, headers=JSON), 422, "InvalidParameter")
    refused(empty.post("/v1/sources", content=b"{}", headers={"Content-Type": "text/plain"}), 422, "InvalidParameter")
    refused(empty.post("/v1/sources", json=["x"]), 422, "InvalidParameter")


def test_a_request_that_is_too_large_is_refused_before_it_is_read(empty: TestClient) -> None:
    large = b" " * (MAX_REQUEST_BYTES + 1)
    refused(empty.post("/v1/sources", content=large, headers=JSON), 413, "Request.TooLarge")

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    refused(empty.post("/v1/sources", content=pieces(), headers=JSON), 413, "Request.TooLarge")
    refused(empty.post("/v1/sources", content=b" " * MAX_REQUEST_BYTES, headers=JSON), 422, "InvalidParameter")


def test_what_nobody_foresaw_is_a_problem_that_tells_nothing_inner(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Catalog, _id: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Catalog, "source", broken)
    answer = client.get("/v1/sources/s-1")
    refused(answer, 500, "Internal")
    assert "secret" not in answer.text


def test_a_catalog_that_is_away_is_told(client: TestClient, settings: Settings, catalog: Catalog) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    with catalog._database.write() as session:
        session.execute(text("DROP TABLE schema_version"))
    answer = client.get("/healthz")
    refused(answer, 503, "Catalog.Unavailable")
    assert answer.headers["retry-after"]


# --- who may ask --------------------------------------------------------------------------------------------------


def test_with_keys_only_who_has_one_is_answered(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api_keys=("first-key", "zweiter-schlüssel"))
    with TestClient(create_app(settings), base_url="http://rehost.example.org") as client:
        answer = client.get("/v1/sources")
        refused(answer, 401, "Unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer first-ke", "Bearer ", "Basic first-key", "first-key"):
            refused(client.get("/v1/sources", headers={"Authorization": wrong}), 401, "Unauthenticated")
        assert client.get("/v1/sources", headers={"Authorization": "Bearer first-key"}).status_code == 200
        refused(client.post("/v1/sources", content=b"{"), 401, "Unauthenticated")
        assert client.get("/healthz").status_code == 200


def test_without_keys_only_this_machine_by_its_own_name_is_answered(app: FastAPI) -> None:
    with TestClient(app) as client:
        for host, status in (
            ("127.0.0.1:8420", 200),
            ("localhost", 200),
            ("[::1]:8420", 200),
            ("[::1]", 200),
            ("evil.example.org", 403),
            ("127.0.0.1.evil.example.org:8420", 403),
        ):
            assert client.get("/v1/sources", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("host", "keys", "served"), [("127.0.0.1", (), True), ("0.0.0.0", (), False), ("0.0.0.0", ("k",), True)]
)
def test_another_bind_address_is_refused_without_a_key(
    tmp_path: Path, host: str, keys: tuple[str, ...], served: bool
) -> None:
    settings = Settings(home=tmp_path, api_host=host, api_keys=keys)
    if served:
        check_bind_address(settings)
    else:
        with pytest.raises(InvalidParameter, match="REHOST_API_KEYS"):
            check_bind_address(settings)


def test_keys_are_a_list_by_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REHOST_API_KEYS", "one, two,,")
    assert Settings(home=tmp_path).api_keys == ("one", "two")
    monkeypatch.delenv("REHOST_API_KEYS")
    assert Settings(home=tmp_path).api_keys == ()


def test_the_document_of_the_api_describes_every_route(empty: TestClient) -> None:
    document = empty.get("/openapi.json").json()
    assert {"/v1/sources", "/v1/jobs/{id}/start", "/v1/images/{id}", "/v1/regions", "/healthz"} <= set(
        document["paths"]
    )
    fields = document["components"]["schemas"]["JobSpec"]["properties"]
    assert {"targets", "disks", "incremental", "valid_until"} <= set(fields)
