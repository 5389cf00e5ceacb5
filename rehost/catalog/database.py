"""The catalog's database: opened, its version checked, reads and writes each in one transaction.

SQLite runs in WAL mode, so that readers never wait; a writing transaction takes the write lock at its beginning
(BEGIN IMMEDIATE), so that what it read stays true and two writers queue instead of failing. On PostgreSQL (READ
COMMITTED) the rows that a decision rests on are locked (`with_for_update`), and the unique indexes hold the rest.

A database that goes away for a while fails nothing: `patiently` tries a whole transaction again. That is safe because
a transaction is known to be kept, or known to be undone, before it is left: where the answer to a commit was lost,
PostgreSQL is asked what became of it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from rehost.catalog.postgresql import outcome, passing, postgresql_engine, said, transaction_id, undone
from rehost.catalog.tables import SCHEMA_VERSION, Base, SchemaRow
from rehost.errors import CatalogAway, CatalogUrlInvalid, CatalogVersionMismatch

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_LOCK_WAIT_MS = 30_000  # how long a writer waits for another one
_WRITES = "rehost_writes"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0  # between two tries
_TRIES_BESIDE_OTHERS = 5  # of a transaction that the server undoes because of a deadlock, whatever the patience
_TABLES_LOCK = 0x5245_484F_5354  # PostgreSQL's advisory lock of whoever makes or changes the tables: "REHOST"


class TransactionLost(CatalogAway):
    """The catalog's database does not answer: {reason}"""

    # Nothing of the transaction was kept: the whole of it may be tried again.

    @property
    def answered(self) -> bool:
        """The server itself undid it, for another transaction's sake."""
        return bool(self.facts.get("answered"))


class Database:
    """Sessions on the catalog's database.

    `patience` is how many seconds a database that does not answer is waited for.
    """

    def __init__(self, url: str, *, patience: float = 0.0) -> None:
        self._patience = patience
        with _told_as_away():
            self._engine = _engine(url)
        self._writing = self._engine.execution_options(**{_WRITES: True})
        found = self.patiently(self._version)
        if found != SCHEMA_VERSION:
            raise CatalogVersionMismatch(found=found, wanted=SCHEMA_VERSION)

    def _version(self) -> int:
        with _told_as_away():
            found = _found_version(self._engine)
            if found is None:
                with self._writing.begin() as connection:
                    found = made_tables(connection)
            return found

    def patiently(self, do: Callable[[], Answer]) -> Answer:
        """What `do` gives; it is called again while its transaction is lost, for as long as the patience lasts."""
        deadline = time.monotonic() + self._patience
        pause = _FIRST_PAUSE_SECONDS
        for number in itertools.count(1):
            try:
                return do()
            except TransactionLost as lost:
                left = deadline - time.monotonic()
                if left <= 0 and not (lost.answered and number < _TRIES_BESIDE_OTHERS):
                    raise CatalogAway(reason=lost.facts["reason"]) from lost
                log.warning("%s It is tried again for %.0f seconds.", lost.message, max(0, left))
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A session that changes nothing. Raises CatalogAway; TransactionLost where it may be tried again."""
        with _told_as_away(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end of the block, and undone by an exception.

        Raises what the block raises, IntegrityError; CatalogAway, and TransactionLost where nothing was kept and it may
        be tried again.
        """
        with _told_as_away(), Session(self._writing, expire_on_commit=False, info={_WRITES: True}) as session:
            id = transaction_id(session) if self._engine.dialect.name == "postgresql" else None
            yield session
            session.flush()
            try:
                session.commit()
            except DBAPIError as error:
                if id is None or undone(error) or not passing(error):
                    raise
                self._learn_outcome(id, error)

    def _learn_outcome(self, id: str, error: DBAPIError) -> None:
        """Return if the transaction was committed. Raises TransactionLost if not, CatalogAway if nobody knows."""

        def ask() -> str | None:
            with self.read() as session:
                found = outcome(session, id)
            if found == "in progress":  # the server has not noticed yet that we are gone
                raise TransactionLost(reason="a commit is still under way")
            return found

        found = self.patiently(ask)
        if found == "aborted":
            raise TransactionLost(reason=_first_line(error)) from error
        if found != "committed":
            raise CatalogAway(reason=f"{_first_line(error)} (whether the change was made is not known)") from error

    def close(self) -> None:
        self._engine.dispose()


def held(session: Session, *, key: bool = False) -> dict[str, bool] | None:
    """For `with_for_update`: in a writing session the row stays as it is read here, until the transaction ends.

    `key`: rows that refer to it wait too. Who changes a job, its runs or its tests holds the job's row first: so all of
    them come one after the other, and nobody waits for somebody who waits for him. SQLite has one writer at a time.
    """
    return {"key_share": not key} if session.info.get(_WRITES) else None


def one_at_a_time(session: Session, lock: int) -> None:
    """Nobody else passes here with the same number until this transaction ends. SQLite has one writer at a time."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(lock)))


def now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


@contextlib.contextmanager
def changing_tables(url: str) -> Iterator[Connection]:
    """A transaction that makes or changes tables; one process at a time is inside.

    Foreign keys are checked at its end alone, because SQLite changes a table by making it anew. Raises CatalogAway.
    """
    with _told_as_away():
        engine = _engine(url, tables_change=True)
        try:
            with engine.execution_options(**{_WRITES: True}).begin() as connection:
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
    except IntegrityError:
        raise  # a rule of the catalog; whoever wrote knows which
    except DBAPIError as error:
        if passing(error) or _is_busy(error):
            raise TransactionLost(reason=_first_line(error), answered=undone(error)) from error
        raise CatalogAway(reason=_first_line(error)) from error
    except OSError as error:  # some broken connections are told so by PostgreSQL's driver
        raise TransactionLost(reason=_first_line(error)) from error
    except (SQLAlchemyError, ImportError) as error:
        raise CatalogAway(reason=_first_line(error)) from error


def _is_busy(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _found_version(engine: Engine) -> int | None:
    """The version of the tables by one cheap query; None: there are no tables, or not yet."""
    try:
        with engine.connect() as connection:
            return connection.scalar(select(SchemaRow.version))
    except DBAPIError:
        with engine.connect() as connection:
            if inspect(connection).has_table(SchemaRow.__tablename__):
                raise
        return None


def _engine(url: str, *, tables_change: bool = False) -> Engine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise CatalogUrlInvalid(reason="it is not a URL") from error
    if parsed.drivername in ("postgresql", "postgresql+pg8000"):
        return postgresql_engine(parsed, answer_seconds=None) if tables_change else postgresql_engine(parsed)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise CatalogUrlInvalid(reason="it begins with `postgresql://` or `sqlite:///`")
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(parsed, connect_args={"timeout": _LOCK_WAIT_MS / 1000})
    event.listen(engine, "connect", functools.partial(_prepare_sqlite, foreign_keys=not tables_change))
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
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _first_line(error: BaseException) -> str:
    # Only the driver's own sentence: SQLAlchemy's has the statement and its parameters in it.
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = (said(original) or str(original)).splitlines()
    return lines[0] if lines else type(original).__name__
