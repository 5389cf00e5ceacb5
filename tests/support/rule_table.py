"""The rules of the Job table, each with a request that is just right and one that is just wrong at the moment NOW."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.two_disks import GIB

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PLAIN = "InvalidParameter"
TARGET = {"namespace": "shop", "repository": "web"}


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
    ("formats are known", image(formats=["qcow2-plain"]), image(formats=["vmdk"]), PLAIN, "/targets/image/formats/0"),
    (
        "no format twice",
        image(formats=["qcow2", "qcow2-plain", "raw", "vhd", "vhd-dynamic"]),
        image(formats=["raw", "raw"]),
        PLAIN,
        "/targets/image/formats",
    ),
    (
        "a VHD holds 2,040 GiB",
        {**image(formats=["vhd", "vhd-dynamic"]), **system(size_gib=2040)},
        {**image(formats=["qcow2", "vhd"]), **system(size_gib=2041)},
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
