"""A job followed to the end of its run: a bar on a terminal, JSON lines everywhere else.

The lines are `{"type": "job.progress", "job_id", "status", "business_status", "progress", "eta_seconds",
"status_info"}`, one whenever one of these changes, and at last `{"type": "job.result", "job": {…}}`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from rehost.catalog.states import JobStatus
from rehost.cli.client import Client, Json, exit_code_of
from rehost.cli.output import plain, print_error, print_line
from rehost.errors import ApiUnreachable, RunCancelled

_SECONDS = 1.0  # between two looks
_SILENT_LOOKS = 60  # how many looks in a row the API may leave unanswered, while it is started anew
_SHOWN = ("status", "business_status", "progress", "eta_seconds", "status_info")


def watch(client: Client, job_id: str, *, as_json: bool) -> int:
    """Follow the job; its exit code: 0, that of the error it ended with, or 130 if it was stopped."""
    if as_json or not sys.stdout.isatty():
        job = _follow(client, job_id, _line_printer())
        print_line({"type": "job.result", "job": job})
    else:
        job = _follow_with_bar(client, job_id)
        print(f"{plain(job['status'])}: {plain(job['status_info'])} {plain(job['next_step'])}")
    return _exit_code(job)


def _follow(client: Client, job_id: str, show: Callable[[Json], None]) -> Json:
    silent = 0
    while True:
        try:
            job = client.get(f"/v1/jobs/{job_id}")
            silent = 0
        except ApiUnreachable:
            silent += 1
            if silent > _SILENT_LOOKS:
                raise
            time.sleep(_SECONDS)
            continue
        show(job)
        if not _goes_on(job):
            return job
        time.sleep(_SECONDS)


def _goes_on(job: Json) -> bool:
    """A run is under way, or a timed start is ahead."""
    if job["status"] == JobStatus.READY:
        return job["next_run_at"] is not None
    return bool(job["status"] == JobStatus.RUNNING)


def _line_printer() -> Callable[[Json], None]:
    last: Json = {}

    def show(job: Json) -> None:
        nonlocal last
        now = {name: job[name] for name in _SHOWN}
        if now != last:
            last = now
            print_line({"type": "job.progress", "job_id": job["id"], **now})

    return show


def _follow_with_bar(client: Client, job_id: str) -> Json:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(markup=False, highlight=False)) as progress:
        task = progress.add_task("", total=100)

        def show(job: Json) -> None:
            at = plain(job["business_status"] or job["status"])
            progress.update(task, completed=job["progress"], description=f"{plain(job['name'])}: {at}")

        return _follow(client, job_id, show)


def _exit_code(job: Json) -> int:
    if job["error"]:
        print_error(job["error"]["code"], job["error"]["message"], job["error"]["remedy"])
        return exit_code_of(job["error"]["code"])
    if job["status"] == JobStatus.STOPPED:
        return RunCancelled.exit_code
    return 0 if job["status"] in (JobStatus.FINISHED, JobStatus.WAITING, JobStatus.READY) else 1
