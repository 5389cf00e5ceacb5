"""Paths for a report: of very many the first, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

from rehost.replication.tree import printable

_TOLD = 1000  # paths of one kind


class Told:
    """Gathers paths with a bound on what is kept."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._count = 0

    def add(self, path: bytes, reason: str = "") -> None:
        """One more path, and what is said of it."""
        self._count += 1
        if len(self._kept) < _TOLD:
            self._kept.append(f"/{printable(path)}" + (f": {reason}" if reason else ""))

    def add_all(self, paths: Sequence[bytes], more: int = 0) -> None:
        """These paths, and so many more that are not named."""
        for path in paths:
            self.add(path)
        self._count += more

    def start_with(self, lines: Sequence[str]) -> None:
        """Put lines that are made already before the others."""
        self._kept[:0] = lines
        self._count += len(lines)

    def paths(self) -> tuple[str, ...]:
        """What to show."""
        shown = self._kept[:_TOLD]
        more = self._count - len(shown)
        return (*shown, f"… and {more} more") if more else tuple(shown)
