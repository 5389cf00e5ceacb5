"""`rehost key add|list|remove`: who may use the API; on the machine that has the catalog, also while no service runs.

With the first key every request to the API needs one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager
from datetime import datetime

from rehost.catalog.catalog import Catalog
from rehost.catalog.scopes import Scope
from rehost.cli.output import plain, print_json, print_table
from rehost.cli.own import Commands
from rehost.settings import Settings

_MAX_NAME = 128


def main(argv: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    commands = Commands("key", __doc__, _opened)
    adding = commands.add("add", _add, "make a key; it is printed once, and kept as its SHA-256 alone")
    adding.add_argument("name", type=_name, help="what it is for; in the log of the API")
    adding.add_argument(
        "--scope",
        choices=[scope.value for scope in Scope],
        required=True,
        help="read: look; run: also make, change, start and stop jobs; admin: everything",
    )
    commands.add("list", _list, "the keys that there are, never the keys themselves")
    removing = commands.add("remove", _remove, "a key opens nothing from now on")
    removing.add_argument("name")
    return commands.run(argv)


def _opened(configured: Settings) -> AbstractContextManager[Catalog]:
    configured.home.mkdir(parents=True, exist_ok=True)
    return Catalog.open(configured)


def _name(text: str) -> str:
    if not 1 <= len(text) <= _MAX_NAME or not text.isprintable():
        raise argparse.ArgumentTypeError(f"has 1 to {_MAX_NAME} printable characters")
    return text


def _add(catalog: Catalog, arguments: argparse.Namespace) -> int:
    key = catalog.add_api_key(arguments.name, Scope(arguments.scope))
    if arguments.json:
        print_json({"name": arguments.name, "scope": arguments.scope, "key": key})
        return 0
    print(key)
    print("Keep it now, it is not shown again. The command line sends what REHOST_API_KEY has.", file=sys.stderr)
    return 0


def _list(catalog: Catalog, arguments: argparse.Namespace) -> int:
    keys = catalog.api_keys()
    if arguments.json:
        print_json({"items": [key.model_dump(mode="json", exclude={"hash"}) for key in keys]})
        return 0
    rows = [[plain(key.name), key.scope, _time(key.created_at), _time(key.last_used_at)] for key in keys]
    print_table(["Name", "Scope", "Made", "Last used"], rows)
    return 0


def _remove(catalog: Catalog, arguments: argparse.Namespace) -> int:
    catalog.remove_api_key(arguments.name)
    if arguments.json:
        print_json({"removed": arguments.name})
    return 0


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
