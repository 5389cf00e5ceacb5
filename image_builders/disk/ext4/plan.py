"""The plan of a filesystem: all that is decided before the first byte is written.

Free blocks are given out in this order: the resize inode's block, the journal, directories, targets of symbolic
links, blocks of extended attributes, content of files, extent trees.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from image_builders.disk.ext4.arrays import BLOCK, Numbers, numbers
from image_builders.disk.ext4.content import Content, content_of
from image_builders.disk.ext4.directories import DirectoryPlan, most_directory_blocks, plan_directories
from image_builders.disk.ext4.entries import FAST_SYMLINK, Entries, entries_of
from image_builders.disk.ext4.extents import Extents, Runs, extents_of, most_tree_blocks
from image_builders.disk.ext4.geometry import (
    LARGEST_BLOCKS,
    SMALLEST_BLOCKS,
    SMALLEST_JOURNAL,
    Geometry,
    Shape,
    geometry_of,
    shape_of,
)
from image_builders.disk.ext4.inodes import InodeColumns, device_words
from image_builders.disk.ext4.superblock import JOURNAL_INODE, Identity, Usage, usage_of
from image_builders.disk.ext4.xattrs import AttributePlan, plan_attributes
from rehost.errors import BuildDiskTooSmall, BuildUnsupported

_ALIGNMENT = 1 << 20  # what needed_bytes is rounded up to


@dataclass(frozen=True)
class Wanted:
    """What a files table asks for, whatever the size and the hash seed are."""

    entries: Entries
    attributes: AttributePlan
    content: Content
    slow_symlinks: Numbers  # rows
    attribute_rows: Numbers  # rows with a block of attributes
    blocks: int  # at most so many, without journal and without the extents that metadata cuts

    @property
    def inodes(self) -> int:
        """With some for the guest's first new files."""
        return self.entries.last_inode + self.entries.last_inode // 20 + 64

    def blocks_at_most(self, shape: Shape) -> int:
        """Without the journal; each stretch of metadata may cut an extent and so add a block to each tree level."""
        return self.blocks + 3 * shape.groups


def wanted_of(files: pa.Table) -> Wanted:
    """Check a files table and add up what it asks for. Raises BuildUnsupported."""
    entries = entries_of(files)
    attributes = plan_attributes(entries)
    content = content_of(entries)
    device_words(entries)
    slow = entries.of_type(stat.S_IFLNK)
    slow = slow[entries.targets.lengths[slow] >= FAST_SYMLINK]
    attribute_rows = np.flatnonzero(attributes.has_block)
    fixed = 1 + most_directory_blocks(entries) + len(slow) + len(attribute_rows)
    trees = most_tree_blocks(content.run_rows, content.run_lengths)
    return Wanted(entries, attributes, content, slow, attribute_rows, fixed + content.blocks + trees)


def journal_blocks(wanted: Wanted, shape: Shape) -> int | None:
    """The journal's size: as mke2fs chooses it, halved until it fits; None where even the smallest does not."""
    room = shape.free_blocks - wanted.blocks_at_most(shape)
    journal = shape.default_journal_blocks
    while journal > room and journal > SMALLEST_JOURNAL:
        journal //= 2
    return journal if journal <= room else None


def smallest_bytes(wanted: Wanted) -> int:
    """The smallest size, in whole MiB, from which on every size holds it. Raises BuildUnsupported over 16 TiB."""

    def holds(units: int) -> bool:
        shape = shape_of(units * _ALIGNMENT, wanted.inodes)
        # Inode tables grow by a block in every group at once: what fits here may lack so much a block further on.
        return shape is not None and shape.free_blocks >= (
            wanted.blocks_at_most(shape) + SMALLEST_JOURNAL + 2 * shape.groups
        )

    low, high = SMALLEST_BLOCKS * BLOCK // _ALIGNMENT, LARGEST_BLOCKS * BLOCK // _ALIGNMENT
    if not holds(high):
        raise BuildUnsupported(what="an ext4 filesystem", reason="its content is more than 16 TiB")
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low * _ALIGNMENT


