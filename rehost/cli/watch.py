"""A job followed to the end of its run: a bar on a terminal, JSON lines everywhere else.

The lines are `{"type": "job.progress", "job_id", …}` with what docs/cli.md names, one whenever something of it changes,
and at last `{"type": "job.result", "job": {…}}`. They come as the API's events; where these break off, because the API
is started anew or gives no more streams, the job is looked at until they are there again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from rehost.catalog.states import JobStatus
from rehost.catalog.watching import SHOWN, goes_on
from rehost.cli.client import Client, Json, Refused, exit_code_of
from rehost.cli.output import plain, print_error, print_line, size
from rehost.errors import ApiUnreachable, RunCancelled, StreamsTooMany

_SECONDS = 1.0  # between two looks
_SILENT_LOOKS = 60  # how many looks in a row the API may leave unanswered, while it is started anew


def watch(client: Client, job_id: str, *, as_json: bool) -> int:
    """Follow the job; its exit code: 0, that of the error it ended with, or 130 if it was stopped."""
    if as_json or not sys.stdout.isatty():
        job = follow(client, job_id, _line_printer(job_id))
        print_line({"type": "job.result", "job": job})
    else:
        job = _follow_with_bar(client, job_id)
        print(f"{plain(job['status'])}: {plain(job['status_info'])} {plain(job['next_step'])}")
    return _exit_code(job)


def follow(client: Client, job_id: str, show: Callable[[Json], None]) -> Json:
    """Tell `show` of the job whenever something shown may have changed, until it rests; the job then.

    Raises ApiUnreachable where nothing answers for a minute, and Refused.
    """
    silent, last_event_id = 0, None
    while True:
        try:
            for event in client.events(f"/v1/jobs/{job_id}/events", last_event_id):
                silent, last_event_id = 0, event.id
                if event.name == "progress":
                    show(event.data)
                elif event.name == "result":
                    return dict(event.data["job"])
        except ApiUnreachable:
            pass
        except Refused as refused:
            if refused.code != StreamsTooMany.code:
                raise
        try:
            job = client.get(f"/v1/jobs/{job_id}")
            silent = 0
        except ApiUnreachable:
            silent += 1
            if silent > _SILENT_LOOKS:
                raise
        else:
            show(job)
            if rests(job):
                return job
        time.sleep(_SECONDS)


def rests(job: Json) -> bool:
    """Whether there is nothing to wait for."""
    return not goes_on(job["status"], queued=bool(job.get("queued")), next_run_at=job["next_run_at"])


def _line_printer(job_id: str) -> Callable[[Json], None]:
    last: Json = {}

    def show(job: Json) -> None:
        nonlocal last
        now = {name: job.get(name) for name in SHOWN}
        if now != last:
            last = now
            print_line({"type": "job.progress", "job_id": job_id, **now})

    return show


def _follow_with_bar(client: Client, job_id: str) -> Json:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(markup=False),
        TextColumn("{task.fields[told]}", markup=False),
    )
    with Progress(*columns, console=Console(markup=False, highlight=False)) as progress:
        task = progress.add_task("", total=100, told="")

        def show(job: Json) -> None:
            at = "waits for its turn" if job.get("queued") else plain(job["business_status"] or job["status"])
            progress.update(task, completed=job["progress"], description=f"{plain(job['name'])}: {at}", told=told(job))

        return follow(client, job_id, show)


def told(job: Json) -> str:
    """Bytes, rate and time of a job, as much of it as is known."""
    parts = []
    if job.get("bytes_total"):
        parts.append(f"{size(job['bytes_done'])} of {size(job['bytes_total'])}")
    if job.get("bytes_per_second"):
        parts.append(f"{size(job['bytes_per_second'])}/s")
    if job.get("eta_seconds") is not None:
        parts.append(f"{timedelta(seconds=job['eta_seconds'])} left")
    return ", ".join(parts)


def _exit_code(job: Json) -> int:
    if job["error"]:
        print_error(job["error"]["code"], job["error"]["message"], job["error"]["remedy"])
        return exit_code_of(job["error"]["code"])
    if job["status"] == JobStatus.STOPPED:
        return RunCancelled.exit_code
    return 0 if job["status"] in (JobStatus.FINISHED, JobStatus.WAITING, JobStatus.READY) else 1
