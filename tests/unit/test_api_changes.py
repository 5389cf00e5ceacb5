"""PATCH of a job: what can change in which state, all that is wrong in one answer, and nothing half done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rehost.catalog.catalog import Catalog
from rehost.catalog.changes import merge
from rehost.catalog.states import ENDED, JobStatus
from rehost.catalog.tables import JobRow
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import (
    Orders,
    app,
    catalog,
    client,
    created,
    orders,
    refused,
    settings,
    source_id,
    tree,
)

PLAIN = "InvalidParameter"
STATUS = "Job.InvalidStatus"
READY = {"execution": {"mode": "create_only"}}


def ahead(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat()


def put(catalog: Catalog, id: str, status: JobStatus) -> None:
    with catalog._database.write() as session:
        session.get_one(JobRow, id).status = status


def version(catalog: Catalog, id: str) -> int:
    with catalog._database.read() as session:
        return session.get_one(JobRow, id).version


def changed(client: TestClient, id: str, patch: Any) -> dict[str, Any]:
    answer = client.patch(f"/v1/jobs/{id}", json=patch)
    assert answer.status_code == 200, answer.text
    assert answer.json() == client.get(f"/v1/jobs/{id}").json()
    return dict(answer.json())


def told(client: TestClient, id: str, patch: Any, status: int, code: str) -> set[tuple[str, str]]:
    before = client.get(f"/v1/jobs/{id}").json()
    body = refused(client.patch(f"/v1/jobs/{id}", json=patch), status, code)
    after = client.get(f"/v1/jobs/{id}").json()
    assert after | {"version": 0} == before | {"version": 0}, "nothing changed"
    return {(error["pointer"], error["code"]) for error in body["errors"]}


@pytest.mark.parametrize(
    ("target", "patch", "expected"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_patch_is_merged_as_the_standard_says(target: Any, patch: Any, expected: Any) -> None:
    assert merge(target, patch) == expected


def test_before_its_first_run_everything_of_a_job_can_change(
    client: TestClient, source_id: str, catalog: Catalog, orders: Orders
) -> None:
    job = created(client, source_id, **READY, name="web", tags={"a": "1", "b": "2"}, exclude=["/var/cache"])
    patch = {
        "name": "shop",
        "description": "The shop",
        "targets": {"image": {"formats": ["raw"]}, "container_image": {"namespace": "shop", "repository": "web"}},
        "exclude": ["/tmp", "/srv"],
        "replication": {"compress_level": 3, "bandwidth_limit_kbps": 9},
        "verification": {"boot_timeout_seconds": 99},
        "consistency": {"method": "live"},
        "hooks": {"pre_snapshot": "sync"},
        "tags": {"a": None, "c": "3", "gone": None},
        "valid_until": ahead(days=8),
    }
    after = changed(client, job["id"], patch)
    assert (after["name"], after["description"]) == ("shop", "The shop")
    assert after["targets"]["image"]["formats"] == ["raw"] and after["targets"]["container_image"]["tag"] == "latest"
    assert after["exclude"] == ["/tmp", "/srv"]
    assert after["replication"] == job["replication"] | {"compress_level": 3, "bandwidth_limit_kbps": 9}
    assert after["tags"] == {"b": "2", "c": "3"}
    assert version(catalog, job["id"]) == 2
    assert client.get("/v1/jobs?tag=c:3").json()["total"] == 1
    assert client.get("/v1/jobs?tag=a:1").json()["total"] == 0
    assert client.get("/v1/jobs?name=shop").json()["total"] == 1
    assert orders.asked == []


def test_null_puts_the_default_back(client: TestClient, source_id: str) -> None:
    asked = {"name": "web", "description": "It", "exclude": ["/x"], "tags": {"a": "1"}, "valid_until": ahead(days=80)}
    more = {"targets": {"container_image": {"namespace": "a", "repository": "b"}}, "replication": {"compress_level": 9}}
    job = created(client, source_id, **READY, **asked, **more)
    nothing = dict.fromkeys([*asked, "targets", "replication", "execution"])
    after = changed(client, job["id"], {**nothing, "execution": READY["execution"]})
    assert (after["description"], after["exclude"], after["tags"]) == (None, [], {})
    assert after["targets"] == {
        "image": {"name": None, "formats": ["qcow2"], "boot_mode": None},
        "container_image": None,
    }
    assert after["replication"]["compress_level"] == 0
    assert after["name"].startswith("web1-"), "made of the hostname"
    span = datetime.fromisoformat(after["valid_until"]) - datetime.now(UTC)
    assert timedelta(days=29) < span < timedelta(days=31)


def test_a_change_of_nothing_changes_nothing(client: TestClient, source_id: str, catalog: Catalog) -> None:
    job = created(client, source_id, **READY, name="web")
    assert changed(client, job["id"], {}) == job
    assert changed(client, job["id"], {"name": "web", "source_id": source_id, "execution": READY["execution"]}) == job
    assert version(catalog, job["id"]) == 1


@pytest.mark.parametrize("status", list(JobStatus))
def test_each_state_has_fields_that_can_change(
    client: TestClient, source_id: str, catalog: Catalog, status: JobStatus
) -> None:
    job = created(client, source_id, **READY, incremental={"interval_hours": 5})
    put(catalog, job["id"], status)
    patches: list[tuple[dict[str, Any], bool]] = [
        ({"name": "other", "description": "Other"}, True),
        ({"valid_until": ahead(days=9)}, status not in ENDED),
        ({"replication": {"bandwidth_limit_kbps": 1}}, status not in ENDED),
        ({"incremental": {"max_images": 1}}, status in (JobStatus.READY, JobStatus.WAITING)),
        ({"replication": {"bandwidth_limit_kbps": 2, "checksum": True}}, status is JobStatus.READY),
        ({"exclude": ["/x"]}, status is JobStatus.READY),
        ({"tags": {"a": "b"}}, status is JobStatus.READY),
        ({"targets": {"image": {"name": "disk"}}}, status is JobStatus.READY),
        ({"verification": {"enabled": False}}, status is JobStatus.READY),
    ]
    for patch, allowed in patches:
        if allowed:
            changed(client, job["id"], patch)
        else:
            assert told(client, job["id"], patch, 409, STATUS) == {(f"/{next(iter(patch))}", STATUS)}


def test_all_that_is_wrong_with_a_change_is_in_one_answer(client: TestClient, source_id: str, catalog: Catalog) -> None:
    other = catalog.add_source(PathConnection(root="/srv"), Inventory(hostname="w", os_id="d", architecture="x86_64"))
    created(client, other.id, **READY, name="taken")
    job = created(client, source_id, **READY, name="web")
    patch = {
        "name": "taken",
        "source_id": "s-other",
        "region_id": 5,
        "colour": None,
        "replication": {"colour": None, "compress_level": 10},
        "incremental": {"interval_hours": 1},
        "network": {"vswitch_id": "vsw-9"},
        "valid_until": ahead(days=91),
        "tags": {"acs:": ""},
    }
    assert told(client, job["id"], patch, 422, PLAIN) == {
        ("/name", "JobName.Duplicate"),
        ("/name", "ImageName.UsedByJob"),
        ("/source_id", PLAIN),
        ("/region_id", PLAIN),
        ("/colour", PLAIN),
        ("/replication/colour", PLAIN),
        ("/replication/compress_level", PLAIN),
        ("/incremental", PLAIN),
        ("/network/vswitch_id", PLAIN),
        ("/valid_until", PLAIN),
        ("/tags/acs:", PLAIN),
    }
    put(catalog, job["id"], JobStatus.WAITING)
    late = {"exclude": ["/x"], "verification": {"enabled": False}, "name": "taken"}
    assert told(client, job["id"], late, 409, STATUS) == {
        ("/exclude", STATUS),
        ("/verification", STATUS),
        ("/name", "JobName.Duplicate"),
        ("/name", "ImageName.UsedByJob"),
    }
    assert told(client, job["id"], ["a"], 422, PLAIN) == {("", PLAIN)}
    refused(client.patch("/v1/jobs/j-none", json={}), 404, "Job.NotFound")


def test_rules_look_at_what_changes_with_what_stays(client: TestClient, source_id: str, catalog: Catalog) -> None:
    at = {"mode": "at", "start_at": ahead(days=10)}
    job = created(client, source_id, execution=at, valid_until=ahead(days=20))
    assert told(client, job["id"], {"valid_until": ahead(days=9)}, 422, PLAIN) == {("/execution/start_at", PLAIN)}
    assert told(client, job["id"], {"disks": {"change_tracking": True}}, 422, PLAIN) == {
        ("/disks/change_tracking", PLAIN)
    }
    with catalog._database.write() as session:  # time goes by: what stays is not judged by today's clock
        row = session.get_one(JobRow, job["id"])
        row.spec = row.spec | {"valid_until": ahead(days=2), "execution": {"mode": "at", "start_at": ahead(minutes=1)}}
    changed(client, job["id"], {"description": "Later"})


def test_a_job_that_runs_once_stays_one_and_so_does_the_other(client: TestClient, source_id: str) -> None:
    job = created(client, source_id, **READY)
    assert told(client, job["id"], {"incremental": {"interval_hours": 1}}, 422, PLAIN) == {("/incremental", PLAIN)}
    changed(client, job["id"], {"incremental": None})


def test_the_schedule_follows_the_job(client: TestClient, source_id: str, catalog: Catalog, orders: Orders) -> None:
    job = created(client, source_id, name="web", incremental={"interval_hours": 6})
    put(catalog, job["id"], JobStatus.WAITING)
    orders.asked.clear()
    changed(client, job["id"], {"incremental": {"max_images": 5}})
    assert orders.asked == [], "how many images are kept is nothing of Prefect's"
    after = changed(client, job["id"], {"incremental": {"interval_hours": 12}})
    assert datetime.fromisoformat(after["next_run_at"]) > datetime.now(UTC) + timedelta(hours=11)
    after = changed(client, job["id"], {"incremental": {"cron": "0 3 * * *", "timezone": "Asia/Shanghai"}})
    assert after["incremental"] == {
        "interval_hours": None,
        "cron": "0 3 * * *",
        "timezone": "Asia/Shanghai",
        "max_images": 5,
    }
    after = changed(client, job["id"], {"incremental": {"interval_hours": 2}})
    assert after["incremental"] == {"interval_hours": 2, "cron": None, "timezone": None, "max_images": 5}
    changed(client, job["id"], {"name": "shop"})
    assert [(name, facts["job_name"], facts["interval_hours"], facts["cron"]) for name, _, facts in orders.asked] == [
        ("schedule_job", "web", 12, None),
        ("schedule_job", "web", None, "0 3 * * *"),
        ("schedule_job", "web", 2, None),
        ("schedule_job", "shop", 2, None),
    ]
    assert told(client, job["id"], {"incremental": None}, 422, PLAIN) == {("/incremental", PLAIN)}


def test_a_schedule_that_is_not_there_yet_is_not_made(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, **READY, incremental={"interval_hours": 6})
    changed(client, job["id"], {"incremental": {"interval_hours": 7}, "name": "shop"})
    assert orders.asked == []


def test_the_timed_start_follows_the_job(client: TestClient, source_id: str, orders: Orders) -> None:
    job = created(client, source_id, **READY)
    first, second = ahead(hours=2), ahead(hours=3)
    after = changed(client, job["id"], {"execution": {"mode": "at", "start_at": first}})
    assert datetime.fromisoformat(after["next_run_at"]) == datetime.fromisoformat(first)
    after = changed(client, job["id"], {"execution": {"start_at": second}})
    assert datetime.fromisoformat(after["next_run_at"]) == datetime.fromisoformat(second)
    assert orders.names() == ["start_run", "start_run", "cancel_run"] and orders.asked[2][1] == "flow-1"
    assert changed(client, job["id"], {"execution": {"mode": "create_only"}})["next_run_at"] is None
    assert orders.asked[3][:2] == ("cancel_run", "flow-2")
    after = changed(client, job["id"], {"execution": {"mode": "now"}})
    assert after["status"] == "Running"


@pytest.mark.parametrize("away", ["start_run", "cancel_run", "schedule_job"])
def test_where_prefect_does_not_answer_nothing_has_changed(
    client: TestClient, source_id: str, catalog: Catalog, orders: Orders, away: str
) -> None:
    at = {"mode": "at", "start_at": ahead(hours=2)}
    job = created(client, source_id, execution=at, incremental={"interval_hours": 6}, tags={"a": "1"})
    orders.away.add(away)
    patch: dict[str, Any] = {"tags": {"a": "2"}, "name": "other", "execution": {"start_at": ahead(hours=3)}}
    told(client, job["id"], patch, 503, "Prefect.Unavailable")
    assert client.get("/v1/jobs?tag=a:1").json()["total"] == 1
    orders.away.clear()
    orders.asked.clear()
    client.post(f"/v1/jobs/{job['id']}/start")
    assert ("cancel_run", "flow-1", {}) in orders.asked, "the timed start is remembered"


def test_where_a_start_cannot_be_had_the_job_waits_for_it_as_before(
    client: TestClient, source_id: str, orders: Orders
) -> None:
    job = created(client, source_id, **READY)
    orders.away.add("start_run")
    told(client, job["id"], {"execution": {"mode": "now"}, "exclude": ["/x"]}, 503, "Prefect.Unavailable")


def test_an_image_name_goes_with_the_job_s(client: TestClient, source_id: str, catalog: Catalog) -> None:
    job = created(client, source_id, **READY, name="web")
    changed(client, job["id"], {"name": "shop"})
    other = catalog.add_source(PathConnection(root="/srv"), Inventory(hostname="w", os_id="d", architecture="x86_64"))
    assert created(client, other.id, **READY, name="web")["name"] == "web", "the old names are free"
    put(catalog, job["id"], JobStatus.FINISHED)
    assert told(client, job["id"], {"name": "web"}, 409, "JobName.Duplicate") == {("/name", "JobName.Duplicate")}


def test_a_hostile_depth_is_refused(client: TestClient, source_id: str) -> None:
    job = created(client, source_id, **READY)
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    assert ("/hooks/a", PLAIN) in told(client, job["id"], {"hooks": deep}, 422, PLAIN)


def test_the_document_tells_what_can_be_changed(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/jobs/{id}"]["patch"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert "required" not in schema and schema["additionalProperties"] is False
    assert {"name", "incremental", "execution"} <= set(schema["properties"])
    assert not {"source_id", "region_id"} & set(schema["properties"])
    assert "$ref" not in str(schema)


def test_a_new_name_moves_no_run(client: TestClient, source_id: str, orders: Orders) -> None:
    at = ahead(hours=2)
    job = created(
        client, source_id, name="web", execution={"mode": "at", "start_at": at}, incremental={"interval_hours": 9}
    )
    since = orders.asked[1][2]["since"]
    orders.asked.clear()
    after = changed(client, job["id"], {"name": "shop"})
    assert datetime.fromisoformat(after["next_run_at"]) == datetime.fromisoformat(at)
    assert orders.names() == ["schedule_job", "start_run", "cancel_run"]
    assert orders.asked[0][2]["since"] == since, "intervals count from where they did"
    assert (orders.asked[1][2]["job_name"], orders.asked[2][1]) == ("shop", "flow-1")
