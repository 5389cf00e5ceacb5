"""The files table as columns, checked, with parents, inode numbers and link counts.

The table comes from a source that is not trusted. What could lead to a wrong filesystem is refused here, before
anything is written.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from image_builders.disk.ext4.arrays import COPY_ROWS, ByteColumn, Bytes, Flags, Numbers, byte_column, numbers, single
from image_builders.disk.ext4.geometry import FIRST_FREE_INODE
from rehost.errors import BuildUnsupported
from rehost.replication.manifest import FILES_SCHEMA, Entry, table_of
from rehost.replication.tree import printable

ROOT_INODE = 2
LOST_FOUND_INODE = 11
LOST_FOUND = b"lost+found"
LARGEST_FILE = (2**32 - 1) * 4096  # bytes: logical blocks have 32 bits
MOST_LINKS = 65_000
FAST_SYMLINK = 60  # bytes: a shorter target lies in the inode
LONGEST_TARGET = 4_095

# File types of directory entries, by the type bits of the mode shifted right by 12.
_TYPE_CODES = np.zeros(16, np.uint8)
_TYPE_CODES[[8, 4, 2, 6, 1, 12, 10]] = [1, 2, 3, 4, 5, 6, 7]


@dataclass(frozen=True)
class Entries:
    """All rows of a files table; arrays have one element a row unless said otherwise."""

    table: pa.Table  # with a row of lost+found
    paths: ByteColumn
    name_starts: Numbers  # into paths.data
    name_lengths: Numbers
    parents: Numbers  # row of the directory above; 0 for the root itself
    owners: Numbers  # the first row of the same inode: the row itself, but for further hard links
    inodes: Numbers  # inode number
    links: Numbers  # of the row's inode; right in the rows that own one
    modes: npt.NDArray[np.uint32]
    sizes: Numbers
    type_codes: Bytes  # as directory entries have them
    targets: ByteColumn
    last_inode: int

    @property
    def owning(self) -> Flags:
        """The rows that stand for an inode."""
        own: Flags = self.owners == np.arange(len(self.owners))
        return own

    def of_type(self, kind: int) -> Numbers:
        """The rows that own an inode of that type (stat.S_IFDIR …)."""
        return np.flatnonzero(((self.modes & 0o170000) == kind) & self.owning)

    def refuse(self, row: int, reason: str) -> NoReturn:
        refuse(self.paths.get(row), reason)


def refuse(path: bytes, reason: str) -> NoReturn:
    """Raise BuildUnsupported for that path."""
    raise BuildUnsupported(what=f"/{printable(path)}", reason=reason)


def entries_of(files: pa.Table) -> Entries:
    """Check a files table and number its inodes. Raises BuildUnsupported."""
    missing = [name for name in FILES_SCHEMA.names if name not in files.column_names]
    if missing or files.num_rows == 0:
        raise BuildUnsupported(what="a files table", reason=f"it lacks {', '.join(missing) or 'the root'}")
    for name in FILES_SCHEMA.names:
        if name not in ("link_group", "target") and files[name].null_count:
            raise BuildUnsupported(what="a files table", reason=f"the column {name} has nulls")
    try:
        files = files.select(FILES_SCHEMA.names).cast(FILES_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise BuildUnsupported(what="a files table", reason=str(error)) from error
    files = _with_lost_found(files)
    path_array = single(files["path"].cast(pa.large_binary()))
    paths = byte_column(path_array)
    modes = numbers(files["mode"]).astype(np.uint32, copy=False)
    count = len(modes)

    def check(wrong: npt.NDArray[np.bool_], reason: str) -> None:
        if wrong.any():
            refuse(paths.get(int(np.argmax(wrong))), reason)

    kinds = modes & 0o170000
    directories = kinds == stat.S_IFDIR
    if paths.lengths[0] != 0 or not directories[0]:
        raise BuildUnsupported(what="a files table", reason="its first row is not the root directory")
    if not pc.all(pc.less(path_array[:-1], path_array[1:])).as_py() and count > 1:
        raise BuildUnsupported(what="a files table", reason="its paths are not sorted, or one is there twice")
    type_codes = _TYPE_CODES[kinds >> 12]
    check(type_codes == 0, "its type is unknown")
    check(modes > 0o177777, "its mode is out of range")

    name_starts, parent_lengths = _split(paths)
    name_lengths = paths.starts + paths.lengths - name_starts
    check(_bad_names(paths, name_starts, name_lengths), "its name is not one that a directory can hold")
    parents = _parents(path_array, paths, parent_lengths, directories)
    check(parents < 0, "its directory is not in the table")

    sizes_unsigned = numbers(files["size"])
    check(sizes_unsigned > LARGEST_FILE, "it is larger than a file of ext4 can be")
    sizes = sizes_unsigned.astype(np.int64)
    owners = _owners(files)
    same = (modes == modes[owners]) & (sizes == sizes[owners])
    check(~same, "its hard links do not agree in mode and size")
    check((owners != np.arange(count)) & directories, "it is a directory with hard links")
    links = np.bincount(owners, minlength=count)
    check(links > MOST_LINKS, f"it has more than {MOST_LINKS} hard links")
    below = np.bincount(parents[1:][directories[1:]], minlength=count)
    # dir_nlink: a directory with too many subdirectories to count has one link.
    links = np.where(directories, np.where(2 + below > MOST_LINKS, 1, 2 + below), links)

    targets = byte_column(single(files["target"]))
    symlinks = kinds == stat.S_IFLNK
    check(symlinks & ((targets.lengths == 0) | (targets.lengths > LONGEST_TARGET)), "its target is empty or too long")
    for row in np.flatnonzero(symlinks & _holding(targets.data, targets.starts, targets.lengths, 0)):
        refuse(paths.get(int(row)), "its target has a NUL byte")

    inodes, last_inode = _inode_numbers(paths, owners, directories)
    return Entries(
        table=files,
        paths=paths,
        name_starts=name_starts,
        name_lengths=name_lengths,
        parents=parents,
        owners=owners,
        inodes=inodes,
        links=links,
        modes=modes,
        sizes=sizes,
        type_codes=type_codes,
        targets=targets,
        last_inode=last_inode,
    )


def _with_lost_found(files: pa.Table) -> pa.Table:
    """e2fsck wants a lost+found directly below the root; a table without one gets it, like the root in times."""
    low, high = 0, files.num_rows
    paths = files["path"]
    while low < high:
        middle = (low + high) // 2
        if paths[middle].as_py() < LOST_FOUND:
            low = middle + 1
        else:
            high = middle
    if low < files.num_rows and paths[low].as_py() == LOST_FOUND:
        if not stat.S_ISDIR(files["mode"][low].as_py()):
            refuse(LOST_FOUND, "ext4 needs this name for a directory")
        return files
    times = {name: files[name][0].as_py() for name in ("atime_ns", "mtime_ns", "ctime_ns")}
    added = table_of([Entry(LOST_FOUND, stat.S_IFDIR | 0o700, **times)])
    return pa.concat_tables([files.slice(0, low), added, files.slice(low)])


def _split(paths: ByteColumn) -> tuple[Numbers, Numbers]:
    """(start of the last component, length of what is above it without the slash), by the last slash."""
    slashes = np.flatnonzero(paths.data == ord("/"))
    ends = paths.starts + paths.lengths
    index = np.searchsorted(slashes, ends) - 1
    last = np.append(slashes, -1)[index]
    deep = last >= paths.starts
    # A path that begins with a slash keeps it in its name, and is refused for that.
    deep &= last > paths.starts
    return np.where(deep, last + 1, paths.starts), np.where(deep, last - paths.starts, 0)


def _holding(data: Bytes, starts: Numbers, lengths: Numbers, byte: int) -> Flags:
    """Which of the strings have that byte in them."""
    places = np.flatnonzero(data == byte)
    held: Flags = np.searchsorted(places, starts) < np.searchsorted(places, starts + lengths)
    return held


def _bad_names(paths: ByteColumn, starts: Numbers, lengths: Numbers) -> Flags:
    bad: Flags = (lengths < 1) | (lengths > 255)
    bad |= _holding(paths.data, starts, lengths, 0) | _holding(paths.data, starts, lengths, ord("/"))
    padded = np.append(paths.data, np.zeros(2, np.uint8))
    dot = padded[starts] == ord(".")
    bad |= dot & ((lengths == 1) | ((lengths == 2) & (padded[starts + 1] == ord("."))))
    bad[0] = False
    return bad


def _parents(path_array: pa.Array, paths: ByteColumn, parent_lengths: Numbers, directories: Flags) -> Numbers:
    """The row of each row's directory, -1 where there is none."""
    offsets = np.append(0, np.cumsum(parent_lengths))
    above = np.empty(int(offsets[-1]), np.uint8)
    for first in range(0, len(offsets) - 1, COPY_ROWS):
        size = parent_lengths[first : first + COPY_ROWS]
        total = int(size.sum())
        index = np.repeat(paths.starts[first : first + COPY_ROWS] - (np.cumsum(size) - size), size)
        index += np.arange(total)
        above[offsets[first] : offsets[first] + total] = paths.data[index]
    parent_paths = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(above)]
    )
    known = path_array.filter(pa.array(directories))
    found = pc.index_in(parent_paths, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.append(np.flatnonzero(directories), -1)
    parents: Numbers = rows[found]
    parents[0] = 0
    return parents


def _owners(files: pa.Table) -> Numbers:
    """The first row of each row's link group; the row itself where it has none."""
    owners = np.arange(files.num_rows, dtype=np.int64)
    groups = single(files["link_group"])
    if groups.null_count == len(groups):
        return owners
    rows = np.flatnonzero(groups.is_valid().to_numpy(zero_copy_only=False))
    values = groups.drop_null().to_numpy(zero_copy_only=False)
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    owners[rows] = rows[first[inverse]]
    return owners


def _inode_numbers(paths: ByteColumn, owners: Numbers, directories: Flags) -> tuple[Numbers, int]:
    """Inode numbers in the order of rows: the root is 2, lost+found 11, the others follow from 12 on."""
    rows = np.arange(len(owners))
    lost_found = next(
        int(row)
        for row in np.flatnonzero(directories & (paths.lengths == len(LOST_FOUND)))
        if paths.get(int(row)) == LOST_FOUND
    )
    ordinary = (owners == rows) & (rows != 0) & (rows != lost_found)
    inodes = np.zeros(len(owners), np.int64)
    count = int(ordinary.sum())
    inodes[ordinary] = np.arange(FIRST_FREE_INODE, FIRST_FREE_INODE + count)
    inodes[0], inodes[lost_found] = ROOT_INODE, LOST_FOUND_INODE
    return inodes[owners], FIRST_FREE_INODE + count - 1
