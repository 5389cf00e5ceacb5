"""The second reading: a snapshot's files table compared with the source once more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rehost.errors import SnapshotFileChanged
from rehost.replication.compare import numbers
from rehost.replication.contents import CONTENTS_SCHEMA, Contents, Delivery, contents_batch, requests
from rehost.replication.manifest import FILES_SCHEMA, single
from rehost.replication.rows import Rows
from rehost.replication.tree import printable
from rehost.source.session import FileContent, FileRequest, Session

_COMPARED_AT_ONCE = 1024
_STATUS = ("size", "mtime_ns", "ctime_ns")


def compared_again(session: Session, files: Path, comparable: np.ndarray, delivery: Delivery) -> list[pa.RecordBatch]:
    """What files hold that differ from the files table though their status does not, as CONTENTS_SCHEMA by its rows.

    `comparable` marks rows of the table. A file that differs is read a third time, and its content goes to the store.
    Raises SnapshotFileChanged where these two readings do not agree.
    """
    expected: deque[pa.RecordBatch] = deque()
    held: list[FileContent] = []
    differing: list[pa.RecordBatch] = []
    for content in session.read(_announced(files, comparable, expected), _none_wanted, delivery.deliver):
        held.append(content)
        if len(held) == expected[0].num_rows:
            differing += _differing(expected.popleft(), contents_batch(held))
            held = []
    if not differing:
        return []
    seen = pa.Table.from_batches(differing)
    again: list[pa.RecordBatch] = []
    contents = Contents(again.append)
    marked = np.zeros_like(comparable)
    marked[numbers(seen, "row")] = True
    for content in session.read(requests(files, FILES_SCHEMA, marked), delivery.wanted, delivery.deliver):
        contents.add(content)
    contents.pack()
    changing = _changing(seen, pa.Table.from_batches(again))
    if len(changing):
        marked[:] = False
        marked[changing[0]] = True
        (request,) = requests(files, FILES_SCHEMA, marked)
        raise SnapshotFileChanged(count=len(changing), path=f"/{printable(request.path)}")
    return again


def _announced(files: Path, comparable: np.ndarray, expected: deque[pa.RecordBatch]) -> Iterator[FileRequest]:
    """Requests for the marked rows; what those of a block are to hold is put to `expected` before them."""
    with Rows(files, FILES_SCHEMA, ["path", *CONTENTS_SCHEMA.names[1:]]) as table:
        for start, group in table.groups_with(comparable):
            marked = np.flatnonzero(comparable[start : start + group.num_rows])
            for at in range(0, len(marked), _COMPARED_AT_ONCE):
                rows = marked[at : at + _COMPARED_AT_ONCE]
                block = group.take(pa.array(rows))
                columns = [single(block[name]) for name in CONTENTS_SCHEMA.names[1:]]
                numbered = [pa.array(start + rows), *columns]
                expected.append(pa.RecordBatch.from_arrays(numbered, schema=CONTENTS_SCHEMA))
                paths, sizes = block["path"].to_pylist(), block["size"].to_pylist()
                yield from map(FileRequest, (start + rows).tolist(), paths, sizes)


def _differing(expected: pa.RecordBatch, got: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Of what was read, that which has other content and the same status; nothing is said of files that changed."""
    same = ~numbers(got, "unstable")  # and a file that could not be read has no size
    for name in _STATUS:
        same &= numbers(expected, name) == numbers(got, name)
    rows = sorted(_unequal(expected["chunks"], got["chunks"]) & set(np.flatnonzero(same).tolist()))
    return [got.take(pa.array(rows))] if rows else []


def _changing(seen: pa.Table, again: pa.Table) -> np.ndarray:
    """The rows whose next reading does not agree."""
    wrong = numbers(again, "unstable") | (numbers(again, "size") != numbers(seen, "size"))
    wrong[list(_unequal(single(seen["chunks"]), single(again["chunks"])))] = True
    return np.asarray(numbers(seen, "row")[wrong])


def _unequal(some: pa.Array, others: pa.Array) -> set[int]:
    if some.equals(others):
        return set()
    return {row for row in range(len(some)) if not some.slice(row, 1).equals(others.slice(row, 1))}


def _none_wanted(names: Sequence[bytes]) -> list[bool]:
    return [False] * len(names)
