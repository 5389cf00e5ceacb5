"""What is wrong with a request, all of it in one answer.

Most faults are plain: InvalidParameter, with a JSON pointer and a sentence each. Some have a code of their own, and
some are no fault of the request's form but conflicts with what there is (409), or name what there is not (404). One
class answers for all of them, and `errors` has every fault with its code:

1. where the form or a rule is broken (422): the class of the code that all those faults share, else InvalidParameter;
2. otherwise where something does not exist (404): the class of the first such fault;
3. otherwise (409): the class of the first conflict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rehost.errors import Invalid, InvalidParameter, NotFound, RequestError, error_classes

_CLASSES = {cls.code: cls for cls in error_classes(RequestError)}
_SPECIAL = {cls.code for cls in error_classes(Invalid) if cls is not InvalidParameter}
_MISSING = "missing"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `facts` fill the sentence of the error class that has the code."""

    pointer: str
    message: str
    code: str = InvalidParameter.code
    facts: Mapping[str, Any] = field(default_factory=dict)


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise the one error that tells all faults; nothing happens where there are none."""
    if not faults:
        return
    errors = [(fault.pointer, fault.message, fault.code) for fault in faults]
    invalid = [fault for fault in faults if issubclass(_CLASSES[fault.code], Invalid)]
    missing = [fault for fault in faults if issubclass(_CLASSES[fault.code], NotFound)]
    told = invalid or missing or faults
    shared = not invalid or len({fault.code for fault in invalid}) == 1
    if shared and told[0].code != InvalidParameter.code:
        raise _CLASSES[told[0].code](**told[0].facts, errors=errors)
    first = f"{faults[0].pointer or 'the body'}: {faults[0].message}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise InvalidParameter(f"The request is not valid: {first}{more}.", errors)


def fault_of(error: RequestError, pointer: str) -> Fault:
    """An error that says what one place of a request is about, as a fault among others."""
    return Fault(pointer, error.message, error.code, error.facts)


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
        parts.append(str(part))
    return json_pointer(*parts)


def json_pointer(*parts: str) -> str:
    """Names as one pointer; a name that is no Unicode text has question marks in it."""
    readable = (part.encode("utf-8", "replace").decode() for part in parts)
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in readable)


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == _MISSING:
        return "is required"
    if error["type"] == "extra_forbidden":
        return "is no field of this resource"
    return str(error["msg"]).removeprefix("Value error, ")
