"""Sources in the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, now
from rehost.catalog.names import name_from
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.records import Page, Source
from rehost.catalog.states import ENDED, SourceState
from rehost.catalog.tables import JobRow, SourceRow
from rehost.errors import RehostError, SourceNotFound
from rehost.ids import new_id
from rehost.source.connect import Connection, DiskConnection, PathConnection, SshConnection
from rehost.source.inventory import Inventory

_CONNECTION: TypeAdapter[SshConnection | PathConnection | DiskConnection] = TypeAdapter(Connection)


class Sources:
    """The part of the catalog that remembers sources."""

    _database: Database

    def add_source(
        self,
        connection: SshConnection | PathConnection | DiskConnection,
        inventory: Inventory,
        *,
        name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Source:
        """Remember a server that was just discovered."""
        with self._database.write() as session:
            row = SourceRow(
                id=new_id("s"),
                name=name or name_from(inventory.hostname),
                description=description,
                connection=connection.model_dump(mode="json"),
                inventory=inventory.model_dump(mode="json"),
                tags=dict(tags or {}),
                state=SourceState.AVAILABLE,
                created_at=(moment := now()),
                discovered_at=moment,
            )
            session.add(row)
            return source_records(session, [row])[0]

    def source(self, id: str) -> Source:
        """Raises SourceNotFound."""
        with self._database.read() as session:
            return source_records(session, [source_row(session, id)])[0]

    def sources(self, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[Source]:
        """Newest first. Raises InvalidParameter."""
        with self._database.read() as session:
            query = select(SourceRow)
            return page(
                session,
                query,
                SourceRow.created_at,
                SourceRow.id,
                limit=limit,
                cursor=cursor,
                records=source_records,
            )

    def source_discovered(self, id: str, inventory: Inventory) -> Source:
        """The source answered: its inventory is renewed and it is available. Raises SourceNotFound."""
        with self._database.write() as session:
            row = source_row(session, id)
            row.inventory = inventory.model_dump(mode="json")
            row.discovered_at = now()
            row.status_info = None
            if row.state == SourceState.UNAVAILABLE:
                row.state = SourceState.AVAILABLE
            return source_records(session, [row])[0]

    def source_unavailable(self, id: str, error: RehostError) -> Source:
        """The source did not answer; what was known of it is kept. Raises SourceNotFound."""
        with self._database.write() as session:
            row = source_row(session, id)
            row.status_info = f"{error.message} {error.remedy}"[:2000]
            if row.state == SourceState.AVAILABLE:
                row.state = SourceState.UNAVAILABLE
            return source_records(session, [row])[0]


def source_row(session: Session, id: str) -> SourceRow:
    """Raises SourceNotFound."""
    row = session.get(SourceRow, id)
    if row is None:
        raise SourceNotFound(id=id)
    return row


def unfinished_job(session: Session, source_id: str) -> JobRow | None:
    """The job that holds the source, if there is one."""
    return session.scalars(
        select(JobRow).where(JobRow.source_id == source_id, JobRow.status.not_in(ENDED))
    ).one_or_none()


def source_records(session: Session, rows: Sequence[SourceRow]) -> list[Source]:
    """The records of rows; an available source with an unfinished job is in use."""
    held = set(
        session.scalars(
            select(JobRow.source_id).where(JobRow.source_id.in_([row.id for row in rows]), JobRow.status.not_in(ENDED))
        )
    )
    return [
        Source(
            id=row.id,
            name=row.name,
            description=row.description,
            connection=_CONNECTION.validate_python(row.connection),
            tags=row.tags,
            state=SourceState.IN_USE
            if row.id in held and row.state == SourceState.AVAILABLE
            else SourceState(row.state),
            status_info=row.status_info,
            inventory=Inventory.model_validate(row.inventory),
            created_at=row.created_at,
            discovered_at=row.discovered_at,
        )
        for row in rows
    ]
