"""Packs: files of compressed chunks, one record after the other, that can be read without an index.

A pack is written under `ID.partial` with a lock (flock) held by its writer, and becomes `ID.pack` when it is sealed:
fsync, rename, fsync of the folder. Only then is its index written. A lock that is free tells that the writer is gone,
so whoever takes it may put the pack right. docs/formats.md describes the bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import zstandard

from rehost.errors import StoreError, StoreIOFailed, StoreNoSpace

PACK_MAGIC = b"RHPACK1\n"
RECORD_MAGIC = b"RHCK"
HEADER = struct.Struct("<4sIII32s")  # magic, encoding, stored length, raw length, SHA-256 of the raw bytes
PACK_BYTES = 32 << 20  # a pack is sealed once it holds this much
RAW_BYTES_MAX = 16 << 20  # no chunk is longer
RAW, ZSTD = 0, 1

_WORTH_IT = 0.97  # a chunk that does not shrink below this share is stored as it is
_local = threading.local()  # zstd contexts may not be shared between threads


class Record(NamedTuple):
    """Where a chunk is in its pack: the offset of its header, and what the header says."""

    sha256: bytes
    offset: int  # bytes from the start of the pack to the header
    stored_length: int  # bytes after the header
    raw_length: int
    encoding: int


class BadRecord(Exception):
    """The bytes at hand are not the chunk that was looked for; says why."""


def storage_error(error: OSError, path: Path) -> StoreError:
    """The error class for what the operating system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreNoSpace(path=path)
    return StoreIOFailed(path=path, reason=error.strerror or str(error))


def encode(raw: bytes, level: int) -> tuple[int, bytes]:
    """(encoding, payload) of a chunk: zstd at that level, or raw where the level is 0 or nothing is gained."""
    if level > 0:
        compressors: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
        if level not in compressors:
            compressors[level] = zstandard.ZstdCompressor(level=level)
        packed = compressors[level].compress(raw)
        if len(packed) < len(raw) * _WORTH_IT:
            return ZSTD, packed
    return RAW, raw


def decode(data: bytes | memoryview, sha256: bytes | None = None) -> tuple[bytes, bytes]:
    """(SHA-256, raw bytes) of one record, header first; raises BadRecord unless everything about it is right."""
    if len(data) < HEADER.size:
        raise BadRecord("the pack ends inside it")
    magic, encoding, stored_length, raw_length, name = HEADER.unpack_from(data)
    payload = memoryview(data)[HEADER.size :]
    if magic != RECORD_MAGIC or (sha256 is not None and name != sha256):
        raise BadRecord("its header is damaged")
    if raw_length > RAW_BYTES_MAX or stored_length > RAW_BYTES_MAX or stored_length != len(payload):
        raise BadRecord("its lengths are damaged")
    if encoding == ZSTD:
        raw = _decompress(payload, raw_length)
    elif encoding == RAW:
        raw = bytes(payload)
    else:
        raise BadRecord(f"its encoding {encoding} is unknown")
    if len(raw) != raw_length or hashlib.sha256(raw).digest() != name:
        raise BadRecord("its content is damaged")
    return name, raw


def _decompress(payload: memoryview, raw_length: int) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # The frame says how much will come out, and zstandard believes it: it is compared before memory is taken.
        if zstandard.frame_content_size(payload) != raw_length:
            raise BadRecord("its content is damaged")
        raw: bytes = _local.decompressor.decompress(payload, max_output_size=raw_length)
    except zstandard.ZstdError as error:
        raise BadRecord(f"its content is damaged ({error})") from error
    return raw


class OpenFile:
    """A file descriptor that is closed when nobody holds it any more, so that no reader is left with a closed one."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def lock(fd: int) -> bool:
    """Take the lock of an open file; False where another process (or another open of it) has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write every byte at that place, or raise OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def publish(path: Path, data: bytes, temporary: Path) -> None:
    """Write a file so that its name appears only with all of it, durably."""
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    fsync_folder(path.parent)


class PackWriter:
    """A pack that is being written; `records` are what it holds. Not thread-safe: its owner locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[Record] = []
        while True:
            self.id = secrets.token_hex(16)
            self.path = folder / f"{self.id}.partial"
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self.file = OpenFile(fd)
            # Between the two calls a starting process may have taken the empty file for a dead writer's: leave it.
            if lock(fd):
                break
        write_all(fd, PACK_MAGIC, 0)
        self.size = len(PACK_MAGIC)

    def append(self, sha256: bytes, raw_length: int, encoding: int, payload: bytes) -> Record:
        """Write one chunk. Raises OSError with the pack as it was before."""
        header = HEADER.pack(RECORD_MAGIC, encoding, len(payload), raw_length, sha256)
        try:
            write_all(self.file.fd, header + payload, self.size)
        except OSError:
            os.ftruncate(self.file.fd, self.size)
            raise
        record = Record(sha256, self.size, len(payload), raw_length, encoding)
        self.records.append(record)
        self.size += len(header) + len(payload)
        return record

    def make_durable(self) -> None:
        """fsync, rename, fsync of the folder. Raises OSError; the pack is then not to be trusted any more."""
        _seal(self.file.fd, self.path)

    def release(self) -> None:
        """Let the lock go: from now on the pack is nobody's."""
        fcntl.flock(self.file.fd, fcntl.LOCK_UN)


def _seal(fd: int, path: Path) -> None:
    os.fsync(fd)
    path.rename(path.with_suffix(".pack"))
    fsync_folder(path.parent)


def scan(fd: int, size: int) -> Iterator[Record]:
    """The sound records of a pack, by reading all of it; what is damaged is passed over."""
    offset = len(PACK_MAGIC) if os.pread(fd, len(PACK_MAGIC), 0) == PACK_MAGIC else 0
    while offset + HEADER.size <= size:
        header = os.pread(fd, HEADER.size, offset)
        magic, encoding, stored_length, raw_length, sha256 = HEADER.unpack(header)
        end = offset + HEADER.size + stored_length
        if magic == RECORD_MAGIC and stored_length <= RAW_BYTES_MAX and end <= size:
            try:
                decode(os.pread(fd, end - offset, offset), sha256)
            except BadRecord:
                pass
            else:
                yield Record(sha256, offset, stored_length, raw_length, encoding)
                offset = end
                continue
        offset = _next_magic(fd, offset + 1, size)


def _next_magic(fd: int, offset: int, size: int) -> int:
    while offset < size:
        window = os.pread(fd, 1 << 20, offset)
        found = window.find(RECORD_MAGIC)
        if found >= 0:
            return offset + found
        if len(window) < len(RECORD_MAGIC):
            break
        offset += len(window) - len(RECORD_MAGIC) + 1
    return size


def recover(path: Path, indexed: Callable[[str], bool], write_index: Callable[[str, list[Record]], None]) -> bool:
    """Put right a pack that a dead writer left: partial, or sealed without its index.

    Its sound chunks are kept and indexed, a torn end is cut off; a partial pack without one goes. False where the
    pack is somebody's, or has been put right meanwhile. Raises OSError.
    """
    try:
        file = OpenFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        return False
    if not lock(file.fd) or indexed(path.stem):
        return False
    status = os.fstat(file.fd)
    try:
        if not os.path.samestat(status, path.lstat()):
            return False
    except FileNotFoundError:  # sealed between our two looks
        return False
    records = list(scan(file.fd, status.st_size))
    if not records:
        path.unlink()
        return False
    if path.suffix == ".partial":
        last = records[-1]
        os.ftruncate(file.fd, last.offset + HEADER.size + last.stored_length)
        _seal(file.fd, path)
    write_index(path.stem, records)
    return True
