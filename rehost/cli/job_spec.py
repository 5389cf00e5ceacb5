"""The options of `rehost job plan`, `create` and `update`, and the requests that they make."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rehost.cli.bandwidth import add_bandwidth, bandwidth_of
from rehost.cli.client import Json
from rehost.cli.parsing import UsageError, tags_of
from rehost.disk_formats import KINDS


def add_spec(parser: argparse.ArgumentParser) -> None:
    """The options that make a job."""
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE_ID", help="may also stand in the file")
    add("--file", metavar="FILE", help="the job as JSON, as the API takes it (`-`: standard input); options go over it")
    add("--region", metavar="ID", help="default: local")
    _add_fields(parser)


def add_change(parser: argparse.ArgumentParser) -> None:
    """The options that change a job: those that make one, and what takes something away."""
    add = parser.add_argument
    add("--file", metavar="FILE", help="the change as JSON (RFC 7386; `-`: standard input); options go over it")
    _add_fields(parser)
    add("--now", action="store_true", help="start a job that waits for its start")
    add("--no-tag", action="append", metavar="KEY", help="take the tag away; several")
    add("--no-bandwidth-windows", action="store_true", help="the limit alone counts")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name")
    add("--description")
    add("--tag", action="append", metavar="KEY=VALUE")
    images = parser.add_argument_group("what is made (default: a disk image)")
    images.add_argument("--no-image", action="store_true", help="no disk image")
    images.add_argument("--format", action="append", metavar="FORMAT", help=f"{', '.join(KINDS)}; several")
    images.add_argument("--boot-mode", metavar="MODE", help="bios, uefi or both")
    images.add_argument("--image-name", metavar="NAME")
    images.add_argument("--system-size-gib", type=int, metavar="N", help="size of the system disk")
    images.add_argument("--container", metavar="NAMESPACE/REPOSITORY[:TAG]", help="a container image too")
    times = parser.add_argument_group("when it runs (default: now, once)")
    when = times.add_mutually_exclusive_group()
    when.add_argument("--at", metavar="TIME", help="ISO 8601 with a zone, 10 minutes to 30 days ahead")
    when.add_argument("--create-only", action="store_true", help="wait for a start")
    again = times.add_mutually_exclusive_group()
    again.add_argument("--every", type=int, metavar="HOURS", help="again and again, every 1 to 168 hours")
    again.add_argument("--cron", metavar="EXPRESSION", help="again and again; five fields")
    times.add_argument("--timezone", metavar="ZONE", help="of the cron expression; default UTC")
    times.add_argument("--max-images", type=int, metavar="N", help="how many images of such a job are kept, 1 to 10")
    times.add_argument("--valid-until", metavar="TIME", help="7 to 90 days ahead; default 30 days")
    transfer = parser.add_argument_group("the transfer")
    transfer.add_argument("--block", action="append", metavar="DEVICE", help="copied by blocks, such as 0_1; several")
    transfer.add_argument("--change-tracking", action="store_true", help="later runs read the blocks that were written")
    transfer.add_argument("--exclude", action="append", metavar="PATTERN", help="paths left out; several")
    add_bandwidth(transfer)
    transfer.add_argument("--compress-level", type=int, metavar="N", help="0 to 9, on the wire")
    transfer.add_argument("--checksum", action="store_true", help="compare with the source once more")
    still = parser.add_argument_group("how the server is held still")
    still.add_argument("--live", action="store_true", help="no snapshots on the source")
    still.add_argument("--pre-snapshot", metavar="COMMAND", help="run on the source before; no secrets in it")
    still.add_argument("--post-snapshot", metavar="COMMAND", help="run on the source afterwards, in every case")
    still.add_argument("--hook-timeout-seconds", type=int, metavar="N", help="for each command; default 60")
    proof = parser.add_argument_group("the verification")
    proof.add_argument("--no-verification", action="store_true", help="no test boot")
    proof.add_argument("--boot-timeout-seconds", type=int, metavar="N")
    proof.add_argument("--script", metavar="FILE", help="run in the guest; its exit status decides")


def spec_of(arguments: argparse.Namespace) -> Json:
    """The body of POST /v1/jobs that the arguments ask for. Raises UsageError."""
    spec = _from_file(arguments.file)
    if arguments.source is not None:
        spec["source_id"] = arguments.source
    if "source_id" not in spec:
        raise UsageError("which source? Give its id (`rehost source list` shows them)")
    spec.setdefault("region_id", "local")
    if arguments.region is not None:
        spec["region_id"] = arguments.region
    spec.setdefault("targets", {"image": {}})
    _set_fields(spec, arguments)
    return spec


def change_of(arguments: argparse.Namespace) -> Json:
    """The body of PATCH /v1/jobs/{id} that the arguments ask for. Raises UsageError."""
    if arguments.no_bandwidth_windows and arguments.bandwidth_window:
        raise UsageError("--no-bandwidth-windows goes with no --bandwidth-window")
    if arguments.now and (arguments.at or arguments.create_only):
        raise UsageError("--now goes with no --at and no --create-only")
    change = _from_file(arguments.file)
    _set_fields(change, arguments)
    if arguments.now:
        change["execution"] = {"mode": "now"}
    if arguments.no_bandwidth_windows:
        _over(change, "replication", {"bandwidth_calendar": []})
    if arguments.no_tag:
        change["tags"] = {**change.get("tags", {}), **dict.fromkeys(arguments.no_tag)}
    if not change:
        raise UsageError("nothing to change; see `rehost job update --help`")
    return change


def _set_fields(spec: Json, arguments: argparse.Namespace) -> None:
    for name, value in (
        ("name", arguments.name),
        ("description", arguments.description),
        ("valid_until", arguments.valid_until),
        ("exclude", arguments.exclude),
        ("tags", tags_of(arguments.tag) if arguments.tag else None),
    ):
        if value is not None:
            spec[name] = value
    _set_targets(spec, arguments)
    _set_disks(spec, arguments)
    if arguments.at is not None:
        spec["execution"] = {"mode": "at", "start_at": arguments.at}
    if arguments.create_only:
        spec["execution"] = {"mode": "create_only"}
    rule = {"interval_hours": arguments.every, "cron": arguments.cron, "timezone": arguments.timezone}
    _over(spec, "incremental", {**rule, "max_images": arguments.max_images})
    transfer = {"compress_level": arguments.compress_level, "checksum": arguments.checksum or None}
    _over(spec, "replication", {**bandwidth_of(arguments), **transfer})
    _over(spec, "consistency", {"method": "live" if arguments.live else None})
    hooks = {"pre_snapshot": arguments.pre_snapshot, "post_snapshot": arguments.post_snapshot}
    _over(spec, "hooks", {**hooks, "timeout_seconds": arguments.hook_timeout_seconds})
    script = _read(arguments.script) if arguments.script else None
    proof = {"boot_timeout_seconds": arguments.boot_timeout_seconds, "script": script}
    _over(spec, "verification", {**proof, "enabled": False if arguments.no_verification else None})


def _set_disks(spec: Json, arguments: argparse.Namespace) -> None:
    devices = arguments.block or []
    switches = {"block_replication": True if devices else None, "change_tracking": arguments.change_tracking or None}
    _over(spec, "disks", switches)
    if arguments.system_size_gib is not None:
        disks = spec.setdefault("disks", {})
        disks["system"] = {**disks.get("system", {}), "size_gib": arguments.system_size_gib}
    for device in devices:
        number, underscore, _ = device.partition("_")
        if not underscore or not number.isdigit():
            raise UsageError("--block is a device of `rehost source show`, such as 0_1")
        _block(spec["disks"], int(number), device)


def _block(disks: Json, number: int, device: str) -> None:
    """Ask for blocks of a partition; what the file says of its disk stays."""
    if number == 0:
        disk = disks["system"] = dict(disks.get("system", {}))
    else:
        disks["data"] = [dict(disk) for disk in disks.get("data", [])]
        found = [disk for disk in disks["data"] if disk.get("index") == number]
        disk = found[0] if found else {"index": number}
        if not found:
            disks["data"].append(disk)
    others = [p for p in disk.get("partitions", []) if p.get("device") != device]
    same = [p for p in disk.get("partitions", []) if p.get("device") == device]
    disk["partitions"] = [*others, {**(same[0] if same else {"device": device}), "block": True}]


def _set_targets(spec: Json, arguments: argparse.Namespace) -> None:
    image = {"formats": arguments.format, "boot_mode": arguments.boot_mode, "name": arguments.image_name}
    given = {name: value for name, value in image.items() if value is not None}
    if arguments.no_image and given:
        raise UsageError("--no-image goes with no --format, --boot-mode or --image-name")
    targets = dict(spec.get("targets") or {})
    if given:
        targets["image"] = {**(targets.get("image") or {}), **given}
    if arguments.no_image:
        targets["image"] = None
    if arguments.container is not None:
        path, _, tag = arguments.container.partition(":")
        namespace, slash, repository = path.rpartition("/")
        if not slash:
            raise UsageError("--container is NAMESPACE/REPOSITORY[:TAG]")
        named = {"namespace": namespace, "repository": repository, **({"tag": tag} if tag else {})}
        targets["container_image"] = {**(targets.get("container_image") or {}), **named}
    if targets:
        spec["targets"] = targets


def _over(spec: Json, name: str, values: Json) -> None:
    given = {key: value for key, value in values.items() if value is not None}
    if given:
        spec[name] = {**(spec.get(name) or {}), **given}


def _from_file(name: str | None) -> Json:
    if name is None:
        return {}
    try:
        spec = json.loads(_read(name))
    except ValueError as error:
        raise UsageError(f"{name} is no JSON: {error}") from error
    if not isinstance(spec, dict):
        raise UsageError(f"{name} holds no JSON object")
    return spec


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
