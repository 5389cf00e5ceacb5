"""What is wrong with a request, all of it in one answer.

Most faults are plain: InvalidParameter, with a JSON pointer and a sentence each. Some have a code of their own. Where
all faults of a request share such a code the error is of that class; otherwise it is InvalidParameter. In both cases
`errors` has every fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rehost.errors import Invalid, InvalidParameter, error_classes

_SPECIAL = {cls.code: cls for cls in error_classes(Invalid) if cls is not InvalidParameter}
_MISSING = "missing"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `facts` fill the sentence of an error class with a code of its own."""

    pointer: str
    message: str
    code: str = InvalidParameter.code
    facts: Mapping[str, Any] = field(default_factory=dict)


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise the one error that tells all faults; nothing happens where there are none."""
    if not faults:
        return
    errors = [(fault.pointer, fault.message) for fault in faults]
    codes = {fault.code for fault in faults}
    if len(codes) == 1 and (special := _SPECIAL.get(next(iter(codes)))) is not None:
        raise special(**faults[0].facts, errors=errors)
    first = f"{faults[0].pointer or 'the body'}: {faults[0].message}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise InvalidParameter(f"The request is not valid: {first}{more}.", errors)


def faults_of(errors: Sequence[Mapping[str, Any]], body: object) -> list[Fault]:
    """The faults that pydantic found in `body`; what was sent is never repeated in them, it may be a secret."""
    return [
        Fault(
            pointer(error["loc"], body, missing=error["type"] == _MISSING),
            _sentence(error),
            error["type"] if error["type"] in _SPECIAL else InvalidParameter.code,
            error.get("ctx", {}) if error["type"] in _SPECIAL else {},
        )
        for error in errors
    ]


def pointer(location: Sequence[str | int], body: object, *, missing: bool) -> str:
    """The JSON pointer (RFC 6901) of pydantic's location; the names of union members in it are left out."""
    parts: list[str] = []
    at = body
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(at, dict):
            if part in at:
                at = at[part]
            elif not (last and missing):
                continue
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            continue
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    return "".join("/" + part for part in parts)


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == _MISSING:
        return "is required"
    if error["type"] == "extra_forbidden":
        return "is no field of this resource"
    return str(error["msg"]).removeprefix("Value error, ")
