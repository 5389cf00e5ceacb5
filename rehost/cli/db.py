"""`rehost db upgrade`: the care of the catalog's database, also while no service runs.

Exit codes: 0 ok, 1 failed, 2 usage, 75 the database does not answer, or is newer than this program.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

from rehost.catalog.upgrade import upgrade
from rehost.cli.output import print_error, print_json
from rehost.errors import RehostError
from rehost.settings import Settings, settings


def main(argv: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    arguments = _parser().parse_args(argv)
    do: Callable[[Settings, argparse.Namespace], int] = arguments.command
    try:
        return do(settings(), arguments)
    except RehostError as error:
        print_error(error.code, error.message, error.remedy)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehost db", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "bring the tables to this program's version; `rehost up` does it too"
    upgrading = commands.add_parser("upgrade", help=text, description=text)
    upgrading.set_defaults(command=_upgrade)
    upgrading.add_argument("--json", action="store_true", help="one JSON document instead of text")
    return parser


def _upgrade(configured: Settings, arguments: argparse.Namespace) -> int:
    done = upgrade(configured.catalog_url)
    if arguments.json:
        print_json(asdict(done))
    elif done.found == done.version:
        print(f"The catalog is at version {done.version} already.")
    else:
        print(f"The catalog was upgraded from version {done.found} to {done.version}.")
    return 0
