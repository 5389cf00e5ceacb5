"""Swap areas, made anew and empty (the kernel's include/linux/swap.h, `union swap_header`)."""

from __future__ import annotations

import struct
import uuid
from typing import BinaryIO

PAGE = 4096
_AT = 1024  # of the header in the first page: version, last page, number of bad pages, UUID, label
_HEADER = struct.Struct("<III16s16s")
_MAGIC = b"SWAPSPACE2"


def write_swap(target: BinaryIO, start: int, size_bytes: int, own: uuid.UUID, label: str) -> None:
    """Write the first page of a swap area of `size_bytes` bytes at byte `start`."""
    page = bytearray(PAGE)
    last_page = min(size_bytes // PAGE - 1, 0xFFFFFFFF)
    _HEADER.pack_into(page, _AT, 1, last_page, 0, own.bytes, label.encode("utf-8")[:16])
    page[PAGE - len(_MAGIC) :] = _MAGIC
    target.seek(start)
    target.write(page)
