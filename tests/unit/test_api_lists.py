"""Lists of the API: pages, filters, what their records show."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.app import create_app
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import SourceRow
from rehost.settings import Settings
from rehost.verification.report import VerificationReport
from tests.support.api import app, catalog, client, created, empty, job_body, orders, refused, settings, source_id, tree


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
