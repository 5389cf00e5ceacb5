"""Compiled libraries without what only a debugger reads, which is most of their bytes.

The system's loader maps the segments that the program headers name and reads nothing else of the file (elf(5)). What
lies behind the last of them, debugging sections and the table of sections, is left out.
"""

from __future__ import annotations

import struct

_MAGIC = b"\x7fELF"
_ORDERS = {1: "<", 2: ">"}
# By class: where the table of program headers is told (offset, format), where the table of sections is, where the
# sizes and counts of both begin, and the place and format of a segment's offset and size in its header.
_CLASSES = {1: ("I", 28, 32, 42, 4, 16), 2: ("Q", 32, 40, 54, 8, 32)}


def trimmed(library: bytes) -> bytes:
    """The library, cut behind its last segment and without a table of sections; as it is where it is no plain ELF."""
    if len(library) < 64 or library[:4] != _MAGIC or library[4] not in _CLASSES or library[5] not in _ORDERS:
        return library
    word, headers_at, sections_at, counts_at, offset_at, size_at = _CLASSES[library[4]]
    order = _ORDERS[library[5]]
    (start,) = struct.unpack_from(order + word, library, headers_at)
    size, count = struct.unpack_from(order + "HH", library, counts_at)
    end = start + size * count
    if not count or end > len(library) or size < size_at + struct.calcsize(word):
        return library
    for header in range(start, end, size):
        (offset,) = struct.unpack_from(order + word, library, header + offset_at)
        (length,) = struct.unpack_from(order + word, library, header + size_at)
        end = max(end, offset + length)
    if end > len(library):
        return library
    cut = bytearray(library[:end])
    struct.pack_into(order + word, cut, sections_at, 0)
    struct.pack_into(order + "HHH", cut, counts_at + 4, 0, 0, 0)  # size, count and names of sections
    return bytes(cut)
