"""Which bytes of an XFS filesystem are in use: all that its free-space B+trees by block do not list.

After the "XFS Algorithms & Data Structures" document. Numbers are big-endian. The free list of an allocation group,
and the log, are in no free-space tree, so they count as in use.
"""

import struct
from typing import Callable, Iterator, Set, Tuple

from rehost.agent.block_device import Range
from rehost.agent.used_rules import OFF, NotSettled, Refused

_READ = Callable[[int, int], bytes]

# ftype 1, sparse inodes 2, meta uuid 4, bigtime 8, large extent counts 20, exchange 40, parents 80, metadata dir 100
_INCOMPAT_KNOWN = 0x1EF
_NEEDS_REPAIR = 0x10
_LOG_MAGIC = b"\xfe\xed\xba\xbe"
_UNMOUNTED = 0x20  # the flag of the operation that an unmount writes as the log's last
_DEPTH = 9
_SCAN_BYTES = 1 << 20


class Xfs(object):
    """One reading of the map."""

    rule = "xfs"

    def __init__(self, read: _READ, size: int, state: str) -> None:
        self._read = read
        self.used_bytes = 0
        raw = read(0, 512)
        if raw[:4] != b"XFSB":
            raise ValueError("no superblock")
        self._block, self._blocks = struct.unpack_from(">IQ", raw, 4)
        self._log_start = struct.unpack_from(">Q", raw, 48)[0]
        self._group_blocks, self._groups = struct.unpack_from(">II", raw, 84)
        self._log_blocks, version, self._sector = struct.unpack_from(">IHH", raw, 96)
        self._group_log = bytearray(raw[124:125])[0]
        self._five = version & 0xF == 5
        if version & 0xF not in (4, 5):
            raise Refused("version %d of XFS is not known" % (version & 0xF))
        incompat = struct.unpack_from(">I", raw, 216)[0] if self._five else 0
        if incompat & _NEEDS_REPAIR:
            raise Refused("it says that it needs a repair")
        if incompat & ~_INCOMPAT_KNOWN:
            raise Refused("it has features that are not known (incompat 0x%x)" % incompat)
        needs = devices(read)
        if needs:
            raise Refused("it has " + " and ".join(sorted(needs)))
        sound = (
            512 <= self._sector <= 32768
            and 512 <= self._block <= 65536
            and self._block & (self._block - 1) == 0
            and 0 < self._blocks * self._block <= size
            and 0 < self._group_blocks <= 1 << 31
            and (self._groups - 1) * self._group_blocks < self._blocks <= self._groups * self._group_blocks
            and self._group_log < 32
        )
        if not sound:
            raise ValueError("a superblock with numbers that cannot be")
        if state == OFF and not self._unmounted():
            raise NotSettled("its log holds changes that are not in its free-space trees yet")

    def ranges(self) -> Iterator[Range]:
        """What is in use, in order."""
        for group in range(self._groups):
            base = group * self._group_blocks
            blocks = min(self._group_blocks, self._blocks - base)
            at = 0
            for start, end in self._free(group, blocks):
                if start > at:
                    yield (base + at) * self._block, (base + start) * self._block
                at = end
            if at < blocks:
                yield (base + at) * self._block, (base + blocks) * self._block

    def _free(self, group: int, blocks: int) -> Iterator[Tuple[int, int]]:
        at = group * self._group_blocks * self._block
        raw = self._read(at + self._sector, 512)
        magic, number, length = raw[:4], _u32(raw, 8), _u32(raw, 12)
        if magic != b"XAGF" or number != group or length != blocks:
            raise ValueError("a group without its free-space header")
        root, depth, total = _u32(raw, 16), _u32(raw, 28), _u32(raw, 52)
        if not 0 < depth <= _DEPTH:
            raise ValueError("a free-space tree of a depth that cannot be")
        before = free = 0
        for start, end in self._walk(at, root, depth - 1, blocks):
            if not before <= start < end <= blocks:
                raise ValueError("free space that is out of order or beyond its group")
            before = end
            free += end - start
            yield start, end
        if free != total:
            raise ValueError("a free-space tree that does not agree with its group's count")
        self.used_bytes += (blocks - free) * self._block

    def _walk(self, at: int, block: int, level: int, blocks: int) -> Iterator[Tuple[int, int]]:
        if not 0 < block < blocks:
            raise ValueError("a tree that leads beyond its group")
        raw = self._read(at + block * self._block, self._block)
        head = 56 if self._five else 16
        told, count = struct.unpack_from(">HH", raw, 4)
        most = (self._block - head) // (12 if level else 8)
        if raw[:4] != (b"AB3B" if self._five else b"ABTB") or told != level or count > most:
            raise ValueError("a block that is none of the free-space tree")
        if level:
            for child in struct.unpack_from(">%dI" % count, raw, head + 8 * most):
                for found in self._walk(at, child, level - 1, blocks):
                    yield found
            return
        for place in range(head, head + 8 * count, 8):
            start, length = struct.unpack_from(">II", raw, place)
            yield start, start + length

    def _unmounted(self) -> bool:
        """Whether the record of the log that was written last is the one that an unmount writes."""
        group, block = self._log_start >> self._group_log, self._log_start & ((1 << self._group_log) - 1)
        start, size = (group * self._group_blocks + block) * self._block, self._log_blocks * self._block
        last = (-1, -1)
        for at in range(0, size, _SCAN_BYTES):
            piece = self._read(start + at, min(_SCAN_BYTES, size - at))
            found = piece.find(_LOG_MAGIC)
            while found >= 0:
                # Cycle and block of the record: the block says where it lies, so content is not taken for a record.
                if found % 512 == 0 and len(piece) >= found + 40:
                    cycle, place = struct.unpack_from(">II", piece, found + 16)
                    if place * 512 == at + found:
                        last = max(last, (cycle, place))
                found = piece.find(_LOG_MAGIC, found + 4)
        if last[1] < 0:
            return False
        record = self._read(start + last[1] * 512, 512)
        version, length = struct.unpack_from(">II", record, 8)  # of the format; of the content
        size_of_heads = struct.unpack_from(">I", record, 320)[0] if version & 2 else 32768
        heads = max(1, (size_of_heads + 32767) // 32768)
        if _u32(record, 40) != 1 or not length or heads > 64:
            return False
        place = (last[1] + heads) * 512 % size  # behind the head; the log is a ring
        operation = self._read(start + place, 16)
        return bool(bytearray(operation)[9] & _UNMOUNTED)


def devices(read: _READ) -> Set[str]:
    """What else than this device the filesystem needs."""
    raw = read(0, 512)
    found = set()
    if not struct.unpack_from(">Q", raw, 48)[0]:
        found.add("a log on another device")
    if struct.unpack_from(">Q", raw, 24)[0]:
        found.add("a realtime section")
    return found


def _u32(raw: bytes, at: int) -> int:
    return int(struct.unpack_from(">I", raw, at)[0])
