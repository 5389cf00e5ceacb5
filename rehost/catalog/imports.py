"""Rows of a CSV file as requests: the columns of sources and of jobs, and what each of them sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rehost.catalog import sheet
from rehost.catalog.faults import Fault, raise_faults
from rehost.disk_formats import KINDS


@dataclass(frozen=True)
class Column:
    """What a column sets: the member at that pointer, to what is made of the cell."""

    pointer: str
    meaning: str
    of: Callable[[str], Any] = str


SOURCE_COLUMNS: Mapping[str, Column] = {
    "name": Column("/name", "2 to 128 characters; default: made of the hostname"),
    "description": Column("/description", "at most 256 characters"),
    "host": Column("/connection/host", "name or address for ssh, or a Host of ~/.ssh/config"),
    "port": Column("/connection/port", "default 22", sheet.whole),
    "user": Column("/connection/user", "default root"),
    "identity_file": Column("/connection/identity_file", "private key, on the machine of the API"),
    "known_hosts": Column("/connection/known_hosts", "file of host keys, on the machine of the API"),
    "proxy_jump": Column("/connection/proxy_jump", "[USER@]HOST[:PORT]"),
    "sudo": Column("/connection/sudo", "yes or no; default no", sheet.flag),
    "path": Column("/connection/root", "in place of host: a server's tree on the machine of the API"),
    "tags": Column("/tags", "key=value, several by semicolons", sheet.tags),
}

JOB_COLUMNS: Mapping[str, Column] = {
    "source": Column("/source_id", "id, or name where one source has it"),
    "region": Column("/region_id", "default local"),
    "name": Column("/name", "default: made of the hostname"),
    "description": Column("/description", "2 to 128 characters"),
    "image": Column("/targets/image", "yes or no: a disk image; default yes", sheet.flag),
    "image_name": Column("/targets/image/name", "default: the job's name"),
    "formats": Column(
        "/targets/image/formats",
        f"{', '.join(KINDS)}, several by semicolons; default qcow2",
        sheet.several,
    ),
    "boot_mode": Column("/targets/image/boot_mode", "bios, uefi or both; default both"),
    "container": Column("/targets/container_image", "NAMESPACE/REPOSITORY[:TAG]: a container image too"),
    "system_size_gib": Column("/disks/system/size_gib", "size of the system disk; default: the source's", sheet.whole),
    "exclude": Column("/exclude", "paths left out, several by semicolons", sheet.several),
    "execution": Column("/execution", "now, create_only, or a time 10 minutes to 30 days ahead; default now"),
    "interval_hours": Column("/incremental/interval_hours", "again and again, every 1 to 168 hours", sheet.whole),
    "cron": Column("/incremental/cron", "again and again, five fields"),
    "timezone": Column("/incremental/timezone", "of cron; default UTC"),
    "max_images": Column("/incremental/max_images", "1 to 10; default 3", sheet.whole),
    "vpc_id": Column("/network/vpc_id", "a VPC of the region"),
    "vswitch_id": Column("/network/vswitch_id", "a vSwitch of the region: its workers receive the data"),
    "bandwidth_limit_kbps": Column("/replication/bandwidth_limit_kbps", "KB/s; default 0: none", sheet.whole),
    "verification": Column("/verification/enabled", "yes or no; default yes", sheet.flag),
    "valid_until": Column("/valid_until", "a time 7 to 90 days ahead; default 30 days"),
    "tags": Column("/tags", "key=value, several by semicolons", sheet.tags),
}


def source_of(row: sheet.Row) -> dict[str, Any]:
    """The body of POST /v1/sources that a row asks for. Raises InvalidParameter for a row that asks for none."""
    body = _body(row, SOURCE_COLUMNS)
    if ("host" in row.cells) == ("path" in row.cells):
        raise_faults([Fault("/connection", "give one of host and path")])
    body["connection"]["kind"] = "ssh" if "host" in row.cells else "path"
    return body


def job_of(row: sheet.Row) -> dict[str, Any]:
    """The body of POST /v1/jobs that a row asks for, with the source as it is written. Raises InvalidParameter."""
    body = {"region_id": "local", **_body(row, JOB_COLUMNS)}
    execution, container = body.get("execution"), row.cells.get("container")
    if execution is not None:
        named = execution in ("now", "create_only")
        body["execution"] = {"mode": execution} if named else {"mode": "at", "start_at": execution}
    if container is not None:
        path, _, tag = container.partition(":")
        namespace, _, repository = path.rpartition("/")
        sheet.put(body, "/targets/container_image", {"namespace": namespace, "repository": repository})
        if tag:
            sheet.put(body, "/targets/container_image/tag", tag)
    return body


def _body(row: sheet.Row, columns: Mapping[str, Column]) -> dict[str, Any]:
    if row.fault is not None:
        raise_faults([Fault("", row.fault)])
    body: dict[str, Any] = {}
    for name, column in columns.items():
        if name in row.cells and name not in ("image", "container"):
            sheet.put(body, column.pointer, column.of(row.cells[name]))
    if columns is JOB_COLUMNS:
        _set_image(row, body)
    return body


def _set_image(row: sheet.Row, body: dict[str, Any]) -> None:
    """A disk image is made unless the row says no; then no other column may ask for something of it."""
    wanted = sheet.flag(row.cells.get("image", "yes"))
    asked = body.get("targets", {}).get("image")
    if not isinstance(wanted, bool):
        raise_faults([Fault("/targets/image", "is yes or no")])
    if not wanted and asked is not None:
        raise_faults([Fault("/targets/image", "is no, and another column asks for something of the image")])
    sheet.put(body, "/targets", {"image": asked or {}} if wanted else {})


def places(columns: Mapping[str, Column]) -> dict[str, str]:
    """The column that fills each place of a request, by JSON pointer."""
    found = {column.pointer: name for name, column in columns.items()}
    if "host" in columns:
        return {**found, "/connection": "host"}
    return {**found, "/incremental": "interval_hours", "/network": "vswitch_id", "/targets": "image"}
