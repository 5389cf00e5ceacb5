"""Many sources or jobs from a CSV file: sent as it is, and a line for each row of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rehost.cli.client import Client, Json
from rehost.cli.output import print_json, print_table, value_at
from rehost.cli.parsing import UsageError

_PARTIAL, _FAILED = 3, 1
_BESIDE = {"group", "verb", "command", "json", "from_file", "dry_run", "idempotency_key"}  # what goes with a file


def add_from(parser: argparse._ActionsContainer, what: str) -> None:
    """`--from`."""
    text = f"a {what} for each row of a CSV file (`-`: standard input); docs/csv.md has its columns"
    parser.add_argument("--from", dest="from_file", metavar="FILE", help=text)


def import_rows(client: Client, arguments: argparse.Namespace, what: str) -> int:
    """Send the file of `--from`, and print what became of each row; `what` is sources or jobs.

    The exit code: 0 where every row was taken, 3 where some were, 1 where none was. Raises UsageError.
    """
    given = {name for name, value in vars(arguments).items() if value is not None and value is not False}
    if others := sorted(given - _BESIDE):
        raise UsageError(f"--from says all of it: leave {', '.join(name.replace('_', '-') for name in others)} out")
    answer = client.upload(
        f"/v1/{what}/import",
        _content(arguments.from_file),
        "text/csv; charset=utf-8",
        key=arguments.idempotency_key,
        dry_run="true" if arguments.dry_run else None,
    )
    if arguments.json:
        print_json(answer)
    else:
        columns = ("ROW", "OUTCOME", "ID", "NAME", "WHAT")
        print_table(columns, [_line(item, what.removesuffix("s")) for item in answer["items"]])
        print(f"{answer['succeeded']} of {answer['total']} rows", file=sys.stderr)
    if not answer["failed"]:
        return 0
    return _PARTIAL if answer["succeeded"] else _FAILED


def _line(item: Json, what: str) -> tuple[object, ...]:
    made, error, plan = item.get(what) or {}, item["error"], item.get("plan")
    if error is not None:
        said = f"{error['code']}: {error['message']}"
    elif plan is not None:
        said = " ".join((f"{plan['hostname']}, {plan['bytes_to_read']} bytes to read.", *plan["warnings"]))
    else:
        said = value_at(made, "hostname") or value_at(made, "status") or ""
    return item["row"], item["outcome"], made.get("id", ""), made.get("name", ""), said


def _content(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
