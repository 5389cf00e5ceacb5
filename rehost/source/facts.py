"""Facts from a source, taken out of JSON with every type, length and range checked.

A source may say anything. `Facts` gives values that are what they should be, or raises SourceProtocol; text is
cleaned of control characters, so that it can be shown anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rehost.errors import SourceProtocol

_NUMBER_LIMIT = 1 << 62


def clean(text: str) -> str:
    """Text in which every control character and lone surrogate is a question mark; line ends are control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


class Facts:
    """One JSON object of facts, and where it is, for messages."""

    def __init__(self, value: Any, host: str, where: str = "facts") -> None:
        if not isinstance(value, dict) or len(value) > 10_000:
            raise SourceProtocol(host=host, reason=f"{where} is no object")
        self._value, self.host, self.where = value, host, where

    def wrong(self, name: str, what: str) -> SourceProtocol:
        """The error for a value that is not what it should be."""
        return SourceProtocol(host=self.host, reason=f"{self.where}.{name} {what}")

    def raw(self, name: str, limit: int) -> str:
        """A text as it came, "" where there is none; longer than `limit` characters is refused."""
        value = self._value.get(name)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > limit:
            raise self.wrong(name, f"is no text of at most {limit} characters")
        return value

    def text(self, name: str, limit: int = 256) -> str | None:
        """A text, cleaned; None where there is none or it is empty."""
        return clean(self.raw(name, limit)) or None

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """A text that is one of those."""
        value = self.raw(name, 64)
        if value not in allowed:
            raise self.wrong(name, f"is none of {', '.join(allowed)}")
        return value

    def number(self, name: str, low: int = 0, high: int = _NUMBER_LIMIT) -> int | None:
        """A whole number in that range; None where there is none."""
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"is no whole number from {low} to {high}")
        return value

    def needed_number(self, name: str, low: int = 0, high: int = _NUMBER_LIMIT) -> int:
        """A whole number in that range, which must be there."""
        value = self.number(name, low, high)
        if value is None:
            raise self.wrong(name, "is missing")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where there is none."""
        value = self._value.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "is neither true nor false")
        return value

    def _list(self, name: str, limit: int) -> list[Any]:
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > limit:
            raise self.wrong(name, f"is no list of at most {limit}")
        return value

    def objects(self, name: str, limit: int) -> Iterator[Facts]:
        """The objects of a list."""
        for index, value in enumerate(self._list(name, limit)):
            yield Facts(value, self.host, f"{self.where}.{name}[{index}]")

    def texts(self, name: str, limit: int, length: int = 256) -> tuple[str, ...]:
        """The texts of a list, cleaned."""
        values = self._list(name, limit)
        if any(not isinstance(value, str) or len(value) > length for value in values):
            raise self.wrong(name, f"holds something else than texts of at most {length} characters")
        return tuple(clean(value) for value in values)

    def mapping(self, name: str, limit: int, length: int) -> dict[str, str]:
        """An object of texts, as they came."""
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > limit:
            raise self.wrong(name, f"is no object of at most {limit}")
        for key, text in value.items():
            if not isinstance(key, str) or len(key) > 4096 or not isinstance(text, str) or len(text) > length:
                raise self.wrong(name, f"holds something else than texts of at most {length} characters")
        return value