@dataclass(frozen=True)
class Plan:
    """A filesystem with every number decided. Areas are named by the ordinal of their first block."""

    wanted: Wanted
    identity: Identity
    geometry: Geometry
    usage: Usage
    directories: DirectoryPlan
    extents: Extents
    columns: InodeColumns
    journal_blocks: int
    journal_at: int
    directories_at: int
    symlinks_at: int
    attributes_at: int
    content_at: int
    end: int


def plan_filesystem(wanted: Wanted, size_bytes: int, identity: Identity) -> Plan:
    """Decide everything for that size. Raises BuildDiskTooSmall and BuildUnsupported."""
    entries, content = wanted.entries, wanted.content
    shape = shape_of(size_bytes, wanted.inodes)
    journal = journal_blocks(wanted, shape) if shape is not None else None
    if shape is None or journal is None:
        raise BuildDiskTooSmall(
            what="ext4 filesystem", size_bytes=size_bytes, needed_bytes=max(smallest_bytes(wanted), size_bytes + BLOCK)
        )
    geometry = geometry_of(shape)
    directories = plan_directories(entries, identity.hash_seed)

    journal_at = 1 if shape.reserved_descriptor_blocks else 0
    directories_at = journal_at + journal
    symlinks_at = directories_at + directories.blocks
    attributes_at = symlinks_at + len(wanted.slow_symlinks)
    content_at = attributes_at + len(wanted.attribute_rows)
    trees_at = content_at + content.blocks

    runs = Runs.joined(
        [
            _runs(np.asarray([JOURNAL_INODE]), journal_at, np.asarray([journal])),
            _runs(entries.inodes[directories.rows], directories_at, directories.block_counts),
            _runs(
                entries.inodes[wanted.slow_symlinks], symlinks_at, np.ones(len(wanted.slow_symlinks), dtype=np.int64)
            ),
            _runs(entries.inodes[content.run_rows], content_at, content.run_lengths, content.run_logical),
        ]
    )
    extents = extents_of(runs, geometry, entries.last_inode + 1, trees_at)
    end = trees_at + extents.tree_blocks

    count = len(entries.owners)
    attribute_blocks = np.zeros(count, np.int64)
    attribute_blocks[wanted.attribute_rows] = geometry.physical(
        attributes_at + np.arange(len(wanted.attribute_rows), dtype=np.int64)
    )
    directory_bytes, indexed = np.zeros(count, np.int64), np.zeros(count, np.int64)
    directory_bytes[directories.rows] = directories.block_counts * BLOCK
    indexed[directories.rows] = directories.indexed
    row_of = np.full(entries.last_inode + 1, -1, np.int64)
    owning = np.flatnonzero(entries.owning)
    row_of[entries.inodes[owning]] = owning
    blocks_of = np.bincount(extents.inodes, weights=extents.lengths, minlength=len(row_of)).astype(np.int64)
    for inode in extents.deep:
        blocks_of[inode] += extents.tree_count(inode)
    table = entries.table
    columns = InodeColumns(
        entries=entries,
        attributes=wanted.attributes,
        attribute_blocks=attribute_blocks,
        directory_bytes=directory_bytes,
        indexed=indexed,
        uid=numbers(table["uid"]),
        gid=numbers(table["gid"]),
        atime=numbers(table["atime_ns"]),
        mtime=numbers(table["mtime_ns"]),
        ctime=numbers(table["ctime_ns"]),
        flags=numbers(table["flags"]),
        device_words=device_words(entries),
        row_of=row_of,
        blocks_of=blocks_of,
    )
    return Plan(
        wanted=wanted,
        identity=identity,
        geometry=geometry,
        usage=usage_of(geometry, end, entries.last_inode, entries.inodes[directories.rows]),
        directories=directories,
        extents=extents,
        columns=columns,
        journal_blocks=journal,
        journal_at=journal_at,
        directories_at=directories_at,
        symlinks_at=symlinks_at,
        attributes_at=attributes_at,
        content_at=content_at,
        end=end,
    )


def _runs(inodes: Numbers, ordinal: int, lengths: Numbers, logical: Numbers | None = None) -> Runs:
    """Runs that follow one another from that ordinal on."""
    starts = ordinal + np.cumsum(lengths) - lengths
    return Runs(inodes, np.zeros_like(starts) if logical is None else logical, starts, lengths)
