"""What a job's state means to its user, in a sentence, and the one thing that is to be done now.

CASES is read from above: the first that fits a job speaks for it. docs/states.md shows the same list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rehost.catalog.queue import Wait
from rehost.catalog.states import BusinessStatus, JobStatus
from rehost.verification.report import Failure

DELETED_AFTER = timedelta(days=7)
"""How long an expired job is kept."""


@dataclass(frozen=True)
class Standing:
    """All that decides what is told of a job."""

    status: JobStatus
    stage: BusinessStatus | None = None
    queued: bool = False
    wait: Wait | None = None  # why a queued job has to wait; None: its turn has come
    stopping: bool = False
    next_run_at: datetime | None = None
    schedule_paused: bool = False
    start_lost: bool = False  # a start at a set time was asked for, and Prefect has none any more
    verifying: bool = False  # a test of an image is under way that a user asked for
    verification_failed: bool = False  # the newest test of an image failed
    error: Failure | None = None
    expired_at: datetime | None = None


@dataclass(frozen=True)
class Case:
    """One thing that can be said. `info` and `step` are templates over the names of `_facts`."""

    when: str
    fits: Callable[[Standing], bool]
    info: str
    step: str


def status_info(standing: Standing) -> str:
    """Where the job stands, for people."""
    return _case(standing).info.format_map(_facts(standing))


def next_step(standing: Standing) -> str:
    """The one thing that the user should do now."""
    return _case(standing).step.format_map(_facts(standing))


def _case(standing: Standing) -> Case:
    return next(case for case in CASES if case.fits(standing))


def _facts(standing: Standing) -> dict[str, str]:
    deleted_at = standing.expired_at and standing.expired_at + DELETED_AFTER
    remedy = standing.error.remedy if standing.error else "Look at the log of the run."
    if "start the job again" not in remedy.lower():  # most remedies end with it
        remedy += " Then start the job again: it goes on from what arrived."
    return {
        "next_run_at": _time(standing.next_run_at),
        "wait": str(standing.wait) if standing.wait else "it begins in a moment",
        "deleted_at": _time(deleted_at),
        "error": standing.error.message if standing.error else "The last run failed.",
        "remedy": remedy,
    }


def _time(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "a time that is not known"


def _at(status: JobStatus, stage: BusinessStatus | None = None) -> Callable[[Standing], bool]:
    return lambda one: one.status is status and (stage is None or one.stage is stage)


_WATCH = "Wait; `rehost job watch` shows the progress."

CASES: tuple[Case, ...] = (
    Case("Deleting", _at(JobStatus.DELETING), "The job is being removed.", "Nothing; the job is on its way out."),
    Case(
        "Expired",
        _at(JobStatus.EXPIRED),
        "The job's time is over; it is removed at {deleted_at}.",
        "Make a new job for the source; this one goes by itself.",
    ),
    Case(
        "`queued`",
        lambda one: one.queued,
        "Waits for its turn: {wait}.",
        "Nothing; it starts by itself when another one ends. `rehost job stop` takes it out of the queue.",
    ),
    Case(
        "Running, a stop was asked for",
        lambda one: one.status is JobStatus.RUNNING and one.stopping,
        "The run is being stopped.",
        "Wait until the run has stopped.",
    ),
    Case(
        "Running, Preparing", _at(JobStatus.RUNNING, BusinessStatus.PREPARING), "The source is being checked.", _WATCH
    ),
    Case(
        "Running, Syncing",
        _at(JobStatus.RUNNING, BusinessStatus.SYNCING),
        "What the store lacks is being copied.",
        _WATCH,
    ),
    Case(
        "Running, Processing",
        _at(JobStatus.RUNNING, BusinessStatus.PROCESSING),
        "The images are being built and tested.",
        _WATCH,
    ),
    Case("Running, Cleaning", _at(JobStatus.RUNNING), "What the run needed no longer is being removed.", _WATCH),
    Case(
        "Ready, a timed start is ahead",
        lambda one: one.status is JobStatus.READY and one.next_run_at is not None,
        "Nothing has run yet; the first run starts at {next_run_at}.",
        "Nothing; the job starts by itself at {next_run_at}.",
    ),
    Case(
        "Ready, its timed start is gone",
        lambda one: one.status is JobStatus.READY and one.start_lost,
        "Nothing has run yet; the start that was set was taken away in Prefect, or came to nothing there.",
        "Start the job.",
    ),
    Case("Ready", _at(JobStatus.READY), "Nothing has run yet.", "Start the job."),
    Case(
        "InError, and a schedule goes on",
        lambda one: one.status is JobStatus.IN_ERROR and one.next_run_at is not None and not one.schedule_paused,
        "{error}",
        "{remedy} If you do not, the schedule tries again at {next_run_at}.",
    ),
    Case("InError", _at(JobStatus.IN_ERROR), "{error}", "{remedy}"),
    Case(
        "Stopped",
        _at(JobStatus.STOPPED),
        "The run was stopped; what had arrived is kept.",
        "Start the job again: it goes on from what arrived.",
    ),
    Case(
        "Waiting or Finished, an image is being tested",
        lambda one: one.verifying,
        "The images of the last run are being tested again.",
        "Wait until the test has ended; `latest_verification` tells its outcome.",
    ),
    Case(
        "Finished, the newest test failed",
        lambda one: one.status is JobStatus.FINISHED and one.verification_failed,
        "The images exist; the newest test of one failed.",
        "Read the verification's report, then verify the job again, or make a new job for the source.",
    ),
    Case(
        "Finished",
        _at(JobStatus.FINISHED),
        "The images exist and passed what was asked of them.",
        "Launch the image in its new place; the verification's report shows what was checked.",
    ),
    Case(
        "Waiting, the newest test failed",
        lambda one: one.verification_failed,
        "The last run succeeded; the newest test of its images failed.",
        "Read the verification's report, then start the job for a new image.",
    ),
    Case(
        "Waiting, its schedule is paused",
        lambda one: one.schedule_paused,
        "The last run succeeded; the schedule is paused.",
        "Resume the schedule in the Prefect UI, or start the job for one more sync; cut over when the server moves.",
    ),
    Case(
        "Waiting",
        lambda one: one.next_run_at is not None,
        "The last run succeeded; the next one is due at {next_run_at}.",
        "Nothing; or start the job for one more sync. Cut over when the server moves.",
    ),
    Case(
        "Waiting, without a schedule",
        lambda one: True,
        "The last run succeeded; no schedule is registered.",
        "Start the job for one more sync, which registers its schedule; cut over when the server moves.",
    ),
)
