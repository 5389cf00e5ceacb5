"""The blocks of an ext2, ext3 or ext4 filesystem in a file: superblock, bounds, and the journal's newer blocks.

The layout follows the kernel's Documentation/filesystems/ext4. Everything read is hostile: no block outside of the
filesystem is ever asked for, and no size is believed before it was compared with the length of the partition.
"""

from __future__ import annotations

import bisect
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from rehost.errors import SourceImageDamaged, SourceUnsupported

INCOMPAT_RECOVER = 0x4
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_FILETYPE = 0x2
_INCOMPAT_READ = (
    0x2  # filetype
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | 0x40  # extents
    | INCOMPAT_64BIT
    | 0x100  # mmp
    | 0x200  # flex_bg
    | 0x400  # ea_inode
    | 0x2000  # csum_seed
    | 0x4000  # largedir
    | 0x8000  # inline_data
    | 0x10000  # encrypt: refused file by file
    | 0x20000  # casefold: refused directory by directory
)
_INCOMPAT_NAMES = {0x1: "compression", 0x8: "an external journal device", 0x1000: "dirdata"}
_COMPAT_JOURNAL = 0x4
_COMPAT_SPARSE_SUPER2 = 0x200
_RO_SPARSE_SUPER = 0x1
_RO_EXT4 = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400  # huge_file, gdt_csum, dir_nlink, extra_isize, bigalloc, csum
_INCOMPAT_EXT4 = 0x40 | INCOMPAT_64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

SUPERBLOCK_OFFSET = 1024
_CACHED_BYTES = 8 << 20


def damaged(source: str, reason: str) -> SourceImageDamaged:
    """The error for whatever a sound filesystem does not say."""
    return SourceImageDamaged(source=source, reason=reason)


