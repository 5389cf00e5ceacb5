"""Blocks in use that are zeros, as runs in the metadata of a blocks table: they have no row, yet are known.

Where it is known what was written since, a block in use that is neither in a row nor here has to be read.
docs/formats.md has the bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import xxhash

KEY = b"rehost.zeros"
RUNS_MAX = 65_536
"""What is beyond is forgotten, and so is read again."""
_CHECK_BYTES = 16

Zeros = np.ndarray
"""u64, shape (n, 3): region, first block, number of blocks; ascending, apart from each other."""

NONE: Zeros = np.empty((0, 3), np.uint64)


def packed(parts: Sequence[Zeros]) -> bytes:
    """The value of that key, for runs that follow each other in order."""
    runs = np.concatenate([NONE, *parts])
    if len(runs):
        begins = (runs[1:, 0] != runs[:-1, 0]) | (runs[1:, 1] != runs[:-1, 1] + runs[:-1, 2])
        starts = np.flatnonzero(np.concatenate([[True], begins]))
        counts = np.add.reduceat(runs[:, 2], starts)
        runs = np.column_stack([runs[starts, :2], counts])[:RUNS_MAX]
    raw = np.ascontiguousarray(runs, "<u8").tobytes()
    return base64.b64encode(xxhash.xxh3_128_digest(raw) + raw)


def unpacked(value: bytes | None) -> Zeros:
    """The runs again. Raises ValueError where the value is damaged, or no such runs."""
    if value is None:
        return NONE
    told = base64.b64decode(value, validate=True)
    raw = told[_CHECK_BYTES:]
    if xxhash.xxh3_128_digest(raw) != told[:_CHECK_BYTES] or len(raw) % 24:
        raise ValueError("its blocks of zeros are damaged")
    runs = np.frombuffer(raw, "<u8").reshape(-1, 3).astype(np.uint64)
    if len(runs) > RUNS_MAX or bool((runs >= 1 << 48).any()) or not runs[:, 2].all():  # so that sums do not wrap around
        raise ValueError("its blocks of zeros cannot be")
    ends = runs[:, 1] + runs[:, 2]
    ascends = (runs[1:, 0] > runs[:-1, 0]) | ((runs[1:, 0] == runs[:-1, 0]) & (runs[1:, 1] >= ends[:-1]))
    if not ascends.all():
        raise ValueError("its blocks of zeros are out of order")
    return runs


def inside(blocks: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Which blocks are in runs (first, number), u64, shape (n, 2), ascending and apart from each other."""
    if not len(runs):
        return np.zeros(len(blocks), bool)
    at = np.searchsorted(runs[:, 0], blocks, side="right").astype(np.int64) - 1
    ends = runs[:, 0] + runs[:, 1]
    found: np.ndarray = (at >= 0) & (blocks < ends[np.maximum(at, 0)])
    return found
