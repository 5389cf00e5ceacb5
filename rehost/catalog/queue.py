"""Whose turn it is: how many jobs run at once, and who waits for one of them to end.

A run that finds no free place is pending in the catalog while its job keeps the status that it had: the job is queued.
Places are counted and given in one transaction that no other one can be inside of, oldest first; a run that has to wait
for its region or its batch holds up nobody who does not. Who gives them is in admission.py and runs.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rehost.catalog.job import JobSpec
from rehost.catalog.states import UNDER_WAY, JobStatus
from rehost.catalog.tables import JobRow, RunRow
from rehost.settings import Settings

BATCH_AT_ONCE = 10
BATCH_AT_ONCE_IN_A_VSWITCH = 100
_QUEUE_LOCK = 0x5245_484F_5155  # PostgreSQL's advisory lock of whoever counts and gives places: "REHOQU"


@dataclass(frozen=True)
class Place:
    """A run that has a place or wants one."""

    run_id: str
    job_id: str
    region_id: str
    batched: bool  # it was started together with others
    in_vswitch: bool

    def groups(self, region_limit: Callable[[str], int]) -> dict[tuple[str, str], int]:
        """What it counts in, and how many of that may run at once."""
        found = {("region", self.region_id): region_limit(self.region_id)}
        if self.batched and self.in_vswitch:
            found["batch", "vswitch"] = BATCH_AT_ONCE_IN_A_VSWITCH
        elif self.batched:
            found["batch", ""] = BATCH_AT_ONCE
        return found


@dataclass(frozen=True)
class Wait:
    """Why a run has to wait."""

    position: int  # in its region's queue, from 1
    limit: int
    of_batch: bool  # the limit is that of jobs that were started together, else the region's

    def __str__(self) -> str:
        """For people, in `status_info`."""
        whose = "jobs started together" if self.of_batch else "jobs of the region"
        return f"number {self.position} in the queue; {self.limit} {whose} run at once"


def waits(
    waiting: Sequence[Place], running: Sequence[Place], region_limit: Callable[[str], int]
) -> dict[str, Wait | None]:
    """For each waiting run, in their order, why it has to wait; None: it is its turn."""
    taken: Counter[tuple[str, str]] = Counter()
    for place in running:
        taken.update(place.groups(region_limit).keys())
    behind: Counter[str] = Counter()
    found: dict[str, Wait | None] = {}
    for place in waiting:
        groups = place.groups(region_limit)
        full = next(((group, limit) for group, limit in groups.items() if taken[group] >= limit), None)
        if full is None:
            taken.update(groups.keys())
            found[place.run_id] = None
            continue
        behind[place.region_id] += 1
        (kind, _), limit = full
        found[place.run_id] = Wait(behind[place.region_id], limit, kind == "batch")
    return found


def lock_queue(session: Session) -> None:
    """Nobody else counts or gives places until this transaction ends. SQLite's writers are alone anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_QUEUE_LOCK)))


def turns(session: Session, settings: Settings) -> list[str]:
    """The waiting runs that may begin now, all of them together, oldest first. The queue is locked."""
    waiting, running = _places(session)
    return [id for id, wait in waits(waiting, running, _limit_of(settings)).items() if wait is None]


def queued_jobs(session: Session, ids: Sequence[str]) -> set[str]:
    """Which of these jobs have a run that waits for its turn: it is under way, and its job has not moved to Running."""
    waiting = (
        select(RunRow.job_id)
        .join(JobRow, JobRow.id == RunRow.job_id)
        .where(RunRow.job_id.in_(ids), RunRow.status.in_(UNDER_WAY), JobRow.status != JobStatus.RUNNING)
    )
    return set(session.scalars(waiting))


def queued(session: Session, settings: Settings, ids: Sequence[str]) -> dict[str, Wait | None]:
    """Those of these jobs that are queued, and what each waits for; None: its turn has come, and it begins soon."""
    asked = queued_jobs(session, ids)
    if not asked:
        return {}
    waiting, running = _places(session)
    found = waits(waiting, running, _limit_of(settings))
    return {place.job_id: found[place.run_id] for place in waiting if place.job_id in asked}


def _limit_of(settings: Settings) -> Callable[[str], int]:
    def limit(region_id: str) -> int:
        region = settings.region(region_id)
        return region.max_running_jobs if region is not None else 0  # it is configured no more: none may begin

    return limit


def _places(session: Session) -> tuple[list[Place], list[Place]]:
    """Who waits, oldest first, and who runs."""
    waiting: list[Place] = []
    running: list[Place] = []
    rows = session.execute(
        select(RunRow.id, RunRow.batch_id, JobRow.id, JobRow.region_id, JobRow.status, JobRow.spec)
        .join(JobRow, JobRow.id == RunRow.job_id)
        .where(RunRow.status.in_(UNDER_WAY))
        .order_by(RunRow.created_at, RunRow.id)
    )
    for run_id, batch_id, job_id, region_id, status, spec in rows:
        in_vswitch = JobSpec.model_validate(spec).network.vswitch_id is not None if batch_id else False
        place = Place(run_id, job_id, region_id, batch_id is not None, in_vswitch)
        (running if status == JobStatus.RUNNING else waiting).append(place)
    return waiting, running
