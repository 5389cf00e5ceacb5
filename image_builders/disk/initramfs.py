"""What is in an initramfs, and whether a kernel with it finds its disk.

An initramfs is a row of cpio archives ("newc": magic 070701 or 070702, thirteen 8-digit hexadecimal fields, the name,
the content, each padded to 4 bytes), some plain (microcode, early modules), some compressed as a whole, with zeros
between them (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst). It is read as a stream, and
every number in it is bounded: it comes from the source.
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import zstandard

from rehost.replication.manifest import ChunkReader, Entry
from rehost.replication.tree import Tree

_PIECE_BYTES = 1 << 20
_PACKED_BYTES_MOST = 1 << 30
_UNPACKED_BYTES_MOST = 1 << 30  # the largest that distributions make, for every driver, unpack to half of it
_ENTRIES_MOST = 200_000
_NAME_BYTES_MOST = 4096
_STEP_BYTES = 2048  # fed to a decompressor at once: 45 MB out of it at the worst (bzip2), so a bomb is seen early
_LZ4_BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 110
_TRAILER = b"TRAILER!!!"
_MODULE = re.compile(rb"(?:^|/)([^/]+)\.ko(?:\.(?:gz|xz|zst|bz2|lzma))?$")

REQUIRED = (
    # (what it is for, the modules of which one is enough)
    ("virtio_pci", ("virtio_pci",)),
    ("virtio_blk", ("virtio_blk",)),
    ("ext4", ("ext4",)),
)


class InitramfsUnreadable(Exception):
    """An initramfs in a form that is not known, broken, or past every bound. Nothing is known of what is in it."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes) -> bytes: ...


class _Gzip:
    """zlib's reader with an end of its own: one gzip member."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes) -> bytes:
        return self._zlib.decompress(data)


class _Lz4Legacy:
    """The legacy frame of lz4, which is what the kernel reads: blocks of at most 8 MiB, each with its packed size."""

    def __init__(self) -> None:
        self._codec = pa.Codec("lz4_raw")
        self._held = bytearray()
        self._begun = False
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes) -> bytes:
        self._held += data
        if not self._begun:
            if len(self._held) < 4:
                return b""
            del self._held[:4]
            self._begun = True
        out = []
        while len(self._held) >= 4:
            (size,) = struct.unpack_from("<I", self._held)
            if not 0 < size <= _LZ4_BLOCK_BYTES + _LZ4_BLOCK_BYTES // 255 + 16:
                self.eof, self.unused_data = True, bytes(self._held)
                break
            if len(self._held) < 4 + size:
                break
            # The last block is shorter than 8 MiB; what follows its end is zeros or noise, past the archive's trailer.
            most = min(_LZ4_BLOCK_BYTES, 255 * size + 16)  # no byte of lz4 says more than 255
            out.append(self._codec.decompress(bytes(self._held[4 : 4 + size]), most, asbytes=True))
            del self._held[: 4 + size]
        return b"".join(out)


class _Zstd:
    def __init__(self) -> None:
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._reader.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._reader.unused_data)

    def decompress(self, data: bytes) -> bytes:
        return self._reader.decompress(data)


_BY_MAGIC: tuple[tuple[bytes, type[_Decompressor] | None], ...] = (
    (b"\x1f\x8b", _Gzip),
    (b"\x28\xb5\x2f\xfd", _Zstd),
    (b"\xfd7zXZ\0", lzma.LZMADecompressor),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\x5d\0\0", lzma.LZMADecompressor),
    (b"\x02\x21\x4c\x18", _Lz4Legacy),
)
_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError, pa.ArrowException)


class _Stream:
    """Bytes that are asked for by number, from an iterator of pieces."""

    def __init__(self, pieces: Iterable[bytes], most: int) -> None:
        self._pieces = iter(pieces)
        self._held = bytearray()
        self._at = 0
        self.left = most

    def _fill(self, count: int) -> None:
        if self._at > _PIECE_BYTES:
            del self._held[: self._at]
            self._at = 0
        while len(self._held) - self._at < count:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self.left -= len(piece)
            if self.left < 0:
                raise InitramfsUnreadable("it unpacks to more than any initramfs has")
            self._held += piece

    def peek(self, count: int) -> bytes:
        self._fill(count)
        return bytes(self._held[self._at : self._at + count])

    def take(self, count: int) -> bytes:
        data = self.peek(count)
        if len(data) < count:
            raise InitramfsUnreadable("it ends early")
        self._at += count
        return data

    def skip(self, count: int) -> None:
        while count > 0:
            step = min(count, _PIECE_BYTES)
            self._fill(step)
            if len(self._held) - self._at < step:
                raise InitramfsUnreadable("it ends early")
            self._at += step
            count -= step

    def skip_zeros(self) -> bool:
        """Go on to the next byte that is not zero; False at the end."""
        while piece := self.peek(4096):
            rest = piece.lstrip(b"\0")
            self._at += len(piece) - len(rest)
            if rest:
                return True
        return False

    def rest(self) -> Iterator[bytes]:
        """All that is left, piece by piece."""
        while piece := self.peek(1):
            piece = bytes(self._held[self._at :])
            self._at = len(self._held)
            yield piece

    def push_back(self, data: bytes) -> None:
        self._held[self._at : self._at] = data


def modules_in(pieces: Iterable[bytes], unpacked_most: int = _UNPACKED_BYTES_MOST) -> frozenset[str]:
    """The names of the kernel modules in an initramfs, with underscores for dashes.

    At most `unpacked_most` bytes are unpacked. Raises InitramfsUnreadable.
    """
    found: set[str] = set()
    entries = 0
    stream = _Stream(pieces, _PACKED_BYTES_MOST)
    left = unpacked_most
    while stream.skip_zeros():
        magic = stream.peek(6)
        if magic in (b"070701", b"070702"):
            entries = _read_archive(stream, found, entries)
            continue
        decompressor = next((make for prefix, make in _BY_MAGIC if magic.startswith(prefix)), None)
        if decompressor is None:
            if entries:
                break  # noise after the last archive; the kernel complains and goes on, too
            raise InitramfsUnreadable(f"its first bytes are {magic.hex()}")
        inner = _Stream(_decompressed(stream, decompressor()), left)
        while inner.skip_zeros() and inner.peek(6) in (b"070701", b"070702"):
            entries = _read_archive(inner, found, entries)
            if decompressor is _Lz4Legacy:
                break
        for _ in inner.rest():
            pass
        left = inner.left
    if not entries:
        raise InitramfsUnreadable("there is no archive in it")
    return frozenset(found)


def _decompressed(stream: _Stream, decompressor: _Decompressor) -> Iterator[bytes]:
    try:
        for piece in stream.rest():
            for start in range(0, len(piece), _STEP_BYTES):
                yield decompressor.decompress(piece[start : start + _STEP_BYTES])
                if decompressor.eof:
                    stream.push_back(decompressor.unused_data + piece[start + _STEP_BYTES :])
                    return
    except _ERRORS as error:
        raise InitramfsUnreadable(f"it cannot be unpacked: {error}") from error


def _read_archive(stream: _Stream, found: set[str], entries: int) -> int:
    """One cpio archive to its trailer; the number of entries so far."""
    while True:
        entries += 1
        if entries > _ENTRIES_MOST:
            raise InitramfsUnreadable("it has more entries than any initramfs has")
        header = stream.take(_HEADER_BYTES)
        if header[:6] not in (b"070701", b"070702"):
            raise InitramfsUnreadable("an entry has no header")
        try:
            size, name_bytes = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError as error:
            raise InitramfsUnreadable("a header holds no numbers") from error
        if not 1 <= name_bytes <= _NAME_BYTES_MOST:
            raise InitramfsUnreadable("a name is too long")
        name = stream.take(name_bytes).rstrip(b"\0")
        stream.skip(-(_HEADER_BYTES + name_bytes) % 4)
        if name == _TRAILER:
            return entries
        stream.skip(size + -size % 4)
        if match := _MODULE.search(name):
            found.add(_module_name(match[1]))


def _module_name(name: bytes) -> str:
    return name.decode("ascii", "replace").replace("-", "_")


@dataclass(frozen=True)
class DriverCheck:
    """What is known of a kernel's way to its disk."""

    missing: tuple[str, ...]  # neither in the kernel nor in its initramfs
    unknown: str | None  # why nothing is known, where that is so


