"""What was read, gathered as Arrow arrays; and the threads that put chunks into the store meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from rehost.errors import SourceProtocol
from rehost.replication.bundles import BadBundle, Bundle
from rehost.replication.manifest import CHUNK_TYPE, FILES_SCHEMA
from rehost.replication.store import Store
from rehost.source.session import FileContent

_WRITERS = 2
_QUEUED = 24  # bundles that wait for the store, at most 1 MiB each
_BATCH = 4096

CHUNKS_TYPE = FILES_SCHEMA.field("chunks").type


class Contents:
    """FileContents as columns; `number` of each is its position."""

    def __init__(self) -> None:
        self._waiting: list[FileContent] = []
        self._lists: list[pa.Array] = []
        self._numbers: list[np.ndarray] = []  # rows of (index, size, mtime, ctime, unstable)
        self.count = 0

    def add(self, content: FileContent) -> int:
        """Keep one; its position."""
        self._waiting.append(content)
        self.count += 1
        if len(self._waiting) >= _BATCH:
            self._pack()
        return self.count - 1

    def chunks(self) -> list[pa.Array]:
        """The chunks of all, as arrays of lists that follow each other."""
        self._pack()
        return self._lists

    def numbers(self) -> np.ndarray:
        """One row each of (index, size, mtime_ns, ctime_ns, unstable)."""
        self._pack()
        return np.concatenate([np.empty((0, 5), np.int64), *self._numbers])

    def _pack(self) -> None:
        if self._waiting:
            self._lists.append(chunk_lists(self._waiting))
            rows = [(c.index, c.size, c.mtime_ns, c.ctime_ns, int(c.unstable)) for c in self._waiting]
            self._numbers.append(np.array(rows, np.int64))
            self._waiting = []


def chunk_lists(contents: Sequence[FileContent]) -> pa.Array:
    """The chunks of each, as the manifest has them."""
    chunks = [chunk for content in contents for chunk in content.chunks]
    fields = list(CHUNK_TYPE)
    children = [pa.array([chunk[at] for chunk in chunks], field.type) for at, field in enumerate(fields)]
    ends = np.cumsum([0, *(len(content.chunks) for content in contents)])
    structs = pa.StructArray.from_arrays(children, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=CHUNKS_TYPE)


class Delivery:
    """Takes chunks from a session to the store, in a few threads with a bound on what waits.

    On the way out of its block all that was delivered is in the store and durable, also after an error.
    """

    def __init__(self, store: Store, host: str, delivered: Callable[[int], None]) -> None:
        self.bytes_new = 0  # content of chunks that the store did not have, before its compression
        self._store = store
        self._host = host  # for messages
        self._delivered = delivered
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="store")
        self._room = threading.BoundedSemaphore(_QUEUED)
        self._lock = threading.Lock()
        self._queued: set[bytes] = set()
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
        with self._lock:  # before the store is asked: what leaves this set is in the store
            queued = [name in self._queued for name in names]
        present = self._store.has(names)
        return [not (here or coming) for here, coming in zip(present, queued, strict=True)]

    def deliver(self, bundle: Bundle) -> None:
        """Queue a bundle; waits while the queue is full. Raises what the store raised for an earlier one, and
        SourceProtocol where an earlier one was not what its names say."""
        self._raise()
        self._room.acquire()
        with self._lock:
            self._queued.update(bundle.names)
        self._pool.submit(self._put, bundle).add_done_callback(self._put_done)
        self._delivered(bundle.size)

    def settle(self) -> None:
        """Wait until all that was delivered is in the store."""
        for _ in range(_QUEUED):
            self._room.acquire()
        for _ in range(_QUEUED):
            self._room.release()
        self._raise()

    def _put(self, bundle: Bundle) -> None:
        try:
            new = self._store.put_bundle(bundle)
            with self._lock:
                self._queued.difference_update(bundle.names)
                self.bytes_new += new
        except BadBundle as error:
            raise SourceProtocol(host=self._host, reason=str(error)) from error
        finally:
            self._room.release()

    def _put_done(self, future: Future[None]) -> None:
        if (error := future.exception()) is not None:
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
