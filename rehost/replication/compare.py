"""Comparing files tables, by whole columns: names of one inode, and what did not change since a snapshot before."""

from __future__ import annotations

import stat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rehost.replication import digests
from rehost.replication.manifest import single

SAME = ("size", "mtime_ns", "ctime_ns", "ino", "dev")  # a file that says the same here has the same content
LINK_COLUMNS = ("volume", "mode", "rdev_major", "rdev_minor", "dev", "ino", "nlink", "target")

# A file that changes twice within one tick of its filesystem's clock says the same after both changes. Kernels tick
# every 1 to 10 ms; a file whose change time is a whole second may be on a filesystem that keeps no more (FAT: 2 s).
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


def numbers(table: pa.Table | pa.RecordBatch, column: str) -> np.ndarray:
    """A column of numbers or truths, without nulls."""
    return np.asarray(single(table[column]).to_numpy(zero_copy_only=False))


def kinds(table: pa.Table) -> np.ndarray:
    """The type bits of each row's mode."""
    return np.asarray(numbers(table, "mode") & 0o170000)


def carried_over(table: pa.Table, parent: pa.Table, looked_ns: int | None) -> np.ndarray:
    """For each row the number of the parent's row whose content it still has, by path and status; -1 for none.

    `looked_ns` is when the parent's scan began, by the source's clock. What had not been at rest for a tick by then may
    have changed after it was read and still look the same. Both tables are sorted by path.
    """
    paths, known = single(table["path"]), single(parent["path"])
    if paths.equals(known):
        rows = np.arange(len(paths))
    else:
        rows = pc.fill_null(pc.index_in(paths, value_set=known), -1).to_numpy().astype(np.int64)
    if not len(known):
        return rows
    same = (rows >= 0) & (kinds(table) == stat.S_IFREG)
    same &= ((kinds(parent) == stat.S_IFREG) & ~numbers(parent, "unstable"))[rows]
    for name in SAME:
        same &= numbers(table, name) == numbers(parent, name)[rows]
    if looked_ns is not None:
        changed = numbers(table, "ctime_ns")
        tick = np.where(changed % _SECOND_NS == 0, _COARSE_TICK_NS, _TICK_NS)
        same &= changed < looked_ns - tick
    return np.where(same, rows, -1)


class LinkCandidates:
    """Gathers the rows of a scan whose inode has more names than one, to find which of them belong together."""

    def __init__(self) -> None:
        self._inodes: list[np.ndarray] = []
        self._others: list[np.ndarray] = []  # digests of what names of one inode agree in, but for its number
        self._rows: list[np.ndarray] = []

    def add(self, start: int, table: pa.Table) -> None:
        """The rows of the scan from `start` on, with LINK_COLUMNS."""
        rows = np.flatnonzero((numbers(table, "nlink") > 1) & (kinds(table) != stat.S_IFDIR))
        if not len(rows):
            return
        some = table.select(LINK_COLUMNS).take(pa.array(rows))
        other = digests.mixed(digests.start(len(rows)), kinds(some))
        for name in ("volume", "dev", "rdev_major", "rdev_minor"):
            other = digests.mixed(other, numbers(some, name))
        self._others.append(digests.mixed(other, digests.of_binary(single(some["target"]))))
        self._inodes.append(numbers(some, "ino"))
        self._rows.append((start + rows).astype(np.uint32))

    def links(self) -> Links:
        """The names that share their inode with others of the scan."""
        if not self._rows:
            return Links(np.empty(0, np.uint32), np.empty(0, np.uint32))
        inode, other, row = (np.concatenate(parts) for parts in (self._inodes, self._others, self._rows))
        self._inodes, self._others, self._rows = [], [], []
        order = np.lexsort((row, other, inode))
        inode, other, row = inode[order], other[order], row[order]
        new = np.append(True, (inode[1:] != inode[:-1]) | (other[1:] != other[:-1]))
        group = np.cumsum(new) - 1
        shared = np.bincount(group)[group] > 1
        row, group = row[shared], np.unique(group[shared], return_inverse=True)[1].astype(np.uint32)
        order = np.argsort(row)
        return Links(row[order], group[order])


class Links:
    """Names that share an inode, as two arrays: rows of the scan, ascending, and the number of each one's inode."""

    def __init__(self, rows: np.ndarray, group: np.ndarray) -> None:
        self.rows, self.group = rows, group
        self.groups = int(group.max()) + 1 if len(group) else 0
        self.first = self._first(np.ones(len(rows), bool))
        self.shared = np.ones(self.groups, bool)  # by group: whether two names or more are left
        self._order: np.ndarray | None = None  # places in `rows`, group by group; and where each of them is in it
        self._place = np.empty(0, np.uint32)

    def _first(self, left: np.ndarray) -> np.ndarray:
        first = np.zeros(self.groups, np.uint32)
        at = np.flatnonzero(left)[::-1]
        first[self.group[at]] = self.rows[at]  # of several, the last one written stays: the lowest row
        return first

    def further(self) -> np.ndarray:
        """The rows that are not the first name of their inode."""
        return np.asarray(self.rows[self.first[self.group] != self.rows])

    def after(self, row: int) -> int | None:
        """The next name of the same inode, if there is one."""
        if self._order is None:  # seldom asked
            self._order = np.lexsort((self.rows, self.group)).astype(np.uint32)
            self._place = np.empty_like(self._order)
            self._place[self._order] = np.arange(len(self._order), dtype=np.uint32)
        at = int(np.searchsorted(self.rows, row))
        if at == len(self.rows) or self.rows[at] != row or self._place[at] + 1 == len(self._order):
            return None
        following = self._order[self._place[at] + 1]
        return int(self.rows[following]) if self.group[following] == self.group[at] else None

    def without(self, dropped: np.ndarray) -> None:
        """Leave rows out, marked in an array of the scan's length; first names change, and inodes have fewer."""
        left = ~dropped[self.rows]
        self.first = self._first(left)
        self.shared = np.bincount(self.group[left], minlength=self.groups) > 1

    def between(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows from `start` to before `stop`, counted from `start`, and their groups."""
        low, high = np.searchsorted(self.rows, (start, stop))
        return self.rows[low:high].astype(np.int64) - start, self.group[low:high].astype(np.int64)
