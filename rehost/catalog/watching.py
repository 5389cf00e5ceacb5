"""What those who follow a job are shown, and until when."""

from __future__ import annotations

from typing import Any

from rehost.catalog.records import Job
from rehost.catalog.states import JobStatus

SHOWN: tuple[str, ...] = tuple(
    name
    for name in (
        "name",
        "status",
        "business_status",
        "queued",
        "progress",
        "eta_seconds",
        "bytes_done",
        "bytes_total",
        "bytes_per_second",
        "status_info",
        "next_step",
    )
    if name in Job.model_fields
)


def shown(job: Job) -> dict[str, Any]:
    """What changes while a job is followed, as JSON."""
    return job.model_dump(mode="json", include=set(SHOWN))


def goes_on(status: str, *, queued: bool, next_run_at: object) -> bool:
    """Whether there is something to wait for: a run is under way, waits for its turn, or its first time is ahead."""
    if status == JobStatus.READY and next_run_at is not None:
        return True
    return queued or status == JobStatus.RUNNING
