"""What the templates show, made of the catalog's records by pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rehost.catalog.records import Job, Run, Source
from rehost.catalog.states import RULES, USER_ACTIONS, Action, BusinessStatus, JobStatus, RunStatus, SourceState
from rehost.catalog.watching import goes_on
from rehost.source.connect import DiskConnection, PathConnection, SshConnection
from rehost.source.inventory import Disk

TONES: Mapping[str, str] = {
    JobStatus.READY: "idle",
    JobStatus.RUNNING: "busy",
    JobStatus.FINISHED: "good",
    JobStatus.WAITING: "good",
    JobStatus.STOPPED: "warn",
    JobStatus.IN_ERROR: "bad",
    JobStatus.EXPIRED: "idle",
    JobStatus.DELETING: "idle",
    SourceState.AVAILABLE: "good",
    SourceState.IN_USE: "busy",
    SourceState.UNAVAILABLE: "bad",
    RunStatus.PENDING: "idle",
    RunStatus.RUNNING: "busy",
    RunStatus.STOPPED: "warn",
    RunStatus.SUCCEEDED: "good",
    RunStatus.FAILED: "bad",
    # those of a verification's checks
    "passed": "good",
    "skipped": "idle",
}
"""The tone of each state's badge; what is not here is idle."""

STAGES = tuple(BusinessStatus)
_LEAST_SHARE = 0.012  # of a disk's drawing, so that a small partition can be seen


@dataclass(frozen=True)
class Option:
    """A box that goes with a button."""

    name: str
    label: str


@dataclass(frozen=True)
class Button:
    """A button of a job: what it does, and why it cannot be pressed where it cannot."""

    name: str
    label: str
    scope: str  # that the visitor's key needs
    confirm: bool = False  # a page asks before it is done
    danger: bool = False
    options: tuple[Option, ...] = ()
    reason: str | None = None  # None: it may be pressed
    consequence: str = ""  # what the page that asks says


_SYNC = Option("sync", "One last sync first: what was written since the last run comes too.")
_IMAGES = Option("images", "Its images go too.")
_SHAPES: Mapping[Action, tuple[str, bool, bool, tuple[Option, ...]]] = {
    Action.START: ("run", False, False, ()),
    Action.STOP: ("run", True, True, ()),
    Action.VERIFY: ("run", True, False, ()),
    Action.CUT_OVER: ("run", True, False, (_SYNC,)),
    Action.DELETE: ("admin", True, True, (_IMAGES,)),
}
"""Of each button: the scope it needs, whether a page asks first, whether it is red, and its boxes."""


@dataclass(frozen=True)
class Piece:
    """A partition in the drawing of its disk, in thousandths of the disk's length."""

    x: float
    width: float
    used: float
    label: str


@dataclass(frozen=True)
class DiskDrawing:
    """A disk as bars."""

    disk: Disk
    pieces: tuple[Piece, ...]


def scope_of(action: Action) -> str:
    """The scope that a key needs for that button."""
    return _SHAPES[action][0]


def actions(job: Job) -> tuple[Button, ...]:
    """The buttons of a job in the order in which they are shown."""
    return tuple(
        Button(
            action, _label(job, action), *_SHAPES[action], reason=why_not(job, action), consequence=_then(job, action)
        )
        for action in USER_ACTIONS
    )


def why_not(job: Job, action: Action) -> str | None:
    """Why the job cannot have that action now; None: it can."""
    if job.queued and action is Action.START:
        return "while the job waits for its turn"
    rule = RULES[action]
    if (job.queued and action is Action.STOP) or rule.allows(job.status, job.business_status):
        return None
    if job.status is JobStatus.RUNNING and job.status in rule.origins:
        stages = ", ".join(rule.stages)
        return f"not in the stage {job.business_status or 'before the first one'}; it is possible in {stages}"
    return f"not while the job is {job.status}; it is possible in {', '.join(rule.origins)}"


def _label(job: Job, action: Action) -> str:
    if action is Action.START:
        again = job.status in (JobStatus.STOPPED, JobStatus.IN_ERROR)
        return "Start again" if again else "Sync now" if job.status is JobStatus.WAITING else "Start"
    return {Action.STOP: "Stop", Action.VERIFY: "Verify", Action.CUT_OVER: "Cut over", Action.DELETE: "Delete"}[action]


def _then(job: Job, action: Action) -> str:
    if action is Action.STOP and job.status is JobStatus.WAITING:
        return "The schedule goes; nothing runs until somebody starts the job again."
    if action is Action.DELETE:
        return "Its record, its runs and verifications, its schedule and its change tracker go. Its images stay."
    return RULES[action].then


def is_under_way(job: Job) -> bool:
    """Whether the page of the job changes by itself."""
    return goes_on(job.status, queued=job.queued, next_run_at=job.next_run_at)


def reached(connection: SshConnection | PathConnection | DiskConnection) -> str:
    """How a source is reached, in one line."""
    if isinstance(connection, SshConnection):
        host = f"[{connection.host}]" if ":" in connection.host else connection.host
        return f"{connection.user}@{host}" + ("" if connection.port == 22 else f":{connection.port}")
    return connection.root if isinstance(connection, PathConnection) else ", ".join(connection.disks)


def drawing(disk: Disk) -> DiskDrawing:
    """The disk with its partitions in their places; each is wide enough to be seen."""
    whole = max(disk.size_bytes, *(p.start + p.size_bytes for p in disk.partitions), 1)
    pieces = []
    end = 0.0
    for partition in sorted(disk.partitions, key=lambda p: p.start):
        x = max(1000 * partition.start / whole, end)
        width = max(1000 * partition.size_bytes / whole, 1000 * _LEAST_SHARE)
        width = max(min(width, 1000 - x), 0.0)
        share = min((partition.used_bytes or 0) / max(partition.size_bytes, 1), 1.0)
        place = partition.mount_point or partition.filesystem or "no filesystem"
        pieces.append(Piece(round(x, 2), round(width, 2), round(width * share, 2), f"{partition.device} {place}"))
        end = x + width
    return DiskDrawing(disk, tuple(pieces))


def drawings(source: Source) -> tuple[DiskDrawing, ...]:
    """All disks of a source."""
    return tuple(drawing(disk) for disk in source.inventory.disks)


def target_disks(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The disks that an image.json tells of, with the places where their files are left out."""
    return [disk for disk in facts.get("disks") or [] if isinstance(disk, dict)]


def run_seconds(run: Run) -> float | None:
    """How long a run took."""
    if run.started_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.started_at).total_seconds()


def repeats(job: Job) -> str:
    """When the job runs, in words."""
    rule = job.incremental
    if rule is None:
        return "once"
    if rule.cron is not None:
        return f"by cron {rule.cron} ({rule.timezone or 'UTC'})"
    return "every hour" if rule.interval_hours == 1 else f"every {rule.interval_hours} hours"


def asked_for(job: Job) -> str:
    """What the job makes, in words."""
    made = []
    if job.targets.image is not None:
        made.append(f"disk image ({', '.join(job.targets.image.formats)})")
    if (container := job.targets.container_image) is not None:
        made.append(f"container image {container.namespace}/{container.repository}:{container.tag}")
    return " and ".join(made)
