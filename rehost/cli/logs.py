"""`rehost job logs`: what a run said, oldest first; text for people, a JSON document a line for programs.

With `--follow` until the job rests. The end of a log is read again each time, and what was printed is not printed
twice: a line that reached Prefect late is not lost.
"""

from __future__ import annotations

import argparse
import time
from datetime import datetime

from rehost.catalog.log_entries import LogLevel
from rehost.cli.client import Client, Json
from rehost.cli.output import plain, print_line
from rehost.cli.parsing import UsageError
from rehost.cli.watch import rests
from rehost.errors import ApiUnreachable

_SECONDS = 2.0  # between two looks; Prefect gets what a run says about as often
_SILENT_LOOKS = 30
_PAGE = 50
_LATE_LOOKS = 2  # after the job has rested: what its run said last is still on its way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is wanted of the log."""
    parser.add_argument("--run", metavar="ID", help="of this run or verification; default: of the newest run")
    parser.add_argument("--level", choices=[level.value for level in LogLevel], default="info", help="and all above")
    parser.add_argument("--follow", action="store_true", help="until the job rests")


def logs(client: Client, arguments: argparse.Namespace) -> int:
    """Print the log. Exit code 0."""
    printed = _Printed(as_json=arguments.json)
    if not arguments.follow:
        run_id = arguments.run or _newest_run(client, arguments.id)
        if run_id is None:
            raise UsageError("the job has no runs yet; `--follow` waits for one")
        _print_new(client, arguments, run_id, printed)
        return 0
    silent = late = 0
    while True:
        try:
            job = client.get(f"/v1/jobs/{arguments.id}")
            run_id = arguments.run or _newest_run(client, arguments.id)
            if run_id is not None:
                _print_new(client, arguments, run_id, printed)
            silent = 0
            late = late + 1 if rests(job) else 0
            if late > _LATE_LOOKS:
                return 0
        except ApiUnreachable:
            silent += 1
            if silent > _SILENT_LOOKS:
                raise
        time.sleep(_SECONDS)


class _Printed:
    """What was printed of one run, and from where on its end is read again."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.run_id: str | None = None
        self.start: str | None = None  # the cursor of the last page but one
        self._ids: set[str] = set()

    def begin(self, run_id: str) -> None:
        if run_id != self.run_id:
            self.run_id, self.start, self._ids = run_id, None, set()

    def show(self, entry: Json) -> None:
        if entry["id"] in self._ids:
            return
        self._ids.add(entry["id"])
        if self._as_json:
            print_line(entry)
        else:
            print(line_of(entry), flush=True)


def _print_new(client: Client, arguments: argparse.Namespace, run_id: str, printed: _Printed) -> None:
    printed.begin(run_id)
    before = cursor = printed.start
    while True:
        page = client.get(
            f"/v1/jobs/{arguments.id}/logs",
            run_id=run_id,
            level=arguments.level,
            order="oldest",
            limit=_PAGE,
            cursor=cursor,
        )
        for entry in page["items"]:
            printed.show(entry)
        if page["next_cursor"] is None:
            printed.start = before
            return
        before, cursor = cursor, page["next_cursor"]


def _newest_run(client: Client, job_id: str) -> str | None:
    items = client.get(f"/v1/jobs/{job_id}/runs", limit=1)["items"]
    return str(items[0]["id"]) if items else None


def line_of(entry: Json) -> str:
    """An entry for people: local time, level, stage, message; further lines of a message are set in."""
    at = datetime.fromisoformat(entry["time"]).astimezone()
    first, *further = str(entry["message"]).split("\n") or [""]
    head = f"{at:%Y-%m-%d %H:%M:%S} {plain(entry['level']):<8} {plain(entry['stage'] or '-'):<16} {_shown(first)}"
    return "\n".join([head, *(f"    {_shown(line)}" for line in further)])


def _shown(text: str) -> str:
    return plain(text.replace("\t", "    "))
