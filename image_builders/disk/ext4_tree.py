"""The part of a server's files that says how it starts, read from ext4 filesystems that were copied block by block."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace

from rehost.errors import SourceUnsupported
from rehost.replication.manifest import CHUNK_BYTES, Chunk, Entry, table_of
from rehost.replication.tree import Tree
from rehost.source.ext4_reader import Ext4Image

# What the checks of an image and the fix-ups look at; the rest of the server is not walked.
_WHOLE = (b"etc", b"boot", b"bin", b"sbin", b"usr/bin", b"usr/sbin", b"lib/systemd", b"usr/lib/systemd")
_ENTRIES_MOST = 200_000
_CHUNKS_MOST = 65_536
_MODULES = re.compile(rb"(?:usr/)?lib/modules(?:/[^/]+(?:/modules\.builtin)?)?")
_ABOVE = (b"usr", b"lib", b"usr/lib")


def boot_tree(images: Mapping[bytes, Ext4Image]) -> Tree:
    """What of these filesystems (by mount point, b"" is the root's) a start depends on. Their content is read when
    it is asked for.

    Raises SourceImageDamaged and SourceUnsupported, also from reading.
    """
    content = _Content()
    entries: list[Entry] = []
    for mount_point, image in sorted(images.items()):
        below = mount_point + b"/"
        others = [other for other in images if other != mount_point and other.startswith(below if mount_point else b"")]

        def skip(path: bytes, is_directory: bool, prefix: bytes = mount_point, others: list[bytes] = others) -> bool:
            absolute = prefix + b"/" + path if prefix else path
            return absolute in others or not _is_wanted(absolute, is_directory)

        for entry in image.entries(skip, lambda path, reason: None):
            if len(entries) >= _ENTRIES_MOST:
                raise SourceUnsupported(source=image.source, reason="it has more names than any server has there")
            path = (mount_point + b"/" + entry.path).strip(b"/") if mount_point else entry.path
            chunks = tuple(content.chunks(image, entry)) if stat.S_ISREG(entry.mode) else ()
            entries.append(replace(entry, path=path, chunks=chunks, volume=0))
    return Tree(table_of(sorted(entries, key=lambda entry: entry.path)), content)


def _is_wanted(path: bytes, is_directory: bool) -> bool:
    if any(path == whole or path.startswith(whole + b"/") for whole in _WHOLE):
        return True
    if is_directory:
        return path in _ABOVE or _MODULES.fullmatch(path) is not None
    # Links such as lib → usr/lib, and the lists of what is built into a kernel.
    return path.count(b"/") <= 1 or path.endswith(b"/modules.builtin")


class _Content:
    """A ChunkReader over files of filesystems. A name here says where the content lies, not what it is."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[Ext4Image, int, int, int]] = {}
        self._open: tuple[Ext4Image, int] | None = None
        self._last = -1  # the offset of the chunk that was read last
        self._pieces: Iterator[tuple[int, bytes]] = iter(())
        self._ahead: tuple[int, bytes] | None = None

    def chunks(self, image: Ext4Image, entry: Entry) -> Iterator[Chunk]:
        """The chunks of a file."""
        if len(self._places) + entry.size // CHUNK_BYTES >= _CHUNKS_MOST:
            raise SourceUnsupported(source=image.source, reason="its /boot and /etc hold more than any server has")
        for offset in range(0, entry.size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, entry.size - offset)
            name = hashlib.sha256(f"{id(image)}/{entry.ino}/{offset}".encode()).digest()
            self._places[name] = (image, entry.ino, offset, length)
            yield Chunk(offset, length, name)

    def read_chunk(self, sha256: bytes) -> bytes:
        image, inode, offset, length = self._places[sha256]
        if self._open != (image, inode) or offset <= self._last:
            self._open = (image, inode)
            self._pieces = image.pieces(image.inode(inode), CHUNK_BYTES)
            self._ahead = None
        self._last = offset
        out = bytearray(length)
        # No piece lies in two chunks: both are cut at multiples of CHUNK_BYTES.
        while (piece := self._ahead or next(self._pieces, None)) is not None:
            self._ahead = None
            at, raw = piece
            if at >= offset + length:
                self._ahead = piece
                break
            if at >= offset:
                out[at - offset : at - offset + len(raw)] = raw
        return bytes(out[:length])
