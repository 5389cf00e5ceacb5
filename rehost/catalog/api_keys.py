"""Keys of the API: made once, kept as their SHA-256 alone."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from rehost.catalog.database import Database, now
from rehost.catalog.scopes import Scope
from rehost.catalog.tables import ApiKeyRow
from rehost.errors import ApiKeyDuplicate, ApiKeyNotFound
from rehost.ids import new_id
from rehost.source.inventory import Record

_KEY_BYTES = 32
_NOTED_EVERY = timedelta(minutes=1)  # a busy key costs no write per request


class ApiKey(Record):
    """A key as it can be shown."""

    id: str
    name: str
    scope: Scope
    hash: str  # SHA-256, in hex
    created_at: datetime
    last_used_at: datetime | None  # to the minute


class ApiKeys:
    """The part of the catalog that remembers keys."""

    _database: Database

    def add_api_key(self, name: str, scope: Scope) -> str:
        """A new key; nobody can be told it again. Raises ApiKeyDuplicate."""
        key = f"rehost_{secrets.token_urlsafe(_KEY_BYTES)}"
        try:
            with self._database.write() as session:
                session.add(ApiKeyRow(id=new_id("k"), name=name, scope=scope, hash=hash_of_key(key), created_at=now()))
        except IntegrityError as error:
            raise ApiKeyDuplicate(name=name) from error
        return key

    def api_keys(self) -> list[ApiKey]:
        """All keys, by name."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.name))
            return [
                ApiKey(
                    id=row.id,
                    name=row.name,
                    scope=Scope(row.scope),
                    hash=row.hash,
                    created_at=row.created_at,
                    last_used_at=row.last_used_at,
                )
                for row in rows
            ]

    def remove_api_key(self, name: str) -> None:
        """The key opens nothing from now on. Raises ApiKeyNotFound."""
        with self._database.write() as session:
            row = session.scalars(select(ApiKeyRow).where(ApiKeyRow.name == name)).one_or_none()
            if row is None:
                raise ApiKeyNotFound(name=name)
            session.execute(delete(ApiKeyRow).where(ApiKeyRow.id == row.id))

    def note_use(self, key: ApiKey) -> None:
        """The key was used just now; written where the last note is a minute old."""
        moment = now()
        if key.last_used_at is not None and moment - key.last_used_at < _NOTED_EVERY:
            return
        with self._database.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id).values(last_used_at=moment))


def hash_of_key(key: str) -> str:
    """What is kept of a key: SHA-256 in hex. The key is 32 random bytes, so that no slower hash is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
