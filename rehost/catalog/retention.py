"""Which snapshots and images are kept: what jobs say of it, what images were made from, and what a run is using."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from rehost.catalog.database import Database
from rehost.catalog.image_uses import uses
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


@dataclass(frozen=True)
class Built:
    """An image, and the run that made it."""

    id: str
    kind: str  # disk or container
    job_id: str
    run_id: str
    run_status: RunStatus
    run_at: datetime  # when the run was asked for
    created_at: datetime
    in_use: bool
    kept: int | None  # of how many runs the images are kept; None: of all that succeeded


def superfluous(built: Iterable[Built]) -> list[str]:
    """The ids of the images that may go, oldest first. What is in use stays, and so does all of a run under way.

    The images of one run stay and go together. Of a job's runs that succeeded at most `kept` keep theirs: the oldest
    go, but for those with an image in use, and never those of the newest one. A run that failed or was stopped counts
    for nothing: its images are there to be looked at until another run has succeeded, or failed after it. Where a
    stage was tried again, the last image of its kind is the run's; the earlier ones go.
    """
    jobs: dict[str, dict[str, list[Built]]] = {}
    for one in sorted(built, key=lambda one: (one.run_at, one.run_id, one.created_at, one.id)):
        if one.run_status not in UNDER_WAY:
            jobs.setdefault(one.job_id, {}).setdefault(one.run_id, []).append(one)
    going: list[Built] = []
    for runs in jobs.values():
        whole: list[list[Built]] = []
        for ones in runs.values():
            last = {one.kind: one for one in ones}
            going += [one for one in ones if last[one.kind] is not one]
            whole.append(list(last.values()))
        succeeded = [ones for ones in whole if ones[0].run_status is RunStatus.SUCCEEDED]
        newest = succeeded[-1][0].run_at if succeeded else None
        failed = [ones for ones in whole if ones[0].run_status is not RunStatus.SUCCEEDED]
        recent = [ones for ones in failed if newest is None or ones[0].run_at > newest]
        going += [one for ones in failed if ones not in recent[-1:] for one in ones]
        kept = succeeded[-1][0].kept if succeeded else None
        beyond = len(succeeded) - kept if kept is not None else 0
        for ones in [ones for ones in succeeded[:-1] if not any(one.in_use for one in ones)][: max(0, beyond)]:
            going += ones
    going.sort(key=lambda one: (one.created_at, one.id))
    return [one.id for one in going if not one.in_use]


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
            images = session.scalars(
                select(ImageRow.snapshot_id).where(ImageRow.snapshot_id.is_not(None), ImageRow.deleted_at.is_(None))
            )
            busy = session.scalars(select(RunRow.source_id).where(RunRow.status.in_(UNDER_WAY)))
            return unneeded(
                [
                    Taken(id, source_id, job.id if job else "", created_at, status == RunStatus.SUCCEEDED, _kept(job))
                    for id, source_id, created_at, status, job in rows
                ],
                in_images={id for id in images if id is not None},
                busy_sources=set(busy),
            )

    def superfluous_images(self) -> list[str]:
        """The ids of the images that may go by the rules of their jobs, oldest first."""
        with self._database.read() as session:
            rows = session.execute(
                select(ImageRow, RunRow.status, RunRow.created_at, JobRow)
                .join(RunRow, RunRow.id == ImageRow.run_id)
                .join(JobRow, JobRow.id == RunRow.job_id)
                .where(ImageRow.deleted_at.is_(None))
            ).all()
            used = uses(session, [image.id for image, _, _, _ in rows])
            return superfluous(
                Built(
                    id=image.id,
                    kind=image.kind,
                    job_id=job.id,
                    run_id=str(image.run_id),
                    run_status=RunStatus(status),
                    run_at=run_at,
                    created_at=image.created_at,
                    in_use=image.id in used,
                    kept=_images_kept(job),
                )
                for image, status, run_at, job in rows
            )

    def forget_snapshot(self, id: str) -> None:
        """The snapshot is no longer in the store, or there is none."""
        with self._database.write() as session:
            session.execute(delete(SnapshotRow).where(SnapshotRow.id == id))


def _kept(job: JobRow | None) -> int | None:
    if job is None or job.status == JobStatus.DELETING:
        return 0
    return _images_kept(job)


def _images_kept(job: JobRow) -> int | None:
    incremental = job.spec.get("incremental")
    return None if incremental is None else int(incremental["max_images"])
