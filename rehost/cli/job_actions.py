"""`rehost job verify`, `cut-over` and `delete`: what follows the first image.

With `--watch` and `--json` a verification prints lines: `{"type": "verification.progress", "id", "subject", "status"}`,
one whenever that changes, and at last `{"type": "verification.result", "verifications": […]}`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from rehost.catalog.states import TESTED_NOW
from rehost.cli.client import Client, Json, exit_code_of
from rehost.cli.output import plain, print_error, print_json, print_line
from rehost.cli.parsing import UsageError, add_common, add_id
from rehost.cli.watch import watch
from rehost.errors import ApiUnreachable, VerificationError

_SECONDS = 1.0  # between two looks
_SILENT_LOOKS = 60  # how many looks in a row the API may leave unanswered, while it is started anew

Show = Callable[[Json, argparse.Namespace], None]


def add_actions(verbs: Any, show: Show) -> None:
    """The verbs; `show` prints a job."""
    verify = verbs.add_parser("verify", help="test the newest images again")
    add_id(verify)
    verify.add_argument("--watch", action="store_true", help="wait for the outcome")
    add_common(verify, lambda client, arguments: _verify(client, arguments, show))

    cut_over = verbs.add_parser("cut-over", help="the server moves: finish an incremental job, and end its schedule")
    add_id(cut_over)
    cut_over.add_argument("--sync", action="store_true", help="one last run first")
    cut_over.add_argument("--watch", action="store_true", help="follow the last run to its end")
    add_common(cut_over, lambda client, arguments: _cut_over(client, arguments, show))

    delete = verbs.add_parser("delete", help="remove a job; its images stay")
    add_id(delete)
    delete.add_argument("--images", action="store_true", help="its images too")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    add_common(delete, _delete)


def _verify(client: Client, arguments: argparse.Namespace, show: Show) -> int:
    job = client.post(f"/v1/jobs/{arguments.id}/verify")
    if not arguments.watch:
        show(job, arguments)
        return 0
    first = client.get(f"/v1/verifications/{job['latest_verification']['id']}")
    tests = _follow(client, job["id"], first, as_json=arguments.json)
    if arguments.json:
        print_line({"type": "verification.result", "verifications": tests})
    for test in tests:
        if error := test["error"]:
            print_error(error["code"], f"{test['subject']}: {error['message']}", error["remedy"])
    failed = [test for test in tests if test["status"] == "failed"]
    if not failed:
        return 0
    return exit_code_of(failed[0]["error"]["code"]) if failed[0]["error"] else VerificationError.exit_code


def _follow(client: Client, job_id: str, first: Json, *, as_json: bool) -> list[Json]:
    """The tests that were asked for together with that one, once all of them have ended."""
    told: dict[str, str] = {}
    silent = 0
    while True:
        try:
            found = client.get(f"/v1/jobs/{job_id}/verifications", limit=50)["items"]
            silent = 0
        except ApiUnreachable:
            silent += 1
            if silent > _SILENT_LOOKS:
                raise
            time.sleep(_SECONDS)
            continue
        tests = [one for one in found if one["id"] == first["id"] or one["flow_run_id"] == first["flow_run_id"]]
        for test in tests:
            if told.get(test["id"]) != test["status"]:
                told[test["id"]] = test["status"]
                if as_json:
                    print_line({"type": "verification.progress", **{k: test[k] for k in ("id", "subject", "status")}})
                else:
                    print(f"{plain(test['subject'])}: {plain(test['status'])}", flush=True)
        if not any(test["status"] in TESTED_NOW for test in tests):
            return tests
        time.sleep(_SECONDS)


def _cut_over(client: Client, arguments: argparse.Namespace, show: Show) -> int:
    job = client.post(f"/v1/jobs/{arguments.id}/cut-over", {"sync": arguments.sync})
    if arguments.watch and arguments.sync:
        return watch(client, job["id"], as_json=arguments.json)
    show(job, arguments)
    return 0


def _delete(client: Client, arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        _ask_whether(f"Delete job {arguments.id}{' and its images' if arguments.images else ''}?")
    client.delete(f"/v1/jobs/{arguments.id}", images="true" if arguments.images else None)
    if arguments.json:
        print_json({"id": arguments.id, "deleted": True})
    return 0


def _ask_whether(question: str) -> None:
    """Raises UsageError unless a person on a terminal says yes."""
    if not sys.stdin.isatty():
        raise UsageError("what is deleted does not come back: give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was deleted")
