"""Figures of the whole catalog, by a few queries that count in the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Float, case, cast, exists, extract, func, select

from rehost.catalog.database import Database, now
from rehost.catalog.states import ENDED, RunStatus, SourceState
from rehost.catalog.tables import ImageRow, JobRow, RunRow, SourceRow

MOVED = ("bytes_scanned", "bytes_new", "bytes_on_wire")  # of a run's figures


@dataclass(frozen=True)
class Gauges:
    """What there is now. A run, image or job that was deleted counts no more."""

    jobs: Sequence[tuple[str, str, int]]  # region, status, how many
    queued: Sequence[tuple[str, int, float]]  # region, how many wait for their turn, seconds that the oldest waits
    runs: Sequence[tuple[str, str, int]]  # kind, status, how many
    run_seconds: Sequence[tuple[str, str, int, float]]  # kind, status, how many have ended, seconds of them together
    moved_bytes: Sequence[tuple[str, float]]  # what (MOVED), bytes of all runs together
    sources: Sequence[tuple[str, int]]  # state, how many
    images: Sequence[tuple[str, str, int, int]]  # region, kind, how many, bytes of their files or layers


class WithGauges:
    """The part of the catalog that counts."""

    _database: Database

    def gauges(self) -> Gauges:
        """Everything at once, as of one moment."""
        moment = now()
        seconds = cast(extract("epoch", RunRow.ended_at), Float) - cast(extract("epoch", RunRow.started_at), Float)
        waiting = (RunRow.status == RunStatus.PENDING, RunRow.flow_run_id.is_(None))
        in_use = exists().where(JobRow.source_id == SourceRow.id, JobRow.status.not_in(ENDED))
        state = case(
            ((SourceRow.state == SourceState.AVAILABLE) & in_use, SourceState.IN_USE.value), else_=SourceRow.state
        ).label("shown")
        # In two steps: PostgreSQL does not see that an expression with a subquery is the one that it groups by.
        shown_states = select(state).subquery()
        with self._database.read() as session:
            jobs = session.execute(
                select(JobRow.region_id, JobRow.status, func.count()).group_by(JobRow.region_id, JobRow.status)
            ).all()
            queued = session.execute(
                select(JobRow.region_id, func.count(), func.min(RunRow.created_at))
                .join(JobRow, JobRow.id == RunRow.job_id)
                .where(*waiting)
                .group_by(JobRow.region_id)
            ).all()
            runs = session.execute(
                select(RunRow.kind, RunRow.status, func.count()).group_by(RunRow.kind, RunRow.status)
            ).all()
            lasted = session.execute(
                select(RunRow.kind, RunRow.status, func.count(), func.sum(seconds))
                .where(RunRow.started_at.is_not(None), RunRow.ended_at.is_not(None))
                .group_by(RunRow.kind, RunRow.status)
            ).all()
            # As a float: a whole number of SQL has four bytes where the database is PostgreSQL.
            moved = session.execute(select(*(func.sum(RunRow.figures[name].as_float()) for name in MOVED))).one()
            sources = session.execute(select(shown_states.c.shown, func.count()).group_by(shown_states.c.shown)).all()
            images = session.execute(
                select(ImageRow.region_id, ImageRow.kind, ImageRow.facts["disks"], ImageRow.facts["size"]).where(
                    ImageRow.deleted_at.is_(None)
                )
            ).all()
        return Gauges(
            jobs=[(region, status, count) for region, status, count in jobs],
            queued=[(region, count, _since(oldest, moment)) for region, count, oldest in queued],
            runs=[(kind, status, count) for kind, status, count in runs],
            run_seconds=[(kind, status, count, float(total or 0)) for kind, status, count, total in lasted],
            moved_bytes=[(name, float(total or 0)) for name, total in zip(MOVED, moved, strict=True)],
            sources=[(shown, count) for shown, count in sources],
            images=_images(images),
        )


def _since(oldest: datetime, moment: datetime) -> float:
    return max(0.0, (moment - oldest).total_seconds())


def _images(rows: Sequence[Any]) -> list[tuple[str, str, int, int]]:
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for region, kind, disks, size in rows:
        count, total = found.get((region, kind), (0, 0))
        files = [disk.get("file_size", 0) for disk in disks or [] if isinstance(disk, dict)]
        found[region, kind] = count + 1, total + sum(files) + (size if isinstance(size, int) else 0)
    return [(region, kind, count, total) for (region, kind), (count, total) in sorted(found.items())]
