"""The journal of ext3 and ext4 (JBD2), replayed into a map instead of onto the disk.

The format is that of the kernel's include/linux/jbd2.h, the order of the passes that of fs/jbd2/recovery.c: find the
last whole transaction, gather what was revoked, then take each block's newest copy. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rehost.errors import SourceUnsupported
from rehost.source.ext4_blocks import Blocks, damaged

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPERBLOCK_1, _SUPERBLOCK_2, _REVOKE = 1, 2, 3, 4, 5
_INCOMPAT_64BIT, _INCOMPAT_CSUM_2, _INCOMPAT_CSUM_3, _INCOMPAT_FAST_COMMIT = 0x2, 0x8, 0x10, 0x20
_INCOMPAT_READ = 0x1 | _INCOMPAT_64BIT | 0x4 | _INCOMPAT_CSUM_2 | _INCOMPAT_CSUM_3 | _INCOMPAT_FAST_COMMIT
_ESCAPED, _SAME_UUID, _LAST_TAG = 0x1, 0x2, 0x8


@dataclass(frozen=True)
class _Log:
    """Where the log lies and how it is written."""

    places: Sequence[int]  # the filesystem's block of each block of the journal
    first: int
    last: int  # one past the last block of the ring
    start: int
    sequence: int
    incompat: int
    seed: int | None  # of the checksums; None where there are none

    def after(self, block: int, count: int = 1) -> int:
        """The block `count` further on in the ring."""
        return self.first + (block - self.first + count) % (self.last - self.first)


def replay(blocks: Blocks, places: Sequence[int]) -> dict[int, tuple[int, bool]]:
    """What the journal holds that is newer than the filesystem: block → (block of the journal, escaped).

    `places` gives the filesystem's block of each block of the journal file. Raises SourceImageDamaged, and
    SourceUnsupported for a journal that this reader does not know.
    """
    log = _open(blocks, places)
    if log is None:
        return {}
    records = list(_scan(blocks, log))
    revoked: dict[int, int] = {}
    for sequence, kind, block in records:
        if kind == _REVOKE:
            for number in _revoked(blocks, log, block):
                revoked[number] = max(sequence, revoked.get(number, 0))
    overlay: dict[int, tuple[int, bool]] = {}
    for sequence, kind, block in records:
        if kind != _DESCRIPTOR:
            continue
        at = block
        for number, escaped in _tags(blocks, log, block):
            at = log.after(at)
            if number >= blocks.superblock.blocks_count:
                raise damaged(blocks.source, f"its journal writes block {number}, which does not exist")
            if revoked.get(number, -1) < sequence:
                overlay[number] = (log.places[at], escaped)
    return overlay


def _open(blocks: Blocks, places: Sequence[int]) -> _Log | None:
    if not places:
        raise damaged(blocks.source, "its journal is empty")
    raw = blocks.block(places[0])
    magic, kind, _, block_size, length, first, sequence, start, _ = struct.unpack_from(">9I", raw)
    if magic != _MAGIC or kind not in (_SUPERBLOCK_1, _SUPERBLOCK_2):
        raise damaged(blocks.source, "its journal has no superblock")
    if start == 0:
        return None
    incompat = struct.unpack_from(">I", raw, 0x28)[0] if kind == _SUPERBLOCK_2 else 0
    fast_commit_blocks = 0
    if incompat & ~_INCOMPAT_READ:
        raise SourceUnsupported(source=blocks.source, reason=f"its journal has unknown features {incompat:#x}")
    if incompat & _INCOMPAT_FAST_COMMIT:
        fast_commit_blocks = struct.unpack_from(">I", raw, 0x54)[0] or 256
        raise_on_fast_commits(blocks, places, length, fast_commit_blocks)
    last = length - fast_commit_blocks
    if block_size != blocks.superblock.block_size or length > len(places) or not 0 < first <= start < last:
        raise damaged(blocks.source, "its journal's superblock is out of range")
    seed = _crc32c(0xFFFFFFFF, raw[0x30:0x40]) if incompat & (_INCOMPAT_CSUM_2 | _INCOMPAT_CSUM_3) else None
    return _Log(places, first, last, start, sequence, incompat, seed)


def raise_on_fast_commits(blocks: Blocks, places: Sequence[int], length: int, count: int) -> None:
    """Fast commits are not replayed: refuse a journal in which one may be waiting (its area starts with a tag)."""
    if not 0 < length - count < len(places):
        raise damaged(blocks.source, "its journal's area of fast commits is out of range")
    if any(blocks.block(places[length - count])):
        raise SourceUnsupported(
            source=blocks.source,
            reason="its journal holds fast commits, which are not replayed: shut the server down cleanly first",
        )


def _scan(blocks: Blocks, log: _Log) -> Iterator[tuple[int, int, int]]:
    """(sequence, kind, block) of the descriptor and revoke blocks of every whole transaction, in order."""
    sequence, at, seen = log.sequence, log.start, 0
    pending: list[tuple[int, int, int]] = []
    while seen < log.last - log.first:
        raw = blocks.block(log.places[at])
        magic, kind, of = struct.unpack_from(">3I", raw)
        if magic != _MAGIC or of != sequence or not _intact(raw, kind, log):
            return
        count = 1
        if kind == _DESCRIPTOR:
            pending.append((sequence, kind, at))
            count += sum(1 for _ in _tags(blocks, log, at))
        elif kind == _REVOKE:
            pending.append((sequence, kind, at))
        elif kind == _COMMIT:
            yield from pending
            pending = []
            sequence = (sequence + 1) & 0xFFFFFFFF
        else:
            return
        at = log.after(at, count)
        seen += count


def _tags(blocks: Blocks, log: _Log, block: int) -> Iterator[tuple[int, bool]]:
    """(block of the filesystem, escaped) of each tag in a descriptor block."""
    raw = blocks.block(log.places[block])
    wide = bool(log.incompat & _INCOMPAT_64BIT)
    version_3 = bool(log.incompat & _INCOMPAT_CSUM_3)
    size = 16 if version_3 else 8 + (2 if log.incompat & _INCOMPAT_CSUM_2 else 0) + (4 if wide else 0)
    end = len(raw) - (4 if log.seed is not None else 0)
    at = 12
    while at + size <= end:
        if version_3:
            low, flags, high = struct.unpack_from(">III", raw, at)
        else:
            low, _, flags = struct.unpack_from(">IHH", raw, at)
            high = struct.unpack_from(">I", raw, at + 8)[0] if wide else 0
        yield low | (high << 32 if wide else 0), bool(flags & _ESCAPED)
        at += size + (0 if flags & _SAME_UUID else 16)
        if flags & _LAST_TAG:
            return


def _revoked(blocks: Blocks, log: _Log, block: int) -> Iterator[int]:
    raw = blocks.block(log.places[block])
    wide = bool(log.incompat & _INCOMPAT_64BIT)
    (used,) = struct.unpack_from(">I", raw, 12)
    end = len(raw) - (4 if log.seed is not None else 0)
    if used > end:
        raise damaged(blocks.source, "a revoke block of its journal is out of range")
    size = 8 if wide else 4
    for at in range(16, used - size + 1, size):
        yield struct.unpack_from(">Q" if wide else ">I", raw, at)[0]


def _intact(raw: bytes, kind: int, log: _Log) -> bool:
    """Whether the checksum of a block of the log holds; the kernel too ends the log where one does not.

    The checksums of the data blocks are not compared: they tell of a disk that lost writes after it had confirmed
    them.
    """
    if log.seed is None:
        return True
    if kind == _COMMIT:
        (stored,) = struct.unpack_from(">I", raw, 16)
        return bool(_crc32c(log.seed, raw[:16] + bytes(4) + raw[20:]) == stored)
    (stored,) = struct.unpack_from(">I", raw, len(raw) - 4)
    return bool(_crc32c(log.seed, raw[:-4] + bytes(4)) == stored)


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _table()


def _crc32c(crc: int, raw: bytes) -> int:
    """The CRC-32C of the kernel: no inversion at the end, so that a value can be the seed of the next."""
    table = _CRC32C
    for byte in raw:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc
