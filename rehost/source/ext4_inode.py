"""Inodes of ext2, ext3 and ext4: parsed, and where their content lies.

Source: Documentation/filesystems/ext4 of the kernel (inodes, extent trees, block maps).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rehost.source.ext4_blocks import Blocks, damaged

FLAG_ENCRYPTED = 0x800
FLAG_EXTENTS = 0x80000
FLAG_EA_INODE = 0x200000
FLAG_INLINE_DATA = 0x10000000
FLAG_CASEFOLD = 0x40000000

_FIRST = struct.Struct("<HHIiiiIHHIII")  # bytes 0 to 39
_SECOND = struct.Struct("<IIIIHHHH")  # bytes 100 to 123
_EXTENT_MAGIC = 0xF30A
_EXTENT_DEPTH = 5
_EXTENT_INIT_MAX = 32_768  # a longer length marks an extent that was reserved and never written
_NS_MAX = (1 << 63) - 1
_NS_MIN = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode. Times are nanoseconds since the epoch, sizes bytes."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    map: bytes  # i_block: extents, a block map, a short link's target, a device's number, or inline data
    attribute_block: int
    extra_size: int
    raw: bytes  # the whole inode, for the attributes in it

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor of a device node."""
        old, new = struct.unpack_from("<II", self.map)
        if old:
            return old >> 8 & 0xFF, old & 0xFF
        return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def parse_inode(raw: bytes, number: int, source: str) -> Inode:
    """The inode in `raw`. Raises SourceImageDamaged for lengths that cannot be."""
    (mode, uid, size, atime, ctime, mtime, _, gid, links, _, flags, _) = _FIRST.unpack_from(raw)
    (_, attribute_block, size_high, _, _, attribute_block_high, uid_high, gid_high) = _SECOND.unpack_from(raw, 100)
    extra = struct.unpack_from("<H", raw, 128)[0] if len(raw) > 128 else 0
    if extra > len(raw) - 128 or extra & 3:
        raise damaged(source, f"inode {number} has {extra} bytes of extra fields")
    ctime_extra, mtime_extra, atime_extra = (
        struct.unpack_from("<I", raw, at)[0] if extra >= at + 4 - 128 else 0 for at in (0x84, 0x88, 0x8C)
    )
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        size |= size_high << 32
    return Inode(
        number,
        mode,
        uid | uid_high << 16,
        gid | gid_high << 16,
        size,
        links,
        flags,
        _nanoseconds(atime, atime_extra),
        _nanoseconds(mtime, mtime_extra),
        _nanoseconds(ctime, ctime_extra),
        raw[40:100],
        attribute_block | attribute_block_high << 32,
        extra,
        raw,
    )


def _nanoseconds(seconds: int, extra: int) -> int:
    """The lowest two bits of `extra` extend the seconds past 2038, the others are the nanoseconds."""
    value = (seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)
    return min(max(value, _NS_MIN), _NS_MAX)


def extents(blocks: Blocks, inode: Inode) -> Iterator[tuple[int, int, int]]:
    """(first block in the file, first block in the filesystem, count) of what was written, in order; gaps are holes.

    Raises SourceImageDamaged for a map that no kernel makes: blocks beyond the filesystem, out of order, in a circle.
    """
    budget = blocks.superblock.blocks_count
    following = 0
    found = _tree(blocks, inode) if inode.flags & FLAG_EXTENTS else _mapped(blocks, inode)
    for logical, physical, count, written in found:
        if logical < following or physical + count > blocks.superblock.blocks_count or not physical:
            raise damaged(blocks.source, f"inode {inode.number} maps blocks out of order or beyond the filesystem")
        following = logical + count
        budget -= count
        if budget < 0:
            raise damaged(blocks.source, f"inode {inode.number} maps more blocks than there are")
        if written:
            yield logical, physical, count


def _tree(blocks: Blocks, inode: Inode) -> Iterator[tuple[int, int, int, bool]]:
    (depth,) = struct.unpack_from("<H", inode.map, 6)
    if depth > _EXTENT_DEPTH:
        raise damaged(blocks.source, f"inode {inode.number} has an extent tree of depth {depth}")
    seen: set[int] = set()
    todo: list[tuple[bytes | int, int]] = [(inode.map, depth)]
    while todo:
        node, depth = todo.pop()
        if isinstance(node, int):
            if node in seen:
                raise damaged(blocks.source, f"inode {inode.number} has a circle in its extent tree")
            seen.add(node)
            node = blocks.block(node)
        magic, entries, _, said, _ = struct.unpack_from("<HHHHI", node)
        if magic != _EXTENT_MAGIC or said != depth or entries > (len(node) - 12) // 12:
            raise damaged(blocks.source, f"inode {inode.number} has a damaged extent tree")
        if depth:
            children = list(struct.iter_unpack("<IIHH", node[12 : 12 + 12 * entries]))
            todo.extend((low | high << 32, depth - 1) for _, low, high, _ in reversed(children))
            continue
        for logical, length, high, low in struct.iter_unpack("<IHHI", node[12 : 12 + 12 * entries]):
            written = length <= _EXTENT_INIT_MAX
            yield logical, low | high << 32, length if written else length - _EXTENT_INIT_MAX, written


def _mapped(blocks: Blocks, inode: Inode) -> Iterator[tuple[int, int, int, bool]]:
    """The block map of ext2 and ext3: twelve blocks, then blocks of numbers, one, two and three deep."""
    per_block = blocks.superblock.block_size // 4
    pointers = struct.unpack("<15I", inode.map)
    seen: set[int] = set()
    yield from _runs(np.array(pointers[:12], np.uint32), 0)
    base = 12
    for depth, pointer in enumerate(pointers[12:], 1):
        if pointer:
            yield from _indirect(blocks, pointer, depth, base, seen, inode)
        base += per_block**depth


def _indirect(
    blocks: Blocks, number: int, depth: int, base: int, seen: set[int], inode: Inode
) -> Iterator[tuple[int, int, int, bool]]:
    if number in seen:
        raise damaged(blocks.source, f"inode {inode.number} has a circle in its block map")
    seen.add(number)
    pointers = np.frombuffer(blocks.block(number), "<u4")
    if depth == 1:
        yield from _runs(pointers, base)
        return
    step = len(pointers) ** (depth - 1)
    for index in np.flatnonzero(pointers).tolist():
        yield from _indirect(blocks, int(pointers[index]), depth - 1, base + index * step, seen, inode)


def _runs(pointers: np.ndarray[tuple[int], np.dtype[np.uint32]], base: int) -> Iterator[tuple[int, int, int, bool]]:
    """Neighbours in the file that are neighbours in the filesystem too, as one; zero is a hole."""
    wide = pointers.astype(np.int64)
    before, after = wide[:-1], wide[1:]
    joined = ((before == 0) & (after == 0)) | ((before != 0) & (after == before + 1))
    starts = [0, *(np.flatnonzero(~joined) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], len(wide)], strict=True):
        if wide[start]:
            yield base + start, int(wide[start]), end - start, True
