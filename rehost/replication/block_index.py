"""The index of blocks: Parquet files of BLOCKS_SCHEMA rows, read and written some at a time, however many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rehost.replication import block_zeros
from rehost.replication.manifest import BLOCKS_SCHEMA, SHA256_BYTES
from rehost.replication.snapshots import Region
from rehost.source.block_session import runs_of

HASH_BYTES = 16
_ROWS_A_GROUP = 65_536


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one region, in order."""

    blocks: np.ndarray  # u64
    hashes: np.ndarray  # u8, shape (n, 16)
    names: np.ndarray  # u8, shape (n, 32): SHA-256

    def __len__(self) -> int:
        return len(self.blocks)

    def cut(self, start: int, stop: int | None = None) -> Rows:
        """Some of them."""
        return Rows(self.blocks[start:stop], self.hashes[start:stop], self.names[start:stop])

    @classmethod
    def none(cls) -> Rows:
        """No rows."""
        return cls(np.empty(0, np.uint64), np.empty((0, HASH_BYTES), np.uint8), np.empty((0, SHA256_BYTES), np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows that follow each other."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.none()
        return cls(
            *(np.concatenate(columns) for columns in zip(*((p.blocks, p.hashes, p.names) for p in parts), strict=True))
        )


class BlockIndex:
    """An index that was written, with the regions that it counts."""

    def __init__(self, path: Path, regions: Sequence[Region]) -> None:
        self.path = path
        self.regions = tuple(regions)

    def number(self, disk: int, start: int, size_bytes: int) -> int | None:
        """The region at that very place of a disk."""
        place = disk, start, size_bytes
        found = (n for n, r in enumerate(self.regions) if (r.disk, r.start, r.size_bytes) == place)
        return next(found, None)

    def rows(self, region: int) -> Iterator[Rows]:
        """The rows of a region, some at a time."""
        with pq.ParquetFile(self.path) as file:
            for number in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(number).column(0).statistics
                if statistics is not None and not statistics.min <= region <= statistics.max:
                    continue
                for batch in file.iter_batches(_ROWS_A_GROUP, row_groups=[number]):
                    low, high = np.searchsorted(batch["region"].to_numpy(), [region, region + 1])
                    if high > low:
                        part = batch.slice(low, high - low)
                        yield Rows(
                            part["block"].to_numpy(),
                            _bytes(part["hash"], HASH_BYTES),
                            _bytes(part["sha256"], SHA256_BYTES),
                        )

    def zeros(self, region: int) -> np.ndarray:
        """Runs (first block, number) of a region that were in use and zeros, as far as that was noted."""
        with pq.ParquetFile(self.path) as file:
            told = (file.metadata.metadata or {}).get(block_zeros.KEY)
        try:
            runs = block_zeros.unpacked(told)
        except ValueError:  # as if nothing had been noted: they are read
            runs = block_zeros.NONE
        return runs[runs[:, 0] == region, 1:]


class Cursor:
    """Goes once through the rows of a region."""

    def __init__(self, rows: Iterator[Rows]) -> None:
        self._rows = rows
        self._held = Rows.none()

    def take(self, blocks: np.ndarray) -> tuple[np.ndarray, Rows]:
        """Which of these ascending blocks have a row, and those rows. Rows before the last of them are passed by."""
        parts = []
        last = blocks[-1]
        while True:
            stop = int(np.searchsorted(self._held.blocks, last, side="right"))
            parts.append(self._held.cut(0, stop))
            self._held = self._held.cut(stop)
            if len(self._held):
                break
            following = next(self._rows, None)
            if following is None:
                break
            self._held = following
        rows = Rows.joined(parts)
        here = np.isin(rows.blocks, blocks, assume_unique=True)
        kept = Rows(rows.blocks[here], rows.hashes[here], rows.names[here])
        return np.isin(blocks, kept.blocks, assume_unique=True), kept


class BlockIndexWriter:
    """Writes an index: regions in order, and the blocks of each in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._writer = pq.ParquetWriter(path, BLOCKS_SCHEMA, compression="zstd", use_dictionary=False)
        self._waiting: list[pa.RecordBatch] = []
        self._held = 0
        self._zeros: list[np.ndarray] = []
        self._zero_runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._write()
            self._writer.add_key_value_metadata({block_zeros.KEY: block_zeros.packed(self._zeros)})
        self._writer.close()

    def add(self, region: int, rows: Rows) -> None:
        """Append rows."""
        count = len(rows)
        if not count:
            return
        columns = [
            pa.array(np.full(count, region, np.uint16)),
            pa.array(np.ascontiguousarray(rows.blocks, np.uint64)),
            _binary(rows.hashes, HASH_BYTES),
            _binary(rows.names, SHA256_BYTES),
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=BLOCKS_SCHEMA))
        self.count += count
        self._held += count
        if self._held >= _ROWS_A_GROUP:
            self._write()

    def add_zeros(self, region: int, blocks: np.ndarray) -> None:
        """Note blocks that are in use and zeros, in order too."""
        runs = runs_of(blocks)
        if len(runs) and self._zero_runs < block_zeros.RUNS_MAX:
            self._zero_runs += len(runs)
            self._zeros.append(np.column_stack([np.full(len(runs), region, np.uint64), runs]).astype(np.uint64))

    def _write(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, BLOCKS_SCHEMA)
            self._writer.write_table(table, row_group_size=_ROWS_A_GROUP)
            self._waiting, self._held = [], 0


def _bytes(column: pa.Array, width: int) -> np.ndarray:
    raw = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return raw.reshape(-1, width)


def _binary(values: np.ndarray, width: int) -> pa.Array:
    raw = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, raw])
