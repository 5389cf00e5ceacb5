"""Superblock, group descriptors, bitmaps: what says how much of everything is used.

Formats: Documentation/filesystems/ext4/{super,group_descr,bitmaps}.rst of the Linux kernel. The features are those
that kernels from 3.10 and GRUB from 2.02 on read and write; docs/ext4.md lists them.
"""

from __future__ import annotations

import hashlib
import struct
import time
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from image_builders.disk.ext4.arrays import BLOCK, Bytes, Flags, Numbers, Words
from image_builders.disk.ext4.geometry import (
    DESCRIPTOR_BYTES,
    FLEX_GROUPS,
    GROUP_BLOCKS,
    INODE_BYTES,
    Geometry,
)

FEATURES_COMPATIBLE = 0x4 | 0x8 | 0x20  # has_journal ext_attr dir_index
RESIZE_INODE = 0x10
FEATURES_INCOMPATIBLE = 0x2 | 0x40 | 0x200  # filetype extent flex_bg
FEATURES_READ_ONLY = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40
# sparse_super large_file huge_file uninit_bg dir_nlink extra_isize
RESERVED_FOR_ROOT = 20  # one in so many blocks: 5 %
JOURNAL_INODE = 8
FIRST_INODE = 11  # not reserved
EXTRA_ISIZE = 32

_INODE_UNINIT, _BLOCK_UNINIT, _INODE_ZEROED = 1, 2, 4


@dataclass(frozen=True)
class Identity:
    """What a filesystem is called, and what is derived from that."""

    uuid: UUID
    label: bytes
    time_seconds: int  # of making and last check: the root's mtime, 0 where this machine's clock is not there yet

    @property
    def hash_seed(self) -> bytes:
        """Of the directory hash: any 16 bytes, but the same ones for the same filesystem."""
        return hashlib.sha256(b"rehost ext4 hash seed" + self.uuid.bytes).digest()[:16]


def identity_of(uuid: UUID, label: bytes, root_mtime_ns: int) -> Identity:
    """e2fsck finds fault with a superblock written in the future, hence the comparison with the clock."""
    seconds = root_mtime_ns // 10**9
    return Identity(uuid, label, seconds if 0 <= seconds <= min(time.time(), 0x7FFFFFFF) else 0)


@dataclass(frozen=True)
class Usage:
    """What is used in each group."""

    blocks: Numbers  # the first so many of the group
    inodes: Numbers  # the first so many of the group
    directories: Numbers
    block_uninit: Flags  # nothing but the group's own backups is used, so the kernel makes the bitmap itself

    @property
    def inode_uninit(self) -> Flags:
        unused: Flags = self.inodes == 0
        return unused


