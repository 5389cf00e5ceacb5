"""The files table of a new snapshot, written from the scan, the parent's table and what was read, side by side."""

from __future__ import annotations

import contextlib
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.replication.columns import GrowingColumn
from rehost.replication.compare import Links, kinds, numbers
from rehost.replication.contents import CHUNKS_TYPE, CONTENTS_SCHEMA
from rehost.replication.manifest import (
    CHUNK_TYPE,
    FILES_SCHEMA,
    SCAN_SCHEMA,
    SHA256_BYTES,
    Validator,
    binary_words,
    single,
)
from rehost.replication.rows import Rows
from rehost.replication.told import Told

_CHUNKS_A_GROUP = 1 << 18
_FACTS = ("size", "mtime_ns", "ctime_ns", "unstable")  # what a reading says better than the scan
_NAME = np.dtype(f"V{SHA256_BYTES}")
_NOTHING = pa.array([[]], CHUNKS_TYPE)


@dataclass
class Origins:
    """Where the content of each row of a scan comes from; arrays are as long as the scan."""

    parent: Path | None  # a files table
    kept: np.ndarray  # row of the parent, or -1
    contents: Path  # of CONTENTS_SCHEMA, by row
    late: list[pa.RecordBatch]  # the same, in no order; of two for one row the later one counts, over all else
    links: Links
    dropped: np.ndarray  # which rows are left out


@dataclass
class Result:
    """What the table holds."""

    files_total: int = 0  # rows
    bytes_total: int = 0  # sizes, an inode once
    unstable: Told = field(default_factory=Told)
    comparable: np.ndarray = field(default_factory=lambda: np.empty(0, bool))  # rows whose content one reading tells


def files_table(
    scanned: pa.Table, *, link_group: pa.Array | None = None, chunks: pa.Array | None = None, **facts: np.ndarray
) -> pa.Table:
    """Rows of a scan as rows of a files table; without more, with no content and as if each was the only name."""
    rows = scanned.num_rows
    columns = {
        **{name: scanned[name] for name in FILES_SCHEMA.names if name in SCAN_SCHEMA.names},
        "link_group": pa.nulls(rows, pa.uint64()) if link_group is None else link_group,
        "chunks": _no_chunks(rows) if chunks is None else chunks,
        "unstable": pa.array(np.zeros(rows, bool)),
    }
    for name, values in facts.items():
        columns[name] = pa.array(values, FILES_SCHEMA.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in FILES_SCHEMA.names], schema=FILES_SCHEMA)


def write_result(scan: Path, path: Path, origins: Origins) -> Result:
    """Write the files table to `path`, every rule checked as it is written.

    Raises ManifestInvalid, and StoreUnreadable where the parent's file is damaged.
    """
    result, rules = Result(), Validator()
    comparable: list[np.ndarray] = []
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            pq.ParquetWriter(
                path,
                FILES_SCHEMA,
                compression="zstd",
                compression_level=1,
                use_dictionary=["volume", "mode", "uid", "gid", "rdev_major", "rdev_minor", "flags", "dev"],
                write_statistics=False,
            )
        )
        scanned = stack.enter_context(Rows(scan, SCAN_SCHEMA, SCAN_SCHEMA.names))
        merge = _Merge(origins, stack)
        for start, table in scanned.groups():
            files, first = merge.next(start, table)
            keep = ~origins.dropped[start : start + table.num_rows]
            if not keep.all():
                files, first = files.filter(pa.array(keep)), first[keep]
            rules.check(files)
            _write(writer, files)
            result.files_total += files.num_rows
            result.bytes_total += int(numbers(files, "size")[first].sum())
            unstable = numbers(files, "unstable")
            comparable.append(first & ~unstable & (kinds(files) == stat.S_IFREG) & (numbers(files, "size") > 0))
            if unstable.any():
                result.unstable.add_all(files["path"].take(pa.array(np.flatnonzero(unstable))).to_pylist())
        rules.finish()
    result.comparable = np.concatenate(comparable)
    return result


