"""Sources over the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from rehost.catalog.catalog import Catalog
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import JobRow
from tests.support.api import Orders, app, catalog, client, empty, job_body, orders, refused, settings, source_id, tree


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


def test_a_source_is_changed_in_what_the_body_names(client: TestClient, source_id: str) -> None:
    before = client.get(f"/v1/sources/{source_id}").json()
    changed = client.patch(f"/v1/sources/{source_id}", json={"name": "front", "tags": {"team": "web"}}).json()
    assert changed == {**before, "name": "front", "tags": {"team": "web"}}
    described = client.patch(f"/v1/sources/{source_id}", json={"description": "d" * 256}).json()
    assert described == {**changed, "description": "d" * 256}
    assert client.patch(f"/v1/sources/{source_id}", json={"description": None, "tags": {}}).json() == {
        **changed,
        "tags": {},
    }
    assert client.patch(f"/v1/sources/{source_id}", json={}).json()["name"] == "front"
    refused(client.patch("/v1/sources/s-none", json={"name": "front"}), 404, "Source.NotFound")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": None}, ""),
        ({"name": "x"}, "/name"),
        ({"name": "n" * 129}, "/name"),
        ({"tags": None}, ""),
        ({"connection": None}, ""),
        ({"connection": {"kind": "ftp"}}, "/connection"),
        ({"description": "d" * 257}, "/description"),
        ({"state": "available"}, "/state"),
    ],
)
def test_a_change_of_a_source_that_is_not_valid_is_refused(
    client: TestClient, source_id: str, body: dict[str, Any], pointer: str
) -> None:
    told = refused(client.patch(f"/v1/sources/{source_id}", json=body), 422, "InvalidParameter")
    assert [fault["pointer"] for fault in told["errors"]] == [pointer]


def test_a_new_connection_of_a_source_is_discovered_first(
    client: TestClient, catalog: Catalog, source_id: str, tree: Path, tmp_path: Path
) -> None:
    before = client.get(f"/v1/sources/{source_id}").json()
    gone = client.patch(
        f"/v1/sources/{source_id}", json={"name": "n2", "connection": {"kind": "path", "root": str(tmp_path / "none")}}
    )
    assert gone.json()["code"].startswith("Source.")
    assert client.get(f"/v1/sources/{source_id}").json() == before, "nothing changes"
    moved = tree.rename(tmp_path / "moved")
    (moved / "etc/hostname").write_text("web2\n")
    client.post(f"/v1/sources/{source_id}/discover")
    body = {"connection": {"kind": "path", "root": str(moved)}}
    changed = client.patch(f"/v1/sources/{source_id}", json=body).json()
    assert (changed["state"], changed["status_info"]) == ("available", None)
    assert (changed["connection"]["root"], changed["inventory"]["hostname"]) == (str(moved), "web2")
    job = client.post("/v1/jobs", json=job_body(source_id, targets={"image": {}})).json()
    assert job["status"] == "Running", job
    refused(client.patch(f"/v1/sources/{source_id}", json=body), 409, "Job.InvalidStatus")
    assert client.patch(f"/v1/sources/{source_id}", json={"name": "other"}).json()["name"] == "other"


def put_into(catalog: Catalog, job_id: str, status: JobStatus) -> None:
    with catalog._database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(status=status))


def test_a_source_without_jobs_is_deleted(client: TestClient, source_id: str) -> None:
    assert client.delete(f"/v1/sources/{source_id}").status_code == 204
    refused(client.get(f"/v1/sources/{source_id}"), 404, "Source.NotFound")
    refused(client.delete(f"/v1/sources/{source_id}"), 404, "Source.NotFound")


def test_a_source_with_an_unfinished_job_needs_force_and_with_a_running_one_stays(
    client: TestClient, catalog: Catalog, source_id: str
) -> None:
    address = f"/v1/sources/{source_id}"
    body = job_body(source_id, targets={"image": {}}, execution={"mode": "create_only"})
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    told = refused(client.delete(address), 409, "Source.HasUnfinishedJob")
    assert job_id in told["detail"] and "force=true" in told["remedy"]
    client.post(f"/v1/jobs/{job_id}/start")
    for force in ("", "?force=true"):
        told = refused(client.delete(address + force), 409, "Job.InvalidStatus")
        assert job_id in told["detail"] and "Waiting" in told["detail"]
    assert client.get(address).json()["state"] == "in_use"
    put_into(catalog, job_id, JobStatus.STOPPED)
    assert client.delete(f"{address}?force=true").status_code == 204
    refused(client.get(address), 404, "Source.NotFound")
    refused(client.get(f"/v1/jobs/{job_id}"), 404, "Job.NotFound")


def test_finished_jobs_go_with_their_source(client: TestClient, catalog: Catalog, source_id: str) -> None:
    body = job_body(source_id, targets={"image": {}}, execution={"mode": "create_only"})
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    put_into(catalog, job_id, JobStatus.FINISHED)
    assert client.delete(f"/v1/sources/{source_id}").status_code == 204
    refused(client.get(f"/v1/jobs/{job_id}"), 404, "Job.NotFound")


def test_a_source_whose_job_cannot_go_at_once_takes_no_new_job_and_goes_later(
    client: TestClient, catalog: Catalog, orders: Orders, source_id: str
) -> None:
    body = job_body(source_id, targets={"image": {}}, incremental={"interval_hours": 1})
    job_id = client.post("/v1/jobs", json=body).json()["id"]
    put_into(catalog, job_id, JobStatus.WAITING)
    orders.away |= {"unschedule_job", "cancel_run"}
    assert client.delete(f"/v1/sources/{source_id}?force=true").status_code == 204
    assert client.get(f"/v1/sources/{source_id}").json()["state"] == "deleting"
    refused(client.post("/v1/jobs", json=body), 409, "SourceState.Invalid")
    refused(client.patch(f"/v1/sources/{source_id}", json={"name": "web2"}), 409, "SourceState.Invalid")
    assert catalog.forget_deleted_sources() == []
    assert client.delete(f"/v1/sources/{source_id}").status_code == 204, "once more changes nothing"
    catalog.nothing_left_in_prefect(job_id)
    catalog.finish_removal(job_id)
    assert catalog.forget_deleted_sources() == [source_id]
