"""A form as a request body and back: the name of a field is its JSON pointer in the body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.datastructures import FormData

from rehost.errors import RehostError

Kind = Literal["text", "integer", "flag", "choices", "lines", "pairs", "moment"]
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_PAIR = re.compile(r"([^=]*)=(.*)")


@dataclass(frozen=True)
class Field:
    """One field. `kind` says how its text becomes a value; an empty field is left out of the body."""

    pointer: str
    kind: Kind = "text"


@dataclass
class Filled:
    """A form with what was put into it and what is wrong with it."""

    values: Mapping[str, list[str]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    general: list[str] = field(default_factory=list)  # faults of no field in particular
    error: RehostError | None = None

    def text(self, pointer: str, default: object = "") -> str:
        """What a field has in it."""
        if pointer in self.values:
            return self.values[pointer][0]
        return "" if self.values and default is None else str(default if default is not None else "")

    def ticked(self, pointer: str, value: str = "true", default: bool = False) -> bool:
        """Whether a box has its mark; a form that was sent leaves out those that have none."""
        return value in self.values.get(pointer, []) if self.values else default

    def fault(self, pointer: str) -> str:
        """What is wrong with a field, in one line."""
        return "; ".join(self.faults.get(pointer, []))

    @property
    def wrong(self) -> bool:
        """Whether anything is."""
        return self.error is not None


def filled(form: FormData) -> Filled:
    """The form as it was sent."""
    values: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            values.setdefault(name, []).append(value.replace("\r\n", "\n"))
    return Filled(values)


def body_of(form: Filled, fields: Sequence[Field]) -> dict[str, Any]:
    """The body of the request that the form stands for. What is no number stays text, and is refused as such."""
    body: dict[str, Any] = {}
    for each in fields:
        texts = form.values.get(each.pointer, [])
        for value in _value(each.kind, texts):
            _put(body, each.pointer, value)
    return body


def _value(kind: Kind, texts: list[str]) -> Iterator[Any]:
    """The value, or nothing where the field is empty."""
    text = texts[0].strip() if texts else ""
    if kind == "flag":
        yield text == "true"
    elif kind == "choices":
        yield texts
    elif not text:
        return
    elif kind == "integer":
        yield int(text) if _NUMBER.fullmatch(text) else text
    elif kind == "lines":
        yield [line.strip() for line in text.split("\n") if line.strip()]
    elif kind == "pairs":
        yield _pairs(text)
    elif kind == "moment":
        yield f"{text}Z" if re.search(r"T[0-9:.]+$", text) else text  # the page says that it is UTC
    else:
        yield text


def _pairs(text: str) -> Any:
    """KEY=VALUE in each line; what has no `=` makes the whole no object, and is refused as such."""
    found = {}
    for line in filter(None, (line.strip() for line in text.split("\n"))):
        match = _PAIR.fullmatch(line)
        if match is None:
            return text
        found[match[1].strip()] = match[2].strip()
    return found


def _put(body: dict[str, Any], pointer: str, value: Any) -> None:
    *parents, name = pointer.strip("/").split("/")
    at = body
    for parent in parents:
        at = at.setdefault(parent, {})
    at[name] = value


def show_faults(form: Filled, error: RehostError, pointers: Mapping[str, str]) -> None:
    """Put each fault to its field. `pointers` leads from a pointer in the body to the field's name where they differ;
    a fault inside a field's value is the field's."""
    form.error = error
    for pointer, message, *_ in error.facts.get("errors", []):
        at = pointer
        while at and pointers.get(at) is None:
            at = at.rpartition("/")[0]
        if at:
            form.faults.setdefault(pointers[at], []).append(message)
        else:
            form.general.append(f"{pointer or 'the form'}: {message}")
