"""Which bytes of an ext2, ext3 or ext4 filesystem are in use, from its block bitmaps.

After the kernel's documentation, `filesystems/ext4`. The bitmap of a group whose descriptor says BLOCK_UNINIT was
never written: of such a group the superblock's and the descriptors' copies, the bitmaps and the inode table are in
use. The places of all groups' bitmaps and inode tables count as in use whatever the bitmaps say, but for the end of an
inode table that was never used: where group descriptors have checksums they tell how many inodes that is. Nobody reads
it: it is zeros, or will be zeroed by the kernel (lazy initialisation), so it is zeros in a copy.
"""

import heapq
import re
import struct
from typing import Callable, Iterator, List, NamedTuple, Set, Tuple

from rehost.agent.block_device import Range, between, common, joined
from rehost.agent.used_rules import LIVE, NotSettled, Refused

_READ = Callable[[int, int], bytes]

_COMPAT_SPARSE_SUPER2 = 0x200
_INCOMPAT_RECOVER, _INCOMPAT_JOURNAL_DEVICE, _INCOMPAT_META_BG, _INCOMPAT_64BIT = 0x4, 0x8, 0x10, 0x80
# compression 1, filetype 2, recover 4, meta_bg 10, extents 40, 64bit 80, mmp 100, flex_bg 200, ea_inode 400,
# dirdata 1000, csum_seed 2000, largedir 4000, inline_data 8000, encrypt 10000, casefold 20000
_INCOMPAT_KNOWN = 0x3F7D7 | 0x1000
_RO_SPARSE_SUPER, _RO_GDT_CSUM, _RO_BIGALLOC, _RO_METADATA_CSUM = 0x1, 0x10, 0x200, 0x400
_INODE_UNINIT, _BLOCK_UNINIT = 0x1, 0x2
_UNCLEAN = 0x1  # s_state: unmounted cleanly
_GROUPS = 1 << 26

_USED_BYTES = re.compile(b"[^\\0]+", re.DOTALL)
_BITS = bytes(bytearray(bin(byte).count("1") for byte in range(256)))


_Group = NamedTuple(
    "_Group",
    [
        ("bitmap", int),  # places, in blocks
        ("inode_bitmap", int),
        ("table", int),
        ("free", int),  # clusters
        ("free_inodes", int),
        ("unused_inodes", int),  # at the end of the table, never used
        ("flags", int),
    ],
)


