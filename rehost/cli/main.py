"""`rehost`: the command line. It speaks HTTP to the API; `up`, `doctor`, `store` and `db` work without one.

Exit codes: 0 ok, 1 failed, 2 usage, 3 partial, 10 source unreachable, 11 busy, 12 authentication,
20 verification failed, 75 try again, 130 interrupted or stopped.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import pydantic

from rehost.cli import image, job, source
from rehost.cli.client import Client, Refused
from rehost.cli.output import print_error
from rehost.cli.parsing import UsageError
from rehost.errors import RehostError
from rehost.settings import settings

_USAGE, _INTERRUPTED = 2, 130
_OWN_PROGRAMS = {  # they need no API, and read their own arguments
    "up": ("rehost.cli.up", "all services in the foreground: Prefect, its worker, the API"),
    "db": ("rehost.cli.db", "the care of the catalog: upgrade; on a machine that reaches its database"),
    "store": ("rehost.cli.store", "the care of the store: stat, check, gc, forget; on the machine that has it"),
    "key": ("rehost.cli.key", "who may use the API: add, list, remove; on the machine that has the catalog"),
    "doctor": ("rehost.cli.doctor", "what this machine needs, whether it is there, and what to do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in _OWN_PROGRAMS:
            module = importlib.import_module(_OWN_PROGRAMS[words[0]][0])
            return int(module.main(words[1:]))
        return _ask_api(parser().parse_args(words))
    except pydantic.ValidationError as error:
        faults = [("_".join(["REHOST", *map(str, e["loc"])]).upper(), str(e["msg"])) for e in error.errors()]
        print_error("Settings.Invalid", "The settings are not valid.", "See docs/configuration.md.", faults)
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough; nothing more can be written, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """The grammar of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="rehost", description="Moves a running Linux server into a bootable disk image or a container image."
    )
    whole.add_argument("--version", action="version", version=f"rehost {version('rehost')}")
    groups = whole.add_subparsers(dest="group", required=True, metavar="COMMAND")
    for name, (_, text) in _OWN_PROGRAMS.items():
        groups.add_parser(name, help=text, add_help=False)
    for module in (source, job, image):
        module.add_commands(groups)
    return whole


def _ask_api(arguments: argparse.Namespace) -> int:
    try:
        client = Client(settings())
        try:
            return int(arguments.command(client, arguments))
        finally:
            client.close()
    except Refused as refused:
        print_error(refused.code, refused.message, refused.remedy, refused.faults)
        return refused.exit_code
    except RehostError as error:
        print_error(error.code, error.message, error.remedy)
        return error.exit_code
    except UsageError as error:
        print(f"rehost: {error}", file=sys.stderr)
        return _USAGE


if __name__ == "__main__":
    raise SystemExit(main())
