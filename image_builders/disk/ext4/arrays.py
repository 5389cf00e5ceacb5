"""Small vectorised helpers over byte columns, and the types that the writer's modules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BLOCK = 4096  # bytes; the one block size that is written
COPY_ROWS = 65_536  # rows gathered at a time: the index arrays stay at some tens of MB


@dataclass(frozen=True)
class ByteColumn:
    """A column of byte strings: string i is data[starts[i] : starts[i] + lengths[i]]."""

    data: Bytes
    starts: Numbers
    lengths: Numbers

    def get(self, index: int) -> bytes:
        start = int(self.starts[index])
        return self.data[start : start + int(self.lengths[index])].tobytes()


def single(column: pa.ChunkedArray) -> Any:
    """The column as one array, its chunks joined."""
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def byte_column(array: Any) -> ByteColumn:
    """The buffers of a (large) binary array, without a copy of the bytes; a null is an empty string."""
    array = array.cast(pa.large_binary())
    _, offsets_buffer, data_buffer = array.buffers()
    count = len(array)
    if count == 0:
        empty = np.zeros(0, np.int64)
        return ByteColumn(np.zeros(0, np.uint8), empty, empty)
    offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + count + 1]
    data = np.zeros(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return ByteColumn(data, offsets[:-1], np.diff(offsets))


def numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of integers without nulls."""
    array: npt.NDArray[Any] = single(column).to_numpy(zero_copy_only=False)
    return array


def copy_strings(target: Bytes, positions: Numbers, source: Bytes, starts: Numbers, lengths: Numbers) -> None:
    """target[positions[i] :][: lengths[i]] = source[starts[i] :][: lengths[i]] for every i."""
    for first in range(0, len(positions), COPY_ROWS):
        last = first + COPY_ROWS
        size = lengths[first:last]
        total = int(size.sum())
        if total == 0:
            continue
        within = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(size) - size, size)
        target[np.repeat(positions[first:last], size) + within] = source[np.repeat(starts[first:last], size) + within]


def before(lengths: Numbers) -> Numbers:
    """The sum of all that stands before each number: exclusive cumulative sum."""
    return np.cumsum(lengths) - lengths
