"""`rehost job start` and `stop` with several ids: an answer for each, and exit code 3 where some were refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rehost.cli.client import Client, Json, exit_code_of
from rehost.cli.output import plain, print_json, print_table

_AT_ONCE = 50  # jobs in one request
_PARTIAL = 3


def add_ids(parser: argparse.ArgumentParser) -> None:
    """Which ones."""
    parser.add_argument("ids", metavar="ID", nargs="+")


def together(client: Client, ids: Sequence[str], verb: str, *, as_json: bool) -> int:
    """Start or stop these jobs; the exit code: 0, 3 where some were refused, that of the first error where all were."""
    wanted = list(dict.fromkeys(ids))
    items: list[Json] = []
    for first in range(0, len(wanted), _AT_ONCE):
        items += client.post(f"/v1/jobs/{verb}", {"job_ids": wanted[first : first + _AT_ONCE]})["items"]
    if as_json:
        print_json({"items": items})
    else:
        print_table(("ID", "STATUS", ""), [_row(item) for item in items])
    refused = [item["error"]["code"] for item in items if not item["ok"]]
    if not refused:
        return 0
    return exit_code_of(refused[0]) if len(refused) == len(items) else _PARTIAL


def _row(item: Json) -> tuple[str, str, str]:
    if not item["ok"]:
        return item["job_id"], "refused", f"{item['error']['code']}: {plain(item['error']['detail'])}"
    return item["job_id"], str(item["job"]["status"]), plain(item["job"]["status_info"])
