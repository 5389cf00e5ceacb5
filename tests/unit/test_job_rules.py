"""The rules of a job at their boundaries: what is just right is accepted, what is just wrong is refused and named."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from rehost.catalog import cron, rules
from rehost.catalog.faults import Fault, faults_of, raise_faults
from rehost.catalog.job import JobSpec
from rehost.catalog.jobs import next_scheduled
from rehost.catalog.names import name_from
from rehost.catalog.plan import plan
from rehost.errors import Invalid, InvalidParameter
from rehost.regions.regions import region
from rehost.settings import Settings
from rehost.source.inventory import Interface, Inventory, Volume
from tests.support.two_disks import GIB, server

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def body(**fields: Any) -> dict[str, Any]:
    return {"source_id": "s-1", "region_id": "local", **fields}


def faults(fields: Mapping[str, Any], inventory: Inventory | None = None) -> list[Fault]:
    """What is wrong with such a request: by its shape, else by the rules."""
    whole = body(**fields)
    try:
        spec = JobSpec.model_validate(whole)
    except ValidationError as error:
        return faults_of(error.errors(), whole)
    return rules.check(rules.Asked(spec, inventory or server(), region(Settings(regions={}), "local"), NOW))


def blocks(size_gib: int | None = None, size_bytes: int | None = None) -> dict[str, Any]:
    """A job for the root in blocks."""
    partition = {"device": "0_1", "block": True, "size_bytes": size_bytes}
    return {"disks": {"block_replication": True, "system": {"size_gib": size_gib, "partitions": [partition]}}}


def data_blocks(device: str | None = None) -> dict[str, Any]:
    """A job for a data disk in blocks."""
    partitions = [{"device": "1_1", "block": True}, *([{"device": device}] if device else [])]
    return {"disks": {"block_replication": True, "data": [{"index": 1, "partitions": partitions}]}}


TARGET = {"namespace": "shop", "repository": "web"}
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"name": "ab"},
    {"name": "a" * 128},
    {"name": "服务器-1"},
    {"name": "a:b_c-9"},
    {"description": "A web server, with (punctuation)!"},
    {"targets": {"image": {}}},
    {"targets": {"image": {"formats": ["qcow2", "raw", "vhd"], "boot_mode": "both"}}},
    {"targets": {"container_image": TARGET}},
    {"targets": {"container_image": {**TARGET, "namespace": "a/b", "tag": "_" + "x" * 127}}},
    {"targets": {"container_image": {**TARGET, "credentials": {"username": "me", "password_env": "PW"}}}},
    {"targets": {"container_image": {**TARGET, "credentials": {"username_env": "U", "password_file": "/run/pw"}}}},
    {"disks": {"system": {"size_gib": 26}}},
    {"disks": {"system": {"size_gib": 2048}}},
    {"disks": {"system": {"partitions": [{"device": "0_1", "size_bytes": 24 * GIB + 1}]}}},
    {"disks": {"block_replication": True}},
    blocks(),
    blocks(size_gib=40),
    blocks(size_bytes=30 * GIB),
    data_blocks(),
    {**data_blocks(), "targets": {"container_image": TARGET}},
    {**blocks(), "incremental": {"interval_hours": 1}, "disks": {**blocks()["disks"], "change_tracking": True}},
    {"disks": {"data": [{"index": 1, "include": False, "size_gib": 61}]}},
    {"disks": {"data": [{"index": 1, "include": False}]}},
    {"exclude": ["/var/cache", "*.tmp"]},
    {"execution": {"mode": "create_only"}},
    {"execution": {"mode": "at", "start_at": (NOW + timedelta(minutes=10)).isoformat()}},
    {"execution": {"mode": "at", "start_at": (NOW + timedelta(days=30)).isoformat()}},
    {"incremental": {"interval_hours": 1}},
    {"incremental": {"interval_hours": 168, "max_images": 10}},
    {"incremental": {"cron": "30 2 * * mon-fri", "timezone": "Europe/Berlin", "max_images": 1}},
    {"network": {"mode": "public"}},
    {"replication": {"bandwidth_limit_kbps": 0, "compress_level": 9, "checksum": True}},
    {"verification": {"enabled": False}},
    {"verification": {"script": "#!/bin/sh\ntrue\n", "script_timeout_seconds": 1}},
    {"tags": {f"k{number}": "" for number in range(20)}},
    {"tags": {"k" * 128: "v" * 128}},
    {"valid_until": (NOW + timedelta(days=7)).isoformat()},
    {"valid_until": (NOW + timedelta(days=90)).isoformat()},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_what_is_just_right_is_accepted(fields: dict[str, Any]) -> None:
    assert faults(fields) == []


PLAIN = "InvalidParameter"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"colour": "red"}, "/colour", PLAIN),
    ({"name": "a"}, "/name", PLAIN),
    ({"name": "a" * 129}, "/name", PLAIN),
    ({"name": "1ab"}, "/name", PLAIN),
    ({"name": "a b"}, "/name", PLAIN),
    ({"name": "http://x"}, "/name", PLAIN),
    ({"description": "https://example.org"}, "/description", PLAIN),
    ({"description": "a\x1b[31m"}, "/description", PLAIN),
    ({"targets": {}}, "/targets", PLAIN),
    ({"targets": {"image": {"formats": []}}}, "/targets/image/formats", PLAIN),
    ({"targets": {"image": {"formats": ["raw", "raw"]}}}, "/targets/image/formats", PLAIN),
    ({"targets": {"image": {"formats": ["vmdk"]}}}, "/targets/image/formats/0", PLAIN),
    ({"targets": {"image": {"boot_mode": "efi"}}}, "/targets/image/boot_mode", PLAIN),
    ({"targets": {"container_image": {"namespace": "shop"}}}, "/targets/container_image/repository", PLAIN),
    ({"targets": {"container_image": {**TARGET, "namespace": "Shop"}}}, "/targets/container_image/namespace", PLAIN),
    ({"targets": {"container_image": {**TARGET, "tag": "-x"}}}, "/targets/container_image/tag", PLAIN),
    ({"targets": {"container_image": {**TARGET, "tag": "x" * 129}}}, "/targets/container_image/tag", PLAIN),
    (
        {"targets": {"container_image": {**TARGET, "credentials": {"username": "me", "password": "hunter2"}}}},
        "/targets/container_image/credentials",
        PLAIN,
    ),
    (
        {"targets": {"container_image": {**TARGET, "credentials": {"username": "me"}}}},
        "/targets/container_image/credentials",
        PLAIN,
    ),
    ({"disks": {"system": {"size_gib": 19}}}, "/disks/system/size_gib", PLAIN),
    ({"disks": {"system": {"size_gib": 2049}}}, "/disks/system/size_gib", PLAIN),
    ({"disks": {"system": {"size_gib": "40"}}}, "/disks/system/size_gib", PLAIN),
    ({"disks": {"system": {"size_gib": 25}}}, "/disks/system/size_gib", "DiskSize.TooSmall"),
    (
        {"disks": {"system": {"size_gib": 31, "partitions": [{"device": "0_1", "size_bytes": 30 * GIB}]}}},
        "/disks/system/size_gib",
        "DiskSize.TooSmall",
    ),
    (
        {"disks": {"system": {"partitions": [{"device": "0_1", "size_bytes": 40 * GIB}]}}},
        "/disks/system/partitions",
        "DiskSize.TooSmall",
    ),
    (
        {"disks": {"system": {"partitions": [{"device": "0_1", "size_bytes": 24 * GIB}]}}},
        "/disks/system/partitions/0/size_bytes",
        "DiskSize.TooSmall",
    ),
    ({"disks": {"system": {"partitions": [{"device": "0_7"}]}}}, "/disks/system/partitions/0/device", PLAIN),
    ({"disks": {"system": {"partitions": [{"device": "0_1"}] * 2}}}, "/disks/system/partitions", PLAIN),
    (
        {"disks": {"block_replication": True, "system": {"partitions": [{"device": "0_2", "block": True}]}}},
        "/disks/system/partitions/0/block",
        "Partition.CannotBlock",
    ),
    (
        {"disks": {"system": {"partitions": [{"device": "0_1", "block": True}]}}},
        "/disks/system/partitions/0/block",
        PLAIN,
    ),
    ({"disks": {"change_tracking": True}, "incremental": {"interval_hours": 1}}, "/disks/change_tracking", PLAIN),
    ({"disks": {"change_tracking": True, "block_replication": True}}, "/disks/change_tracking", PLAIN),
    (blocks(size_bytes=29 * GIB), "/disks/system/partitions/0/size_bytes", PLAIN),
    (blocks(size_gib=39), "/disks/system/size_gib", "DiskSize.TooSmall"),
    ({**blocks(), "targets": {"container_image": TARGET}}, "/targets/container_image", PLAIN),
    (data_blocks(device="1_9"), "/disks/data/0/partitions/1/device", PLAIN),
    ({"disks": {"data": [{"index": 0}]}}, "/disks/data/0/index", "DataDiskIndex.Invalid"),
    ({"disks": {"data": [{"index": 17}]}}, "/disks/data/0/index", "DataDiskIndex.Invalid"),
    ({"disks": {"data": [{"index": 2}]}}, "/disks/data/0/index", "DataDiskIndex.Invalid"),
    ({"disks": {"data": [{"index": 1}, {"index": 1}]}}, "/disks/data", "DataDisk.DuplicateIndex"),
    (
        {"disks": {"data": [{"index": 1, "include": False, "size_gib": 60}]}},
        "/disks/data/0/size_gib",
        "DiskSize.TooSmall",
    ),
    ({"disks": {"data": [{"index": 1}]}}, "/disks/data/0/include", PLAIN),
    ({"disks": {"data": [{"index": 1, "size_gib": 32769}]}}, "/disks/data/0/size_gib", PLAIN),
    ({"exclude": [""]}, "/exclude/0", PLAIN),
    ({"execution": {"mode": "later"}}, "/execution", PLAIN),
    ({"execution": {"mode": "now", "start_at": "2026-05-04T13:00:00Z"}}, "/execution/start_at", PLAIN),
    ({"execution": {"mode": "at"}}, "/execution/start_at", PLAIN),
    ({"execution": {"mode": "at", "start_at": "2026-05-04T13:00:00"}}, "/execution/start_at", PLAIN),
    (
        {"execution": {"mode": "at", "start_at": (NOW + timedelta(minutes=9, seconds=59)).isoformat()}},
        "/execution/start_at",
        "Schedule.OutOfRange",
    ),
    (
        {"execution": {"mode": "at", "start_at": (NOW + timedelta(days=30, seconds=1)).isoformat()}},
        "/execution/start_at",
        "Schedule.OutOfRange",
    ),
    (
        {
            "execution": {"mode": "at", "start_at": (NOW + timedelta(days=8)).isoformat()},
            "valid_until": (NOW + timedelta(days=8)).isoformat(),
        },
        "/execution/start_at",
        PLAIN,
    ),
    ({"incremental": {}}, "/incremental", PLAIN),
    ({"incremental": {"interval_hours": 0}}, "/incremental/interval_hours", "Schedule.OutOfRange"),
    ({"incremental": {"interval_hours": 169}}, "/incremental/interval_hours", "Schedule.OutOfRange"),
    ({"incremental": {"interval_hours": True}}, "/incremental/interval_hours", PLAIN),
    ({"incremental": {"interval_hours": 1, "cron": "0 1 * * *"}}, "/incremental", PLAIN),
    ({"incremental": {"interval_hours": 1, "timezone": "UTC"}}, "/incremental", PLAIN),
    ({"incremental": {"interval_hours": 1, "max_images": 0}}, "/incremental/max_images", PLAIN),
    ({"incremental": {"interval_hours": 1, "max_images": 11}}, "/incremental/max_images", PLAIN),
    ({"incremental": {"cron": "0,30 * * * *"}}, "/incremental/cron", "Schedule.OutOfRange"),
    ({"incremental": {"cron": "* * * * *"}}, "/incremental/cron", "Schedule.OutOfRange"),
    ({"incremental": {"cron": "0 0 30 2 *"}}, "/incremental/cron", "Schedule.OutOfRange"),
    ({"incremental": {"cron": "0 1 * *"}}, "/incremental/cron", "Schedule.OutOfRange"),
    ({"incremental": {"cron": "0 24 * * *"}}, "/incremental/cron", "Schedule.OutOfRange"),
    ({"incremental": {"cron": "0 1 * * *", "timezone": "../../etc/passwd"}}, "/incremental/timezone", PLAIN),
    ({"network": {"mode": "private"}}, "/network", "VSwitch.Required"),
    ({"network": {"mode": "private", "vswitch_id": "vsw-1"}}, "/network/vswitch_id", PLAIN),
    ({"replication": {"bandwidth_limit_kbps": -1}}, "/replication/bandwidth_limit_kbps", PLAIN),
    ({"replication": {"compress_level": 10}}, "/replication/compress_level", PLAIN),
    ({"replication": {"checksum": "yes"}}, "/replication/checksum", PLAIN),
    ({"verification": {"script_timeout_seconds": 0}}, "/verification/script_timeout_seconds", PLAIN),
    ({"tags": {f"k{number}": "" for number in range(21)}}, "/tags", "NumberExceed.Tags"),
    ({"tags": {"k" * 129: ""}}, f"/tags/{'k' * 129}", PLAIN),
    ({"tags": {"": "v"}}, "/tags/", PLAIN),
    ({"tags": {"k": "v" * 129}}, "/tags/k", PLAIN),
    ({"tags": {"acs:x": ""}}, "/tags/acs:x", PLAIN),
    ({"tags": {"k": "aliyun"}}, "/tags/k", PLAIN),
    ({"valid_until": (NOW + timedelta(days=7, seconds=-1)).isoformat()}, "/valid_until", PLAIN),
    ({"valid_until": (NOW + timedelta(days=90, seconds=1)).isoformat()}, "/valid_until", PLAIN),
]


@pytest.mark.parametrize(("fields", "pointer", "code"), REFUSED, ids=lambda value: str(value)[:80])
def test_what_is_just_wrong_is_refused_and_named(fields: dict[str, Any], pointer: str, code: str) -> None:
    found = faults(fields)
    assert [(fault.pointer, fault.code) for fault in found] == [(pointer, code)]
    with pytest.raises(Invalid) as caught:
        raise_faults(found)
    assert caught.value.code == code
    assert caught.value.facts["errors"] == [(pointer, found[0].message, code)]
    assert "<" not in caught.value.message, "every fact of the sentence was given"


def test_all_faults_of_a_request_come_in_one_answer() -> None:
    found = faults({"name": "1", "tags": {f"k{n}": "" for n in range(21)}, "exclude": [""]})
    assert {fault.pointer for fault in found} == {"/name", "/tags", "/exclude/0"}
    with pytest.raises(InvalidParameter, match="and 2 more"):
        raise_faults(found)


def test_all_faults_of_the_rules_come_in_one_answer() -> None:
    found = faults({"disks": {"system": {"size_gib": 20}, "data": [{"index": 9}]}, "valid_until": NOW.isoformat()})
    assert {fault.code for fault in found} == {PLAIN, "DiskSize.TooSmall", "DataDiskIndex.Invalid"}


def test_no_fault_repeats_what_was_sent() -> None:
    secret = "hunter2"
    credentials = {"username": "me", "password": secret}
    for fault in faults({"targets": {"container_image": {**TARGET, "credentials": credentials}}}):
        assert secret not in fault.message


def test_no_container_is_made_of_windows() -> None:
    windows = Inventory(hostname="w", os_id="windows", architecture="x86_64")
    [fault] = faults({"targets": {"container_image": TARGET}}, windows)
    assert fault.pointer == "/targets/container_image"


def test_a_tree_without_disks_is_measured_by_its_volumes() -> None:
    tree = Inventory(
        hostname="t",
        os_id="debian",
        architecture="x86_64",
        volumes=(Volume(mount_point="/", filesystem="ext4", size_bytes=90 * GIB, used_bytes=30 * GIB),),
    )
    assert faults({"disks": {"system": {"size_gib": 31}}}, tree) == []
    assert [f.code for f in faults({"disks": {"system": {"size_gib": 30}}}, tree)] == ["DiskSize.TooSmall"]


def test_the_defaults_are_those_of_the_contract() -> None:
    spec = JobSpec.model_validate(body())
    assert spec.targets.image is not None
    assert spec.targets.image.formats == ("qcow2",)
    assert spec.targets.container_image is None
    assert spec.execution.mode == "now"
    assert spec.incremental is None
    assert (spec.replication.bandwidth_limit_kbps, spec.replication.compress_level, spec.replication.checksum) == (
        0,
        0,
        False,
    )
    assert (spec.verification.enabled, spec.verification.script_timeout_seconds) == (True, 600)
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("30 2 * * *", "UTC", "2026-01-01T02:29:59Z", "2026-01-01T02:30:00Z"),
        ("30 2 * * *", "UTC", "2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"),
        ("0 */6 * * *", "UTC", "2026-01-01T06:30:00Z", "2026-01-01T12:00:00Z"),
        ("0 9 * * mon", "UTC", "2026-01-01T00:00:00Z", "2026-01-05T09:00:00Z"),
        ("0 9 * * 7", "UTC", "2026-01-01T00:00:00Z", "2026-01-04T09:00:00Z"),
        ("0 0 13 * 5", "UTC", "2026-02-07T00:00:00Z", "2026-02-13T00:00:00Z"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("15 1-3 1 jan,jul *", "UTC", "2026-01-01T03:15:00Z", "2026-07-01T01:15:00Z"),
        ("0 0 */10 * 1", "UTC", "2026-09-24T01:00:00Z", "2026-09-28T00:00:00Z"),
        ("0 0 * * *", "Asia/Shanghai", "2026-01-01T00:00:00Z", "2026-01-01T16:00:00Z"),
    ],
)
def test_cron_says_when_it_runs_next(expression: str, zone: str, after: str, expected: str) -> None:
    found = cron.parse(expression).next_after(datetime.fromisoformat(after), zone)
    assert found == datetime.fromisoformat(expected)


def test_cron_is_read_as_prefect_reads_it() -> None:
    croniter = importlib.import_module("prefect._vendor.croniter").croniter
    draw = random.Random(1)

    def field(low: int, high: int) -> str:
        first, last = sorted(draw.sample(range(low, high + 1), 2))
        some = ",".join(map(str, draw.sample(range(low, high + 1), 3)))
        return draw.choice(["*", "*", f"*/{draw.randint(1, high)}", f"{first}-{last}", some, f"{low}-{high}"])

    for _ in range(300):
        fields = (field(0, 23), field(1, 28), field(1, 12), field(0, 6))
        expression = f"{draw.randint(0, 59)} {' '.join(fields)}"
        after = datetime(2026, draw.randint(1, 12), draw.randint(1, 28), draw.randint(0, 23), tzinfo=UTC)
        expected = croniter(expression, after.replace(tzinfo=None)).get_next(datetime).replace(tzinfo=UTC)
        assert cron.parse(expression).next_after(after, "UTC") == expected, expression


def test_intervals_are_counted_from_the_registration() -> None:
    rule = JobSpec.model_validate(body(incremental={"interval_hours": 2})).incremental
    assert rule is not None
    assert next_scheduled(rule, NOW, NOW, 3600) == NOW + timedelta(hours=2)
    assert next_scheduled(rule, NOW, NOW + timedelta(hours=2), 3600) == NOW + timedelta(hours=4)
    assert next_scheduled(rule, NOW, NOW + timedelta(seconds=21), 10) == NOW + timedelta(seconds=40)


@pytest.mark.parametrize(
    ("hostname", "expected"), [("web1.example.org", "web1-example-org"), ("10-x", "server-10-x"), ("", "server")]
)
def test_a_name_can_be_made_of_every_hostname(hostname: str, expected: str) -> None:
    assert name_from(hostname) == expected
    assert faults({"name": name_from(hostname)}) == []


def test_the_plan_tells_what_can_be_said_without_copying() -> None:
    from rehost.catalog.records import Source
    from rehost.catalog.states import SourceState
    from rehost.source.connect import PathConnection

    inventory = server().model_copy(
        update={"interfaces": (Interface(name="eth0", addresses=("192.0.2.7/24",), method="static"),)}
    )
    source = Source(
        id="s-1",
        name="web1",
        description=None,
        connection=PathConnection(root="/srv"),
        tags={},
        state=SourceState.IN_USE,
        status_info=None,
        inventory=inventory,
        created_at=NOW,
        discovered_at=NOW,
    )
    spec = JobSpec.model_validate(
        body(name="web", targets={"image": {}, "container_image": TARGET}, disks={"system": {"size_gib": 30}})
    )
    planned = plan(spec, source, region(Settings(regions={}), "local"))
    assert planned.bytes_to_read == 24 * GIB
    assert planned.container_reference == "shop/web:latest"
    assert (planned.image_name, planned.boot_mode) == ("web", "both")
    assert planned.static_addresses == ("eth0 192.0.2.7/24",)
    assert [(d.index, d.role, d.target_bytes) for d in planned.disks] == [(0, "system", 30 * GIB), (1, "data", None)]
    assert any("unfinished job" in warning for warning in planned.warnings)
    assert any("Data disk 1" in warning for warning in planned.warnings)


def test_a_plan_says_what_travels_in_blocks() -> None:
    from rehost.catalog.records import Source
    from rehost.catalog.states import SourceState
    from rehost.source.connect import PathConnection

    source = Source(
        id="s-1",
        name="web1",
        description=None,
        connection=PathConnection(root="/srv"),
        tags={},
        state=SourceState.AVAILABLE,
        status_info=None,
        inventory=server(),
        created_at=NOW,
        discovered_at=NOW,
    )
    destination = region(Settings(regions={}), "local")
    in_blocks = plan(JobSpec.model_validate(body(**blocks())), source, destination)
    assert in_blocks.mode == "blocks"
    # A partition that is not mounted comes along, and is counted whole where nobody knows what of it is in use.
    assert in_blocks.bytes_to_read == 25 * GIB
    assert [p.mode for disk in in_blocks.disks for p in disk.partitions] == ["blocks", "blocks", "files"]
    assert [volume.mode for volume in in_blocks.volumes] == ["blocks"]
    both = plan(JobSpec.model_validate(body(**data_blocks())), source, destination)
    assert both.mode == "both" and both.bytes_to_read == (24 + 60) * GIB
    assert [disk.include for disk in both.disks] == [True, True]
    assert not any("Data disk 1" in warning for warning in both.warnings)
