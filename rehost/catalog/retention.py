"""Which snapshots are kept: what jobs say of it, what images were made from, and what a run is using."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from rehost.catalog.database import Database
from rehost.catalog.states import UNDER_WAY, JobStatus, RunStatus
from rehost.catalog.tables import ImageRow, JobRow, RunRow, SnapshotRow


@dataclass(frozen=True)
class Taken:
    """A snapshot, and the job that it was taken for."""

    id: str
    source_id: str
    job_id: str
    created_at: datetime
    succeeded: bool  # the run that took it
    kept: int | None  # how many snapshots of this job are kept; None: all; 0: the job is deleted, or being


def unneeded(taken: Iterable[Taken], *, in_images: Collection[str], busy_sources: Collection[str]) -> list[str]:
    """The ids of the snapshots that may go, oldest first.

    Of a job the newest `kept` stay, counted from the last one whose run succeeded, and all that are newer than that.
    What an image was made from stays, and everything of a source that a run is reading.
    """
    jobs: dict[str, list[Taken]] = {}
    for one in sorted(taken, key=lambda one: (one.created_at, one.id), reverse=True):
        jobs.setdefault(one.job_id, []).append(one)
    going: list[Taken] = []
    for ones in jobs.values():
        kept = ones[0].kept
        if kept is None:
            continue
        last = next((number for number, one in enumerate(ones) if one.succeeded), len(ones))
        going += ones if not kept else ones[last + kept :]
    going.sort(key=lambda one: (one.created_at, one.id))
    return [one.id for one in going if one.id not in in_images and one.source_id not in busy_sources]


class Retention:
    """A part of the catalog."""

    _database: Database

    def unneeded_snapshots(self) -> list[str]:
        """The ids of the snapshots that may go, oldest first."""
        with self._database.read() as session:
            rows = session.execute(
                select(SnapshotRow.id, SnapshotRow.source_id, SnapshotRow.created_at, RunRow.status, JobRow)
                .outerjoin(RunRow, RunRow.id == SnapshotRow.run_id)
                .outerjoin(JobRow, JobRow.id == RunRow.job_id)
            ).all()
            images = session.scalars(select(ImageRow.snapshot_id).where(ImageRow.snapshot_id.is_not(None)))
            busy = session.scalars(select(RunRow.source_id).where(RunRow.status.in_(UNDER_WAY)))
            return unneeded(
                [
                    Taken(id, source_id, job.id if job else "", created_at, status == RunStatus.SUCCEEDED, _kept(job))
                    for id, source_id, created_at, status, job in rows
                ],
                in_images={id for id in images if id is not None},
                busy_sources=set(busy),
            )

    def forget_snapshot(self, id: str) -> None:
        """The snapshot is no longer in the store, or there is none."""
        with self._database.write() as session:
            session.execute(delete(SnapshotRow).where(SnapshotRow.id == id))


def _kept(job: JobRow | None) -> int | None:
    if job is None or job.status == JobStatus.DELETING:
        return 0
    incremental = job.spec.get("incremental")
    return None if incremental is None else int(incremental["max_images"])
