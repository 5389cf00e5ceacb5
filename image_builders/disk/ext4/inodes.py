"""Inode tables, a group at a time.

Format: Documentation/filesystems/ext4/inodes.rst of the Linux kernel; 256 bytes, of which 160 are fields and the
rest holds extended attributes.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from image_builders.disk.ext4.arrays import BLOCK, Bytes, Numbers, Words, copy_strings, numbers
from image_builders.disk.ext4.entries import FAST_SYMLINK, Entries
from image_builders.disk.ext4.extents import Extents
from image_builders.disk.ext4.geometry import INODE_BYTES
from image_builders.disk.ext4.superblock import EXTRA_ISIZE
from image_builders.disk.ext4.xattrs import INODE_AREA, AttributePlan
from rehost.replication.manifest import KEPT_FLAGS

INDEXED = 0x1000
EXTENTS = 0x80000
SECTORS = BLOCK // 512
EARLIEST = -(2**31)  # seconds: December 1901; the latest, in 2446, is past what 64 bits of nanoseconds reach

INODE = np.dtype(
    [
        ("mode", "<u2"),
        ("uid", "<u2"),
        ("size", "<u4"),
        ("atime", "<u4"),
        ("ctime", "<u4"),
        ("mtime", "<u4"),
        ("dtime", "<u4"),
        ("gid", "<u2"),
        ("links", "<u2"),
        ("sectors", "<u4"),
        ("flags", "<u4"),
        ("version", "<u4"),
        ("block", "<u4", (15,)),
        ("generation", "<u4"),
        ("attribute_block", "<u4"),
        ("size_high", "<u4"),
        ("fragment", "<u4"),
        ("sectors_high", "<u2"),
        ("attribute_block_high", "<u2"),
        ("uid_high", "<u2"),
        ("gid_high", "<u2"),
        ("checksum", "<u2"),
        ("unused", "<u2"),
        ("extra_size", "<u2"),
        ("checksum_high", "<u2"),
        ("ctime_extra", "<u4"),
        ("mtime_extra", "<u4"),
        ("atime_extra", "<u4"),
        ("crtime", "<u4"),
        ("crtime_extra", "<u4"),
        ("version_high", "<u4"),
        ("project", "<u4"),
        ("attributes", "u1", (INODE_AREA,)),
    ]
)
assert INODE.itemsize == INODE_BYTES

Table = npt.NDArray[np.void]


@dataclass(frozen=True)
class InodeColumns:
    """What the inodes of a table say; arrays have one element a row."""

    entries: Entries
    attributes: AttributePlan
    attribute_blocks: Numbers  # physical block, 0 where there is none
    directory_bytes: Numbers  # size of directories, 0 elsewhere
    indexed: Numbers  # 1 for hashed directories
    uid: npt.NDArray[np.uint32]
    gid: npt.NDArray[np.uint32]
    atime: Numbers  # nanoseconds
    mtime: Numbers
    ctime: Numbers
    flags: npt.NDArray[np.uint32]
    device_words: Words  # shape (rows, 2)
    row_of: Numbers  # inode number: row, -1 where there is none
    blocks_of: Numbers  # inode number: blocks of content and of the extent tree


def device_words(entries: Entries) -> Words:
    """The two words in which a device's numbers lie: the old form for small ones, else the new. Refuses larger."""
    kinds = entries.modes & 0o170000
    devices = np.flatnonzero((kinds == stat.S_IFCHR) | (kinds == stat.S_IFBLK))
    major = numbers(entries.table["rdev_major"])[devices].astype(np.uint32)
    minor = numbers(entries.table["rdev_minor"])[devices].astype(np.uint32)
    for row in devices[(major > 0xFFF) | (minor > 0xFFFFF)][:1].tolist():
        entries.refuse(row, "its device number is larger than ext4 can keep")
    words = np.zeros((len(kinds), 2), np.uint32)
    old = (major < 256) & (minor < 256)
    words[devices, 0] = np.where(old, major << 8 | minor, 0)
    words[devices, 1] = np.where(old, 0, minor & 0xFF | major << 8 | (minor & ~np.uint32(0xFF)) << 12)
    return words


