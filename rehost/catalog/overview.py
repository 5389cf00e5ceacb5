"""The catalog at a glance: how many jobs are in each state, and lists searched by a part of a name."""

from __future__ import annotations

from sqlalchemy import func, or_, select

from rehost.catalog.database import Database
from rehost.catalog.jobs import Jobs
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.records import Job, Page, Source
from rehost.catalog.sources import source_records
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import ImageRow, JobRow, SourceRow


class Overview(Jobs):
    """The part of the catalog that people look through."""

    _database: Database

    def job_counts(self) -> dict[JobStatus, int]:
        """How many jobs are in each state, each state named."""
        with self._database.read() as session:
            found = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status)).all()
        counted = {JobStatus(status): count for status, count in found}
        return {status: counted.get(status, 0) for status in JobStatus}

    def counts(self) -> tuple[int, int]:
        """How many sources and images there are."""
        with self._database.read() as session:
            sources = session.scalar(select(func.count()).select_from(SourceRow)) or 0
            images = session.scalar(select(func.count()).where(ImageRow.deleted_at.is_(None))) or 0
        return sources, images

    def source_names(self, ids: set[str]) -> dict[str, str]:
        """The names of sources by their ids; an id that is unknown is left out."""
        with self._database.read() as session:
            found = session.execute(select(SourceRow.id, SourceRow.name).where(SourceRow.id.in_(ids))).all()
        return {row.id: row.name for row in found}

    def job_names(self, ids: set[str]) -> dict[str, str]:
        """The names of jobs by their ids; an id that is unknown is left out."""
        with self._database.read() as session:
            found = session.execute(select(JobRow.id, JobRow.name).where(JobRow.id.in_(ids))).all()
        return {row.id: row.name for row in found}

    def search_jobs(
        self,
        *,
        text: str = "",
        status: JobStatus | None = None,
        source_id: str | None = None,
        limit: int = DEFAULT_LIMIT,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Jobs whose own name or whose source's has that text in it, newest first. Raises InvalidParameter."""
        query = select(JobRow)
        if text:
            sources = select(SourceRow.id).where(func.lower(SourceRow.name).contains(text.lower(), autoescape=True))
            named = func.lower(JobRow.name).contains(text.lower(), autoescape=True)
            query = query.where(or_(named, JobRow.source_id.in_(sources)))
        if status is not None:
            query = query.where(JobRow.status == status)
        if source_id is not None:
            query = query.where(JobRow.source_id == source_id)
        with self._database.read() as session:
            return page(
                session, query, JobRow.created_at, JobRow.id, limit=limit, cursor=cursor, records=self.job_records
            )

    def search_sources(self, *, text: str = "", limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[Source]:
        """Sources whose name has that text in it, newest first. Raises InvalidParameter."""
        query = select(SourceRow)
        if text:
            query = query.where(func.lower(SourceRow.name).contains(text.lower(), autoescape=True))
        with self._database.read() as session:
            return page(
                session,
                query,
                SourceRow.created_at,
                SourceRow.id,
                limit=limit,
                cursor=cursor,
                records=source_records,
            )
