"""Extended attributes of ext4 inodes, in the form in which the kernel shows them.

Source: fs/ext4/xattr.h and fs/ext4/acl.h of the kernel. POSIX ACLs lie on the disk in a shorter form (version 1)
and are given in that of the system.posix_acl_* attributes (version 2).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rehost.source.ext4_blocks import damaged

_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    10: b"gnu.",
}  # the kernel lists no others: 7 is inline data, 9 the key of an encrypted file
_INLINE_DATA = (7, b"data")
_MAGIC = 0xEA020000
_VALUE_LIMIT = 65_536  # XATTR_SIZE_MAX
_ENTRY = struct.Struct("<BBHIII")
_NAMED_TAGS = (0x02, 0x08)  # ACL_USER, ACL_GROUP: these alone carry an id
_UNDEFINED_ID = 0xFFFFFFFF


@dataclass(frozen=True)
class Attributes:
    """The attributes of an inode, and the rest of its inline data."""

    listed: tuple[tuple[bytes, bytes], ...] = ()  # sorted by name
    inline_data: bytes = b""


def parse(
    inode: bytes, extra_size: int, block: bytes | None, read_value: Callable[[int, int], bytes], source: str
) -> Attributes:
    """The attributes in an inode's own room and in its attribute block.

    `read_value(inode number, size)` gives a value that has an inode of its own. Raises SourceImageDamaged.
    """
    found: dict[bytes, bytes] = {}
    inline = b""
    for index, name, value in _all(inode, extra_size, block, read_value, source):
        if (index, name) == _INLINE_DATA:
            inline = value
            continue
        prefix = _PREFIXES.get(index)
        if prefix is None:
            continue
        if index in (2, 3):
            value = _acl(value, source)
            name = b""
        if b"\0" in name or prefix + name in found:
            raise damaged(source, "an inode has an extended attribute twice, or one with a bad name")
        found[prefix + name] = value
    return Attributes(tuple(sorted(found.items())), inline)


def _all(
    inode: bytes, extra_size: int, block: bytes | None, read_value: Callable[[int, int], bytes], source: str
) -> Iterator[tuple[int, bytes, bytes]]:
    start = 128 + extra_size
    if extra_size and start + 8 <= len(inode) and struct.unpack_from("<I", inode, start)[0] == _MAGIC:
        room = inode[start + 4 :]
        yield from _entries(room, 0, room, read_value, source)
    if block is not None:
        if struct.unpack_from("<I", block)[0] != _MAGIC:
            raise damaged(source, "a block of extended attributes has no magic number")
        yield from _entries(block, 32, block, read_value, source)


def _entries(
    room: bytes, at: int, values: bytes, read_value: Callable[[int, int], bytes], source: str
) -> Iterator[tuple[int, bytes, bytes]]:
    while at + 4 <= len(room) and room[at : at + 4] != b"\0\0\0\0":
        if at + _ENTRY.size > len(room):
            raise damaged(source, "an extended attribute reaches beyond its room")
        name_length, index, offset, value_inode, size, _ = _ENTRY.unpack_from(room, at)
        at += _ENTRY.size
        name = room[at : at + name_length]
        at += (name_length + 3) & ~3
        if at > len(room) or size > _VALUE_LIMIT:
            raise damaged(source, "an extended attribute reaches beyond its room")
        if value_inode:
            yield index, name, read_value(value_inode, size)
            continue
        if offset + size > len(values):
            raise damaged(source, "the value of an extended attribute reaches beyond its room")
        yield index, name, values[offset : offset + size]


def _acl(value: bytes, source: str) -> bytes:
    if len(value) < 4 or struct.unpack_from("<I", value)[0] != 1:
        raise damaged(source, "an access control list of an unknown version")
    entries = [struct.pack("<I", 2)]
    at = 4
    while at < len(value):
        if at + 4 > len(value):
            raise damaged(source, "an access control list is cut off")
        tag, permissions = struct.unpack_from("<HH", value, at)
        at += 4
        identity = _UNDEFINED_ID
        if tag in _NAMED_TAGS:
            if at + 4 > len(value):
                raise damaged(source, "an access control list is cut off")
            (identity,) = struct.unpack_from("<I", value, at)
            at += 4
        entries.append(struct.pack("<HHI", tag, permissions, identity))
    return b"".join(entries)
