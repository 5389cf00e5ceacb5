"""The catalog on PostgreSQL (13 or newer): its URL, its password, its errors, and what became of a commit.

The driver is pg8000. It tells most errors of the server as one class, with the SQLSTATE in a dictionary (of broken
constraints only that of uniqueness has its own), and some broken connections as bare OSErrors: here they become what
SQLAlchemy calls them elsewhere.
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from rehost.errors import CatalogUrlInvalid

_DRIVER = "postgresql+pg8000"
_ANSWER_SECONDS = 30.0  # a server that says nothing for so long is away
_PORT = 5432
_DATA_ERRORS = "23"  # SQLSTATE class: a constraint was broken
# SQLSTATEs after which the same transaction may succeed: no connection (class 08), a deadlock or a serialisation
# failure (40), too many connections (53300), the server stops, has crashed, or is starting (57P01 to 57P03).
_PASSING = ("08", "40", "53300", "57P01", "57P02", "57P03")
_UNDONE = "40"  # of these, what the server says after it undid the transaction


def postgresql_engine(url: URL, *, answer_seconds: float | None = _ANSWER_SECONDS) -> Engine:
    """An engine for a URL `postgresql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?OPTIONS]`.

    The options are PostgreSQL's own `host` (a folder: that of the server's socket), `sslmode` (disable, require,
    verify-full) and `sslrootcert`. A password that the URL lacks comes from PGPASSWORD, or from PGPASSFILE
    (default: ~/.pgpass), a file in PostgreSQL's own format. Raises CatalogUrlInvalid.
    """
    options = {name: value for name, value in url.query.items() if isinstance(value, str)}
    arguments: dict[str, Any] = {"timeout": answer_seconds, "application_name": "rehost"}
    folder = options.pop("host", None)
    if folder is not None:
        if not folder.startswith("/"):
            raise CatalogUrlInvalid(reason="the option `host` is the folder of a socket; a host stands before the `/`")
        arguments["unix_sock"] = f"{folder}/.s.PGSQL.{url.port or _PORT}"
    arguments["ssl_context"] = _tls(options.pop("sslmode", "disable"), options.pop("sslrootcert", None))
    if options or len(url.query) != len([value for value in url.query.values() if isinstance(value, str)]):
        raise CatalogUrlInvalid(reason="the options are `host`, `sslmode` and `sslrootcert`, each once")
    if not url.username or not url.database or not (url.host or folder):
        raise CatalogUrlInvalid(reason="it names a user, a host and a database: postgresql://USER@HOST/DATABASE")
    # Never None: the driver breaks where the server asks for one all the same.
    password = url.password or os.environ.get("PGPASSWORD") or _password_from_file(url, folder) or ""
    bare = URL.create(_DRIVER, url.username, host=url.host, port=url.port, database=url.database)
    made = create_engine(bare, connect_args={**arguments, "password": password}, pool_pre_ping=True)
    event.listen(made, "handle_error", _as_elsewhere)
    return made


def _tls(mode: str, authorities: str | None) -> ssl.SSLContext | bool:
    if mode == "disable":
        return False
    if mode == "require":
        return True  # encrypted; whose server it is, is not checked: as PostgreSQL's own programs understand the word
    if mode == "verify-full":
        try:
            return ssl.create_default_context(cafile=authorities)
        except OSError as error:
            raise CatalogUrlInvalid(reason="the file of `sslrootcert` cannot be read as certificates") from error
    raise CatalogUrlInvalid(reason="`sslmode` is disable, require or verify-full")


def _password_from_file(url: URL, folder: str | None) -> str | None:
    """The password of the first line that fits: `host:port:database:user:password`, `*` fits all, `\\` escapes.

    As with PostgreSQL's own programs a file that others may read is not used.
    """
    path = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    host = "localhost" if folder else url.host
    wanted = (host, str(url.port or _PORT), url.database, url.username)
    for line in lines:
        fields = _fields(line)
        if len(fields) == 5 and all(field in ("*", value) for field, value in zip(fields, wanted, strict=False)):
            return fields[4]
    return None


def _fields(line: str) -> list[str]:
    fields, escaped = [""], False
    for character in line if not line.startswith("#") else "":
        if escaped or character not in "\\:":
            fields[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            fields.append("")
    return fields


def _as_elsewhere(context: ExceptionContext) -> None:
    original = context.original_exception
    if isinstance(original, OSError):
        context.is_disconnect = True
        raise OperationalError(context.statement, None, original) from original
    state = sqlstate(original)
    if state.startswith(_DATA_ERRORS):
        raise IntegrityError(context.statement, None, original) from original
    if state.startswith("57P"):
        context.is_disconnect = True


def sqlstate(error: BaseException | None) -> str:
    """The five characters of an error of the server; empty for any other."""
    told = error.args[0] if error is not None and error.args else None
    return str(told.get("C", "")) if isinstance(told, dict) else ""


def said(error: BaseException) -> str | None:
    """The server's own sentence, which holds no statement and no values of one; None for any other error."""
    told = error.args[0] if error.args else None
    return str(told.get("M", "")) if isinstance(told, dict) else None


def passing(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed later: nobody answered, or only this one was ended."""
    state = sqlstate(error.orig)
    if state:
        return state.startswith(_PASSING)
    return isinstance(error.orig, OSError) or type(error.orig).__name__ == "InterfaceError"


def undone(error: DBAPIError) -> bool:
    """Whether the server said itself that it undid the transaction."""
    return sqlstate(error.orig).startswith(_UNDONE)


def transaction_id(session: Session) -> str:
    """What the server calls the session's transaction."""
    return str(session.scalar(text("SELECT pg_current_xact_id()::text")))


def outcome(session: Session, id: str) -> str | None:
    """What became of a transaction: `committed`, `aborted`, `in progress`; None: the server does not know any more."""
    found = session.scalar(text("SELECT pg_xact_status(CAST(:id AS xid8))"), {"id": id})
    return None if found is None else str(found)
