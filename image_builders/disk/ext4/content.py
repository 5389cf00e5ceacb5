"""The content of regular files: chunks become runs of blocks, then bytes at their place.

Chunks may begin and end anywhere. Two chunks that share a block, or lie in neighbouring ones, are one run; what no
chunk reaches is a hole.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from image_builders.disk.ext4.arrays import BLOCK, Bytes, Numbers, before, single
from image_builders.disk.ext4.entries import LARGEST_FILE, Entries
from rehost.errors import BuildUnsupported
from rehost.replication.manifest import SHA256_BYTES, ChunkReader
from rehost.replication.tree import printable

_READERS = 2  # threads that read ahead: decompression and SHA-256 leave the interpreter to others
_AHEAD = 6  # batches read or being read
_BATCH_BYTES = 4 << 20
_BATCH_CHUNKS = 256


@dataclass(frozen=True)
class Content:
    """Every chunk that is written, in the order of rows and offsets, and the runs they make."""

    rows: Numbers  # of each chunk
    positions: Numbers  # of each chunk: bytes from the start of the data area
    lengths: Numbers  # of each chunk, bytes
    names: Bytes  # SHA-256 of all chunks of the table
    name_index: Numbers  # of each chunk: which of the names
    run_rows: Numbers
    run_logical: Numbers  # blocks
    run_lengths: Numbers  # blocks

    @property
    def blocks(self) -> int:
        return int(self.run_lengths.sum())

    @property
    def bytes(self) -> int:
        return int(self.lengths.sum())


def content_of(entries: Entries) -> Content:
    """Check the chunks of a table and lay them out. Raises BuildUnsupported."""
    column = single(entries.table["chunks"])
    counts = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    offset_array, length_array, name_array = column.flatten().flatten()
    offsets_unsigned = offset_array.to_numpy(zero_copy_only=False)
    lengths = length_array.to_numpy(zero_copy_only=False).astype(np.int64)
    names_buffer = name_array.buffers()[1]
    names = np.zeros(0, np.uint8) if names_buffer is None else np.frombuffer(names_buffer, np.uint8)
    names = names[name_array.offset * SHA256_BYTES :]

    rows = np.repeat(np.arange(len(counts)), counts)
    for row in rows[offsets_unsigned > LARGEST_FILE][:1].tolist():
        entries.refuse(row, "a chunk lies beyond its size")
    offsets = offsets_unsigned.astype(np.int64)
    regular = (entries.modes & 0o170000) == stat.S_IFREG
    for wrong, reason in (
        (~regular[rows], "it has content and is no regular file"),
        (offsets + lengths > entries.sizes[rows], "a chunk lies beyond its size"),
        (
            np.append(False, (rows[1:] == rows[:-1]) & (offsets[1:] < (offsets + lengths)[:-1])),
            "its chunks overlap or are out of order",
        ),
    ):
        if len(rows) and wrong[: len(rows)].any():
            entries.refuse(int(rows[np.argmax(wrong)]), reason)

    keep = np.flatnonzero(entries.owning[rows] & (lengths > 0))
    rows, offsets, lengths = rows[keep], offsets[keep], lengths[keep]
    first = offsets // BLOCK
    end = -(-(offsets + lengths) // BLOCK)
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = (rows[1:] != rows[:-1]) | (first[1:] > end[:-1])
    starts = np.flatnonzero(begins)
    run_logical = first[starts]
    run_lengths = end[np.append(starts[1:], len(rows)) - 1] - run_logical if len(rows) else run_logical
    run = np.cumsum(begins) - 1
    positions = (before(run_lengths) - run_logical)[run] * BLOCK + offsets
    return Content(
        rows=rows,
        positions=positions,
        lengths=lengths,
        names=names,
        name_index=keep,
        run_rows=rows[starts],
        run_logical=run_logical,
        run_lengths=run_lengths,
    )


def read_ahead(content: Content, entries: Entries, chunks: ChunkReader) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) of every chunk, in order, a bounded number of batches read ahead by a few threads.

    Raises what the reader raises, and BuildUnsupported for a chunk of another length than the table says.
    """

    def read(first: int, last: int) -> list[bytes]:
        index = content.name_index[first:last].tolist()
        names = content.names
        return [chunks.read_chunk(names[i * SHA256_BYTES : (i + 1) * SHA256_BYTES].tobytes()) for i in index]

    pending: deque[tuple[int, int, Future[list[bytes]]]] = deque()
    batches = _batches(content.lengths)
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="ext4-read")
    try:
        while True:
            while len(pending) < _AHEAD and (batch := next(batches, None)) is not None:
                pending.append((*batch, pool.submit(read, *batch)))
            if not pending:
                return
            first, last, future = pending.popleft()
            positions, lengths = content.positions[first:last].tolist(), content.lengths[first:last].tolist()
            for number, (position, length, piece) in enumerate(zip(positions, lengths, future.result(), strict=True)):
                if len(piece) != length:
                    raise BuildUnsupported(
                        what=f"/{printable(entries.paths.get(int(content.rows[first + number])))}",
                        reason=f"a chunk has {len(piece)} bytes where the files table says {length}",
                    )
                yield position, piece
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(lengths: Numbers) -> Iterator[tuple[int, int]]:
    """Ranges of chunks that are read in one go."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        begin = int(ends[first] - lengths[first])
        last = int(np.searchsorted(ends, begin + _BATCH_BYTES, "right"))
        last = max(first + 1, min(last, first + _BATCH_CHUNKS))
        yield first, last
        first = last
