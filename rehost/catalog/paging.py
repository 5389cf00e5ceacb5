"""Pages of lists, newest first. A cursor is the place after the last item: what is added later moves nothing."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from rehost.catalog.records import Page
from rehost.errors import InvalidParameter

MAX_LIMIT = 50
DEFAULT_LIMIT = 10

Row = TypeVar("Row")
Item = TypeVar("Item")
_PLACE = re.compile(r"(\d{1,17}):([a-z]-[a-z0-9]{20})")  # microseconds since the epoch, id
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def page(
    session: Session,
    query: Select[tuple[Row]],
    created_at: InstrumentedAttribute[datetime],
    id: InstrumentedAttribute[str],
    *,
    limit: int,
    cursor: str | None,
    records: Callable[[Session, Sequence[Row]], Sequence[Item]],
) -> Page[Item]:
    """One page of what the query gives. `limit` is from 1 to 50. Raises InvalidParameter for a wrong cursor."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidParameter(f"limit is from 1 to {MAX_LIMIT}.", [("?limit", f"is from 1 to {MAX_LIMIT}")])
    total = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    if cursor is not None:
        at, last_id = _decode(cursor)
        query = query.where(or_(created_at < at, and_(created_at == at, id < last_id)))
    rows: list[Any] = list(session.scalars(query.order_by(created_at.desc(), id.desc()).limit(limit + 1)))
    more = len(rows) > limit
    shown = rows[:limit]
    following = _encode(shown[-1].created_at, shown[-1].id) if more else None
    return Page(items=tuple(records(session, shown)), next_cursor=following, total=total)


def _encode(at: datetime, id: str) -> str:
    micros = (at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(f"{micros}:{id}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError(text)
        return _EPOCH + timedelta(microseconds=int(found[1])), found[2]
    except (ValueError, binascii.Error, OverflowError) as error:
        detail = "is not a cursor that a list gave"
        raise InvalidParameter(f"cursor {detail}.", [("?cursor", detail)]) from error