class Window:
    """The bytes of one filesystem inside an open file."""

    def __init__(self, descriptor: int, offset: int, length: int, source: str) -> None:
        self.descriptor, self.offset, self.length, self.source = descriptor, offset, length, source

    def read(self, at: int, count: int) -> bytes:
        """Exactly `count` bytes from `at`. Raises SourceImageDamaged beyond the window or the end of the file."""
        if at < 0 or count < 0 or at + count > self.length:
            raise damaged(self.source, f"it points at byte {at}, beyond its end at {self.length}")
        piece = os.pread(self.descriptor, count, self.offset + at)
        if len(piece) == count:
            return piece
        parts, got = [piece], len(piece)
        while piece and got < count:
            piece = os.pread(self.descriptor, count - got, self.offset + at + got)
            parts.append(piece)
            got += len(piece)
        if got < count:
            raise damaged(self.source, f"the image ends before byte {self.offset + at + count}")
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a reader needs of the superblock. Sizes in bytes unless the name says blocks."""

    block_size: int
    blocks_count: int
    free_blocks: int
    first_data_block: int
    blocks_per_group: int
    inodes_count: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    compat: int
    incompat: int
    ro_compat: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    journal_inode: int
    uuid: str
    label: str

    @property
    def filesystem(self) -> str:
        """ext2, ext3 or ext4, as blkid tells them apart."""
        if self.incompat & _INCOMPAT_EXT4 or self.ro_compat & _RO_EXT4:
            return "ext4"
        return "ext3" if self.compat & _COMPAT_JOURNAL else "ext2"

    @property
    def needs_recovery(self) -> bool:
        return bool(self.incompat & INCOMPAT_RECOVER)

    def has_backup(self, group: int) -> bool:
        """Whether a copy of the superblock lies at the start of that group."""
        if group == 0:
            return True
        if self.compat & _COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & _RO_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


def parse_superblock(raw: bytes, length: int, source: str) -> Superblock:
    """The superblock of 1,024 bytes, checked against a partition of `length` bytes.

    Raises SourceImageDamaged, and SourceUnsupported for a feature without a reader.
    """
    u32, u16 = struct.Struct("<I").unpack_from, struct.Struct("<H").unpack_from
    if u16(raw, 0x38)[0] != 0xEF53:
        raise damaged(source, "it has no ext2, ext3 or ext4 superblock")
    incompat = u32(raw, 0x60)[0]
    unknown = incompat & ~_INCOMPAT_READ
    if unknown:
        names = [_INCOMPAT_NAMES.get(1 << bit, hex(1 << bit)) for bit in range(32) if unknown >> bit & 1]
        raise SourceUnsupported(source=source, reason=f"this ext4 filesystem uses {', '.join(names)}")
    log_block_size = u32(raw, 0x18)[0]
    if log_block_size > 6:
        raise damaged(source, "its block size is out of range")
    block_size = 1024 << log_block_size
    revision = u32(raw, 0x4C)[0]
    inode_size = u16(raw, 0x58)[0] if revision else 128
    if inode_size < 128 or inode_size > block_size or inode_size & (inode_size - 1):
        raise damaged(source, f"an inode size of {inode_size}")
    wide = bool(incompat & INCOMPAT_64BIT)
    descriptor_size = u16(raw, 0xFE)[0] if wide else 32
    if wide and (descriptor_size < 64 or descriptor_size > 1024 or descriptor_size & (descriptor_size - 1)):
        raise damaged(source, f"a group descriptor size of {descriptor_size}")
    superblock = Superblock(
        block_size=block_size,
        blocks_count=u32(raw, 0x4)[0] | (u32(raw, 0x150)[0] << 32 if wide else 0),
        free_blocks=u32(raw, 0xC)[0] | (u32(raw, 0x158)[0] << 32 if wide else 0),
        first_data_block=u32(raw, 0x14)[0],
        blocks_per_group=u32(raw, 0x20)[0],
        inodes_count=u32(raw, 0x0)[0],
        inodes_per_group=u32(raw, 0x28)[0],
        inode_size=inode_size,
        descriptor_size=descriptor_size,
        compat=u32(raw, 0x5C)[0],
        incompat=incompat,
        ro_compat=u32(raw, 0x64)[0],
        first_meta_bg=u32(raw, 0x104)[0],
        backup_groups=struct.unpack_from("<II", raw, 0x24C),
        journal_inode=u32(raw, 0xE0)[0] if u32(raw, 0x5C)[0] & _COMPAT_JOURNAL else 0,
        uuid=str(UUID(bytes=raw[0x68:0x78])),
        label=raw[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
    )
    size = superblock.blocks_count * block_size
    if size > length:
        raise damaged(source, f"its filesystem has {size} bytes, its partition {length}")
    # A group of a filesystem with clusters may count more blocks than one bitmap has bits.
    per_group = superblock.blocks_per_group
    if not 8 <= per_group <= 8 * block_size << 16 or superblock.first_data_block >= superblock.blocks_count:
        raise damaged(source, "its groups of blocks are out of range")
    groups = -(-(superblock.blocks_count - superblock.first_data_block) // per_group)
    if not 0 < superblock.inodes_per_group <= 8 * block_size:
        raise damaged(source, "its groups of inodes are out of range")
    if superblock.inodes_count > groups * superblock.inodes_per_group:
        raise damaged(source, "it counts more inodes than its groups hold")
    if superblock.free_blocks > superblock.blocks_count:
        raise damaged(source, "it counts more free blocks than it has")
    return superblock


class Blocks:
    """The blocks of one filesystem, with newer ones from the journal laid over them.

    `overlay` maps a block to the block of the journal that replaces it, and whether its first four bytes were
    escaped there; the bytes stay in the image, so memory does not grow with the journal.
    """

    def __init__(self, window: Window) -> None:
        self.window = window
        self.source = window.source
        self.overlay: dict[int, tuple[int, bool]] = {}
        self._overlaid: list[int] = []
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self.superblock = parse_superblock(window.read(SUPERBLOCK_OFFSET, 1024), window.length, self.source)

    def lay_over(self, overlay: dict[int, tuple[int, bool]]) -> None:
        """Show the journal's blocks from now on, and read the superblock again."""
        self.overlay = overlay
        self._overlaid = sorted(overlay)
        self._cache.clear()
        raw = self.bytes_at(SUPERBLOCK_OFFSET, 1024)
        after = parse_superblock(raw, self.window.length, self.source)
        if after.block_size != self.superblock.block_size:
            raise damaged(self.source, "its journal changes the block size")
        self.superblock = after

    def block(self, number: int) -> bytes:
        """One block of metadata, cached."""
        cached = self._cache.get(number)
        if cached is not None:
            self._cache.move_to_end(number)
            return cached
        size = self.superblock.block_size
        content = self.bytes_at(number * size, size)
        self._cache[number] = content
        if len(self._cache) * size > _CACHED_BYTES:
            self._cache.popitem(last=False)
        return content

    def bytes_at(self, at: int, count: int) -> bytes:
        """Bytes of the filesystem, as they are once the journal was replayed."""
        size = self.superblock.block_size
        if at + count > self.superblock.blocks_count * size:
            raise damaged(self.source, f"it points at block {at // size} of {self.superblock.blocks_count}")
        content = self.window.read(at, count)
        if not self._overlaid or not count:
            return content
        first, last = at // size, (at + count - 1) // size
        index = bisect.bisect_left(self._overlaid, first)
        if index == len(self._overlaid) or self._overlaid[index] > last:
            return content
        patched = bytearray(content)
        while index < len(self._overlaid) and self._overlaid[index] <= last:
            number = self._overlaid[index]
            start = max(at, number * size)
            end = min(at + count, (number + 1) * size)
            patched[start - at : end - at] = self._from_journal(number)[start - number * size : end - number * size]
            index += 1
        return bytes(patched)

    def _from_journal(self, number: int) -> bytes:
        size = self.superblock.block_size
        journal_block, escaped = self.overlay[number]
        content = self.window.read(journal_block * size, size)
        return b"\xc0\x3b\x39\x98" + content[4:] if escaped else content
