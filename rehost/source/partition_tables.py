"""Partition tables of disk images: GPT (UEFI specification, chapter 5) and MBR with logical partitions.

The image may come from anybody. A table is refused, with its reason, where its numbers do not fit the image; nothing
larger than a mebibyte is ever read for one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from rehost.errors import SourceImageDamaged, SourceUnsupported

Read = Callable[[int, int], bytes]
"""(offset, length) → bytes, fewer at the end of the image."""

ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"

_SECTOR_SIZES = (512, 4096)
_TABLE_BYTES = 1 << 20
_ENTRIES = 1024
_LOGICAL_PARTITIONS = 124
_EXTENDED_TYPES = (0x05, 0x0F, 0x85)
_PROTECTIVE_TYPE = 0xEE
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class TablePartition:
    """One partition; numbers as the kernel counts them, logical ones from 5."""

    number: int
    start: int  # bytes
    size_bytes: int
    type: str  # GUID of GPT in lower case, or the MBR's byte: 0x83
    part_uuid: str  # as PARTUUID= of fstab names it
    name: str = ""


@dataclass(frozen=True)
class PartitionTable:
    """A partition table that was read whole and found sound."""

    kind: Literal["gpt", "dos"]
    sector_size: int
    partitions: tuple[TablePartition, ...]  # by number


def read_table(read: Read, size: int, source: str) -> PartitionTable | None:
    """The partition table of an image of `size` bytes; None where it has none, as when a filesystem fills the disk.

    Raises SourceImageDamaged for a table that cannot be, SourceUnsupported for one beyond this reader's bounds.
    """
    first = read(0, 512)
    if len(first) < 512 or first[510:512] != b"\x55\xaa":
        return _gpt_without_mbr(read, size, source)
    slots = [_Slot.parse(first, at) for at in range(446, 510, 16)]
    if any(slot.type == _PROTECTIVE_TYPE for slot in slots):
        return _read_gpt(read, size, source)
    # The boot sector of a filesystem ends with the same two bytes, and has code or text where the table would be.
    if any(slot.status not in (0x00, 0x80) for slot in slots) or not any(slot.type for slot in slots):
        return None
    return _read_mbr(read, size, first, slots, source)


def _gpt_without_mbr(read: Read, size: int, source: str) -> PartitionTable | None:
    if any(read(sector, 8) == b"EFI PART" for sector in _SECTOR_SIZES):
        raise SourceImageDamaged(source=source, reason="it has a GPT without the MBR that protects it")
    return None


# --- GPT ------------------------------------------------------------------------------------------------------


def _read_gpt(read: Read, size: int, source: str) -> PartitionTable:
    reasons: list[str] = []
    for sector in _SECTOR_SIZES:
        if sector == 4096 and read(4096, 8) != b"EFI PART" and reasons:
            continue
        for at in (sector, size // sector * sector - sector):
            table, reason = _gpt_at(read, size, sector, at, source)
            if table is not None:
                return table
            reasons.append(reason)
    raise SourceImageDamaged(source=source, reason=f"neither copy of its GPT is sound: {'; '.join(reasons[:2])}")


def _gpt_at(read: Read, size: int, sector: int, at: int, source: str) -> tuple[PartitionTable | None, str]:
    raw = read(at, 512)
    if len(raw) < 92 or raw[:8] != b"EFI PART":
        return None, f"no header at byte {at}"
    (_, _, length, crc, _, own, _, _, _, _, entries_at, count, entry_size, entries_crc) = _GPT_HEADER.unpack_from(raw)
    if not 92 <= length <= 512 or zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc:
        return None, f"the checksum of the header at byte {at} is wrong"
    if own * sector != at:
        return None, f"the header at byte {at} names another place as its own"
    if not 128 <= entry_size <= 4096 or entry_size % 128:
        return None, f"entries of {entry_size} bytes"
    if count > _ENTRIES or count * entry_size > _TABLE_BYTES:
        raise SourceUnsupported(source=source, reason=f"a partition table of {count} entries of {entry_size} bytes")
    if entries_at * sector + count * entry_size > size:
        return None, "the entries lie beyond the end of the image"
    entries = read(entries_at * sector, count * entry_size)
    if zlib.crc32(entries) != entries_crc:
        return None, f"the checksum of the entries of the header at byte {at} is wrong"
    partitions = []
    for number in range(1, count + 1):
        raw_type, unique, low, high, _, name = _GPT_ENTRY.unpack_from(entries, (number - 1) * entry_size)
        if not any(raw_type):
            continue
        if high < low:
            raise SourceImageDamaged(source=source, reason=f"partition {number} ends before it starts")
        partitions.append(
            TablePartition(
                number=number,
                start=low * sector,
                size_bytes=(high - low + 1) * sector,
                type=str(UUID(bytes_le=raw_type)),
                part_uuid=str(UUID(bytes_le=unique)),
                name=name.decode("utf-16-le", "replace").split("\0")[0],
            )
        )
    return PartitionTable("gpt", sector, _checked(partitions, size, source)), ""


# --- MBR ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    status: int
    type: int
    start: int  # sectors
    count: int

    @classmethod
    def parse(cls, raw: bytes, at: int) -> _Slot:
        start, count = struct.unpack_from("<II", raw, at + 8)
        return cls(raw[at], raw[at + 4], start, count)


def _read_mbr(read: Read, size: int, first: bytes, slots: list[_Slot], source: str) -> PartitionTable | None:
    sector = 512
    (signature,) = struct.unpack_from("<I", first, 440)
    partitions = []
    extended: list[tuple[int, _Slot]] = []
    for number, slot in enumerate(slots, 1):
        if not slot.type:
            continue
        if not slot.start or not slot.count:
            return None  # no partition starts at the table: this is the boot sector of a filesystem
        if slot.type in _EXTENDED_TYPES:
            extended.append((number, slot))
        else:
            partitions.append(_mbr_partition(number, slot.type, slot.start, slot.count, signature))
    if len(extended) > 1:
        raise SourceImageDamaged(source=source, reason="it has two extended partitions")
    for number, slot in extended:
        outer = _mbr_partition(number, slot.type, slot.start, slot.count, signature)
        _checked([*partitions, outer], size, source)
        partitions += _logical(read, slot, signature, source)
    return PartitionTable("dos", sector, _checked(partitions, size, source))


def _mbr_partition(number: int, kind: int, start: int, count: int, signature: int) -> TablePartition:
    return TablePartition(number, start * 512, count * 512, f"0x{kind:02x}", f"{signature:08x}-{number:02x}")


def _logical(read: Read, extended: _Slot, signature: int, source: str) -> list[TablePartition]:
    """Follow the chain of extended boot records; each tells of one partition and where the next record is."""
    found: list[TablePartition] = []
    seen: set[int] = set()
    at, end = extended.start, extended.start + extended.count
    while True:
        if at in seen or not extended.start <= at < end or len(seen) > _LOGICAL_PARTITIONS:
            raise SourceImageDamaged(source=source, reason="its logical partitions run in a circle, or out of bounds")
        seen.add(at)
        raw = read(at * 512, 512)
        if raw[510:512] != b"\x55\xaa":
            if len(seen) == 1:
                return []  # an extended partition in which none was made yet
            raise SourceImageDamaged(source=source, reason="its chain of logical partitions is broken")
        slot, link = _Slot.parse(raw, 446), _Slot.parse(raw, 462)
        if slot.type and slot.count:
            if not slot.start or at + slot.start + slot.count > end:
                raise SourceImageDamaged(source=source, reason="a logical partition ends beyond the extended one")
            number = 5 + len(found)
            found.append(_mbr_partition(number, slot.type, at + slot.start, slot.count, signature))
        if link.type not in _EXTENDED_TYPES or not link.start:
            return found
        at = extended.start + link.start


def _checked(partitions: list[TablePartition], size: int, source: str) -> tuple[TablePartition, ...]:
    end = 0
    for partition in sorted(partitions, key=lambda partition: partition.start):
        if partition.start < max(end, 512):
            raise SourceImageDamaged(source=source, reason=f"partition {partition.number} overlaps another")
        end = partition.start + partition.size_bytes
        if end > size:
            raise SourceImageDamaged(
                source=source, reason=f"partition {partition.number} ends at byte {end}, the image at {size}"
            )
    return tuple(sorted(partitions, key=lambda partition: partition.number))
