"""The catalog's database: opened, its version checked, reads and writes each in one transaction.

SQLite runs in WAL mode, so that readers never wait; a writing transaction takes the write lock at its beginning
(BEGIN IMMEDIATE), so that what it read stays true and two writers queue instead of failing. On PostgreSQL the
compare-and-set updates and the unique indexes do the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from rehost.catalog.tables import SCHEMA_VERSION, Base, SchemaRow
from rehost.errors import CatalogAway, CatalogVersionMismatch

_LOCK_WAIT_MS = 30_000  # how long a writer waits for another one
_TABLES_LOCK = 0x5245_484F_5354  # PostgreSQL's advisory lock of whoever makes or changes the tables: "REHOST"


class Database:
    """Sessions on the catalog's database."""

    def __init__(self, url: str) -> None:
        with _told_as_away():
            self._engine = _engine(url)
            self._writing = self._engine.execution_options(rehost_writes=True)
            found = _found_version(self._engine)
            if found is None:
                with self._writing.begin() as connection:
                    found = made_tables(connection)
        if found != SCHEMA_VERSION:
            raise CatalogVersionMismatch(found=found, wanted=SCHEMA_VERSION)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session that changes nothing."""
        with self._session(self._engine) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end of the block, and undone by an exception."""
        with self._session(self._writing) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session:
                yield session
        except IntegrityError:
            raise  # a rule of the catalog; whoever wrote knows which
        except DBAPIError as error:
            raise CatalogAway(reason=_first_line(error.orig or error)) from error

    def close(self) -> None:
        self._engine.dispose()


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


@contextlib.contextmanager
def changing_tables(url: str) -> Iterator[Connection]:
    """A transaction that makes or changes tables; one process at a time is inside.

    Foreign keys are checked at its end alone, because SQLite changes a table by making it anew. Raises CatalogAway.
    """
    with _told_as_away():
        engine = _engine(url, foreign_keys=False)
        try:
            with engine.execution_options(rehost_writes=True).begin() as connection:
                _take_tables_lock(connection)
                yield connection
                if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                    raise CatalogAway(reason="the new tables would refer to rows that are not there")
        finally:
            engine.dispose()


def made_tables(connection: Connection) -> int:
    """The version of the tables, which are made where there are none. By one process at a time."""
    _take_tables_lock(connection)
    if inspect(connection).has_table(SchemaRow.__tablename__):
        found = connection.scalar(select(SchemaRow.version))
        if found is not None:
            return found
    Base.metadata.create_all(connection)
    connection.execute(insert(SchemaRow).values(version=SCHEMA_VERSION))
    return SCHEMA_VERSION


def _take_tables_lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time in any case
        connection.execute(select(func.pg_advisory_xact_lock(_TABLES_LOCK)))


@contextlib.contextmanager
def _told_as_away() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError, ImportError) as error:
        raise CatalogAway(reason=_first_line(error)) from error


def _found_version(engine: Engine) -> int | None:
    """The version of the tables by one cheap query; None: there are no tables, or not yet."""
    try:
        with engine.connect() as connection:
            return connection.scalar(select(SchemaRow.version))
    except (OperationalError, ProgrammingError):
        with engine.connect() as connection:
            if inspect(connection).has_table(SchemaRow.__tablename__):
                raise
        return None


def _engine(url: str, *, foreign_keys: bool = True) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(parsed, connect_args={"timeout": _LOCK_WAIT_MS / 1000})
    event.listen(engine, "connect", functools.partial(_prepare_sqlite, foreign_keys=foreign_keys))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object, *, foreign_keys: bool) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_LOCK_WAIT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
    cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("rehost_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _first_line(error: BaseException) -> str:
    # Only the driver's own sentence: SQLAlchemy's has the statement and its parameters in it.
    original = error.orig if isinstance(error, OperationalError) and error.orig is not None else error
    return (str(original).splitlines() or [type(error).__name__])[0]
