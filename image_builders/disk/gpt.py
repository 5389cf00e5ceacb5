"""GUID partition tables, written and read back (UEFI specification 2.10, chapter 5).

Sectors have 512 bytes. Sector 0 is the protective MBR, 1 the header, 2 to 33 the 128 entries of 128 bytes; the last 33
sectors hold the entries and the header once more. GUIDs are stored with their first three fields little-endian, which
is `UUID.bytes_le`.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from rehost.errors import BuildTableUnreadable

SECTOR = 512
_ENTRIES = 128
_ENTRY = struct.Struct("<16s16sQQQ72s")
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY_SECTORS = _ENTRIES * _ENTRY.size // SECTOR
_FIRST_USABLE = 2 + _ENTRY_SECTORS
BOOT_CODE_BYTES = 440  # of the MBR; the disk signature and the four old entries follow


@dataclass(frozen=True)
class GptEntry:
    """One partition of a table; `start` and `size_bytes` in bytes, multiples of 512."""

    number: int
    start: int
    size_bytes: int
    type_guid: uuid.UUID
    guid: uuid.UUID
    name: str  # at most 36 UTF-16 units are kept


@dataclass(frozen=True)
class Table:
    """A whole table, for a disk of `size_bytes`."""

    size_bytes: int
    disk_guid: uuid.UUID
    entries: tuple[GptEntry, ...]


def write_table(target: BinaryIO, table: Table, boot_code: bytes = b"") -> None:
    """Write the protective MBR with `boot_code` (at most 440 bytes) in it, and both copies of the table."""
    assert len(boot_code) <= BOOT_CODE_BYTES and table.size_bytes % SECTOR == 0
    last = table.size_bytes // SECTOR - 1
    entries = bytearray(_ENTRIES * _ENTRY.size)
    for entry in table.entries:
        first = entry.start // SECTOR
        end = first + entry.size_bytes // SECTOR - 1
        assert _FIRST_USABLE <= first <= end < last - _ENTRY_SECTORS
        name = entry.name.encode("utf-16-le", "replace")[:72]
        _ENTRY.pack_into(
            entries,
            (entry.number - 1) * _ENTRY.size,
            entry.type_guid.bytes_le,
            entry.guid.bytes_le,
            first,
            end,
            0,
            name,
        )
    target.seek(0)
    target.write(_protective_mbr(last, boot_code, table.disk_guid))
    target.seek(SECTOR)
    target.write(_header(table, bytes(entries), here=1, other=last, entries_at=2))
    target.seek(2 * SECTOR)
    target.write(entries)
    target.seek((last - _ENTRY_SECTORS) * SECTOR)
    target.write(entries)
    target.write(_header(table, bytes(entries), here=last, other=1, entries_at=last - _ENTRY_SECTORS))


def _protective_mbr(last: int, boot_code: bytes, disk_guid: uuid.UUID) -> bytes:
    mbr = bytearray(SECTOR)
    mbr[: len(boot_code)] = boot_code
    mbr[440:444] = disk_guid.bytes[:4]
    # Type 0xEE over the whole disk, CHS 0/0/2 to its end. GRUB's boot code and SeaBIOS ask for no active flag.
    struct.pack_into("<B3sB3sII", mbr, 446, 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    mbr[510:512] = b"\x55\xaa"
    return bytes(mbr)


def _header(table: Table, entries: bytes, here: int, other: int, entries_at: int) -> bytes:
    last = table.size_bytes // SECTOR - 1
    fields = [
        b"EFI PART",
        b"\0\0\1\0",
        _HEADER.size,
        0,
        0,
        here,
        other,
        _FIRST_USABLE,
        last - _ENTRY_SECTORS - 1,
        table.disk_guid.bytes_le,
        entries_at,
        _ENTRIES,
        _ENTRY.size,
        zlib.crc32(entries),
    ]
    fields[3] = zlib.crc32(_HEADER.pack(*fields))
    return _HEADER.pack(*fields).ljust(SECTOR, b"\0")


def read_table(source: BinaryIO, size_bytes: int) -> Table:
    """Read both copies back, checked by their sums and against each other. Raises BuildTableUnreadable."""
    last = size_bytes // SECTOR - 1
    first, backup = _read_copy(source, 1, last), _read_copy(source, last, 1)
    if first != backup:
        raise BuildTableUnreadable(reason="its two copies differ")
    source.seek(510)
    if source.read(2) != b"\x55\xaa":
        raise BuildTableUnreadable(reason="the protective MBR has no signature")
    return Table(size_bytes, *first)


def _read_copy(source: BinaryIO, here: int, other: int) -> tuple[uuid.UUID, tuple[GptEntry, ...]]:
    source.seek(here * SECTOR)
    raw = source.read(_HEADER.size)
    if len(raw) != _HEADER.size or raw[:8] != b"EFI PART":
        raise BuildTableUnreadable(reason=f"there is no header in sector {here}")
    (_, _, size, crc, _, at, alternate, _, _, guid, entries_at, count, entry_size, entries_crc) = _HEADER.unpack(raw)
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:]) != crc or size != _HEADER.size:
        raise BuildTableUnreadable(reason=f"the sum of the header in sector {here} is wrong")
    if (at, alternate, count, entry_size) != (here, other, _ENTRIES, _ENTRY.size):
        raise BuildTableUnreadable(reason=f"the header in sector {here} is that of another place")
    source.seek(entries_at * SECTOR)
    entries = source.read(_ENTRIES * _ENTRY.size)
    if zlib.crc32(entries) != entries_crc:
        raise BuildTableUnreadable(reason=f"the sum of the entries of sector {here} is wrong")
    return uuid.UUID(bytes_le=guid), tuple(_entries(entries))


def _entries(raw: bytes) -> Sequence[GptEntry]:
    found = []
    for index, (type_guid, guid, first, end, _, name) in enumerate(_ENTRY.iter_unpack(raw)):
        if any(type_guid):
            found.append(
                GptEntry(
                    number=index + 1,
                    start=first * SECTOR,
                    size_bytes=(end - first + 1) * SECTOR,
                    type_guid=uuid.UUID(bytes_le=type_guid),
                    guid=uuid.UUID(bytes_le=guid),
                    name=name.decode("utf-16-le", "replace").rstrip("\0"),
                )
            )
    return found
