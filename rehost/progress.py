"""Progress as an interface: stages report, whoever listens decides what to show and how often."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is done and what there is, in bytes; a total of 0 means not yet known. Never goes back."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Nobody listens."""
