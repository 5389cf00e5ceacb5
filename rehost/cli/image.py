"""`rehost image`: what was built."""

from __future__ import annotations

import argparse

from rehost.cli.client import Client
from rehost.cli.output import print_facts, print_json, print_more, print_table, size
from rehost.cli.parsing import Groups, add_common, add_id, add_place


def add_commands(groups: Groups) -> None:
    """The verbs of `rehost image`."""
    verbs = groups.add_parser("image", help="what was built").add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="all images, newest first")
    add_place(listing)
    add_common(listing, _list)

    show = verbs.add_parser("show", help="one image")
    add_id(show)
    add_common(show, _show)


def _list(client: Client, arguments: argparse.Namespace) -> int:
    page = client.get("/v1/images", limit=arguments.limit, cursor=arguments.cursor)
    if arguments.json:
        print_json(page)
        return 0
    rows = [(i["id"], i["kind"], i["name"], i["region_id"], i["job_id"], i["created_at"]) for i in page["items"]]
    print_table(("ID", "KIND", "NAME", "REGION", "JOB", "CREATED"), rows)
    print_more(page)
    return 0


def _show(client: Client, arguments: argparse.Namespace) -> int:
    image = client.get(f"/v1/images/{arguments.id}")
    if arguments.json:
        print_json(image)
        return 0
    shown = ("id", "kind", "name", "region_id", "source_id", "job_id", "snapshot_id", "created_at")
    disks = [
        (f"disk {disk.get('index')}", f"{disk.get('location')} ({disk.get('format')}, {size(disk.get('file_size'))})")
        for disk in image.get("disks", [])
        if isinstance(disk, dict)
    ]
    told = ("reference", "digest", "location", "architecture", "boot_modes")
    print_facts(
        [
            *((name.removesuffix("_id"), image.get(name)) for name in shown),
            *disks,
            *((name.replace("_", " "), image.get(name)) for name in told),
            ("size", size(image["size"]) if image.get("size") else None),
        ]
    )
    return 0
