"""What every error is, and how they are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class RehostError(Exception):
    """{detail}"""

    code: ClassVar[str] = "Internal"
    remedy: ClassVar[str] = "Look at the log of the run; the cause is in its last lines."
    retryable: ClassVar[bool] = False
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        template = type(self).__doc__ or type(self).__name__
        super().__init__(" ".join(template.format_map(_Facts(facts)).split()))

    @property
    def message(self) -> str:
        """The sentence, with the facts of this case in it."""
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.facts, str(self)))


class _Facts(dict[str, Any]):
    """A fact that was not given shows as its name, so that an error never fails while it is told."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _rebuild(cls: type[RehostError], facts: dict[str, Any], message: str) -> RehostError:
    error = cls(**facts)
    error.args = (message,)
    return error


def error_of(code: str, message: str) -> RehostError:
    """The error that was told by this code and sentence, by a report or another process."""
    cls = next((c for c in error_classes() if c.code == code), RunError)
    return _rebuild(cls, {}, message)


def error_classes(root: type[RehostError] = RehostError) -> Iterator[type[RehostError]]:
    """Every error class that has a code of its own, for the docs and for the test that finds clashes."""
    for cls in root.__subclasses__():
        if "code" in vars(cls):
            yield cls
        yield from error_classes(cls)


class RunError(RehostError):
    """{detail}"""
