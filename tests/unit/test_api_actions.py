"""Every action in every state, asked of the real API: what the table of states says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from api.dependencies import get_orchestration
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Source
from rehost.catalog.states import RULES, USER_ACTIONS, Action, BusinessStatus, JobStatus
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import (
    Orders,
    app as app,
    catalog as catalog,
    client as client,
    orders as orders,
    refused,
    settings as settings,
)
from tests.unit.test_catalog_endings import built, report, waiting
from tests.unit.test_catalog_runs import make_job, put_into, started


@pytest.fixture
def source(catalog: Catalog) -> Source:
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    return catalog.add_source(PathConnection(root="/srv/web1"), inventory)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One API for the walk over all pairs, each of which has a source and a job of its own."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("walk")))
    app.dependency_overrides[get_orchestration] = lambda: Orders()
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, action: Action, job_id: str, body: dict[str, Any] | None = None) -> Any:
    if action is Action.DELETE:
        return client.delete(f"/v1/jobs/{job_id}")
    return client.post(f"/v1/jobs/{job_id}/{action}", json=body)


def app_of(client: TestClient) -> FastAPI:
    assert isinstance(client.app, FastAPI)
    return client.app


PLACES: list[tuple[JobStatus, BusinessStatus | None]] = [
    (status, stage)
    for status in JobStatus
    for stage in (tuple(BusinessStatus) if status is JobStatus.RUNNING else (None,))
]


@pytest.mark.parametrize(("status", "stage"), PLACES, ids=str)
@pytest.mark.parametrize(
    ("action", "body"),
    [(action, None) for action in USER_ACTIONS] + [(Action.CUT_OVER, {"sync": True})],
    ids=lambda value: str(value) if isinstance(value, Action) else "sync" if value else "",
)
def test_an_action_does_in_each_state_what_the_table_says(
    walk: TestClient,
    action: Action,
    body: dict[str, Any] | None,
    status: JobStatus,
    stage: BusinessStatus | None,
) -> None:
    client, catalog = walk, app_of(walk).state.catalog
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    job, _ = waiting(catalog, catalog.add_source(PathConnection(root="/srv/web1"), inventory))
    if stage is not None:
        started(catalog, job, "flow-9")
        catalog.set_stage(job.id, stage)
    else:
        put_into(catalog, job, status)
    runs = catalog.runs(job.id).total
    answer = ask(client, action, job.id, body)
    rule = RULES[action]
    if not rule.allows(status, stage):
        in_state = status in rule.origins
        problem = refused(answer, 409, "Job.InvalidBusinessStatus" if in_state else "Job.InvalidStatus")
        present, allowed = (stage, rule.stages) if in_state else (status, rule.origins)
        assert f"is {present};" in problem["detail"]
        assert f"allowed in {', '.join(allowed)}." in problem["detail"]
        after = client.get(f"/v1/jobs/{job.id}").json()
        assert (after["status"], after["business_status"]) == (status, stage), "a refused action changes nothing"
        assert catalog.runs(job.id).total == runs
        return
    if action is Action.DELETE:
        assert answer.status_code == 204 and not answer.content
        refused(client.get(f"/v1/jobs/{job.id}"), 404, "Job.NotFound")
        return
    assert answer.status_code == 200, answer.text
    expected = {
        Action.START: "Running",
        Action.STOP: "Running" if status is JobStatus.RUNNING else "Stopped",
        Action.VERIFY: status,
        Action.CUT_OVER: "Running" if body else "Finished",
    }[action]
    assert answer.json()["status"] == expected
    assert expected in {*rule.targets, status}


@pytest.mark.parametrize("action", USER_ACTIONS)
def test_an_action_on_no_job_is_not_found(client: TestClient, action: Action) -> None:
    refused(ask(client, action, "j-none"), 404, "Job.NotFound")


# --- verify -------------------------------------------------------------------------------------------------------


def test_a_test_is_asked_for_once_at_a_time_and_shown_while_it_goes_on(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, image_id = waiting(catalog, source)
    shown = client.post(f"/v1/jobs/{job.id}/verify").json()
    assert (shown["status"], shown["latest_verification"]["status"]) == ("Waiting", "pending")
    assert shown["next_step"].startswith("Wait until the test")
    ((_, _, facts),) = [asked for asked in orders.asked if asked[0] == "start_verification"]
    assert len(facts["verification_ids"]) == 2
    listed = client.get(f"/v1/jobs/{job.id}/verifications").json()
    assert {item["status"] for item in listed["items"][:2]} == {"pending"}
    id = facts["verification_ids"][0]
    one = client.get(f"/v1/verifications/{id}").json()
    assert (one["image_id"], one["flow_run_id"], one["checks"]) == (image_id, "flow-1", [])
    problem = refused(client.post(f"/v1/jobs/{job.id}/verify"), 409, "Verification.UnderWay")
    assert id in problem["detail"]
    for test in catalog.verifications_under_way():
        catalog.end_verification(test.id, report(test.subject, "failed"))
    after = client.get(f"/v1/jobs/{job.id}").json()
    assert (after["status"], after["latest_verification"]["status"]) == ("Waiting", "failed")
    assert "newest test" in after["status_info"]
    refused(client.get("/v1/verifications/v-none"), 404, "Verification.NotFound")


def test_a_test_is_not_begun_where_prefect_is_away(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, _ = waiting(catalog, source)
    orders.away.add("start_verification")
    refused(client.post(f"/v1/jobs/{job.id}/verify"), 503, "Prefect.Unavailable")
    assert catalog.verifications_under_way() == []
    orders.away.clear()
    assert client.post(f"/v1/jobs/{job.id}/verify").status_code == 200


def test_a_test_is_refused_without_an_image(client: TestClient, catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    put_into(catalog, job, JobStatus.WAITING)
    refused(client.post(f"/v1/jobs/{job.id}/verify"), 409, "Job.NoImage")
    refused(client.post(f"/v1/jobs/{job.id}/cut-over"), 409, "Job.NoImage")


# --- cut-over -----------------------------------------------------------------------------------------------------


def test_a_cut_over_takes_the_schedule_and_the_tracker(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    disks = {"block_replication": True, "change_tracking": True}
    job, _ = waiting(catalog, source, disks=disks)
    catalog.scheduled(job.id)
    done = client.post(f"/v1/jobs/{job.id}/cut-over", json={}).json()
    assert (done["status"], done["next_run_at"]) == ("Finished", None)
    assert orders.names() == ["unschedule_job", "start_retirement"]
    assert not catalog.is_scheduled(job.id)


def test_a_cut_over_is_done_also_where_prefect_is_away(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, _ = waiting(catalog, source)
    catalog.scheduled(job.id)
    orders.away |= {"unschedule_job", "start_run"}
    refused(client.post(f"/v1/jobs/{job.id}/cut-over", json={"sync": True}), 503, "Prefect.Unavailable")
    assert catalog.job(job.id).status is JobStatus.WAITING
    assert client.post(f"/v1/jobs/{job.id}/cut-over").json()["status"] == "Finished"
    assert catalog.ended_with_leftovers() == [job.id], "housekeeping does it"


def test_a_cut_over_with_a_last_run_is_a_run_of_its_own_kind(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, _ = waiting(catalog, source)
    shown = client.post(f"/v1/jobs/{job.id}/cut-over", json={"sync": True}).json()
    assert (shown["status"], shown["business_status"]) == ("Running", "Preparing")
    assert [facts["kind"] for name, _, facts in orders.asked if name == "start_run"] == ["cut_over"]
    run = catalog.claim_run(job.id, flow_run_id=str(catalog.runs(job.id).items[0].flow_run_id), kind="cut_over")
    assert client.get(f"/v1/jobs/{job.id}/runs").json()["items"][0]["kind"] == "cut_over"
    built(catalog, job, run)
    catalog.finish_run(run.id)
    assert client.get(f"/v1/jobs/{job.id}").json()["status"] == "Finished"


def test_a_wrong_cut_over_is_refused(client: TestClient, catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    problem = refused(client.post(f"/v1/jobs/{job.id}/cut-over", json={"when": "now"}), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in problem["errors"]] == ["/when"]
    failed = catalog.ask_verification(job.id)
    for test in failed:
        catalog.end_verification(test.id, report(test.subject, "failed"))
    refused(client.post(f"/v1/jobs/{job.id}/cut-over"), 409, "Image.NotVerified")


# --- delete -------------------------------------------------------------------------------------------------------


def test_a_delete_takes_everything_but_the_images(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders, settings: Settings
) -> None:
    job, image_id = waiting(catalog, source)
    catalog.scheduled(job.id)
    catalog.timed(job.id, "flow-timed")
    tests = catalog.ask_verification(job.id)
    catalog.attach_verifications([test.id for test in tests], "flow-test")
    evidence = settings.evidence_path / tests[0].id
    evidence.mkdir(parents=True)
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert [(name, which) for name, which, _ in orders.asked] == [
        ("cancel_run", "flow-timed"),
        ("cancel_run", "flow-test"),
        ("unschedule_job", job.id),
    ]
    assert not evidence.exists()
    assert client.get(f"/v1/images/{image_id}").json()["job_id"] == job.id
    assert client.get(f"/v1/sources/{source.id}").json()["state"] == "available"
    refused(client.delete(f"/v1/jobs/{job.id}"), 404, "Job.NotFound")
    refused(client.get(f"/v1/verifications/{tests[0].id}"), 404, "Verification.NotFound")


def test_a_delete_goes_on_when_prefect_answers_again(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, _ = waiting(catalog, source)
    catalog.scheduled(job.id)
    orders.away.add("unschedule_job")
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    shown = client.get(f"/v1/jobs/{job.id}").json()
    assert (shown["status"], shown["next_step"]) == ("Deleting", "Nothing; the job is on its way out.")
    assert catalog.ended_with_leftovers() == [job.id], "housekeeping goes on with it"
    assert client.get(f"/v1/sources/{source.id}").json()["state"] == "available"
    orders.away.clear()
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    refused(client.get(f"/v1/jobs/{job.id}"), 404, "Job.NotFound")


def test_a_job_with_a_tracker_is_deleting_until_that_was_asked_to_go(
    client: TestClient, catalog: Catalog, source: Source, orders: Orders
) -> None:
    job, _ = waiting(catalog, source, disks={"block_replication": True, "change_tracking": True})
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert orders.names() == ["start_retirement"]
    assert catalog.job(job.id).status is JobStatus.DELETING


def test_images_go_with_their_job_only_where_that_is_asked_for_and_none_is_in_use(
    client: TestClient, catalog: Catalog, source: Source, settings: Settings
) -> None:
    job, image_id = waiting(catalog, source)
    folder = settings.images_path("local") / image_id
    folder.mkdir(parents=True)
    (folder / "image.json").write_text("{}")
    tests = catalog.ask_verification(job.id)
    problem = refused(client.delete(f"/v1/jobs/{job.id}?images=true"), 409, "ImageInUse")
    assert image_id in problem["detail"]
    assert catalog.job(job.id).status is JobStatus.WAITING and folder.exists()
    for test in tests:
        catalog.end_verification(test.id, report(test.subject, "succeeded"))
    assert client.delete(f"/v1/jobs/{job.id}?images=true").status_code == 204
    refused(client.get(f"/v1/images/{image_id}"), 404, "Image.NotFound")
    assert not folder.exists()


def test_the_document_tells_every_answer_of_the_actions(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    for action in USER_ACTIONS:
        told = (
            paths["/v1/jobs/{id}"]["delete"] if action is Action.DELETE else paths[f"/v1/jobs/{{id}}/{action}"]["post"]
        )
        assert {"404", "409"} <= set(told["responses"])
