"""Write an ext4 filesystem in one pass: content as it is read, then what tells where it lies, the superblock last."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO
from uuid import UUID

import numpy as np
import pyarrow as pa

from image_builders.disk.ext4.arrays import BLOCK
from image_builders.disk.ext4.content import read_ahead
from image_builders.disk.ext4.directories import directory_slab
from image_builders.disk.ext4.geometry import GROUP_BLOCKS, INODES_PER_BLOCK, Geometry, backup_groups
from image_builders.disk.ext4.inodes import EXTENTS, inode_table, special_inode
from image_builders.disk.ext4.journal import (
    journal_superblock,
    resize_block_count,
    resize_blocks,
    resize_double,
    resize_root,
    resize_size,
)
from image_builders.disk.ext4.plan import Plan, plan_filesystem, smallest_bytes, wanted_of
from image_builders.disk.ext4.superblock import (
    JOURNAL_INODE,
    block_bitmap,
    descriptors,
    identity_of,
    inode_bitmap,
    superblock,
)
from image_builders.disk.ext4.xattrs import attribute_block
from rehost.errors import BuildUnsupported
from rehost.progress import Progress
from rehost.replication.manifest import ChunkReader

_RESIZE_INODE = 7
_LABEL_BYTES = 16
_SLAB_BLOCKS = 1024  # directory blocks made at a time
_GATHERED_BYTES = 8 << 20  # what one write call is given
_GATHERED_PIECES = 1000  # below IOV_MAX
_ZEROS = memoryview(bytes(2 * BLOCK))


def needed_bytes(files: pa.Table) -> int:
    """The smallest size, in whole MiB, that surely holds these files; every larger one does too.

    The journal is at its smallest there and nothing is left over. Raises BuildUnsupported as `write_ext4` does.
    """
    return smallest_bytes(wanted_of(files))


def write_ext4(
    target: BinaryIO,
    offset: int,
    size_bytes: int,
    files: pa.Table,
    chunks: ChunkReader,
    *,
    uuid: UUID,
    label: str,
    progress: Progress,
) -> None:
    """Write a filesystem of `size_bytes` at `offset` of a file that reads as zeros there.

    `files` has the rows of one filesystem (FILES_SCHEMA, sorted, the root first); `chunks.read_chunk` is called by two
    threads at once. Bytes depend on the input alone. Raises BuildDiskTooSmall and BuildUnsupported before anything is
    written (BuildUnsupported for a chunk of the wrong length on the way), and what the reader raises.
    """
    encoded = label.encode()
    if len(encoded) > _LABEL_BYTES:
        raise BuildUnsupported(what=f"the label {label!r}", reason=f"ext4 has {_LABEL_BYTES} bytes for it")
    wanted = wanted_of(files)
    plan = plan_filesystem(wanted, size_bytes, identity_of(uuid, encoded, files["mtime_ns"][0].as_py()))
    device = _Device(target, offset, plan.geometry)
    device.extend(size_bytes)
    _write_content(plan, device, chunks, progress)
    _write_directories(plan, device)
    _write_single_blocks(plan, device)
    _write_inodes(plan, device)
    _write_bitmaps(plan, device)
    _write_heads(plan, device)
    progress(wanted.content.bytes, wanted.content.bytes, "written")


class _Device:
    """The place that is written to: bytes by physical block, or by ordinal of a free block."""

    def __init__(self, target: BinaryIO, offset: int, geometry: Geometry) -> None:
        self._fd = target.fileno()
        self._offset = offset
        self._geometry = geometry

    def extend(self, size_bytes: int) -> None:
        """A regular file is made long enough; what is added is a hole."""
        status = os.fstat(self._fd)
        if stat.S_ISREG(status.st_mode) and status.st_size < self._offset + size_bytes:
            os.ftruncate(self._fd, self._offset + size_bytes)

    def write(self, position: int, content: bytes | memoryview) -> None:
        """Bytes at a position counted from the start of the filesystem."""
        left = memoryview(content)
        while left:
            written = os.pwrite(self._fd, left, self._offset + position)
            position, left = position + written, left[written:]

    def write_block(self, block: int, content: bytes) -> None:
        self.write(block * BLOCK, content)

    def write_ordinals(self, position: int, pieces: list[bytes | memoryview]) -> None:
        """Bytes at a position counted over the free blocks alone."""
        size = sum(map(len, pieces))
        first, last = position // BLOCK, -(-(position + size) // BLOCK)
        places = self._geometry.pieces(first, last - first)
        skipped = position - first * BLOCK
        if len(places) == 1 and len(pieces) > 1:
            start = places[0][0] * BLOCK + skipped
            written = os.pwritev(self._fd, pieces, self._offset + start)
            if written < size:
                self.write(start + written, memoryview(b"".join(pieces))[written:])
            return
        whole = memoryview(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        for block, count in places:
            here = whole[: count * BLOCK - skipped]
            self.write(block * BLOCK + skipped, here)
            whole, skipped = whole[len(here) :], 0


def _write_content(plan: Plan, device: _Device, chunks: ChunkReader, progress: Progress) -> None:
    """All chunks, gathered into large writes; the gaps between them are less than two blocks and are zeros."""
    total = plan.wanted.content.bytes
    base = plan.content_at * BLOCK
    pieces: list[bytes | memoryview] = []
    begin = end = done = 0
    progress(0, total, "writing files")
    for position, content in read_ahead(plan.wanted.content, plan.wanted.entries, chunks):
        if end - begin >= _GATHERED_BYTES or len(pieces) >= _GATHERED_PIECES:
            device.write_ordinals(base + begin, pieces)
            pieces, begin, end = [], position, position
            progress(done, total, "writing files")
        if position > end:
            pieces.append(_ZEROS[: position - end])
        pieces.append(content)
        end = position + len(content)
        done += len(content)
    if pieces:
        device.write_ordinals(base + begin, pieces)


def _write_directories(plan: Plan, device: _Device) -> None:
    for first in range(0, plan.directories.blocks, _SLAB_BLOCKS):
        count = min(_SLAB_BLOCKS, plan.directories.blocks - first)
        slab = directory_slab(plan.wanted.entries, plan.directories, first, count)
        device.write_ordinals((plan.directories_at + first) * BLOCK, [slab.tobytes()])


def _write_single_blocks(plan: Plan, device: _Device) -> None:
    """Journal, targets of symbolic links, attributes, extent trees, and what the resize inode points at."""
    entries, geometry = plan.wanted.entries, plan.geometry
    device.write_ordinals(plan.journal_at * BLOCK, [journal_superblock(plan.journal_blocks)])
    for number, row in enumerate(plan.wanted.slow_symlinks.tolist()):
        device.write_ordinals((plan.symlinks_at + number) * BLOCK, [entries.targets.get(row)])
    for number, row in enumerate(plan.wanted.attribute_rows.tolist()):
        device.write_ordinals((plan.attributes_at + number) * BLOCK, [attribute_block(entries, row)])
    for ordinal, content in plan.extents.trees():
        device.write_ordinals(ordinal * BLOCK, [content])
    if geometry.shape.reserved_descriptor_blocks:
        device.write_ordinals(0, [resize_double(geometry)])
        for block, content in resize_blocks(geometry):
            device.write_block(block, content)


def _journal_root(plan: Plan) -> bytes:
    return plan.extents.roots(JOURNAL_INODE, JOURNAL_INODE + 1).astype("<u4").tobytes()


def _write_inodes(plan: Plan, device: _Device) -> None:
    per_group = plan.geometry.shape.inodes_per_group
    last_inode = plan.wanted.entries.last_inode
    step = min(per_group, 8192)
    for group, used in enumerate(plan.usage.inodes.tolist()):
        if used == 0:
            break
        table_at = int(plan.geometry.inode_tables[group]) * BLOCK
        for first in range(1 + group * per_group, 1 + group * per_group + used, step):
            last = min(first + step, last_inode + 1, 1 + (group + 1) * per_group)
            table = inode_table(plan.columns, plan.extents, first, last)
            if first == 1:
                _special_inodes(plan, table)
            within = (first - 1) % per_group // INODES_PER_BLOCK * BLOCK
            device.write(table_at + within, table.tobytes())


def _special_inodes(plan: Plan, table: np.ndarray[tuple[int, ...], np.dtype[np.void]]) -> None:
    seconds = plan.identity.time_seconds
    journal = plan.journal_blocks
    blocks = int(plan.columns.blocks_of[JOURNAL_INODE])
    table[JOURNAL_INODE - 1] = special_inode(journal * BLOCK, blocks, EXTENTS, _journal_root(plan), seconds)[0]
    if plan.geometry.shape.reserved_descriptor_blocks:
        root = resize_root(int(plan.geometry.physical(np.zeros(1, np.int64))[0]))
        table[_RESIZE_INODE - 1] = special_inode(resize_size(), resize_block_count(plan.geometry), 0, root, seconds)[0]


def _write_bitmaps(plan: Plan, device: _Device) -> None:
    geometry, usage = plan.geometry, plan.usage
    made: dict[tuple[int, int], bytes] = {}
    for group in np.flatnonzero(~usage.block_uninit).tolist():
        key = int(usage.blocks[group]), int(geometry.group_sizes[group])
        if key not in made:
            made[key] = block_bitmap(*key)
        device.write_block(int(geometry.block_bitmaps[group]), made[key])
    for group in np.flatnonzero(~usage.inode_uninit).tolist():
        used = int(usage.inodes[group])
        device.write_block(int(geometry.inode_bitmaps[group]), inode_bitmap(used, geometry.shape.inodes_per_group))


def _write_heads(plan: Plan, device: _Device) -> None:
    """Descriptors and superblocks, the first group's last: until then there is no filesystem here."""
    geometry = plan.geometry
    table = descriptors(geometry, plan.usage, plan.identity)
    root = _journal_root(plan)
    for group in reversed(backup_groups(geometry.shape.groups)):
        start = group * GROUP_BLOCKS * BLOCK
        device.write(start + BLOCK, table)
        head = superblock(geometry, plan.usage, plan.identity, root, plan.journal_blocks * BLOCK, group)
        device.write(start + (0 if group else 1024), head)
