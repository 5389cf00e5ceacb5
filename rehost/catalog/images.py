"""Images in the catalog."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, held, now
from rehost.catalog.image_uses import uses
from rehost.catalog.jobs import job_row
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.records import Image, Page
from rehost.catalog.tables import ImageRow, RunRow
from rehost.errors import ImageNameUsedByJob, ImageNotFound, RunNotFound


class Images:
    """The part of the catalog that remembers images."""

    _database: Database

    def image_name(self, job_id: str) -> str:
        """What the next disk image of this job is to be called: a name that no disk image of the region has.

        It is the name that was asked for; where that is taken, `_<job id>` is appended, then a number from 2 on.
        Raises JobNotFound.
        """
        with self._database.read() as session:
            job = job_row(session, job_id)
            candidate, count = job.image_name, 1
            while _name_taken(session, job.region_id, candidate):
                candidate = f"{job.image_name}_{job.id}" + (f"_{count}" if count > 1 else "")
                count += 1
            return candidate

    def add_image(self, job_id: str, run_id: str, record: BaseModel, *, id: str, kind: str, name: str) -> Image:
        """Remember an image that was built. `record` is what image.json says; `kind` is disk or container.

        An image of that id is renewed (a container's record changes when it is pushed). Raises JobNotFound,
        RunNotFound, and ImageNameUsedByJob where another disk image of the region has the name.
        """
        try:
            return self._add_image(job_id, run_id, record, id=id, kind=kind, name=name)
        except IntegrityError as error:
            raise ImageNameUsedByJob(name=name, job_id=job_id) from error

    def _add_image(self, job_id: str, run_id: str, record: BaseModel, *, id: str, kind: str, name: str) -> Image:
        with self._database.write() as session:
            job = job_row(session, job_id)
            run = session.get(RunRow, run_id)
            if run is None:
                raise RunNotFound(id=run_id)
            row = session.get(ImageRow, id)
            if row is None:
                row = ImageRow(
                    id=id,
                    kind=kind,
                    region_id=job.region_id,
                    source_id=job.source_id,
                    job_id=job_id,
                    run_id=run_id,
                    snapshot_id=run.snapshot_id,
                    in_use=False,
                    created_at=now(),
                )
                session.add(row)
            row.name = name
            row.facts = record.model_dump(mode="json")
            session.flush()
            return image_records(session, [row])[0]

    def image(self, id: str) -> Image:
        """Raises ImageNotFound."""
        with self._database.read() as session:
            return image_records(session, [image_row(session, id)])[0]

    def images(
        self, *, job_id: str | None = None, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Page[Image]:
        """Newest first; of one job if given. Raises JobNotFound, InvalidParameter."""
        with self._database.read() as session:
            query = select(ImageRow).where(ImageRow.deleted_at.is_(None))
            if job_id is not None:
                job_row(session, job_id)
                query = query.where(ImageRow.job_id == job_id)
            return page(
                session, query, ImageRow.created_at, ImageRow.id, limit=limit, cursor=cursor, records=image_records
            )


def image_row(session: Session, id: str) -> ImageRow:
    """Raises ImageNotFound, also for an image that was deleted and whose files are on their way out."""
    row = session.get(ImageRow, id, with_for_update=held(session))
    if row is None or row.deleted_at is not None:
        raise ImageNotFound(id=id)
    return row


def _name_taken(session: Session, region_id: str, name: str) -> bool:
    taken = select(ImageRow.id).where(ImageRow.region_id == region_id, ImageRow.name == name, ImageRow.kind == "disk")
    return session.scalars(taken).first() is not None


def image_records(session: Session, rows: Sequence[ImageRow]) -> list[Image]:
    """The records of rows."""
    used = uses(session, [row.id for row in rows])
    return [
        Image(
            id=row.id,
            kind=row.kind,
            name=row.name,
            region_id=row.region_id,
            source_id=row.source_id,
            job_id=row.job_id,
            run_id=row.run_id,
            snapshot_id=row.snapshot_id,
            in_use=row.id in used,
            created_at=row.created_at,
            facts=row.facts,
        )
        for row in rows
    ]
