"""`rehost job`: migrations."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rehost.cli.bandwidth import add_bandwidth, bandwidth_of
from rehost.cli.client import Client, Json
from rehost.cli.output import print_facts, print_json, print_more, print_table, value_at
from rehost.cli.parsing import Groups, UsageError, add_common, add_id, add_key, add_place, tags_of
from rehost.cli.plan import print_plan
from rehost.cli.watch import watch


def add_commands(groups: Groups) -> None:
    """The verbs of `rehost job`."""
    verbs = groups.add_parser("job", help="migrations").add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, command, text in (
        ("plan", _plan, "check a job and tell what it would do; nothing is stored"),
        ("create", _create, "make a job, and start it unless told otherwise"),
    ):
        parser = verbs.add_parser(verb, help=text)
        _add_spec(parser)
        if command is _plan:
            parser.add_argument("--scan", action="store_true", help="walk the source too, five minutes at most")
        if command is _create:
            parser.add_argument("--watch", action="store_true", help="follow it to its end")
            add_key(parser)
        add_common(parser, command)

    start = verbs.add_parser("start", help="begin a run; it goes on from what already arrived")
    add_id(start)
    start.add_argument("--watch", action="store_true", help="follow it to its end")
    add_common(start, _start)

    update = verbs.add_parser("update", help="another bandwidth limit, also while a transfer runs")
    add_id(update)
    add_bandwidth(update)
    update.add_argument("--no-bandwidth-windows", action="store_true", help="the limit alone counts")
    add_common(update, _update)

    stop = verbs.add_parser("stop", help="stop a job that is syncing or waiting")
    add_id(stop)
    add_common(stop, _stop)

    listing = verbs.add_parser("list", help="jobs, newest first")
    for name in ("status", "business-status", "source-id", "name", "region-id"):
        listing.add_argument(f"--{name}")
    listing.add_argument("--tag", action="append", metavar="KEY:VALUE")
    add_place(listing)
    add_common(listing, _list)

    show = verbs.add_parser("show", help="one job as it stands")
    add_id(show)
    add_common(show, _show)

    watching = verbs.add_parser("watch", help="follow a job to the end of its run; JSON lines unless on a terminal")
    add_id(watching)
    add_common(watching, _watch)


def _add_spec(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE_ID", help="may also stand in the file")
    add("--file", metavar="FILE", help="the job as JSON, as the API takes it (`-`: standard input); options go over it")
    add("--region", metavar="ID", help="default: local")
    add("--name")
    add("--description")
    add("--tag", action="append", metavar="KEY=VALUE")
    images = parser.add_argument_group("what is made (default: a disk image)")
    images.add_argument("--no-image", action="store_true", help="no disk image")
    images.add_argument("--format", action="append", metavar="FORMAT", help="qcow2, raw or vhd; several")
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
    for name, value in (
        ("region_id", arguments.region),
        ("name", arguments.name),
        ("description", arguments.description),
        ("valid_until", arguments.valid_until),
        ("exclude", arguments.exclude),
        ("tags", tags_of(arguments.tag) if arguments.tag else None),
    ):
        if value is not None:
            spec[name] = value
    _set_targets(spec, arguments)
    if arguments.system_size_gib is not None:
        disks = spec.setdefault("disks", {})
        disks["system"] = {**disks.get("system", {}), "size_gib": arguments.system_size_gib}
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
    return spec


def _set_targets(spec: Json, arguments: argparse.Namespace) -> None:
    image = {"formats": arguments.format, "boot_mode": arguments.boot_mode, "name": arguments.image_name}
    given = {name: value for name, value in image.items() if value is not None}
    if arguments.no_image and given:
        raise UsageError("--no-image goes with no --format, --boot-mode or --image-name")
    targets = dict(spec.get("targets", {"image": {}}))
    if given:
        targets["image"] = {**targets.get("image", {}), **given}
    if arguments.no_image:
        targets.pop("image", None)
    if arguments.container is not None:
        path, _, tag = arguments.container.partition(":")
        namespace, slash, repository = path.rpartition("/")
        if not slash:
            raise UsageError("--container is NAMESPACE/REPOSITORY[:TAG]")
        named = {"namespace": namespace, "repository": repository, **({"tag": tag} if tag else {})}
        targets["container_image"] = {**targets.get("container_image", {}), **named}
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


def _plan(client: Client, arguments: argparse.Namespace) -> int:
    scan = "true" if arguments.scan else None
    plan = client.post("/v1/jobs", spec_of(arguments), dry_run="true", scan=scan)
    if arguments.json:
        print_json(plan)
    else:
        print_plan(plan)
    return 0


def _create(client: Client, arguments: argparse.Namespace) -> int:
    job = client.post("/v1/jobs", spec_of(arguments), key=arguments.idempotency_key)
    return _shown(client, job, arguments)


def _start(client: Client, arguments: argparse.Namespace) -> int:
    return _shown(client, client.post(f"/v1/jobs/{arguments.id}/start"), arguments)


def _shown(client: Client, job: Json, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return watch(client, job["id"], as_json=arguments.json)
    _print(job, arguments)
    return 0


def _update(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.no_bandwidth_windows and arguments.bandwidth_window:
        raise UsageError("--no-bandwidth-windows goes with no --bandwidth-window")
    change = bandwidth_of(arguments)
    if arguments.no_bandwidth_windows:
        change["bandwidth_calendar"] = []
    if not change:
        raise UsageError("nothing to change; see `rehost job update --help`")
    _print(client.patch(f"/v1/jobs/{arguments.id}", {"replication": change}), arguments)
    return 0


def _stop(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.post(f"/v1/jobs/{arguments.id}/stop"), arguments)
    return 0


def _show(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.get(f"/v1/jobs/{arguments.id}"), arguments)
    return 0


def _watch(client: Client, arguments: argparse.Namespace) -> int:
    return watch(client, arguments.id, as_json=arguments.json)


def _list(client: Client, arguments: argparse.Namespace) -> int:
    page = client.get(
        "/v1/jobs",
        status=arguments.status,
        business_status=arguments.business_status,
        source_id=arguments.source_id,
        name=arguments.name,
        region_id=arguments.region_id,
        tag=arguments.tag,
        limit=arguments.limit,
        cursor=arguments.cursor,
    )
    if arguments.json:
        print_json(page)
        return 0
    rows = [
        (j["id"], j["name"], j["status"], j["business_status"], f"{j['progress']} %", j["source_id"], j["region_id"])
        for j in page["items"]
    ]
    print_table(("ID", "NAME", "STATUS", "AT", "PROGRESS", "SOURCE", "REGION"), rows)
    print_more(page)
    return 0


def _print(job: Json, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(job)
        return
    verified = job["latest_verification"]
    print_facts(
        [
            ("id", job["id"]),
            ("name", job["name"]),
            ("source", job["source_id"]),
            ("region", job["region_id"]),
            ("status", " ".join(filter(None, (job["status"], job["business_status"])))),
            ("", job["status_info"]),
            ("progress", f"{job['progress']} %"),
            ("error", f"{job['error']['code']}: {job['error']['message']}" if job["error"] else None),
            ("remedy", value_at(job, "error", "remedy")),
            ("started", job["started_at"]),
            ("ended", job["ended_at"]),
            ("next run", job["next_run_at"]),
            ("images", job["image_ids"] or None),
            ("verified", f"{verified['subject']}: {verified['status']}" if verified else None),
            ("valid until", job["valid_until"]),
            ("in Prefect", job["prefect_url"]),
            ("next step", job["next_step"]),
        ]
    )
