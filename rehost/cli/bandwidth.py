"""Bandwidth on the command line: a limit, and windows in which another one counts."""

from __future__ import annotations

import argparse
from typing import Any

from rehost.cli.client import Json
from rehost.cli.parsing import UsageError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def add_bandwidth(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """The options for it."""
    parser.add_argument("--bandwidth-limit-kbps", type=int, metavar="N", help="KB/s; 0: no limit")
    parser.add_argument(
        "--bandwidth-window",
        action="append",
        metavar="'[DAYS] FROM-TO KBPS'",
        help="another limit in these hours, such as 'mon-fri 08:00-18:00 2000'; several",
    )
    parser.add_argument("--bandwidth-timezone", metavar="ZONE", help="of the windows' clock; default UTC")


def bandwidth_of(arguments: argparse.Namespace) -> Json:
    """The fields of `replication` that these arguments set. Raises UsageError."""
    fields = {
        "bandwidth_limit_kbps": arguments.bandwidth_limit_kbps,
        "bandwidth_calendar": [_window(text) for text in arguments.bandwidth_window]
        if arguments.bandwidth_window
        else None,
        "bandwidth_timezone": arguments.bandwidth_timezone,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _window(text: str) -> dict[str, Any]:
    match text.split():
        case [hours, kbps]:
            days: tuple[str, ...] = ()
        case [named, hours, kbps]:
            days = tuple(day for part in named.lower().split(",") for day in _days(part, text))
        case _:
            raise UsageError(f"--bandwidth-window {text!r}: is [DAYS] FROM-TO KBPS")
    begin, dash, end = hours.partition("-")
    if not dash or not (kbps.isascii() and kbps.isdigit()):
        raise UsageError(f"--bandwidth-window {text!r}: is [DAYS] FROM-TO KBPS")
    return {**({"days": list(days)} if days else {}), "from": begin, "to": end, "limit_kbps": int(kbps)}


def _days(part: str, text: str) -> tuple[str, ...]:
    first, _, last = part.partition("-")
    try:
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
    except ValueError:
        raise UsageError(f"--bandwidth-window {text!r}: days are {', '.join(_DAYS)}, or mon-fri") from None
    return _DAYS[begin : end + 1] if begin <= end else _DAYS[begin:] + _DAYS[: end + 1]
