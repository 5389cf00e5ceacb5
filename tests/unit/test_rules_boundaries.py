"""Every rule of the Job table over the API: a request that is just right, and one that is just wrong.

The clock is at NOW for every request. What is right is answered with a plan, what is wrong with the code of the rule
and a pointer to the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from api.app import create_app
from api.dependencies import get_moment, get_orchestration
from rehost.catalog import jobs
from rehost.catalog.catalog import Catalog
from rehost.catalog.states import JobStatus, SourceState
from rehost.catalog.tables import JobRow, SourceRow
from rehost.settings import Region, Settings, Vpc
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.api import JSON, Orders, refused
from tests.support.rule_table import NOW, PLAIN, RULES, ahead, container, image, system
from tests.support.two_disks import server

LAB = Region(networks={"vpc-1": Vpc(vswitches={"vsw-1": "lab"}), "vpc-2": Vpc(vswitches={"vsw-2": "lab"})})


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An API whose clock stands at NOW, with the regions `local` and `lab`."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("rules"), regions={"lab": LAB}))
    app.dependency_overrides[get_orchestration] = lambda: Orders()  # its fields are no parameters of a request
    app.dependency_overrides[get_moment] = lambda: NOW
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def catalog(api: TestClient) -> Catalog:
    found = api.app.state.catalog  # type: ignore[attr-defined]
    assert isinstance(found, Catalog)
    return found


@pytest.fixture(scope="module")
def source(catalog: Catalog) -> str:
    """A server that no job is ever made for."""
    return catalog.add_source(PathConnection(root="/srv/web1"), server()).id


def new_source(catalog: Catalog, os_id: str = "debian") -> str:
    inventory = Inventory(hostname="web2", os_id=os_id, architecture="x86_64")
    return catalog.add_source(PathConnection(root="/srv/web2"), inventory).id


def planned(api: TestClient, source: str, fields: dict[str, Any]) -> Any:
    body = {"source_id": source, "region_id": "local", **fields}
    return api.post("/v1/jobs?dry_run=true", json={name: value for name, value in body.items() if value is not None})


def made(api: TestClient, source: str, **fields: Any) -> Any:
    return api.post("/v1/jobs", json={"source_id": source, "region_id": "local", **fields})


@pytest.mark.parametrize(("rule", "right", "wrong", "code", "pointer"), RULES, ids=[rule[0] for rule in RULES])
def test_a_rule_at_its_boundary(
    api: TestClient,
    source: str,
    rule: str,
    right: dict[str, Any],
    wrong: dict[str, Any],
    code: str,
    pointer: str,
) -> None:
    accepted = planned(api, source, right)
    assert accepted.status_code == 200, (rule, accepted.text)
    told = refused(planned(api, source, wrong), 422, code)
    assert [(error["pointer"], error["code"]) for error in told["errors"]] == [(pointer, code)]
    assert "<" not in told["detail"], "every fact of the sentence was given"


def test_no_two_rules_have_one_name() -> None:
    assert len({rule[0] for rule in RULES}) == len(RULES)


def test_a_system_disk_has_20_gib(api: TestClient, catalog: Catalog) -> None:
    small = new_source(catalog)  # which has less than 19 GiB on it
    assert planned(api, small, system(size_gib=20)).status_code == 200
    assert (
        refused(planned(api, small, system(size_gib=19)), 422, PLAIN)["errors"][0]["pointer"]
        == "/disks/system/size_gib"
    )


def test_no_container_is_made_of_windows(api: TestClient, catalog: Catalog) -> None:
    assert planned(api, new_source(catalog, "debian"), container()).status_code == 200
    told = refused(planned(api, new_source(catalog, "windows"), container()), 422, PLAIN)
    assert told["errors"][0]["pointer"] == "/targets/container_image"


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"source_id": None}, PLAIN, "/source_id"),
        ({"region_id": None}, PLAIN, "/region_id"),
        ({"source_id": "s-none"}, "Source.NotFound", "/source_id"),
        ({"region_id": "moon"}, "Region.NotFound", "/region_id"),
    ],
)
def test_a_job_has_a_source_and_a_region(
    api: TestClient, source: str, fields: dict[str, Any], code: str, pointer: str
) -> None:
    told = refused(planned(api, source, fields), 422 if code == PLAIN else 404, code)
    assert [error["pointer"] for error in told["errors"]] == [pointer]


@pytest.mark.parametrize("state", [SourceState.UNAVAILABLE, SourceState.DELETING])
def test_a_source_that_is_not_there_gets_no_job(api: TestClient, catalog: Catalog, state: SourceState) -> None:
    source = new_source(catalog)
    assert planned(api, source, {}).status_code == 200
    with catalog._database.write() as session:
        session.execute(update(SourceRow).where(SourceRow.id == source).values(state=state))
    for answer in (planned(api, source, {}), made(api, source)):
        assert refused(answer, 409, "SourceState.Invalid")["errors"][0]["pointer"] == "/source_id"


def test_a_source_and_the_names_are_held_until_the_job_has_ended(api: TestClient, catalog: Catalog) -> None:
    source, other = new_source(catalog), new_source(catalog)
    job = made(api, source, name="held", targets={"image": {"name": "disk"}}, execution={"mode": "create_only"}).json()
    told = refused(made(api, source), 409, "Source.HasUnfinishedJob")
    assert told["errors"][0]["pointer"] == "/source_id"
    assert any("unfinished job" in warning for warning in planned(api, source, {}).json()["warnings"])
    assert refused(planned(api, other, {"name": "held"}), 409, "JobName.Duplicate")["errors"][0]["pointer"] == "/name"
    assert planned(api, other, {"name": "held", "region_id": "lab"}).status_code == 200, "unique in the region"
    told = refused(planned(api, other, image(name="disk")), 409, "ImageName.UsedByJob")
    assert told["errors"][0]["pointer"] == "/targets/image/name"
    with catalog._database.write() as session:
        session.get_one(JobRow, job["id"]).status = JobStatus.FINISHED
    assert planned(api, other, image(name="disk")).status_code == 200
    assert made(api, source).status_code == 201


def test_there_are_so_many_jobs_and_no_more(api: TestClient, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.MAX_JOBS == 1000
    first, second = new_source(catalog), new_source(catalog)
    monkeypatch.setattr(jobs, "MAX_JOBS", catalog.jobs().total + 1)
    assert made(api, first).status_code == 201
    assert refused(made(api, second), 409, "QuotaExceeded.Job")["errors"][0]["pointer"] == ""


def test_form_rules_and_conflicts_come_in_one_answer(api: TestClient, catalog: Catalog) -> None:
    source = new_source(catalog)
    made(api, source, name="taken-1", execution={"mode": "create_only"})
    body = {
        "name": "taken-1",  # a conflict
        "tags": {"acs:x": "", "y": "https://"},  # form, twice
        "valid_until": ahead(days=6),  # a rule
        "incremental": {"interval_hours": 0},  # form, with a code
        "execution": {"mode": "at", "start_at": ahead(minutes=1)},  # a rule with a code
        "network": {"vswitch_id": "vsw-1"},  # a rule of the region
        "colour": "red",
    }
    told = refused(made(api, source, **body), 422, PLAIN)
    assert {(error["pointer"], error["code"]) for error in told["errors"]} == {
        ("/source_id", "Source.HasUnfinishedJob"),
        ("/name", "JobName.Duplicate"),
        ("/name", "ImageName.UsedByJob"),
        ("/tags/acs:x", PLAIN),
        ("/tags/y", PLAIN),
        ("/valid_until", PLAIN),
        ("/incremental/interval_hours", "Schedule.OutOfRange"),
        ("/execution/start_at", "Schedule.OutOfRange"),
        ("/network/vswitch_id", PLAIN),
        ("/colour", PLAIN),
    }
    assert len(told["errors"]) == 10


def test_what_is_missing_comes_before_what_is_taken(api: TestClient, catalog: Catalog) -> None:
    source = new_source(catalog)
    made(api, source, name="taken-2", execution={"mode": "create_only"})
    told = refused(made(api, "s-none", name="taken-2"), 404, "Source.NotFound")
    assert {error["code"] for error in told["errors"]} == {
        "Source.NotFound",
        "JobName.Duplicate",
        "ImageName.UsedByJob",
    }
    told = refused(made(api, source, name="taken-2"), 409, "Source.HasUnfinishedJob")
    assert len(told["errors"]) == 3


def test_a_field_that_is_no_text_is_refused_too(api: TestClient) -> None:
    answer = api.post("/v1/jobs", content=b'{"tags": {"\\ud800": ""}, "\\ud800": 1}', headers=JSON)
    assert refused(answer, 422, PLAIN)["errors"]
