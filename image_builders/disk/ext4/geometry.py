"""Where what is fixed lies: groups, descriptors, bitmaps, inode tables, and the free space between them.

Every group's metadata is one run at the group's start: the backup of superblock and descriptors where the group has
one, then bitmaps and inode tables, if any are put there. Data is given out in order by a bump pointer. So the used
blocks of a group are always its first ones, and a bitmap follows from one number.

Sizes follow mke2fs (e2fsprogs 1.47): flex groups of 16, one inode for 16 KiB, room in the descriptor table for growth
to 1,024 times the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_builders.disk.ext4.arrays import BLOCK, Flags, Numbers

GROUP_BLOCKS = 32_768
FLEX_GROUPS = 16
INODE_BYTES = 256
INODES_PER_BLOCK = BLOCK // INODE_BYTES
DESCRIPTOR_BYTES = 32
DESCRIPTORS_PER_BLOCK = BLOCK // DESCRIPTOR_BYTES
BYTES_PER_INODE = 16_384
FIRST_FREE_INODE = 12  # 1 to 10 are reserved, 11 is lost+found
SMALLEST_BLOCKS = 2_048  # 8 MiB: below it there is no room for a journal
LARGEST_BLOCKS = 0xFFFFFFFF  # block numbers have 32 bits without the 64bit feature
SMALLEST_JOURNAL = 1_024  # blocks; the kernel refuses less

_RESERVED_FOR = 2**24  # blocks: a small filesystem may grow on-line to 64 GiB at least
_SPARE_IN_LAST_GROUP = 50  # blocks beside the metadata; a last group with less is left off, as mke2fs does


@dataclass(frozen=True)
class Shape:
    """The numbers that follow from the size and the count of inodes; blocks unless said otherwise."""

    blocks: int
    groups: int
    inodes_per_group: int
    descriptor_blocks: int
    reserved_descriptor_blocks: int
    metadata_blocks: int

    @property
    def inode_table_blocks(self) -> int:
        """Of one group."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @property
    def backup_blocks(self) -> int:
        """Superblock, descriptors and their reserve, in each group that has them."""
        return 1 + self.descriptor_blocks + self.reserved_descriptor_blocks

    @property
    def inodes(self) -> int:
        return self.groups * self.inodes_per_group

    @property
    def free_blocks(self) -> int:
        """What is left for journal, directories and data."""
        return self.blocks - self.metadata_blocks

    @property
    def default_journal_blocks(self) -> int:
        """What mke2fs chooses for this size (ext2fs_default_journal_size)."""
        for below, journal in (
            (32_768, 1_024),
            (262_144, 4_096),
            (524_288, 8_192),
            (4_194_304, 16_384),
            (8_388_608, 32_768),
            (16_777_216, 65_536),
            (33_554_432, 131_072),
        ):
            if self.blocks < below:
                return journal
        return 262_144


def backup_groups(groups: int) -> list[int]:
    """The groups with a superblock and descriptors (sparse_super): 0, 1 and the powers of 3, 5 and 7."""
    found = {0, 1}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return sorted(group for group in found if group < groups)


