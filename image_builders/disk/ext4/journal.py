"""The two files of the filesystem's own: an empty journal, and the resize inode that keeps room for descriptors.

Journal: Documentation/filesystems/ext4/journal.rst of the Linux kernel, big-endian. Resize inode: e2fsprogs'
lib/ext2fs/res_gdt.c.
"""

from __future__ import annotations

import struct

import numpy as np

from image_builders.disk.ext4.arrays import BLOCK
from image_builders.disk.ext4.geometry import GROUP_BLOCKS, Geometry, backup_groups

_MAGIC = 0xC03B3998
_SUPERBLOCK_V2 = 4
_DOUBLY_INDIRECT = 13  # place in i_block
_PER_BLOCK = BLOCK // 4  # block numbers in an indirect block


def journal_superblock(blocks: int) -> bytes:
    """The first block of a journal with nothing in it."""
    head = struct.pack(">IIIIIIII", _MAGIC, _SUPERBLOCK_V2, 0, BLOCK, blocks, 1, 1, 0)
    return (head + bytes(32) + struct.pack(">I", 1)).ljust(BLOCK, b"\0")


def resize_size() -> int:
    """The size of the resize inode, in bytes: all that a doubly indirect block reaches."""
    return (_PER_BLOCK * _PER_BLOCK + _PER_BLOCK + 12) * BLOCK


def resize_blocks(geometry: Geometry) -> list[tuple[int, bytes]]:
    """(physical block, content) of the reserved descriptor blocks: each names its copies in the backup groups."""
    shape = geometry.shape
    others = np.asarray([group for group in backup_groups(shape.groups) if group], "<u4") * np.uint32(GROUP_BLOCKS)
    first = 1 + shape.descriptor_blocks
    return [
        (block, (others + np.uint32(block)).astype("<u4").tobytes().ljust(BLOCK, b"\0"))
        for block in range(first, first + shape.reserved_descriptor_blocks)
    ]


def resize_double(geometry: Geometry) -> bytes:
    """The doubly indirect block: it names the reserved descriptor blocks of group 0."""
    shape = geometry.shape
    content = np.zeros(_PER_BLOCK, "<u4")
    blocks = np.arange(shape.reserved_descriptor_blocks) + 1 + shape.descriptor_blocks
    content[(blocks - 1) % _PER_BLOCK] = blocks
    return content.tobytes()


def resize_root(double_block: int) -> bytes:
    """i_block of the resize inode."""
    words = [0] * 15
    words[_DOUBLY_INDIRECT] = double_block
    return struct.pack("<15I", *words)


def resize_block_count(geometry: Geometry) -> int:
    """All blocks that count as the resize inode's: the doubly indirect one, the reserved ones and their copies."""
    shape = geometry.shape
    return 1 + shape.reserved_descriptor_blocks * len(backup_groups(shape.groups))
