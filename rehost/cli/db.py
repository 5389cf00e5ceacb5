"""`rehost db upgrade`: the care of the catalog's database, also while no service runs.

Exit codes: 0 ok, 1 failed, 2 usage, 75 the database does not answer, or is newer than this program.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict

from rehost.catalog.upgrade import upgrade
from rehost.cli.output import print_json
from rehost.cli.own import Commands
from rehost.settings import Settings


def main(argv: list[str]) -> int:
    """Do what the arguments say; the exit code."""
    commands = Commands("db", __doc__, contextlib.nullcontext[Settings])
    commands.add("upgrade", _upgrade, "bring the tables to this program's version; `rehost up` does it too")
    return commands.run(argv)


def _upgrade(configured: Settings, arguments: argparse.Namespace) -> int:
    done = upgrade(configured.catalog_url)
    if arguments.json:
        print_json(asdict(done))
    elif done.found == done.version:
        print(f"The catalog is at version {done.version} already.")
    else:
        print(f"The catalog was upgraded from version {done.found} to {done.version}.")
    return 0
