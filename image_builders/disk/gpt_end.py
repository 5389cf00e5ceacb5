"""The end of a copied GPT: where a disk has another size than its table says, both copies are put right.

Everything else of the table stays as it was, byte for byte: entries with their flags, ids, names and numbers, also
of tables with another number of entries than ours (UEFI specification 2.10, chapter 5.3). Sectors have 512 bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from image_builders.disk.gpt import SECTOR
from rehost.errors import BuildDiskTooSmall, BuildTableUnreadable, BuildUnsupported

_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY_PLACES = struct.Struct("<16x16xQQ")
_TABLE_BYTES_MOST = 1 << 20
_PROTECTIVE = 0xEE


@dataclass(frozen=True)
class _Copy:
    """One copy of the table. `tail` is what a header longer than ours says."""

    fields: tuple[Any, ...]  # of the header, in its order
    tail: bytes
    entries: bytes

    @property
    def own(self) -> int:
        return int(self.fields[5])

    @property
    def alternate(self) -> int:
        return int(self.fields[6])

    @property
    def last_usable(self) -> int:
        return int(self.fields[8])

    @property
    def entries_at(self) -> int:
        return int(self.fields[10])

    @property
    def entry_sectors(self) -> int:
        return -(-len(self.entries) // SECTOR)

    @property
    def last_used(self) -> int:
        """The last sector of any partition."""
        size = int(self.fields[12])
        places = (_ENTRY_PLACES.unpack_from(self.entries, at) for at in range(0, len(self.entries), size))
        used = (self.entries[at : at + 16] != bytes(16) for at in range(0, len(self.entries), size))
        return max((end for (_, end), there in zip(places, used, strict=True) if there), default=0)

    def same_table(self, other: _Copy) -> bool:
        """Whether two copies say the same, their own places aside."""
        return self.entries == other.entries and self.fields[7:10] == other.fields[7:10]

    def header(self, own: int, alternate: int, last_usable: int, entries_at: int) -> bytes:
        """The sector of this header at another place."""
        fields = list(self.fields)
        fields[3] = 0
        fields[5], fields[6], fields[8], fields[10] = own, alternate, last_usable, entries_at
        fields[13] = zlib.crc32(self.entries)
        fields[3] = zlib.crc32(_HEADER.pack(*fields) + self.tail)
        return (_HEADER.pack(*fields) + self.tail).ljust(SECTOR, b"\0")


def settle_table(target: BinaryIO, size_bytes: int) -> bool:
    """Fit the GPT of a disk of `size_bytes` (a multiple of 512) to it; whether anything was written.

    A disk without a GPT is left as it is: an MBR does not name the end. A copy that is broken is made anew from the
    other. What was written is read back. Raises BuildDiskTooSmall where a partition would not fit, BuildUnsupported
    for a table of other sectors, BuildTableUnreadable where neither copy is sound.
    """
    mbr = bytearray(_read(target, 0, SECTOR))
    slot = _protective_slot(mbr)
    if slot is None:
        return False
    last = size_bytes // SECTOR - 1
    primary = _copy_at(target, 1, last)
    backup = _copy_at(target, primary.alternate if primary else last, last)
    if primary is not None and backup is not None and primary.alternate == last and primary.same_table(backup):
        return False
    sound = primary or backup
    if sound is None:
        if _read(target, 4096, 8) == b"EFI PART":
            raise BuildUnsupported(what="A disk image", reason="the source's disk has sectors of 4096 bytes")
        raise BuildTableUnreadable(reason="neither copy of the source's table is sound")
    last_usable = last - sound.entry_sectors - 1
    if sound.last_used > last_usable:
        raise BuildDiskTooSmall(
            what="disk", size_bytes=size_bytes, needed_bytes=(sound.last_used + sound.entry_sectors + 2) * SECTOR
        )
    old_end = sound.alternate if sound is primary else sound.own
    entries_at = primary.entries_at if primary else 2
    in_free_space = sound.last_used + sound.entry_sectors < old_end < last
    if in_free_space and _read(target, old_end * SECTOR, 8) == b"EFI PART":
        # It is no longer a table, and must not be taken for one by a program that looks for it.
        _write(target, (old_end - sound.entry_sectors) * SECTOR, bytes((sound.entry_sectors + 1) * SECTOR))
    _write(target, SECTOR, sound.header(1, last, last_usable, entries_at))
    _write(target, entries_at * SECTOR, sound.entries)
    _write(target, (last - sound.entry_sectors) * SECTOR, sound.entries)
    _write(target, last * SECTOR, sound.header(last, 1, last_usable, last - sound.entry_sectors))
    struct.pack_into("<I", mbr, slot + 12, min(last - struct.unpack_from("<I", mbr, slot + 8)[0] + 1, 0xFFFFFFFF))
    if sum(1 for at in range(446, 510, 16) if mbr[at + 4]) == 1:  # a hybrid MBR has ends of its own
        _write(target, 0, bytes(mbr))
    target.flush()
    first, second = _copy_at(target, 1, last), _copy_at(target, last, last)
    if first is None or second is None or not first.same_table(second) or first.entries != sound.entries:
        raise BuildTableUnreadable(reason="it differs from the table that was copied")
    return True


def _protective_slot(mbr: bytes | bytearray) -> int | None:
    """Where in the MBR the entry is that says that there is a GPT; None where there is none."""
    if len(mbr) < SECTOR or mbr[510:512] != b"\x55\xaa":
        return None
    return next((at for at in range(446, 510, 16) if mbr[at + 4] == _PROTECTIVE), None)


def _copy_at(target: BinaryIO, sector: int, last: int) -> _Copy | None:
    """The copy whose header is in that sector; None where it is not sound."""
    if not 0 < sector <= last:
        return None
    raw = _read(target, sector * SECTOR, SECTOR)
    if len(raw) < SECTOR or raw[:8] != b"EFI PART":
        return None
    fields = _HEADER.unpack_from(raw)
    _, _, length, crc, _, own, _, _, _, _, entries_at, count, entry_bytes, entries_crc = fields
    if not _HEADER.size <= length <= SECTOR or zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc:
        return None
    if own != sector or not 128 <= entry_bytes <= 4096 or entry_bytes % 128 or count * entry_bytes > _TABLE_BYTES_MOST:
        return None
    if not 1 < entries_at <= last:
        return None
    entries = _read(target, entries_at * SECTOR, count * entry_bytes)
    if len(entries) != count * entry_bytes or zlib.crc32(entries) != entries_crc:
        return None
    return _Copy(fields, raw[_HEADER.size : length], entries)


def _read(target: BinaryIO, at: int, length: int) -> bytes:
    target.seek(at)
    return target.read(length)


def _write(target: BinaryIO, at: int, content: bytes) -> None:
    target.seek(at)
    target.write(content)
