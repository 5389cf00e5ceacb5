"""Comparing files tables, by whole columns: names of one inode, and what did not change since a snapshot before."""

from __future__ import annotations

import stat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rehost.replication.manifest import FILES_SCHEMA

_SAME = ("size", "mtime_ns", "ctime_ns", "ino", "dev")  # a file that says the same here has the same content
_NOT_SHARED = ("path", "volume", "link_group")  # what names of one inode may have of their own


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """A column of numbers; those that are null come as 0."""
    values = table[column]
    return np.asarray((pc.fill_null(values, 0) if values.null_count else values).to_numpy())


def is_file(table: pa.Table) -> np.ndarray:
    """Which rows are regular files."""
    return np.asarray(numbers(table, "mode") & 0o170000 == stat.S_IFREG)


def with_link_groups(table: pa.Table) -> pa.Table:
    """The table with `link_group` set where two or more names are one inode, numbered by their first names.

    The attributes of all names of an inode become those of the first one: on a running server they may have changed
    between two looks.
    """
    first = first_names(table)
    counts = np.bincount(first, minlength=table.num_rows)
    shared = counts[first] > 1
    groups = pa.array(first.astype(np.uint64), pa.uint64(), mask=~shared)
    if shared.any():
        taken = pa.array(np.where(shared, first, np.arange(table.num_rows)))
        for name in FILES_SCHEMA.names:
            if name not in _NOT_SHARED:
                table = _with(table, name, table[name].take(taken))
    return _with(table, "link_group", groups)


def first_names(table: pa.Table) -> np.ndarray:
    """For each row, the number of the first row that is the same inode; its own for directories."""
    rows = table.num_rows
    first = np.arange(rows, dtype=np.int64)
    candidates = np.flatnonzero(numbers(table, "mode") & 0o170000 != stat.S_IFDIR)
    volume, dev, ino = (numbers(table, name)[candidates] for name in ("volume", "dev", "ino"))
    kind = (numbers(table, "mode") & 0o170000)[candidates]
    order = np.lexsort((candidates, kind, ino, dev, volume))
    new = np.ones(len(order), dtype=bool)
    if len(order) > 1:
        new[1:] = False
        for key in (volume, dev, ino, kind):
            ordered = key[order]
            new[1:] |= ordered[1:] != ordered[:-1]
    heads = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    first[candidates[order]] = candidates[order[heads]]
    return first


def carried_over(table: pa.Table, parent: pa.Table) -> np.ndarray:
    """For each row the number of the parent's row whose content it still has, by path and status; -1 for none."""
    at = pc.index_in(table["path"], value_set=parent["path"].combine_chunks())
    rows: np.ndarray = pc.fill_null(at, -1).to_numpy().astype(np.int64)
    if not parent.num_rows:
        return rows
    same = is_file(table) & (rows >= 0) & is_file(parent)[rows] & ~parent["unstable"].to_numpy()[rows]
    for name in _SAME:
        same &= numbers(table, name) == numbers(parent, name)[rows]
    return np.where(same, rows, -1)


def _with(table: pa.Table, name: str, column: pa.ChunkedArray | pa.Array) -> pa.Table:
    at = FILES_SCHEMA.get_field_index(name)
    return table.set_column(at, FILES_SCHEMA.field(at), column)


def replaced(table: pa.Table, **columns: pa.Array) -> pa.Table:
    """The table with other columns in place of some."""
    for name, column in columns.items():
        table = _with(table, name, column)
    return table