def _write(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """In row groups with a bound on their chunks: one group of long files is as much as many groups of short ones."""
    ends = np.cumsum(pc.list_value_length(single(table["chunks"])).to_numpy())
    at = 0
    while at < table.num_rows:
        bound = (int(ends[at - 1]) if at else 0) + _CHUNKS_A_GROUP
        stop = max(at + 1, int(np.searchsorted(ends, bound, side="right")))
        writer.write_table(table.slice(at, stop - at), row_group_size=stop - at)
        at = stop


class _Merge:
    """Content for the rows of a scan, range by range."""

    def __init__(self, origins: Origins, stack: contextlib.ExitStack) -> None:
        self._origins = origins
        self._parent: Rows | None = None
        if origins.parent is not None:
            self._parent = stack.enter_context(Rows(origins.parent, FILES_SCHEMA, ["chunks"]))
        self._contents = stack.enter_context(Rows(origins.contents, CONTENTS_SCHEMA, CONTENTS_SCHEMA.names))
        self._late = _by_row(origins.late)
        self._groups = _Groups(origins.links.groups)

    def next(self, start: int, table: pa.Table) -> tuple[pa.Table, np.ndarray]:
        """The rows of the scan from `start` on as rows of the files table, and which are the first of their inode."""
        stop = start + table.num_rows
        sources, pieces = np.zeros(table.num_rows, np.int64), [_NOTHING]
        facts: dict[str, np.ndarray] = {}
        at = 1
        kept = self._origins.kept[start:stop]
        rows = np.flatnonzero(kept >= 0)
        if self._parent is not None and len(rows):
            self._parent.up_to_row(int(kept[rows[0]]))
            known = self._parent.taken
            piece = single(self._parent.up_to_row(int(kept[rows[-1]]) + 1)["chunks"])
            sources[rows] = at + kept[rows] - known
            pieces, at = [*pieces, piece], at + len(piece)
        for contents in (self._contents.up_to_number("row", stop), _between(self._late, start, stop)):
            if not contents.num_rows:
                continue
            rows = numbers(contents, "row") - start
            sources[rows] = at + np.arange(len(rows))
            pieces, at = [*pieces, single(contents["chunks"])], at + len(rows)
            facts = facts or _facts(table)
            for name in _FACTS:
                facts[name][rows] = numbers(contents, name)
        chunks = pa.concat_arrays(pieces).take(pa.array(sources)) if at > 1 else _no_chunks(len(sources))
        links = self._origins.links
        members, group = links.between(start, stop)
        first = np.ones(table.num_rows, bool)
        if not len(members):
            return files_table(table, chunks=chunks, **facts), first
        leads = links.first[group] == members + start
        first[members[~leads]] = False
        facts = facts or _facts(table)
        chunks = self._groups.share(table, members, group, leads, chunks, facts)
        numbered = np.zeros(table.num_rows, np.uint64)
        numbered[members] = links.first[group]
        shared = np.zeros(table.num_rows, bool)
        shared[members] = links.shared[group]
        link_group = pa.array(numbered, pa.uint64(), mask=~shared)
        return files_table(table, link_group=link_group, chunks=chunks, **facts), first


class _Groups:
    """What the first name of each inode says of the content, for its other names. A regular file's size may have
    been another one when the scan came to a later name."""

    def __init__(self, groups: int) -> None:
        self._count = np.full(groups, -1, np.int32)  # of chunks; -1: not seen yet
        self._start = np.zeros(groups, np.int64)  # of them, in `_chunks`
        self._chunks = {
            field.name: GrowingColumn(_NAME if field.name == "sha256" else np.dtype(field.type.to_pandas_dtype()))
            for field in CHUNK_TYPE
        }
        self._facts = {name: np.zeros(groups, FILES_SCHEMA.field(name).type.to_pandas_dtype()) for name in _FACTS}

    def share(
        self,
        table: pa.Table,
        members: np.ndarray,
        group: np.ndarray,
        leads: np.ndarray,
        chunks: pa.Array,
        facts: dict[str, np.ndarray],
    ) -> pa.Array:
        """Learn from the first names among `members` (rows of the table, with their groups); put right the others.

        The chunks of all rows come back; `facts` are changed in place.
        """
        regular = kinds(table)[members] == stat.S_IFREG
        rows, of = members[regular & leads], group[regular & leads]
        self._learn(of, chunks.take(pa.array(rows)))
        for name in _FACTS:
            self._facts[name][of] = facts[name][rows]
        rows, of = members[regular & ~leads], group[regular & ~leads]
        known = self._count[of] >= 0  # else the row is one that is left out, like all before it
        rows, of = rows[known], of[known]
        if not len(rows):
            return chunks
        for name in _FACTS:
            facts[name][rows] = self._facts[name][of]
        sources = np.arange(table.num_rows)
        sources[rows] = table.num_rows + np.arange(len(rows))
        return pa.concat_arrays([chunks, self._lists(of)]).take(pa.array(sources))

    def _learn(self, of: np.ndarray, lists: pa.Array) -> None:
        counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        self._count[of] = counts
        self._start[of] = len(self._chunks["sha256"]) + np.cumsum(counts) - counts
        items = lists.flatten()
        for name, column in self._chunks.items():
            values = pc.struct_field(items, name)
            column.add(binary_words(values).view(_NAME)[:, 0] if name == "sha256" else values.to_numpy())

    def _lists(self, of: np.ndarray) -> pa.Array:
        counts = self._count[of].astype(np.int64)
        ends = np.cumsum(counts)
        rows = np.repeat(self._start[of] - (ends - counts), counts) + np.arange(counts.sum())
        values = {name: column.take(rows) for name, column in self._chunks.items()}
        names = pa.py_buffer(np.ascontiguousarray(values["sha256"]))
        children = [
            pa.array(values["offset"]),
            pa.array(values["length"]),
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(SHA256_BYTES), len(rows), [None, names]),
        ]
        items = pa.StructArray.from_arrays(children, fields=list(CHUNK_TYPE))
        return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), items, type=CHUNKS_TYPE)


def _facts(table: pa.Table) -> dict[str, np.ndarray]:
    facts = {name: numbers(table, name).copy() for name in _FACTS if name != "unstable"}
    return {**facts, "unstable": np.zeros(table.num_rows, bool)}


def _by_row(batches: list[pa.RecordBatch]) -> pa.Table:
    """Contents sorted by row; of two for one row the later one."""
    table = pa.Table.from_batches(batches, CONTENTS_SCHEMA)
    rows = numbers(table, "row")
    order = np.argsort(rows, kind="stable")
    last = np.append(rows[order][1:] != rows[order][:-1], True)[: len(order)]
    return table.take(pa.array(order[last])).combine_chunks()


def _between(table: pa.Table, start: int, stop: int) -> pa.Table:
    low, high = np.searchsorted(numbers(table, "row"), (start, stop))
    return table.slice(low, high - low)


def _no_chunks(rows: int) -> pa.Array:
    none = pa.StructArray.from_arrays([pa.array([], field.type) for field in CHUNK_TYPE], fields=list(CHUNK_TYPE))
    return pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), none, type=CHUNKS_TYPE)