def split_time(nanoseconds: Numbers) -> tuple[Words, Words]:
    """(low 32 bits of the seconds, nanoseconds << 2 | epoch) as ext4 keeps a time; earlier than 1901 is clamped."""
    seconds = nanoseconds // 10**9
    rest = nanoseconds - seconds * 10**9
    early = seconds < EARLIEST
    seconds, rest = np.where(early, EARLIEST, seconds), np.where(early, 0, rest)
    low = seconds & 0xFFFFFFFF
    signed = np.where(low >= 2**31, low - 2**32, low)
    epoch = (seconds - signed) >> 32 & 3
    return low.astype(np.uint32), (rest << 2 | epoch).astype(np.uint32)


def inode_table(columns: InodeColumns, extents: Extents, first: int, last: int) -> Table:
    """The inodes first..last-1; those without a row are zero."""
    table = np.zeros(last - first, INODE)
    places = np.flatnonzero(columns.row_of[first:last] >= 0)
    rows = columns.row_of[first:last][places]
    if len(rows) == 0:
        return table
    entries, part = columns.entries, np.zeros(len(rows), INODE)
    kinds = entries.modes[rows] & 0o170000
    directories = kinds == stat.S_IFDIR
    symlinks = kinds == stat.S_IFLNK
    lengths = entries.targets.lengths[rows]
    fast = symlinks & (lengths < FAST_SYMLINK)
    sizes = np.where(kinds == stat.S_IFREG, entries.sizes[rows], 0) + columns.directory_bytes[rows]
    sizes += np.where(symlinks, lengths, 0)
    inodes = entries.inodes[rows]
    blocks = columns.attribute_blocks[rows]
    sectors = (columns.blocks_of[inodes] + (blocks > 0)) * SECTORS
    uid, gid = columns.uid[rows], columns.gid[rows]

    part["mode"] = entries.modes[rows]
    part["uid"], part["uid_high"] = uid & 0xFFFF, uid >> 16
    part["gid"], part["gid_high"] = gid & 0xFFFF, gid >> 16
    part["size"], part["size_high"] = sizes & 0xFFFFFFFF, sizes >> 32
    part["links"] = entries.links[rows]
    part["sectors"], part["sectors_high"] = sectors & 0xFFFFFFFF, sectors >> 32
    part["attribute_block"] = blocks
    for name, column in (("atime", columns.atime), ("mtime", columns.mtime), ("ctime", columns.ctime)):
        part[name], part[f"{name}_extra"] = split_time(column[rows])
    part["crtime"], part["crtime_extra"] = part["ctime"], part["ctime_extra"]
    part["extra_size"] = EXTRA_ISIZE
    part["attributes"] = columns.attributes.areas[columns.attributes.area_of[rows]]

    mapped = directories | (kinds == stat.S_IFREG) | (symlinks & ~fast)
    # The kernel takes these flags for files and directories alone; e2fsck finds fault with them elsewhere.
    kept = np.where(directories | (kinds == stat.S_IFREG), columns.flags[rows] & KEPT_FLAGS, 0)
    part["flags"] = kept | np.where(mapped, EXTENTS, 0) | np.where(columns.indexed[rows] > 0, INDEXED, 0)
    roots = extents.roots(first, last)[places]
    words: Words = np.where(mapped[:, None], roots, 0).astype(np.uint32)
    words[:, :2] |= np.where(mapped[:, None], 0, columns.device_words[rows])
    short = np.flatnonzero(fast)
    targets: Bytes = words.view(np.uint8).reshape(-1)
    copy_strings(
        targets, short * FAST_SYMLINK, entries.targets.data, entries.targets.starts[rows[short]], lengths[short]
    )
    part["block"] = words
    table[places] = part
    return table


def special_inode(size: int, blocks: int, flags: int, block_words: bytes, seconds: int) -> Table:
    """A file of the filesystem's own: the journal, the resize inode."""
    table = np.zeros(1, INODE)
    table["mode"], table["links"], table["extra_size"] = stat.S_IFREG | 0o600, 1, EXTRA_ISIZE
    table["size"], table["size_high"] = size & 0xFFFFFFFF, size >> 32
    table["sectors"] = blocks * SECTORS
    table["flags"] = flags
    table["block"] = struct.unpack("<15I", block_words)
    for name in ("atime", "mtime", "ctime", "crtime"):
        table[name] = seconds
    return table
