"""Extended attributes: first in the inode, what does not fit there in one block of the file's own.

Formats: Documentation/filesystems/ext4/attributes.rst of the Linux kernel; ACLs: fs/ext4/acl.h. The hashes are those
of e2fsprogs' ext2fs_ext_attr_hash_entry, over signed characters as x86 has always written them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from image_builders.disk.ext4.arrays import BLOCK, Bytes, Flags, single
from image_builders.disk.ext4.entries import Entries
from rehost.replication.tree import printable

MAGIC = 0xEA020000
INODE_AREA = 96  # bytes of an inode of 256 after its first 160: magic, then 92 bytes of attributes
_IN_INODE = INODE_AREA - 4
_BLOCK_HEADER = 32
_IN_BLOCK = BLOCK - _BLOCK_HEADER
_ENTRY = 16  # bytes before the name
_END = 4  # zero bytes after the last entry

_INDEXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_ACL_INDEXES = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_FOREIGN = b"btrfs."  # properties of a filesystem that this one is not
_ACL_WITHOUT_ID = {0x01, 0x04, 0x10, 0x20}  # user and group of the file, mask, others
_ACL_WITH_ID = {0x02, 0x08}

Attribute = tuple[int, bytes, bytes]  # index of the namespace, name without it, value
Pair = tuple[bytes, bytes]


class AttributeRefused(ValueError):
    """Why a set of attributes cannot be written; the caller knows the path."""


@dataclass(frozen=True)
class AttributePlan:
    """The attributes of all rows: which area in the inode each has, and which rows have a block."""

    area_of: npt.NDArray[np.int64]  # row: index into areas; 0 is the empty one
    areas: Bytes  # shape (areas, INODE_AREA)
    has_block: Flags


def plan_attributes(entries: Entries) -> AttributePlan:
    """Encode what goes into inodes and find out who needs a block. Raises BuildUnsupported with the path."""
    column = single(entries.table["xattrs"])
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((lengths > 0) & entries.owning)
    area_of = np.zeros(len(entries.owners), np.int64)
    has_block = np.zeros(len(entries.owners), np.bool_)
    areas: dict[bytes, int] = {bytes(INODE_AREA): 0}
    known: dict[tuple[Pair, ...], tuple[int, bool]] = {}
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096]
        for row, pairs in zip(part.tolist(), column.take(part).to_pylist(), strict=True):
            key = tuple((pair["name"], pair["value"]) for pair in pairs)
            found = known.get(key)
            if found is None:
                try:
                    area, block = encode(key)
                except AttributeRefused as error:
                    entries.refuse(row, str(error))
                found = (areas.setdefault(area, len(areas)), block is not None)
                if len(known) < 10_000:  # labels repeat; what never repeats must not fill the memory
                    known[key] = found
            area_of[row], has_block[row] = found
    matrix = np.frombuffer(b"".join(areas), np.uint8).reshape(len(areas), INODE_AREA)
    return AttributePlan(area_of=area_of, areas=matrix, has_block=has_block)


def attribute_block(entries: Entries, row: int) -> bytes:
    """The block of a row that has one."""
    pairs = entries.table["xattrs"][row].as_py()
    _, block = encode([(pair["name"], pair["value"]) for pair in pairs])
    assert block is not None
    return block


def encode(pairs: Sequence[Pair]) -> tuple[bytes, bytes | None]:
    """(the area in the inode, the block or None) of one file's attributes. Raises AttributeRefused."""
    if len({name for name, _ in pairs}) != len(pairs):
        raise AttributeRefused("it has one extended attribute twice")
    attributes = [split for name, value in pairs if (split := _split(name, value)) is not None]
    attributes.sort(key=lambda a: (a[0], len(a[1]), a[1]))
    inside: list[Attribute] = []
    outside: list[Attribute] = []
    room = _IN_INODE - _END
    for attribute in attributes:
        if _size(attribute) <= room:
            room -= _size(attribute)
            inside.append(attribute)
        else:
            outside.append(attribute)
    if sum(map(_size, outside)) > _IN_BLOCK - _END:
        raise AttributeRefused("its extended attributes are larger than the one block that ext4 has for them")
    return _inode_area(inside), _block(outside) if outside else None


def _split(name: bytes, value: bytes) -> Attribute | None:
    if name.startswith(_FOREIGN):
        return None
    if name in _ACL_INDEXES:
        return _ACL_INDEXES[name], b"", acl_on_disk(value)
    for prefix, index in _INDEXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            if not 1 <= len(rest) <= 255 or b"\0" in rest:
                break
            return index, rest, value
    raise AttributeRefused(f"ext4 has no place for its extended attribute {printable(name[:300])}")


def acl_on_disk(value: bytes) -> bytes:
    """A POSIX ACL as ext4 keeps it, from the form that the xattr call gives. Raises AttributeRefused."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\2\0\0\0":
        raise AttributeRefused("it has an access control list in an unknown form")
    parts = [b"\1\0\0\0"]
    for tag, permissions, identity in struct.iter_unpack("<HHI", value[4:]):
        if tag in _ACL_WITH_ID:
            parts.append(struct.pack("<HHI", tag, permissions, identity))
        elif tag in _ACL_WITHOUT_ID:
            parts.append(struct.pack("<HH", tag, permissions))
        else:
            raise AttributeRefused("it has an access control list in an unknown form")
    return b"".join(parts)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def _size(attribute: Attribute) -> int:
    return _ENTRY + _padded(len(attribute[1])) + _padded(len(attribute[2]))


def _laid_out(attributes: list[Attribute], size: int, origin: int, hashes: list[int]) -> bytes:
    """Entries from the front and values from the back of an area; offsets count from `origin` before it."""
    area = bytearray(size)
    front, back = 0, size
    for (index, name, value), attribute_hash in zip(attributes, hashes, strict=True):
        back -= _padded(len(value))
        offset = back + origin if value else 0
        struct.pack_into("<BBHIII", area, front, len(name), index, offset, 0, len(value), attribute_hash)
        area[front + _ENTRY : front + _ENTRY + len(name)] = name
        area[back : back + len(value)] = value
        front += _ENTRY + _padded(len(name))
    return bytes(area)


def _inode_area(attributes: list[Attribute]) -> bytes:
    if not attributes:
        return bytes(INODE_AREA)
    # e2fsck before 1.43 wants hashes of zero here; later versions take both.
    return struct.pack("<I", MAGIC) + _laid_out(attributes, _IN_INODE, 0, [0] * len(attributes))


def _block(attributes: list[Attribute]) -> bytes:
    hashes = [_entry_hash(name, value) for _, name, value in attributes]
    block_hash = 0
    for one in hashes:
        if one == 0:
            block_hash = 0
            break
        block_hash = _rotate(block_hash, 16) ^ one
    header = struct.pack("<IIII16x", MAGIC, 1, 1, block_hash)
    return header + _laid_out(attributes, _IN_BLOCK, _BLOCK_HEADER, hashes)


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF


def _entry_hash(name: bytes, value: bytes) -> int:
    result = 0
    for byte in name:
        signed = byte - 256 if byte > 127 else byte
        result = (_rotate(result, 5) ^ signed) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", value + bytes(-len(value) % 4)):
        result = _rotate(result, 16) ^ word
    return result
