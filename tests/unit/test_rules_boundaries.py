"""Every rule of the Job table over the API: a request that is just right, and one that is just wrong.

The clock is at NOW for every request. What is right is answered with a plan, what is wrong with the code of the rule
and a pointer to the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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
from tests.support.two_disks import GIB, server

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PLAIN = "InvalidParameter"
TARGET = {"namespace": "shop", "repository": "web"}
LAB = Region(networks={"vpc-1": Vpc(vswitches={"vsw-1": "lab"}), "vpc-2": Vpc(vswitches={"vsw-2": "lab"})})


def ahead(**span: float) -> str:
    return (NOW + timedelta(**span)).isoformat()


def at(**span: float) -> dict[str, Any]:
    return {"execution": {"mode": "at", "start_at": ahead(**span)}}


def image(**fields: Any) -> dict[str, Any]:
    return {"targets": {"image": fields}}


def container(**fields: Any) -> dict[str, Any]:
    return {"targets": {"container_image": {**TARGET, **fields}}}


def system(**fields: Any) -> dict[str, Any]:
    return {"disks": {"system": fields}}


def partition(device: str, **fields: Any) -> dict[str, Any]:
    return system(partitions=[{"device": device, **fields}])


def in_blocks(device: str, **fields: Any) -> dict[str, Any]:
    asked = {"partitions": [{"device": device, "block": True}], **fields}
    return {"disks": {"block_replication": True, "system": asked}}


def data(*disks: dict[str, Any]) -> dict[str, Any]:
    return {"disks": {"data": [{"include": False, **disk} for disk in disks]}}


def again(**fields: Any) -> dict[str, Any]:
    return {"incremental": {"interval_hours": 24} | fields}


def by_cron(expression: str, **fields: Any) -> dict[str, Any]:
    return {"incremental": {"cron": expression, **fields}}


def network(**fields: Any) -> dict[str, Any]:
    return {"region_id": "lab", "network": fields}


def replication(**fields: Any) -> dict[str, Any]:
    return {"replication": fields}


def verification(**fields: Any) -> dict[str, Any]:
    return {"verification": fields}


def tags(number: int) -> dict[str, Any]:
    return {"tags": {f"k{count}": "" for count in range(number)}}


TRACKED = in_blocks("0_1")["disks"] | {"change_tracking": True}
WINDOW = {"from": "08:00", "to": "18:00", "limit_kbps": 1}

# The rule, what is just right, what is just wrong, the code, the pointer.
RULES: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("a field is known", {}, {"colour": "red"}, PLAIN, "/colour"),
    ("a name has 2 characters", {"name": "ab"}, {"name": "a"}, PLAIN, "/name"),
    ("a name has 128 characters", {"name": "a" * 128}, {"name": "a" * 129}, PLAIN, "/name"),
    ("a name starts with a letter", {"name": "服务器"}, {"name": "1服务器"}, PLAIN, "/name"),
    ("a name has letters, digits, :_-", {"name": "a1:_-"}, {"name": "a1.b"}, PLAIN, "/name"),
    ("a name is no address", {"name": "http:--"}, {"name": "http://"}, PLAIN, "/name"),
    ("a name is no secure address", {"name": "https:--"}, {"name": "HTTPS://x"}, PLAIN, "/name"),
    ("a description has 2 characters", {"description": "It"}, {"description": "I"}, PLAIN, "/description"),
    ("a description has 128 characters", {"description": "a" * 128}, {"description": "a" * 129}, PLAIN, "/description"),
    ("a description starts with a letter", {"description": "A (b), c!"}, {"description": "(b)"}, PLAIN, "/description"),
    ("a description is no address", {"description": "http x"}, {"description": "http://x"}, PLAIN, "/description"),
    ("a description is one line", {"description": "a b"}, {"description": "a\nb"}, PLAIN, "/description"),
    ("something is made", image(), {"targets": {}}, PLAIN, "/targets"),
    ("an image's name is a name", image(name="ab"), image(name="a"), PLAIN, "/targets/image/name"),
    ("formats are known", image(formats=["vhd"]), image(formats=["vmdk"]), PLAIN, "/targets/image/formats/0"),
    (
        "no format twice",
        image(formats=["qcow2", "raw", "vhd"]),
        image(formats=["raw", "raw"]),
        PLAIN,
        "/targets/image/formats",
    ),
    ("a format is named", image(formats=["raw"]), image(formats=[]), PLAIN, "/targets/image/formats"),
    ("boot modes are known", image(boot_mode="uefi"), image(boot_mode="efi"), PLAIN, "/targets/image/boot_mode"),
    (
        "a container has a namespace",
        container(),
        {"targets": {"container_image": {"repository": "web"}}},
        PLAIN,
        "/targets/container_image/namespace",
    ),
    (
        "a container has a repository",
        container(),
        {"targets": {"container_image": {"namespace": "shop"}}},
        PLAIN,
        "/targets/container_image/repository",
    ),
    (
        "a namespace is an OCI name",
        container(namespace="a/b__c"),
        container(namespace="a/b___c"),
        PLAIN,
        "/targets/container_image/namespace",
    ),
    (
        "a repository is an OCI name",
        container(repository="a.b"),
        container(repository="A.b"),
        PLAIN,
        "/targets/container_image/repository",
    ),
    (
        "a tag has 128 characters",
        container(tag="x" * 128),
        container(tag="x" * 129),
        PLAIN,
        "/targets/container_image/tag",
    ),
    (
        "no password is stored",
        container(credentials={"username": "me", "password_env": "PW"}),
        container(credentials={"username": "me", "password": "PW"}),
        PLAIN,
        "/targets/container_image/credentials",
    ),
    (
        "blocks only where they can be had",
        in_blocks("0_1"),
        in_blocks("0_2"),
        "Partition.CannotBlock",
        "/disks/system/partitions/0/block",
    ),
    (
        "blocks need block_replication",
        partition("0_1", block=False),
        partition("0_1", block=True),
        PLAIN,
        "/disks/system/partitions/0/block",
    ),
    ("a partition exists", partition("0_2"), partition("0_3"), PLAIN, "/disks/system/partitions/0/device"),
    (
        "a partition holds what is used",
        partition("0_1", size_bytes=24 * GIB + 1),
        partition("0_1", size_bytes=24 * GIB),
        "DiskSize.TooSmall",
        "/disks/system/partitions/0/size_bytes",
    ),
    (
        "partitions fit the disk",
        partition("0_1", size_bytes=39 * GIB),
        partition("0_1", size_bytes=39 * GIB + 1),
        "DiskSize.TooSmall",
        "/disks/system/partitions",
    ),
    (
        "partitions fit the size that is asked for",
        system(size_gib=32, partitions=[{"device": "0_1", "size_bytes": 30 * GIB}]),
        system(size_gib=31, partitions=[{"device": "0_1", "size_bytes": 30 * GIB}]),
        "DiskSize.TooSmall",
        "/disks/system/size_gib",
    ),
    (
        "a system disk holds what is used",
        system(size_gib=26),
        system(size_gib=25),
        "DiskSize.TooSmall",
        "/disks/system/size_gib",
    ),
    ("a system disk has 2048 GiB", system(size_gib=2048), system(size_gib=2049), PLAIN, "/disks/system/size_gib"),
    (
        "a disk in blocks keeps its size",
        in_blocks("0_1", size_gib=40),
        in_blocks("0_1", size_gib=39),
        "DiskSize.TooSmall",
        "/disks/system/size_gib",
    ),
    (
        "a data disk has an index from 1",
        data({"index": 1}),
        data({"index": 0}),
        "DataDiskIndex.Invalid",
        "/disks/data/0/index",
    ),
    (
        "a data disk has an index to 16",
        data({"index": 1}),
        data({"index": 17}),
        "DataDiskIndex.Invalid",
        "/disks/data/0/index",
    ),
    ("a data disk exists", data({"index": 1}), data({"index": 2}), "DataDiskIndex.Invalid", "/disks/data/0/index"),
    (
        "no data disk twice",
        data({"index": 1}),
        data({"index": 1}, {"index": 1}),
        "DataDisk.DuplicateIndex",
        "/disks/data",
    ),
    (
        "a data disk holds what is used",
        data({"index": 1, "size_gib": 61}),
        data({"index": 1, "size_gib": 60}),
        "DiskSize.TooSmall",
        "/disks/data/0/size_gib",
    ),
    (
        "a data disk has 32768 GiB",
        data({"index": 1, "size_gib": 32768}),
        data({"index": 1, "size_gib": 32769}),
        PLAIN,
        "/disks/data/0/size_gib",
    ),
    (
        "tracking needs blocks",
        again() | {"disks": TRACKED},
        again() | {"disks": {"change_tracking": True}},
        PLAIN,
        "/disks/change_tracking",
    ),
    ("tracking needs repetition", again() | {"disks": TRACKED}, {"disks": TRACKED}, PLAIN, "/disks/change_tracking"),
    ("a pattern is not empty", {"exclude": ["*"]}, {"exclude": [""]}, PLAIN, "/exclude/0"),
    ("1000 patterns", {"exclude": ["*"] * 1000}, {"exclude": ["*"] * 1001}, PLAIN, "/exclude"),
    (
        "a start is 10 minutes ahead",
        at(minutes=10),
        at(minutes=10, seconds=-1),
        "Schedule.OutOfRange",
        "/execution/start_at",
    ),
    ("a start is 30 days ahead", at(days=30), at(days=30, seconds=1), "Schedule.OutOfRange", "/execution/start_at"),
    (
        "a start is before the end",
        at(days=8) | {"valid_until": ahead(days=8, seconds=1)},
        at(days=8) | {"valid_until": ahead(days=8)},
        PLAIN,
        "/execution/start_at",
    ),
    ("a mode is known", {"execution": {"mode": "now"}}, {"execution": {"mode": "soon"}}, PLAIN, "/execution"),
    (
        "an hour at least",
        again(interval_hours=1),
        again(interval_hours=0),
        "Schedule.OutOfRange",
        "/incremental/interval_hours",
    ),
    (
        "a week at most",
        again(interval_hours=168),
        again(interval_hours=169),
        "Schedule.OutOfRange",
        "/incremental/interval_hours",
    ),
    ("one way to repeat", again(), again(cron="0 1 * * *"), PLAIN, "/incremental"),
    ("once an hour", by_cron("59 * * * *"), by_cron("29,59 * * * *"), "Schedule.OutOfRange", "/incremental/cron"),
    (
        "steps once an hour",
        by_cron("0-29/30 */2 * * *"),
        by_cron("0-30/30 */2 * * *"),
        "Schedule.OutOfRange",
        "/incremental/cron",
    ),
    ("five fields", by_cron("0 1 * * *"), by_cron("0 0 1 * * *"), "Schedule.OutOfRange", "/incremental/cron"),
    ("a day that comes", by_cron("0 0 29 2 *"), by_cron("0 0 30 2 *"), "Schedule.OutOfRange", "/incremental/cron"),
    (
        "a time zone of the database",
        by_cron("0 1 * * *", timezone="Asia/Shanghai"),
        by_cron("0 1 * * *", timezone="Asia/Peking"),
        PLAIN,
        "/incremental/timezone",
    ),
    ("an image is kept", again(max_images=1), again(max_images=0), PLAIN, "/incremental/max_images"),
    ("ten images are kept", again(max_images=10), again(max_images=11), PLAIN, "/incremental/max_images"),
    (
        "a private network has a vSwitch",
        network(mode="private", vswitch_id="vsw-1"),
        network(mode="private"),
        "VSwitch.Required",
        "/network",
    ),
    ("a vSwitch exists", network(vswitch_id="vsw-2"), network(vswitch_id="vsw-3"), PLAIN, "/network/vswitch_id"),
    ("a VPC exists", network(vpc_id="vpc-2"), network(vpc_id="vpc-3"), PLAIN, "/network/vpc_id"),
    (
        "a vSwitch lies in its VPC",
        network(vpc_id="vpc-1", vswitch_id="vsw-1"),
        network(vpc_id="vpc-2", vswitch_id="vsw-1"),
        "VSwitchVpc.Mismatch",
        "/network/vpc_id",
    ),
    (
        "a limit is not negative",
        replication(bandwidth_limit_kbps=0),
        replication(bandwidth_limit_kbps=-1),
        PLAIN,
        "/replication/bandwidth_limit_kbps",
    ),
    (
        "no windows overlap",
        replication(bandwidth_calendar=[WINDOW, WINDOW | {"from": "18:00", "to": "19:00"}]),
        replication(bandwidth_calendar=[WINDOW, WINDOW | {"from": "17:59", "to": "19:00"}]),
        PLAIN,
        "/replication/bandwidth_calendar",
    ),
    (
        "a level from 0",
        replication(compress_level=0),
        replication(compress_level=-1),
        PLAIN,
        "/replication/compress_level",
    ),
    (
        "a level to 9",
        replication(compress_level=9),
        replication(compress_level=10),
        PLAIN,
        "/replication/compress_level",
    ),
    ("checksum is true or false", replication(checksum=True), replication(checksum=1), PLAIN, "/replication/checksum"),
    (
        "a boot has 30 seconds",
        verification(boot_timeout_seconds=30),
        verification(boot_timeout_seconds=29),
        PLAIN,
        "/verification/boot_timeout_seconds",
    ),
    (
        "a boot has two hours",
        verification(boot_timeout_seconds=7200),
        verification(boot_timeout_seconds=7201),
        PLAIN,
        "/verification/boot_timeout_seconds",
    ),
    (
        "a script has a second",
        verification(script_timeout_seconds=1),
        verification(script_timeout_seconds=0),
        PLAIN,
        "/verification/script_timeout_seconds",
    ),
    (
        "a script has 64 KiB",
        verification(script="x" * 65536),
        verification(script="x" * 65537),
        PLAIN,
        "/verification/script",
    ),
    ("20 tags", tags(20), tags(21), "NumberExceed.Tags", "/tags"),
    ("a tag's key has a character", {"tags": {"k": ""}}, {"tags": {"": ""}}, PLAIN, "/tags/"),
    ("a tag's key has 128", {"tags": {"k" * 128: ""}}, {"tags": {"k" * 129: ""}}, PLAIN, f"/tags/{'k' * 129}"),
    ("a tag's value has 128", {"tags": {"k": "v" * 128}}, {"tags": {"k": "v" * 129}}, PLAIN, "/tags/k"),
    ("a tag's key is not reserved", {"tags": {"acs-x": ""}}, {"tags": {"acs:x": ""}}, PLAIN, "/tags/acs:x"),
    ("a tag's value is not reserved", {"tags": {"k": "aliyu"}}, {"tags": {"k": "Aliyun"}}, PLAIN, "/tags/k"),
    ("a tag is no address", {"tags": {"k": "https"}}, {"tags": {"k": "https://"}}, PLAIN, "/tags/k"),
    (
        "valid for 7 days",
        {"valid_until": ahead(days=7)},
        {"valid_until": ahead(days=7, seconds=-1)},
        PLAIN,
        "/valid_until",
    ),
    (
        "valid for 90 days",
        {"valid_until": ahead(days=90)},
        {"valid_until": ahead(days=90, seconds=1)},
        PLAIN,
        "/valid_until",
    ),
    (
        "a time has a zone",
        {"valid_until": ahead(days=9)},
        {"valid_until": "2026-05-13T12:00:00"},
        PLAIN,
        "/valid_until",
    ),
]


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
