"""What was read, on its way to the manifest in a file of its own; and the threads that put chunks into the store."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rehost.errors import SourceProtocol
from rehost.replication.bundles import BadBundle, Bundle
from rehost.replication.manifest import CHUNK_TYPE, FILES_SCHEMA, SHA256_BYTES
from rehost.replication.rows import ROWS_A_GROUP, Rows
from rehost.replication.store import Store
from rehost.source.session import FileContent, FileRequest

_WRITERS = min(4, os.cpu_count() or 1)
_QUEUED_BYTES = 32 << 20  # of bundles that wait for the store
_BATCH_FILES = 4096
_BATCH_CHUNKS = 16_384
_CHUNKS_A_GROUP = 1 << 18

CHUNKS_TYPE = FILES_SCHEMA.field("chunks").type

# What reading told of files, by the row of the scan that was read.
CONTENTS_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        *(FILES_SCHEMA.field(name) for name in ("size", "mtime_ns", "ctime_ns", "unstable", "chunks")),
    ]
)


class Contents:
    """FileContents as record batches, handed over whenever there are some."""

    def __init__(self, take: Callable[[pa.RecordBatch], None]) -> None:
        self._take = take
        self._waiting: list[FileContent] = []
        self._chunks = 0
        self.count = 0

    def add(self, content: FileContent) -> None:
        """Keep one."""
        self._waiting.append(content)
        self._chunks += len(content.chunks)
        self.count += 1
        if len(self._waiting) >= _BATCH_FILES or self._chunks >= _BATCH_CHUNKS:
            self.pack()

    def pack(self) -> None:
        """Hand over what was added since."""
        if self._waiting:
            self._take(contents_batch(self._waiting))
            self._waiting, self._chunks = [], 0


class ContentsFile:
    """A Parquet file of contents, in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = pq.ParquetWriter(
            path, CONTENTS_SCHEMA, compression="none", use_dictionary=False, write_statistics=False
        )
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._chunks = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._write()
        self._writer.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Append some; small batches are gathered into row groups."""
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._chunks += len(batch["chunks"].flatten())
        if self._rows >= ROWS_A_GROUP or self._chunks >= _CHUNKS_A_GROUP:
            self._write()

    def _write(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches), row_group_size=self._rows)
            self._batches, self._rows, self._chunks = [], 0, 0


def contents_batch(contents: Sequence[FileContent]) -> pa.RecordBatch:
    """Rows of CONTENTS_SCHEMA."""
    columns = zip(*((c.index, c.size, c.mtime_ns, c.ctime_ns, c.unstable) for c in contents), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CONTENTS_SCHEMA, strict=False)]
    return pa.RecordBatch.from_arrays([*arrays, _chunk_lists(contents)], schema=CONTENTS_SCHEMA)


def _chunk_lists(contents: Sequence[FileContent]) -> pa.Array:
    chunks = [chunk for content in contents for chunk in content.chunks]
    fields = list(CHUNK_TYPE)
    children = [pa.array([chunk[at] for chunk in chunks], field.type) for at, field in enumerate(fields)]
    ends = [0]
    for content in contents:
        ends.append(ends[-1] + len(content.chunks))
    structs = pa.StructArray.from_arrays(children, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=CHUNKS_TYPE)


def requests(
    path: Path, schema: pa.Schema, marked: np.ndarray, asked: deque[FileRequest] | None = None
) -> Iterator[FileRequest]:
    """Requests for the marked rows of a table in a Parquet file; each goes to `asked` too."""
    with Rows(path, schema, ["path", "size"]) as table:
        for start, group in table.groups_with(marked):
            rows = np.flatnonzero(marked[start : start + group.num_rows])
            for at in range(0, len(rows), _BATCH_FILES):
                some = rows[at : at + _BATCH_FILES]
                taken = group.take(pa.array(some))
                paths, sizes = taken["path"].to_pylist(), taken["size"].to_pylist()
                for request in map(FileRequest, (start + some).tolist(), paths, sizes):
                    if asked is not None:
                        asked.append(request)
                    yield request


class Delivery:
    """Takes bundles from a session to the store, in a few threads with a bound on what waits.

    On the way out of its block all that was delivered is in the store and durable, also after an error.
    """

    def __init__(self, store: Store, host: str, delivered: Callable[[int], None]) -> None:
        self.bytes_new = 0  # content of chunks that the store did not have, before its compression
        self._store = store
        self._host = host
        self._delivered = delivered
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="store")
        self._changed = threading.Condition()  # around all below
        self._waiting_bytes = 0
        self._waiting: set[bytes] = set()  # names of chunks that are delivered and not in the store yet
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        try:
            self._store.flush()
        except Exception:
            # The first error tells what happened; this one most likely has the same cause.
            if kind is None:
                raise
        if kind is None:
            self._raise()

    def wanted(self, names: Sequence[bytes]) -> list[bool]:
        """Which of these chunks are neither in the store nor on their way into it."""
        with self._changed:  # before the store is asked: what leaves this set is in the store
            coming = [name in self._waiting for name in names]
        present = self._store.has(names)
        return [not (here or comes) for here, comes in zip(present, coming, strict=True)]

    def deliver(self, bundle: Bundle) -> None:
        """Queue a bundle; waits while too much is queued. Raises what became of an earlier one.

        SourceProtocol where one does not hold what it says; what the store raises.
        """
        weight = _weight(bundle)
        with self._changed:
            # One that is larger than all the room has it for itself.
            self._changed.wait_for(
                lambda: self._error or not self._waiting_bytes or self._waiting_bytes + weight <= _QUEUED_BYTES
            )
            self._raise()
            self._waiting_bytes += weight
            self._waiting.update(bundle.names)
        self._pool.submit(self._put, bundle).add_done_callback(lambda future: self._put_done(future, bundle))
        self._delivered(bundle.size)

    def settle(self) -> None:
        """Wait until all that was delivered is in the store."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._waiting_bytes)
            self._raise()

    def _put(self, bundle: Bundle) -> int:
        try:
            return self._store.put_bundle(bundle)
        except BadBundle as error:
            raise SourceProtocol(host=self._host, reason=str(error)) from error

    def _put_done(self, future: Future[int], bundle: Bundle) -> None:
        error = future.exception()
        with self._changed:
            if error is None:
                self.bytes_new += future.result()
            else:
                self._error = self._error or error
            self._waiting.difference_update(bundle.names)
            self._waiting_bytes -= _weight(bundle)
            self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _weight(bundle: Bundle) -> int:
    return len(bundle.payload) + len(bundle.names) * SHA256_BYTES
