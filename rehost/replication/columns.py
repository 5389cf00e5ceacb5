"""Columns of numbers that are held for a whole tree, in memory that goes back to the system whole.

Long arrays of all sizes that come and go would leave a heap of holes; each of these is a mapping by itself, of which
what was never written takes no memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

_MAPPED_BYTES = 1 << 17  # shorter ones are in the heap


def column(rows: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Room for a column; what it holds is not said."""
    size = rows * dtype.itemsize
    if size < _MAPPED_BYTES:
        return np.empty(rows, dtype)
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype)


def copied(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """These values in a column of their own."""
    made = column(len(values), dtype)
    made[:] = values
    return made


def joined(columns: Sequence[np.ndarray]) -> np.ndarray:
    """All of them, one after the other, as one."""
    made = column(sum(map(len, columns)), columns[0].dtype)
    return np.concatenate(columns, out=made)


class GrowingColumn:
    """A column that is added to."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._room = column(0, dtype)
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, values: np.ndarray) -> None:
        """Add these at its end."""
        rows = self._rows + len(values)
        if rows > len(self._room):
            room = column(2 * rows, self._room.dtype)
            room[: self._rows] = self._room[: self._rows]
            self._room = room
        self._room[self._rows : rows] = values
        self._rows = rows

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The values of these rows."""
        return np.asarray(self._room[: self._rows][rows])