def usage_of(geometry: Geometry, ordinals: int, last_inode: int, directory_inodes: Numbers) -> Usage:
    """What is used once so many free blocks are given out and inodes up to `last_inode` exist."""
    shape = geometry.shape
    blocks = geometry.used_blocks(ordinals)
    groups = np.arange(shape.groups, dtype=np.int64)
    own = np.where(geometry.has_backup, shape.backup_blocks, 0)
    uninit = blocks == own
    uninit[-1] = False  # the end of its bitmap is not that of a whole group
    return Usage(
        blocks=blocks,
        inodes=np.clip(last_inode - groups * shape.inodes_per_group, 0, shape.inodes_per_group),
        directories=np.bincount((directory_inodes - 1) // shape.inodes_per_group, minlength=shape.groups),
        block_uninit=uninit,
    )


def block_bitmap(used: int, size: int) -> bytes:
    """The bitmap of a group whose first `used` blocks are used; past the group's size all bits are set."""
    return _ones_then_zeros(used, size)


def inode_bitmap(used: int, inodes_per_group: int) -> bytes:
    """The bitmap of a group whose first `used` inodes are used; past the last inode all bits are set."""
    return _ones_then_zeros(used, inodes_per_group)


def _ones_then_zeros(used: int, size: int) -> bytes:
    bits = np.zeros(BLOCK * 8, np.uint8)
    bits[:used] = 1
    bits[size:] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def descriptors(geometry: Geometry, usage: Usage, identity: Identity) -> bytes:
    """The table of all group descriptors, filled up to whole blocks."""
    shape = geometry.shape
    table = np.zeros((shape.groups, DESCRIPTOR_BYTES), np.uint8)
    words: Words = table.view("<u4")
    halves: npt.NDArray[np.uint16] = table.view("<u2")
    words[:, 0] = geometry.block_bitmaps
    words[:, 1] = geometry.inode_bitmaps
    words[:, 2] = geometry.inode_tables
    halves[:, 6] = geometry.group_sizes - usage.blocks
    halves[:, 7] = shape.inodes_per_group - usage.inodes
    halves[:, 8] = usage.directories
    halves[:, 9] = (
        np.where(usage.inode_uninit, _INODE_UNINIT, 0) | np.where(usage.block_uninit, _BLOCK_UNINIT, 0) | _INODE_ZEROED
    )
    halves[:, 14] = shape.inodes_per_group - usage.inodes  # inodes that were never used
    halves[:, 15] = _checksums(table, identity.uuid)
    return table.tobytes().ljust(shape.descriptor_blocks * BLOCK, b"\0")


def _checksums(table: Bytes, uuid: UUID) -> npt.NDArray[np.uint16]:
    """CRC-16 (reflected 0x8005) over UUID, group number and the first 30 bytes of each descriptor."""
    steps = np.arange(256, dtype=np.uint16)
    for _ in range(8):
        steps = np.where(steps & 1, steps >> 1 ^ 0xA001, steps >> 1).astype(np.uint16)
    crc = np.full(len(table), 0xFFFF, np.uint16)
    numbers = np.arange(len(table), dtype="<u4").view(np.uint8).reshape(-1, 4)
    constant = np.broadcast_to(np.frombuffer(uuid.bytes, np.uint8), (len(table), 16))
    for column in np.concatenate((constant, numbers, table[:, :30]), axis=1).T:
        crc = crc >> 8 ^ steps[(crc ^ column) & 0xFF]
    return crc


def superblock(
    geometry: Geometry, usage: Usage, identity: Identity, journal_root: bytes, journal_bytes: int, group: int
) -> bytes:
    """The 1,024 bytes of the superblock, or of its backup in that group. `journal_root`: i_block of the journal."""
    shape = geometry.shape
    block = bytearray(1024)

    def put(offset: int, form: str, *values: object) -> None:
        struct.pack_into("<" + form, block, offset, *values)

    reserved = shape.reserved_descriptor_blocks
    put(0x00, "II", shape.inodes, shape.blocks)
    put(0x08, "I", shape.blocks // RESERVED_FOR_ROOT)
    put(0x0C, "II", shape.blocks - int(usage.blocks.sum()), shape.inodes - int(usage.inodes.sum()))
    put(0x14, "III", 0, 2, 2)  # first data block; block and cluster size as 1024 << 2
    put(0x20, "III", GROUP_BLOCKS, GROUP_BLOCKS, shape.inodes_per_group)
    put(0x2C, "II", 0, identity.time_seconds)  # never mounted; written
    put(0x34, "HHHHHH", 0, 0xFFFF, 0xEF53, 1, 1, 0)  # no check by mount counts; magic; clean; errors: continue
    put(0x40, "IIII", identity.time_seconds, 0, 0, 1)  # checked; no check by time; Linux; dynamic revision
    put(0x54, "IHH", FIRST_INODE, INODE_BYTES, group & 0xFFFF)
    put(0x5C, "I", FEATURES_COMPATIBLE | (RESIZE_INODE if reserved else 0))
    put(0x60, "II", FEATURES_INCOMPATIBLE, FEATURES_READ_ONLY)
    put(0x68, "16s16s", identity.uuid.bytes, identity.label)
    put(0xCE, "H", reserved)
    put(0xE0, "I", JOURNAL_INODE)
    put(0xEC, "16sBB", identity.hash_seed, 1, 1)  # half MD4; the journal's blocks are kept below
    put(0x100, "III", 0x0C, 0, identity.time_seconds)  # mount with user_xattr and acl; made
    put(0x10C, "60sII", journal_root, 0, journal_bytes)
    put(0x15C, "HHI", EXTRA_ISIZE, EXTRA_ISIZE, 1)  # hashes over signed characters
    put(0x174, "B", FLEX_GROUPS.bit_length() - 1)
    return bytes(block)
