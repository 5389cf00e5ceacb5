"""Reading tables in Parquet files from their start to their end, so much at a time as another one calls for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import StoreUnreadable

ROWS_A_GROUP = 16_384  # of Parquet files; rows are worked on by so many
BYTES_A_GROUP = 8 << 20  # a group of long rows is closed before


class Rows:
    """The rows of a Parquet file, in order. Holds one row group, and what was not taken of the one before.

    Raises StoreUnreadable where the file is no Parquet file of these columns, or is damaged.
    """

    def __init__(self, path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
        # Row groups are read one after the other by one thread: nothing is fetched ahead, which would be held too.
        try:
            self._file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise StoreUnreadable(path=path, reason=str(error)) from error
        if not self._file.schema_arrow.equals(schema):
            self._file.close()
            raise StoreUnreadable(path=path, reason="it has other columns than it should")
        self._path = path
        self._columns = list(columns)
        self._next_group = 0
        self._held: pa.Table = schema.empty_table().select(self._columns)
        self.taken = 0  # rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def groups(self) -> Iterator[tuple[int, pa.Table]]:
        """Each row group with the number of its first row."""
        for number in range(self._file.num_row_groups):
            table = self._read(number)
            yield self.taken, table
            self.taken += table.num_rows

    def groups_with(self, marked: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
        """The row groups in which a row is marked, each with the number of its first row."""
        for number in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(number).num_rows
            if marked[self.taken : self.taken + rows].any():
                yield self.taken, self._read(number)
            self.taken += rows

    def up_to_path(self, last: bytes) -> pa.Table:
        """The rows that follow, of a table sorted by path, up to this path."""
        bound = pa.scalar(last, pa.binary())
        return self._take(lambda table: pc.sum(pc.less_equal(table["path"], bound)).as_py() or 0)

    def up_to_number(self, column: str, stop: int) -> pa.Table:
        """The rows that follow, of a table sorted by a column of numbers, whose number is below `stop`."""
        return self._take(lambda table: int(np.searchsorted(table[column].to_numpy(), stop)))

    def up_to_row(self, stop: int) -> pa.Table:
        """The rows that follow, before the row of this number."""
        return self._take(lambda table: stop - self.taken)

    def _take(self, within: Callable[[pa.Table], int]) -> pa.Table:
        """Rows up to a bound; `within` says how many of a table's rows are before it, all of them or more if all."""
        pieces: list[pa.Table] = []
        while True:
            count = min(within(self._held), self._held.num_rows)
            pieces.append(self._held.slice(0, count))
            self.taken += count
            if count < self._held.num_rows or self._next_group == self._file.num_row_groups:
                self._held = self._held.slice(count)
                return pa.concat_tables(pieces)
            self._held = self._read(self._next_group)
            self._next_group += 1

    def _read(self, number: int) -> pa.Table:
        try:
            return self._file.read_row_group(number, columns=self._columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise StoreUnreadable(path=self._path, reason=str(error)) from error