def check_drivers(tree: Tree, version: str, initramfs: bytes | None) -> DriverCheck:
    """Whether a kernel finds a virtio disk and an ext4 root on it.

    `initramfs` is the path of its initramfs in the tree, or None where it has none. Each driver has to be in the
    kernel (modules.builtin of that version) or in the initramfs.
    """
    builtin = _builtin(tree, version)
    unknown: str | None = None
    loaded: frozenset[str] = frozenset()
    if initramfs is not None:
        entry = tree.resolve(initramfs)
        if entry is None or not entry.is_file:
            unknown = "it is no file"
        else:
            try:
                loaded = modules_in(_content(entry, tree))
            except InitramfsUnreadable as error:
                unknown = str(error)
    elif builtin is None:
        unknown = "the kernel has no initramfs, and no list of what is built in"
    present = loaded | (builtin or frozenset())
    missing = tuple(what for what, names in REQUIRED if not present.intersection(names))
    return DriverCheck(() if unknown else missing, unknown if missing else None)


def _builtin(tree: Tree, version: str) -> frozenset[str] | None:
    listed = tree.read(b"lib/modules/" + version.encode() + b"/modules.builtin")
    if listed is None:
        return None
    return frozenset(_module_name(match[1]) for line in listed.splitlines() if (match := _MODULE.search(line.strip())))


def _content(entry: Entry, chunks: ChunkReader) -> Iterator[bytes]:
    at = 0
    for chunk in entry.chunks:
        for start in range(at, chunk.offset, _PIECE_BYTES):
            yield bytes(min(_PIECE_BYTES, chunk.offset - start))
        yield chunks.read_chunk(chunk.sha256)
        at = chunk.offset + chunk.length