def shape_of(size_bytes: int, inodes_wanted: int) -> Shape | None:
    """The shape of a filesystem with at least so many inodes in that size; None where it cannot be."""
    blocks = min(size_bytes // BLOCK, LARGEST_BLOCKS)
    while blocks >= SMALLEST_BLOCKS:
        groups = -(-blocks // GROUP_BLOCKS)
        inodes = max(inodes_wanted, blocks * BLOCK // BYTES_PER_INODE)
        per_group = -(-inodes // groups)
        per_group = -(-per_group // INODES_PER_BLOCK) * INODES_PER_BLOCK
        if per_group > BLOCK * 8:
            return None
        descriptors = -(-groups // DESCRIPTORS_PER_BLOCK)
        growth = min(LARGEST_BLOCKS, max(blocks * 1024, _RESERVED_FOR))
        grown_groups = -(-growth // GROUP_BLOCKS)
        reserved = -(-grown_groups // DESCRIPTORS_PER_BLOCK) - descriptors
        reserved = max(0, min(reserved, BLOCK // 4))
        own = 2 + per_group // INODES_PER_BLOCK
        backups = backup_groups(groups)
        shape = Shape(
            blocks=blocks,
            groups=groups,
            inodes_per_group=per_group,
            descriptor_blocks=descriptors,
            reserved_descriptor_blocks=reserved,
            metadata_blocks=groups * own + len(backups) * (1 + descriptors + reserved),
        )
        last = blocks - (groups - 1) * GROUP_BLOCKS
        wanted = own + _SPARE_IN_LAST_GROUP + (shape.backup_blocks if groups - 1 in backups else 0)
        if last >= wanted:
            return shape
        if groups == 1:
            return None
        blocks -= last
    return None


@dataclass(frozen=True)
class Geometry:
    """A shape with a place for each of its parts.

    Arrays have one number a group. A run is a stretch of free blocks; an ordinal counts free blocks from the start
    of the filesystem, and `pieces` says where they are.
    """

    shape: Shape
    block_bitmaps: Numbers
    inode_bitmaps: Numbers
    inode_tables: Numbers
    metadata: Numbers  # blocks at the group's start that are not free
    group_sizes: Numbers
    has_backup: Flags
    run_starts: Numbers  # physical block
    run_ordinals: Numbers  # ordinal of that block; one more at the end: the count of free blocks

    def physical(self, ordinals: Numbers) -> Numbers:
        """The physical blocks of these ordinals."""
        run = np.searchsorted(self.run_ordinals, ordinals, "right") - 1
        blocks: Numbers = self.run_starts[run] + ordinals - self.run_ordinals[run]
        return blocks

    def pieces(self, ordinal: int, count: int) -> list[tuple[int, int]]:
        """(physical block, count) of consecutive ordinals."""
        found = []
        run = int(np.searchsorted(self.run_ordinals, ordinal, "right")) - 1
        while count > 0:
            here = min(count, int(self.run_ordinals[run + 1]) - ordinal)
            found.append((int(self.run_starts[run]) + ordinal - int(self.run_ordinals[run]), here))
            ordinal, count, run = ordinal + here, count - here, run + 1
        return found

    def used_blocks(self, ordinals: int) -> Numbers:
        """How many blocks of each group are used once the first so many ordinals are."""
        free = self.group_sizes - self.metadata
        used: Numbers = self.metadata + np.clip(ordinals - (np.cumsum(free) - free), 0, free)
        return used


def geometry_of(shape: Shape) -> Geometry:
    """Give every part of the shape its place."""
    groups = np.arange(shape.groups, dtype=np.int64)
    sizes = np.full(shape.groups, GROUP_BLOCKS, np.int64)
    sizes[-1] = shape.blocks - (shape.groups - 1) * GROUP_BLOCKS
    has_backup = np.zeros(shape.groups, np.bool_)
    has_backup[backup_groups(shape.groups)] = True
    metadata = np.where(has_backup, shape.backup_blocks, 0).astype(np.int64)
    tables = np.zeros(shape.groups, np.int64)
    leader = groups - groups % FLEX_GROUPS
    members = np.minimum(FLEX_GROUPS, shape.groups - leader)
    block_bitmaps = leader * GROUP_BLOCKS + metadata[leader] + groups - leader
    inode_bitmaps = block_bitmaps + members
    for first in range(0, shape.groups, FLEX_GROUPS):
        count = min(FLEX_GROUPS, shape.groups - first)
        at = first
        metadata[at] += 2 * count
        for group in range(first, first + count):
            # A table is one stretch; with many inodes sixteen of them do not fit into the flex group's first group.
            while metadata[at] + shape.inode_table_blocks > sizes[at]:
                at += 1
            tables[group] = at * GROUP_BLOCKS + metadata[at]
            metadata[at] += shape.inode_table_blocks
    # Free stretches of neighbouring groups are one run where no metadata parts them.
    free = sizes - metadata
    starts = groups * GROUP_BLOCKS + metadata
    begins = np.ones(shape.groups, np.bool_)
    begins[1:] = (metadata[1:] > 0) | (free[:-1] == 0)
    begins &= free > 0
    first_ordinals = np.cumsum(free) - free
    return Geometry(
        shape=shape,
        block_bitmaps=block_bitmaps,
        inode_bitmaps=inode_bitmaps,
        inode_tables=tables,
        metadata=metadata,
        group_sizes=sizes,
        has_backup=has_backup,
        run_starts=starts[begins],
        run_ordinals=np.append(first_ordinals[begins], free.sum()),
    )
