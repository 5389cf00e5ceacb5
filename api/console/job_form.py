"""The form that makes a job, as the request that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.console.forms import Field, Filled, body_of
from rehost.catalog.job import JobSpec
from rehost.source.inventory import Disk, Inventory

_MIB = 1 << 20
_ALWAYS = (
    Field("/region_id"),
    Field("/name"),
    Field("/description"),
    Field("/exclude", "lines"),
    Field("/network/mode"),
    Field("/network/vpc_id"),
    Field("/network/vswitch_id"),
    Field("/replication/bandwidth_limit_kbps", "integer"),
    Field("/replication/compress_level", "integer"),
    Field("/replication/checksum", "flag"),
    Field("/verification/enabled", "flag"),
    Field("/verification/boot_timeout_seconds", "integer"),
    Field("/verification/script"),
    Field("/verification/script_timeout_seconds", "integer"),
    Field("/consistency/method"),
    Field("/hooks/pre_snapshot"),
    Field("/hooks/post_snapshot"),
    Field("/hooks/timeout_seconds", "integer"),
    Field("/disks/block_replication", "flag"),
    Field("/disks/change_tracking", "flag"),
    Field("/disks/system/size_gib", "integer"),
    Field("/tags", "pairs"),
    Field("/valid_until", "moment"),
    Field("/execution/mode"),
)
_IMAGE = (
    Field("/targets/image/name"),
    Field("/targets/image/formats", "choices"),
    Field("/targets/image/boot_mode"),
)
_CONTAINER = (
    Field("/targets/container_image/namespace"),
    Field("/targets/container_image/repository"),
    Field("/targets/container_image/tag"),
)
_BY_HOURS = (Field("/incremental/interval_hours", "integer"), Field("/incremental/max_images", "integer"))
_BY_CRON = (Field("/incremental/cron"), Field("/incremental/timezone"), Field("/incremental/max_images", "integer"))
_AT = (Field("/execution/start_at", "moment"),)


def job_body(form: Filled, source_id: str, inventory: Inventory) -> tuple[dict[str, Any], dict[str, str]]:
    """The body of the request, and the field of each pointer in it that can be wrong."""
    fields = list(_ALWAYS)
    wants_image, wants_container = form.ticked("image"), form.ticked("container")
    if wants_image:
        fields += _IMAGE
    if wants_container:
        fields += _CONTAINER
    every = form.text("repeat")
    fields += _BY_HOURS if every == "hours" else _BY_CRON if every == "cron" else ()
    if form.text("/execution/mode") == "at":
        fields += _AT
    body = {"source_id": source_id, **body_of(form, fields)}
    # A target that is asked for is there even where all of its fields are empty, and none is the fault it is.
    targets = body.setdefault("targets", {})
    if wants_image:
        targets.setdefault("image", {})
    if wants_container:
        targets.setdefault("container_image", {})
    if every in ("hours", "cron"):
        body.setdefault("incremental", {})
    pointers = {each.pointer: each.pointer for each in fields}
    pointers |= {
        "/targets": "image",
        "/targets/container_image": "container",
        "/incremental": "repeat",
        "/network": "/network/vswitch_id",
        "/execution": "/execution/mode",
        "/verification": "/verification/enabled",
        "/disks/system/partitions": "/disks/system/size_gib",
    }
    _put_disks(form, inventory, body.setdefault("disks", {}), pointers)
    return body, pointers


def _put_disks(form: Filled, inventory: Inventory, disks: dict[str, Any], pointers: dict[str, str]) -> None:
    data: list[dict[str, Any]] = []
    for disk in inventory.disks:
        at = "/disks/system" if disk.index == 0 else f"/disks/data/{len(data)}"
        partitions = _partitions(form, disk, at, pointers)
        if disk.index == 0:
            disks.setdefault("system", {})["partitions"] = partitions
            continue
        include, name = f"disk/{disk.index}/include", f"disk/{disk.index}/size_gib"
        entry: dict[str, Any] = {"index": disk.index, "include": form.ticked(include), "partitions": partitions}
        if text := form.text(name).strip():
            entry["size_gib"] = _number(text)
        pointers |= {f"{at}/size_gib": name, at: include}
        data.append(entry)
    if data:
        disks["data"] = data


def _partitions(form: Filled, disk: Disk, at: str, pointers: dict[str, str]) -> list[dict[str, Any]]:
    """What is asked for the partitions of a disk; one that nothing is asked for is left out."""
    asked: list[dict[str, Any]] = []
    for partition in disk.partitions:
        block, size = f"partition/{partition.device}/block", f"partition/{partition.device}/size_mib"
        text = form.text(size).strip()
        if not text and not form.ticked(block):
            continue
        place = f"{at}/partitions/{len(asked)}"
        pointers |= {place: block, f"{place}/block": block, f"{place}/size_bytes": size}
        entry: dict[str, Any] = {"device": partition.device, "block": form.ticked(block)}
        if text:
            number = _number(text)
            entry["size_bytes"] = number * _MIB if isinstance(number, int) else number
        asked.append(entry)
    return asked


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else text


def defaults() -> Mapping[str, Any]:
    """The defaults of the request, as the form shows them."""
    spec = JobSpec(source_id="s", region_id="local")
    return spec.model_dump(mode="json")
