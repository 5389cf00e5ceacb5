"""The states of a job, what leads from one to another, and what the user should do in each.

Ready ──start──▶ Running ──▶ Finished            (runs once)
                   │  └────▶ Waiting ──start──▶  (incremental)
                   ├───────▶ Stopped, InError ──start──▶ Running
Ready, Stopped, InError, Waiting ──▶ Expired;  any but Running ──▶ Deleting
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands."""

    READY = "Ready"
    RUNNING = "Running"
    FINISHED = "Finished"
    WAITING = "Waiting"
    STOPPED = "Stopped"
    IN_ERROR = "InError"
    EXPIRED = "Expired"
    DELETING = "Deleting"


class BusinessStatus(StrEnum):
    """What a running job is at, in this order."""

    PREPARING = "Preparing"
    SYNCING = "Syncing"
    PROCESSING = "Processing"
    CLEANING = "Cleaning"


class RunKind(StrEnum):
    """Why a run was started."""

    MANUAL = "manual"
    SCHEDULE = "schedule"
    CUT_OVER = "cut_over"


class RunStatus(StrEnum):
    """Where a run stands; pending and running are under way."""

    PENDING = "pending"  # asked for; the flow has not begun
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class SourceState(StrEnum):
    """Where a source stands; in_use is never stored, it follows from the jobs."""

    AVAILABLE = "available"
    IN_USE = "in_use"
    UNAVAILABLE = "unavailable"
    DELETING = "deleting"


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.READY: frozenset({JobStatus.RUNNING, JobStatus.EXPIRED, JobStatus.DELETING}),
    JobStatus.RUNNING: frozenset({JobStatus.FINISHED, JobStatus.WAITING, JobStatus.STOPPED, JobStatus.IN_ERROR}),
    JobStatus.WAITING: frozenset(
        {JobStatus.RUNNING, JobStatus.FINISHED, JobStatus.STOPPED, JobStatus.EXPIRED, JobStatus.DELETING}
    ),
    JobStatus.STOPPED: frozenset({JobStatus.RUNNING, JobStatus.EXPIRED, JobStatus.DELETING}),
    JobStatus.IN_ERROR: frozenset({JobStatus.RUNNING, JobStatus.EXPIRED, JobStatus.DELETING}),
    JobStatus.FINISHED: frozenset({JobStatus.DELETING}),
    JobStatus.EXPIRED: frozenset({JobStatus.DELETING}),
    JobStatus.DELETING: frozenset(),
}

UNDER_WAY = (RunStatus.PENDING, RunStatus.RUNNING)
ENDED = (JobStatus.FINISHED, JobStatus.EXPIRED, JobStatus.DELETING)
"""A job in any other state is unfinished: it holds its source and its image name."""


def leading_to(status: JobStatus) -> tuple[JobStatus, ...]:
    """The states from which that one can be reached, in the order of the table."""
    return tuple(origin for origin, targets in TRANSITIONS.items() if status in targets)


def startable(kind: RunKind) -> tuple[JobStatus, ...]:
    """The states in which a run of that kind may begin. What a user stopped, no schedule starts again."""
    origins = leading_to(JobStatus.RUNNING)
    return tuple(o for o in origins if o is not JobStatus.STOPPED) if kind is RunKind.SCHEDULE else origins


STATUS_INFO: dict[JobStatus, str] = {
    JobStatus.READY: "Nothing has run yet.",
    JobStatus.RUNNING: "A run is under way.",
    JobStatus.FINISHED: "The images exist and passed what was asked of them.",
    JobStatus.WAITING: "The last run succeeded; the next one is due by the schedule.",
    JobStatus.STOPPED: "The run was stopped; what had arrived is kept.",
    JobStatus.IN_ERROR: "The last run failed; what had arrived is kept.",
    JobStatus.EXPIRED: "The job's time is over.",
    JobStatus.DELETING: "The job is being removed.",
}

BUSINESS_INFO: dict[BusinessStatus, str] = {
    BusinessStatus.PREPARING: "The source is being checked.",
    BusinessStatus.SYNCING: "What the store lacks is being copied.",
    BusinessStatus.PROCESSING: "The images are being built and tested.",
    BusinessStatus.CLEANING: "What the run needed no longer is being removed.",
}

NEXT_STEP: dict[JobStatus, str] = {
    JobStatus.READY: "Start the job.",
    JobStatus.RUNNING: "Wait; `rehost job watch` shows the progress.",
    JobStatus.FINISHED: "Launch the image in its new place; the verification's report shows what was checked.",
    JobStatus.WAITING: "Start the job for one more sync, or wait for the schedule.",
    JobStatus.STOPPED: "Start the job again: it goes on from what arrived.",
    JobStatus.IN_ERROR: "Read `error.remedy`, then start the job again: it goes on from what arrived.",
    JobStatus.EXPIRED: "Make a new job for the source.",
    JobStatus.DELETING: "Nothing; the job is on its way out.",
}
NEXT_STEP_TIMED = "Nothing; the job starts by itself at `next_run_at`."
NEXT_STEP_STOPPING = "Wait until the run has stopped."
