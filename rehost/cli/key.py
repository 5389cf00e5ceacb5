"""`rehost key add|list|remove`: who may use the API; on the machine that has the catalog, also while no service runs.

With the first key every request to the API needs one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime

from rehost.catalog.catalog import Catalog
from rehost.catalog.scopes import Scope
from rehost.cli.output import plain, print_error, print_json, print_table
from rehost.errors import RehostError
from rehost.settings import settings

_MAX_NAME = 128


def main(argv: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    do: Callable[[Catalog, argparse.Namespace], int] = arguments.command
    try:
        configured = settings()
        configured.home.mkdir(parents=True, exist_ok=True)
        with Catalog.open(configured) as catalog:
            return do(catalog, arguments)
    except RehostError as error:
        print_error(error.code, error.message, error.remedy)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehost key", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable[[Catalog, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        made.set_defaults(command=do)
        made.add_argument("--json", action="store_true", help="one JSON document instead of text")
        return made

    adding = command("add", _add, "make a key; it is printed once, and kept as its SHA-256 alone")
    adding.add_argument("name", type=_name, help="what it is for; in the log of the API")
    adding.add_argument(
        "--scope",
        choices=[scope.value for scope in Scope],
        required=True,
        help="read: look; run: also make, change, start and stop jobs; admin: everything",
    )
    command("list", _list, "the keys that there are, never the keys themselves")
    removing = command("remove", _remove, "a key opens nothing from now on")
    removing.add_argument("name")
    return parser


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