class Ext(object):
    """One reading of the map."""

    rule = "ext4"

    def __init__(self, read: _READ, size: int, state: str) -> None:
        self._read = read
        self._state = state
        self.used_bytes = 0
        raw = read(1024, 1024)
        if raw[0x38:0x3A] != b"\x53\xef":
            raise ValueError("no superblock")
        compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C)
        if not struct.unpack_from("<I", raw, 0x4C)[0]:  # revision 0 has no features
            compat = incompat = ro_compat = 0
        if incompat & ~_INCOMPAT_KNOWN or incompat & _INCOMPAT_JOURNAL_DEVICE:
            raise Refused("it has features that are not known (incompat 0x%x)" % incompat)
        if state != LIVE and incompat & _INCOMPAT_RECOVER:
            raise NotSettled("its journal holds changes that are not in its bitmaps yet")
        self._compat, self._incompat, self._ro_compat = compat, incompat, ro_compat
        if state != LIVE and not compat & 0x4 and not struct.unpack_from("<H", raw, 0x3A)[0] & _UNCLEAN:
            raise NotSettled("it has no journal and was not unmounted")
        wide = incompat & _INCOMPAT_64BIT
        log, cluster_log = struct.unpack_from("<II", raw, 0x18)
        cluster_log = cluster_log if ro_compat & _RO_BIGALLOC else log
        if log > 6 or not log <= cluster_log <= 29:
            raise ValueError("sizes of blocks that cannot be")
        self._block, self._cluster = 1024 << log, 1024 << cluster_log
        self._blocks = _u32(raw, 0x4) | (_u32(raw, 0x150) << 32 if wide else 0)
        self._first, self._group_blocks, self._group_clusters = _u32(raw, 0x14), _u32(raw, 0x20), _u32(raw, 0x24)
        self._inodes_in_group = _u32(raw, 0x28)
        self._inode_bytes = struct.unpack_from("<H", raw, 0x58)[0] if _u32(raw, 0x4C) else 128
        self._descriptor = struct.unpack_from("<H", raw, 0xFE)[0] if wide else 32
        self._reserved = struct.unpack_from("<H", raw, 0xCE)[0]
        self._first_meta_group = _u32(raw, 0x104)
        self._backups = struct.unpack_from("<II", raw, 0x24C)
        self._check(size)

    def _check(self, size: int) -> None:
        ratio = self._cluster // self._block
        sound = (
            self._blocks > self._first
            and self._blocks * self._block <= size
            and self._first == (1 if self._block == 1024 and ratio == 1 else 0)
            and 0 < self._group_blocks <= 8 * self._block * ratio
            and 32 <= self._descriptor <= 1024
            and self._descriptor & (self._descriptor - 1) == 0
            and 128 <= self._inode_bytes <= self._block
        )
        if sound and ratio > 1:
            sound = self._group_clusters * ratio == self._group_blocks
        if not sound:
            raise ValueError("a superblock with numbers that cannot be")
        self._groups = (self._blocks - self._first + self._group_blocks - 1) // self._group_blocks
        self._in_block = self._block // self._descriptor
        self._descriptor_blocks = (self._groups + self._in_block - 1) // self._in_block
        self._table_blocks = (self._inodes_in_group * self._inode_bytes + self._block - 1) // self._block
        if self._groups > _GROUPS:
            raise ValueError("more groups than can be")

    def ranges(self) -> Iterator[Range]:
        """What is in use, in order."""
        groups = [self._group(group) for group in range(self._groups)]
        places = sorted(place for group in groups for place in self._places(group))
        unused = joined(sorted(self._unused(groups)))
        # What lies before the first group, the boot block, is nobody's in the bitmaps.
        boot = [(0, min(max(self._first * self._block, 4096), self._blocks * self._block))]
        used = joined((max(start, 0), end) for start, end in heapq.merge(boot, places, self._by_bitmaps(groups)))
        return common(used, between(unused, self._blocks * self._block))

    def _unused(self, groups: List[_Group]) -> Iterator[Range]:
        """The end of each inode table that was never used, where nothing speaks against it."""
        for group in groups:
            count = group.unused_inodes
            used = self._inodes_in_group - count
            if not 0 < count <= min(group.free_inodes, self._inodes_in_group):
                continue
            if not group.flags & _INODE_UNINIT:
                bitmap = self._read(group.inode_bitmap * self._block, (self._inodes_in_group + 7) // 8)
                if int.from_bytes(bitmap, "little") >> used & ((1 << count) - 1):
                    continue
            first = group.table + (used * self._inode_bytes + self._block - 1) // self._block
            yield first * self._block, (group.table + self._table_blocks) * self._block

    def _group(self, group: int) -> _Group:
        in_block = self._in_block
        raw = self._read(
            self._descriptor_place(group // in_block) * self._block + group % in_block * self._descriptor,
            self._descriptor,
        )
        bitmap, inode_bitmap, table, free, free_inodes, _, flags = struct.unpack_from("<IIIHHHH", raw)
        unused = struct.unpack_from("<H", raw, 28)[0]
        if self._descriptor >= 64:
            high = struct.unpack_from("<IIIHHHH", raw, 32)
            bitmap, inode_bitmap, table = bitmap | high[0] << 32, inode_bitmap | high[1] << 32, table | high[2] << 32
            free, free_inodes, unused = free | high[3] << 16, free_inodes | high[4] << 16, unused | high[6] << 16
        for place, count in ((bitmap, 1), (inode_bitmap, 1), (table, self._table_blocks)):
            if not self._first <= place <= self._blocks - count:
                raise ValueError("a group with its metadata beyond the end")
        if not self._ro_compat & (_RO_GDT_CSUM | _RO_METADATA_CSUM):
            flags = unused = 0
        return _Group(bitmap, inode_bitmap, table, free, free_inodes, unused, flags)

    def _descriptor_place(self, number: int) -> int:
        """The block that holds the descriptors of that number."""
        if not self._incompat & _INCOMPAT_META_BG or number < self._first_meta_group:
            # The superblock is in block 0 or 1, also where a block of 1 KiB is in clusters.
            return (1 if self._block == 1024 else 0) + 1 + number
        group = number * self._in_block
        start = int(self._first + group * self._group_blocks)
        if self._block == 1024 and not self._first and not group:
            start += 1
        return start + (1 if self._has_superblock(group) else 0)

    def _has_superblock(self, group: int) -> bool:
        if group == 0:
            return True
        if self._compat & _COMPAT_SPARSE_SUPER2:
            return group in self._backups
        if group == 1 or not self._ro_compat & _RO_SPARSE_SUPER:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def _places(self, group: _Group) -> List[Range]:
        return [
            (place * self._block, (place + count) * self._block)
            for place, count in ((group.bitmap, 1), (group.inode_bitmap, 1), (group.table, self._table_blocks))
        ]

    def _copies(self, group: int) -> int:
        """How many blocks the copies of superblock and descriptors take at the start of a group."""
        own = 1 if self._has_superblock(group) else 0
        if own and group == 0 and self._block == 1024 and not self._first:
            own = 2
        meta = self._incompat & _INCOMPAT_META_BG
        number = group // self._in_block
        if meta and number >= self._first_meta_group:
            return own + (1 if group % self._in_block in (0, 1, self._in_block - 1) else 0)
        if not own:
            return 0
        return own + int(self._reserved) + (self._first_meta_group if meta else self._descriptor_blocks)

    def _by_bitmaps(self, groups: List[_Group]) -> Iterator[Range]:
        for number, group in enumerate(groups):
            start = self._first + number * self._group_blocks
            blocks = min(self._group_blocks, self._blocks - start)
            at, end = start * self._block, (start + blocks) * self._block
            if group.flags & _BLOCK_UNINIT:
                own = self._copies(number) * self._block
                inside = [stop - first for first, stop in self._places(group) if at <= first < end]
                self.used_bytes += own + sum(inside)
                yield at, min(at + own, end)
                continue
            clusters = (blocks * self._block + self._cluster - 1) // self._cluster
            bitmap = self._read(group.bitmap * self._block, self._block)[: (clusters + 7) // 8]
            if clusters % 8:
                bitmap = bitmap[:-1] + bytes(bytearray([bitmap[-1:][0] & ((1 << clusters % 8) - 1)]))
            used = sum(bitmap.translate(_BITS))
            if self._state != LIVE and clusters - used != group.free:
                raise ValueError("a bitmap that does not agree with its group's count of free blocks")
            self.used_bytes += used * self._cluster
            for first, stop in bit_runs(bitmap, self._cluster):
                yield at + first * self._cluster, min(at + stop * self._cluster, end)


def bit_runs(bitmap: bytes, unit: int) -> Iterator[Tuple[int, int]]:
    """First bit that is set, and the one behind the last, of each run; of small units whole bytes of the bitmap."""
    fine = unit > 8192  # eight smaller ones make no more than one block of the index
    for match in _USED_BYTES.finditer(bitmap):
        start, stop = match.span()
        if not fine:
            yield start * 8, stop * 8
            continue
        value = int.from_bytes(bitmap[start:stop], "little")
        at = start * 8
        while value:
            skip = (value & -value).bit_length() - 1
            value >>= skip
            ones = (~value & (value + 1)).bit_length() - 1
            yield at + skip, at + skip + ones
            value >>= ones
            at += skip + ones


def _u32(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", raw, at)[0])


def devices(read: _READ) -> Set[str]:
    """What else than this device the filesystem needs."""
    raw = read(1024, 1024)
    # s_journal_dev is kept also where the journal is inside, in s_journal_inum.
    outside = _u32(raw, 0x5C) & 4 and not _u32(raw, 0xE0)
    return {"a journal on another device"} if outside else set()
