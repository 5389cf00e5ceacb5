"""JSON that two readers could understand differently is refused.

RFC 8259 has no NaN and no Infinity, and leaves open which of two members of one name counts; Python's parser takes
all of them.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request

from rehost.catalog.faults import Fault, raise_faults

_MAX_DIGITS = 40  # no field holds a number of more; longer ones cost time that grows with their square


class _Ambiguous(Exception):
    """The sentence is its argument."""


async def refuse_ambiguous_json(request: Request) -> None:
    """Raises InvalidParameter for a JSON body with a name twice in one object, NaN, Infinity, or an endless number."""
    takes_body = request.scope["route"].body_field is not None
    if not takes_body or "json" not in request.headers.get("content-type", "").lower():
        return
    body = await request.body()
    try:
        if body:
            json.loads(body, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole)
    except _Ambiguous as error:
        raise_faults([Fault("", str(error))])
    except (ValueError, RecursionError):
        return  # no JSON at all: whoever takes it for JSON says so


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise _Ambiguous("has an object with the same name twice")
    return names


def _constant(name: str) -> None:
    raise _Ambiguous(f"has {name}, which is no JSON")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Ambiguous(f"has a number of more than {_MAX_DIGITS} digits")
    return int(digits)
