"""`rehost job`: migrations."""

from __future__ import annotations

import argparse

from rehost.cli import logs
from rehost.cli.batch import add_ids, together
from rehost.cli.client import Client, Json
from rehost.cli.imports import add_from, import_rows
from rehost.cli.job_actions import add_actions
from rehost.cli.job_spec import add_change, add_spec, change_of, spec_of
from rehost.cli.output import print_facts, print_json, print_more, print_table, value_at
from rehost.cli.parsing import Groups, UsageError, add_common, add_id, add_key, add_place, quoted
from rehost.cli.plan import print_plan
from rehost.cli.watch import told, watch


def add_commands(groups: Groups) -> None:
    """The verbs of `rehost job`."""
    verbs = groups.add_parser("job", help="migrations").add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, command, text in (
        ("plan", _plan, "check a job and tell what it would do; nothing is stored"),
        ("create", _create, "make a job, and start it unless told otherwise"),
    ):
        parser = verbs.add_parser(verb, help=text)
        add_spec(parser)
        if command is _plan:
            parser.add_argument("--scan", action="store_true", help="walk the source too, five minutes at most")
        if command is _create:
            parser.add_argument("--watch", action="store_true", help="follow it to its end")
            add_from(parser, "job")
            parser.add_argument("--dry-run", action="store_true", help="as `plan`; with --from for every row")
            add_key(parser)
        add_common(parser, command)

    start = verbs.add_parser("start", help="begin a run of one job or several; it goes on from what already arrived")
    add_ids(start)
    start.add_argument("--watch", action="store_true", help="follow it to its end; with one job")
    add_common(start, _start)

    update = verbs.add_parser("update", help="change a job, as far as its state allows it")
    add_id(update)
    add_change(update)
    add_common(update, _update)

    stop = verbs.add_parser("stop", help="stop jobs that are syncing, waiting or queued")
    add_ids(stop)
    add_common(stop, _stop)

    add_actions(verbs, _print)

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

    reading = verbs.add_parser("logs", help="what the newest run said; JSON lines with --json")
    add_id(reading)
    logs.add_arguments(reading)
    add_common(reading, logs.logs)


def _plan(client: Client, arguments: argparse.Namespace) -> int:
    scan = "true" if arguments.verb == "plan" and arguments.scan else None
    plan = client.post("/v1/jobs", spec_of(arguments), dry_run="true", scan=scan)
    if arguments.json:
        print_json(plan)
    else:
        print_plan(plan)
    return 0


def _create(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.from_file is not None:
        return import_rows(client, arguments, "jobs")
    if arguments.dry_run:
        return _plan(client, arguments)
    job = client.post("/v1/jobs", spec_of(arguments), key=arguments.idempotency_key)
    return _shown(client, job, arguments)


def _start(client: Client, arguments: argparse.Namespace) -> int:
    if len(arguments.ids) > 1:
        if arguments.watch:
            raise UsageError("--watch goes with one job")
        return together(client, arguments.ids, "start", as_json=arguments.json)
    return _shown(client, client.post(f"/v1/jobs/{quoted(arguments.ids[0])}/start"), arguments)


def _shown(client: Client, job: Json, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return watch(client, job["id"], as_json=arguments.json)
    _print(job, arguments)
    return 0


def _update(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.patch(f"/v1/jobs/{arguments.id}", change_of(arguments)), arguments)
    return 0


def _stop(client: Client, arguments: argparse.Namespace) -> int:
    if len(arguments.ids) > 1:
        return together(client, arguments.ids, "stop", as_json=arguments.json)
    _print(client.post(f"/v1/jobs/{quoted(arguments.ids[0])}/stop"), arguments)
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
            ("progress", ", ".join(filter(None, (f"{job['progress']} %", told(job))))),
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
