"""`rehost image`: what was built."""

from __future__ import annotations

import argparse
from pathlib import Path

from rehost.cli.client import Client, Json
from rehost.cli.export import export
from rehost.cli.output import plain, print_facts, print_json, print_more, print_table, size
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

    keep = verbs.add_parser("keep", help="mark an image as used, so that no rule and no request deletes it")
    add_id(keep)
    keep.add_argument("--release", action="store_true", help="take the mark away")
    add_common(keep, _keep)

    exporting = verbs.add_parser("export", help="bring the files of an image into a folder; goes on where it ended")
    add_id(exporting)
    exporting.add_argument("folder", metavar="TARGET_FOLDER", type=Path)
    add_common(exporting, _export)

    delete = verbs.add_parser("delete", help="delete an image with its files; one in use is refused")
    add_id(delete)
    add_common(delete, _delete)


def _list(client: Client, arguments: argparse.Namespace) -> int:
    page = client.get("/v1/images", limit=arguments.limit, cursor=arguments.cursor)
    if arguments.json:
        print_json(page)
        return 0
    rows = [(i["id"], i["kind"], i["name"], i["region_id"], i["job_id"], i["created_at"]) for i in page["items"]]
    print_table(("ID", "KIND", "NAME", "REGION", "JOB", "CREATED"), rows)
    print_more(page)
    return 0


def _keep(client: Client, arguments: argparse.Namespace) -> int:
    image = client.patch(f"/v1/images/{arguments.id}", {"in_use": not arguments.release})
    _print(image, arguments)
    return 0


def _export(client: Client, arguments: argparse.Namespace) -> int:
    image = client.get(f"/v1/images/{arguments.id}")
    paths = export(client, image, arguments.folder)
    if arguments.json:
        print_json({"id": image["id"], "files": [str(path) for path in paths]})
    else:
        for path in paths:
            print(plain(path))
    return 0


def _delete(client: Client, arguments: argparse.Namespace) -> int:
    client.delete(f"/v1/images/{arguments.id}")
    if arguments.json:
        print_json({"id": arguments.id, "deleted": True})
    return 0


def _show(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.get(f"/v1/images/{arguments.id}"), arguments)
    return 0


def _print(image: Json, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(image)
        return
    shown = ("id", "kind", "name", "region_id", "source_id", "job_id", "snapshot_id", "in_use", "created_at")
    disks = [
        (f"disk {disk.get('index')}", f"{disk.get('location')} ({disk.get('format')}, {size(disk.get('file_size'))})")
        for disk in image.get("disks", [])
        if isinstance(disk, dict)
    ]
    told = ("reference", "digest", "location", "architecture", "boot_modes")
    print_facts(
        [
            *((name.removesuffix("_id").replace("_", " "), image.get(name)) for name in shown),
            *disks,
            *((name.replace("_", " "), image.get(name)) for name in told),
            ("size", size(image["size"]) if image.get("size") else None),
        ]
    )
