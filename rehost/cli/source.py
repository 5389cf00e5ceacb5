"""`rehost source`: servers that can be moved."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rehost.cli.client import Client, Json
from rehost.cli.imports import add_from, import_rows
from rehost.cli.output import plain, print_facts, print_json, print_more, print_table, size, value_at
from rehost.cli.parsing import Groups, UsageError, add_common, add_id, add_key, add_place, tags_of

_SSH = re.compile(r"(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:@]+)(?::(?P<port>\d{1,5}))?")


def add_commands(groups: Groups) -> None:
    """The verbs of `rehost source`."""
    verbs = groups.add_parser("source", help="servers that can be moved").add_subparsers(
        dest="verb", required=True, metavar="VERB"
    )
    add = verbs.add_parser("add", help="connect to a server, discover what it is, remember it")
    add_from(_add_connection(add, required=True), "source")
    add.add_argument("--dry-run", action="store_true", help="with --from: check the form of every row alone")
    add_key(add)
    add_common(add, _add)

    listing = verbs.add_parser("list", help="all sources, newest first")
    add_place(listing)
    add_common(listing, _list)

    show = verbs.add_parser("show", help="one source with its inventory")
    add_id(show)
    add_common(show, _show)

    discover = verbs.add_parser("discover", help="take the inventory once more")
    add_id(discover)
    add_common(discover, _discover)

    update = verbs.add_parser("update", help="another name, description, tags or connection")
    add_id(update)
    _add_connection(update, required=False)
    update.add_argument("--no-description", action="store_true", help="take the description away")
    update.add_argument("--no-tags", action="store_true", help="take all tags away")
    add_common(update, _update)

    remove = verbs.add_parser("remove", help="forget a server and its jobs; its images stay")
    add_id(remove)
    remove.add_argument("--force", action="store_true", help="also with a job that is not finished, but does not run")
    add_common(remove, _remove)


def _add_connection(parser: argparse.ArgumentParser, *, required: bool) -> argparse._MutuallyExclusiveGroup:
    """The options that say which server it is and what it is called; the group of those that name the server."""
    kind = parser.add_mutually_exclusive_group(required=required)
    kind.add_argument("--ssh", metavar="[USER@]HOST[:PORT]", type=_ssh, help="a running server")
    kind.add_argument("--path", metavar="DIR", help="a server's tree on the machine of the API")
    kind.add_argument("--disk", metavar="FILE", action="append", help="a disk image; several, the system disk first")
    parser.add_argument("--identity-file", metavar="FILE", help="private key for ssh, on the machine of the API")
    parser.add_argument("--known-hosts", metavar="FILE", help="host keys for ssh")
    parser.add_argument("--proxy-jump", metavar="[USER@]HOST[:PORT]")
    parser.add_argument("--sudo", action="store_true", default=None, help="become root by password-free sudo")
    parser.add_argument("--name")
    parser.add_argument("--description")
    parser.add_argument("--tag", action="append", metavar="KEY=VALUE")
    return kind


def _ssh(text: str) -> dict[str, object]:
    found = _SSH.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("is [USER@]HOST[:PORT]")
    named: dict[str, object] = {"kind": "ssh", "host": found["host"].strip("[]")}
    if found["user"]:
        named["user"] = found["user"]
    if found["port"]:
        named["port"] = int(found["port"])
    return named


def _connection(arguments: argparse.Namespace) -> Json:
    if arguments.path is not None:
        return {"kind": "path", "root": str(Path(arguments.path).absolute())}
    if arguments.disk is not None:
        return {"kind": "disk", "disks": [str(Path(disk).absolute()) for disk in arguments.disk]}
    optional = ("identity_file", "known_hosts", "proxy_jump", "sudo")
    given = {name: value for name in optional if (value := getattr(arguments, name)) is not None}
    return {**(arguments.ssh or {}), **given}


def _body(arguments: argparse.Namespace) -> Json:
    body: Json = {}
    if connection := _connection(arguments):
        if "kind" not in connection:
            raise UsageError("say --ssh [USER@]HOST[:PORT] too: a connection is changed as a whole")
        body["connection"] = connection
    for name in ("name", "description"):
        if getattr(arguments, name) is not None:
            body[name] = getattr(arguments, name)
    if arguments.tag:
        body["tags"] = tags_of(arguments.tag)
    return body


def _update(client: Client, arguments: argparse.Namespace) -> int:
    body = _body(arguments)
    for given, name, nothing in ((arguments.no_description, "description", None), (arguments.no_tags, "tags", {})):
        if given and name in body:
            raise UsageError(f"--no-{name} goes with no other {name}")
        if given:
            body[name] = nothing
    if not body:
        raise UsageError("nothing to change; see `rehost source update --help`")
    _print(client.patch(f"/v1/sources/{arguments.id}", body), arguments)
    return 0


def _remove(client: Client, arguments: argparse.Namespace) -> int:
    client.delete(f"/v1/sources/{arguments.id}", force="true" if arguments.force else None)
    if arguments.json:
        print_json({"id": arguments.id, "removed": True})
    return 0


def _add(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.from_file is not None:
        return import_rows(client, arguments, "sources")
    if arguments.dry_run:
        raise UsageError("--dry-run goes with --from")
    body = _body(arguments)
    _print(client.post("/v1/sources", body, key=arguments.idempotency_key), arguments)
    return 0


def _list(client: Client, arguments: argparse.Namespace) -> int:
    page = client.get("/v1/sources", limit=arguments.limit, cursor=arguments.cursor)
    if arguments.json:
        print_json(page)
        return 0
    rows = [
        (s["id"], s["name"], s["state"], value_at(s, "inventory", "os_name"), connection_text(s["connection"]))
        for s in page["items"]
    ]
    print_table(("ID", "NAME", "STATE", "SYSTEM", "CONNECTION"), rows)
    print_more(page)
    return 0


def _show(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.get(f"/v1/sources/{arguments.id}"), arguments)
    return 0


def _discover(client: Client, arguments: argparse.Namespace) -> int:
    _print(client.post(f"/v1/sources/{arguments.id}/discover"), arguments)
    return 0


def connection_text(connection: Json) -> str:
    """A connection on one line."""
    if connection.get("kind") == "ssh":
        return plain(f"{connection.get('user')}@{connection.get('host')}:{connection.get('port')}")
    return plain(connection.get("root") or connection.get("disks"))


def _print(source: Json, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(source)
        return
    inventory = source["inventory"]
    print_facts(
        [
            ("id", source["id"]),
            ("name", source["name"]),
            ("state", source["state"]),
            ("", source["status_info"]),
            ("connection", connection_text(source["connection"])),
            ("hostname", inventory["hostname"]),
            ("system", inventory.get("os_name") or inventory.get("os_id")),
            ("kernel", inventory.get("kernel")),
            ("architecture", inventory.get("architecture")),
            ("boot mode", inventory.get("boot_mode")),
            ("cores", inventory.get("cores")),
            ("memory", size(inventory["memory_bytes"]) if inventory.get("memory_bytes") else None),
            *((f"disk {d['index']}", f"{d['path']}, {size(d['size_bytes'])}") for d in inventory.get("disks", [])),
            *(
                (v["mount_point"], f"{v['filesystem']}, {size(v['used_bytes'])} of {size(v['size_bytes'])} used")
                for v in inventory.get("volumes", [])
            ),
            ("listens", [f"{p['port']}/{p['protocol']}" for p in inventory.get("listeners", [])] or None),
        ]
    )
