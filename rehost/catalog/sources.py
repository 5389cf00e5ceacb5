"""Sources in the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from rehost.catalog.database import Database, held, now
from rehost.catalog.names import name_from
from rehost.catalog.paging import DEFAULT_LIMIT, page
from rehost.catalog.records import Page, Source
from rehost.catalog.states import ENDED, JobStatus, SourceState
from rehost.catalog.tables import JobRow, SourceRow
from rehost.errors import JobInvalidStatus, RehostError, SourceNeedsForce, SourceNotFound, SourceStateInvalid
from rehost.ids import new_id
from rehost.source.connect import Connection, DiskConnection, PathConnection, SshConnection
from rehost.source.inventory import Inventory

_CONNECTION: TypeAdapter[SshConnection | PathConnection | DiskConnection] = TypeAdapter(Connection)


@dataclass(frozen=True)
class RegisteredSource:
    """A source in short."""

    id: str
    name: str
    hostname: str


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

    def registered_sources(
        self,
    ) -> list[tuple[SshConnection | PathConnection | DiskConnection, RegisteredSource]]:
        """Every source that stays, in short, and how it is reached."""
        hostname = SourceRow.inventory["hostname"].as_string()
        query = select(SourceRow.id, SourceRow.name, hostname, SourceRow.connection)
        with self._database.read() as session:
            return [
                (_CONNECTION.validate_python(connection), RegisteredSource(id, name, hostname))
                for id, name, hostname, connection in session.execute(
                    query.where(SourceRow.state != SourceState.DELETING)
                )
            ]

    def sources_named(self, named: str) -> list[str]:
        """The ids of the sources that are meant: that of the source with this id, else of all with this name."""
        with self._database.read() as session:
            if session.get(SourceRow, named) is not None:
                return [named]
            return list(session.scalars(select(SourceRow.id).where(SourceRow.name == named)))

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

    def change_source(
        self,
        id: str,
        change: Mapping[str, Any],
        connection: SshConnection | PathConnection | DiskConnection | None = None,
        inventory: Inventory | None = None,
    ) -> Source:
        """Set what `change` has of name, description and tags; a new connection comes with what was discovered by it.

        Raises SourceNotFound, SourceStateInvalid for a source that is being deleted, and JobInvalidStatus for a
        connection that a run is using.
        """
        with self._database.write() as session:
            row = source_row(session, id)
            _check_not_deleting(row)
            for name in ("name", "description", "tags"):
                if name in change:
                    setattr(row, name, change[name])
            if connection is not None and inventory is not None:
                _check_at_rest(session, id, "another connection of its source")
                row.connection = connection.model_dump(mode="json")
                row.inventory = inventory.model_dump(mode="json")
                row.discovered_at = now()
                row.state, row.status_info = SourceState.AVAILABLE, None
            return source_records(session, [row])[0]

    def check_connection_free(self, id: str) -> None:
        """Raises what change_source would raise for another connection, before anybody connects."""
        with self._database.read() as session:
            _check_not_deleting(source_row(session, id))
            _check_at_rest(session, id, "another connection of its source")

    def begin_deleting_source(self, id: str, *, force: bool) -> list[str]:
        """The source is on its way out and takes no new job; its jobs that have still to be deleted before it goes.

        Raises SourceNotFound, JobInvalidStatus where a job runs, and SourceNeedsForce for any other unfinished job
        without `force`.
        """
        with self._database.write() as session:
            row = source_row(session, id)
            _check_at_rest(session, id, "the deletion of its source")
            if not force and (job := unfinished_job(session, id)) is not None:
                raise SourceNeedsForce(id=id, job_id=job.id)
            row.state, row.status_info = SourceState.DELETING, None
            still = select(JobRow.id).where(JobRow.source_id == id, JobRow.status != JobStatus.DELETING)
            return list(session.scalars(still.order_by(JobRow.created_at)))

    def keep_source(self, id: str) -> None:
        """Undo begin_deleting_source: one of the jobs could not be deleted."""
        with self._database.write() as session:
            row = source_row(session, id)
            if row.state == SourceState.DELETING:
                row.state = SourceState.AVAILABLE

    def forget_deleted_sources(self) -> list[str]:
        """The sources that are being deleted and have no job any more go; their ids. Snapshots go by retention."""
        with self._database.write() as session:
            held = exists().where(JobRow.source_id == SourceRow.id)
            gone = list(session.scalars(select(SourceRow.id).where(SourceRow.state == SourceState.DELETING, ~held)))
            session.execute(delete(SourceRow).where(SourceRow.id.in_(gone)))
            return gone

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
    row = session.get(SourceRow, id, with_for_update=held(session, key=True))
    if row is None:
        raise SourceNotFound(id=id)
    return row


def _check_not_deleting(row: SourceRow) -> None:
    if row.state == SourceState.DELETING:
        allowed = ", ".join(state for state in SourceState if state is not SourceState.DELETING)
        raise SourceStateInvalid(id=row.id, state=row.state, allowed=allowed)


def _check_at_rest(session: Session, source_id: str, action: str) -> None:
    """No job of the source runs; one that waits for its turn may."""
    running = select(JobRow.id).where(JobRow.source_id == source_id, JobRow.status == JobStatus.RUNNING).limit(1)
    if (job_id := session.scalars(running).first()) is not None:
        allowed = ", ".join(status for status in JobStatus if status is not JobStatus.RUNNING)
        raise JobInvalidStatus(id=job_id, status=JobStatus.RUNNING, action=action, allowed=allowed)


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
