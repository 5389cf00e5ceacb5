"""What the commands share in their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TypeAlias
from urllib.parse import quote

from rehost.cli.client import Client

Groups: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command = Callable[[Client, argparse.Namespace], int]


class UsageError(Exception):
    """Arguments that argparse could not judge; exit code 2."""


def add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    """What every command has: `--json`, and the function that does it."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)


def add_id(parser: argparse.ArgumentParser) -> None:
    """Which one; whatever it is, it is one part of an address."""
    parser.add_argument("id", metavar="ID", type=quoted)


def quoted(id: str) -> str:
    """An id as one part of an address, whatever is in it."""
    return quote(id, safe="")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Which piece of a list."""
    parser.add_argument("--limit", type=int, metavar="N", help="1 to 50; default 10")
    parser.add_argument("--cursor", help="where the page before ended")


def add_key(parser: argparse.ArgumentParser) -> None:
    """For scripts that may have to send a request again."""
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same request with the same key makes one thing")


def tags_of(texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE, each. Raises UsageError."""
    tags: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--tag {text}: is KEY=VALUE")
        tags[key] = value
    return tags
