"""The states of a job, and the one table of what may be done in each and where it leads.

All else is made from that table: TRANSITIONS, the compare-and-set updates of the catalog, the refusals of the API, the
page docs/states.md and the tests that walk every pair of state and action.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from rehost.errors import JobInvalidBusinessStatus, JobInvalidStatus


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


class VerificationStatus(StrEnum):
    """Where a test of an image stands; pending and running are under way."""

    PENDING = "pending"  # asked for; its flow has not come to it
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class SourceState(StrEnum):
    """Where a source stands; in_use is never stored, it follows from the jobs."""

    AVAILABLE = "available"
    IN_USE = "in_use"
    UNAVAILABLE = "unavailable"
    DELETING = "deleting"


class Action(StrEnum):
    """What happens to a job: the first five because a user asks for it, the others by themselves."""

    START = "start"
    STOP = "stop"
    VERIFY = "verify"
    CUT_OVER = "cut-over"
    DELETE = "delete"
    SCHEDULED = "a scheduled run"
    FINISH = "the end of a run that succeeded"
    FAIL = "the end of a run that failed"
    CANCEL = "the end of a run that was cancelled"
    EXPIRE = "expiry"


@dataclass(frozen=True)
class Rule:
    """When one action is allowed, and where it leads."""

    origins: tuple[JobStatus, ...]
    targets: tuple[JobStatus, ...]  # empty: the job's state stays as it is
    then: str
    stages: tuple[BusinessStatus, ...] = tuple(BusinessStatus)  # of a job that is Running

    def allows(self, status: JobStatus, stage: BusinessStatus | None = None) -> bool:
        """Whether a job that stands there may have it."""
        return status in self.origins and (status is not JobStatus.RUNNING or stage in self.stages)


_S = JobStatus
RULES = MappingProxyType(
    {
        Action.START: Rule(
            (_S.READY, _S.STOPPED, _S.IN_ERROR, _S.WAITING),
            (_S.RUNNING,),
            "A run begins; it goes on from what already arrived. Where the region runs as many jobs as it may, the job "
            "keeps its state and is `queued`.",
        ),
        Action.STOP: Rule(
            (_S.RUNNING, _S.WAITING),
            (_S.STOPPED,),
            "What arrived is kept; the schedule goes. A running job is `Stopped` when the programs of its run have "
            "ended.",
            (BusinessStatus.SYNCING,),
        ),
        Action.VERIFY: Rule(
            (_S.WAITING, _S.FINISHED), (), "The images of the newest run that succeeded are tested again."
        ),
        Action.CUT_OVER: Rule(
            (_S.WAITING,),
            (_S.FINISHED, _S.RUNNING),
            "The job is `Finished` and its schedule goes. With `sync` a last run comes first: it is `Running` "
            "meanwhile.",
        ),
        Action.DELETE: Rule(
            (_S.READY, _S.WAITING, _S.STOPPED, _S.IN_ERROR, _S.FINISHED, _S.EXPIRED, _S.DELETING),
            (_S.DELETING,),
            "Schedule, change tracker and record go; images stay unless `images=true` says otherwise.",
        ),
        Action.SCHEDULED: Rule(
            (_S.READY, _S.IN_ERROR, _S.WAITING), (_S.RUNNING,), "What a user stopped, no schedule starts again."
        ),
        Action.FINISH: Rule(
            (_S.RUNNING,),
            (_S.FINISHED, _S.WAITING, _S.STOPPED),
            "An incremental job waits for its next run, unless this one was its cut-over; where a stop came too late "
            "for the run it is `Stopped`.",
        ),
        Action.FAIL: Rule(
            (_S.RUNNING,), (_S.IN_ERROR,), "`error` says why; what arrived is kept, and so is the schedule."
        ),
        Action.CANCEL: Rule((_S.RUNNING,), (_S.STOPPED,), "A user asked for it, here or in the Prefect UI."),
        Action.EXPIRE: Rule(
            (_S.READY, _S.STOPPED, _S.IN_ERROR, _S.WAITING),
            (_S.EXPIRED,),
            "At `valid_until`; the schedule goes. A queued job is left alone. Seven days later the job is deleted.",
        ),
    }
)

USER_ACTIONS = (Action.START, Action.STOP, Action.VERIFY, Action.CUT_OVER, Action.DELETE)

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    status: frozenset(
        target for rule in RULES.values() if status in rule.origins for target in rule.targets if target is not status
    )
    for status in JobStatus
}

UNDER_WAY = (RunStatus.PENDING, RunStatus.RUNNING)
TESTED_NOW = (VerificationStatus.PENDING, VerificationStatus.RUNNING)
ENDED = (JobStatus.FINISHED, JobStatus.EXPIRED, JobStatus.DELETING)
"""A job in any other state is unfinished: it holds its source and its image name."""

_BEGUN_BY = {RunKind.MANUAL: Action.START, RunKind.SCHEDULE: Action.SCHEDULED, RunKind.CUT_OVER: Action.CUT_OVER}


def leading_to(status: JobStatus) -> tuple[JobStatus, ...]:
    """The states from which that one can be reached, in the order of the table."""
    return tuple(origin for origin, targets in TRANSITIONS.items() if status in targets)


def startable(kind: RunKind) -> tuple[JobStatus, ...]:
    """The states in which a run of that kind may begin."""
    return RULES[_BEGUN_BY[kind]].origins


def invalid_status(id: str, status: str, action: str, allowed: Iterable[JobStatus]) -> JobInvalidStatus:
    """The refusal of an action in that state."""
    return JobInvalidStatus(id=id, status=status, action=action, allowed=", ".join(allowed))


def check_action(id: str, action: Action, status: str, stage: str | None) -> None:
    """Whether the job may have that action now. Raises JobInvalidStatus, JobInvalidBusinessStatus."""
    rule = RULES[action]
    if status not in rule.origins:
        raise invalid_status(id, status, action, rule.origins)
    if status == JobStatus.RUNNING and stage not in rule.stages:
        raise JobInvalidBusinessStatus(id=id, business_status=stage, action=action, allowed=", ".join(rule.stages))
