"""Idempotency keys: the same request twice makes one thing and gives one answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from rehost.catalog.database import Database, held, now
from rehost.catalog.tables import IdempotencyRow
from rehost.errors import IdempotencyKeyBusy, IdempotencyKeyReused

_KEPT = timedelta(days=7)
ABANDONED = timedelta(minutes=15)  # longer than a request takes that makes one thing: whoever held the key has died


@dataclass(frozen=True)
class Answer:
    """What was answered the first time."""

    status: int
    body: dict[str, Any]
    location: str | None


class IdempotencyKeys:
    """The part of the catalog that remembers answered requests."""

    _database: Database

    def reserve_key(self, key: str, fingerprint: str, *, abandoned: timedelta = ABANDONED) -> Answer | None:
        """The first answer to this request; or None: the key is taken for it now, and must be settled or released.

        After `abandoned` a request without an answer is taken to be lost. Raises IdempotencyKeyReused for another
        request, IdempotencyKeyBusy while the first is being answered.
        """
        try:
            with self._database.write() as session:
                moment = now()
                session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < moment - _KEPT))
                row = session.get(IdempotencyRow, key, with_for_update=held(session))
                if row is None:
                    session.add(IdempotencyRow(key=key, fingerprint=fingerprint, created_at=moment))
                    return None
                if row.fingerprint != fingerprint:
                    raise IdempotencyKeyReused(key=key)
                if row.status is not None and row.body is not None:
                    return Answer(row.status, row.body, row.location)
                if row.created_at > moment - abandoned:
                    raise IdempotencyKeyBusy(key=key)
                row.created_at = moment
                return None
        except IntegrityError as error:  # another writer took the key first (PostgreSQL)
            raise IdempotencyKeyBusy(key=key) from error

    def settle_key(self, key: str, answer: Answer) -> None:
        """The request was granted: this is its answer from now on."""
        with self._database.write() as session:
            row = session.get(IdempotencyRow, key)
            if row is not None:
                row.status, row.body, row.location = answer.status, answer.body, answer.location

    def release_key(self, key: str) -> None:
        """The request was refused or failed: it may be sent again."""
        with self._database.write() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.key == key, IdempotencyRow.status.is_(None)))
