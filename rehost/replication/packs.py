"""Packs: files of bundles, one record after the other, that can be read without an index.

A pack is written under `ID.partial` with a lock (flock) held by its writer, and becomes `ID.pack` when it is sealed:
fsync, then its way to where it stays. Only then is its index written. A lock that is free tells that the writer is
gone, so whoever takes it may put the pack right. docs/formats.md describes the bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from rehost.errors import StoreError, StoreIOFailed, StoreNoSpace
from rehost.replication.bundles import RAW, ZSTD, BadBundle, unpack
from rehost.replication.manifest import SHA256_BYTES

PACK_MAGIC = b"RHPACK2\n"
RECORD_MAGIC = b"RHBN"
# magic, codec, stored length, raw length, count, XXH3-128 of all before it and of the table behind it
HEADER = struct.Struct("<4sIIII16s")
ROW_BYTES = SHA256_BYTES + 4  # of the table, for each chunk: its name, its length
PACK_BYTES = 32 << 20  # a pack is sealed once it holds this much
PACK_CHUNKS = 65_536  # or this many chunks
RAW_BYTES_MAX = 16 << 20  # no chunk is longer, and no bundle
CHUNKS_MAX = 1 << 20  # no bundle has more

_CHECK_BYTES = 16


class Record(NamedTuple):
    """A bundle in a pack: what its header says, and its table."""

    offset: int  # bytes from the start of the pack to the header
    codec: int
    stored_length: int  # bytes of the payload
    raw_length: int  # bytes of all chunks together
    chunks: int  # how many
    table: bytes  # names of all chunks, 32 bytes each, then their lengths, 4 bytes each, little-endian
    sound: np.ndarray | None = None  # which of the chunks hold; None: all

    @property
    def payload_at(self) -> int:
        """Bytes from the start of the pack to the payload."""
        return self.offset + HEADER.size + len(self.table)

    @property
    def end(self) -> int:
        """Bytes from the start of the pack to the next record."""
        return self.payload_at + self.stored_length

    @property
    def names(self) -> bytes:
        """The names of all chunks, one after the other."""
        return self.table[: self.chunks * SHA256_BYTES]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each chunk."""
        return np.frombuffer(self.table, "<u4", self.chunks, self.chunks * SHA256_BYTES)


def table_of(names: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    """The table of a record."""
    return b"".join(names) + np.array(lengths, "<u4").tobytes()


def header_of(codec: int, stored_length: int, raw_length: int, table: bytes) -> bytes:
    """The header of a record."""
    fields = (RECORD_MAGIC, codec, stored_length, raw_length, len(table) // ROW_BYTES)
    return HEADER.pack(*fields, _check(HEADER.pack(*fields, bytes(_CHECK_BYTES)), table))


def _check(header: bytes, table: bytes) -> bytes:
    state = xxhash.xxh3_128(header[:-_CHECK_BYTES])
    state.update(table)
    digest: bytes = state.digest()
    return digest


def storage_error(error: OSError, path: Path | str) -> StoreError:
    """The error class for what the operating system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreNoSpace(path=path)
    return StoreIOFailed(path=path, reason=error.strerror or str(error))


def read_record(fd: int, offset: int, size: int) -> Record | None:
    """The record at that place of a pack of that size, if its header and table hold; its content is not looked at."""
    header = os.pread(fd, HEADER.size, offset)
    if len(header) < HEADER.size:
        return None
    magic, codec, stored_length, raw_length, count, _ = HEADER.unpack(header)
    end = offset + HEADER.size + count * ROW_BYTES + stored_length
    if magic != RECORD_MAGIC or codec not in (RAW, ZSTD) or not 1 <= count <= CHUNKS_MAX or end > size:
        return None
    if max(stored_length, raw_length) > RAW_BYTES_MAX:
        return None
    table = os.pread(fd, count * ROW_BYTES, offset + HEADER.size)
    if len(table) < count * ROW_BYTES or _check(header, table) != header[-_CHECK_BYTES:]:
        return None
    record = Record(offset, codec, stored_length, raw_length, count, table)
    return record if int(record.lengths.sum(dtype=np.int64)) == raw_length else None


def check_content(record: Record, payload: bytes) -> np.ndarray:
    """For each chunk of a record whether its content has its name."""
    sound = np.zeros(record.chunks, bool)
    try:
        raw = memoryview(unpack(record.codec, payload, record.raw_length))
    except BadBundle:
        return sound
    at, names = 0, record.names
    for number, length in enumerate(record.lengths.tolist()):
        name = names[number * SHA256_BYTES : (number + 1) * SHA256_BYTES]
        sound[number] = hashlib.sha256(raw[at : at + length]).digest() == name
        at += length
    return sound


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
        self.chunks = 0
        while True:
            self.id = secrets.token_hex(16)
            self.path = folder / f"{self.id}.partial"
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self.file = OpenFile(fd)
            # Between the two calls a starting process may have taken the empty file for a dead writer's. It may have
            # removed it, too, and let it go by now.
            if lock(fd) and self.path.exists():
                break
        write_all(fd, PACK_MAGIC, 0)
        self.size = len(PACK_MAGIC)

    @property
    def full(self) -> bool:
        """It is time to seal it."""
        return self.size >= PACK_BYTES or self.chunks >= PACK_CHUNKS

    def append(self, table: bytes, codec: int, raw_length: int, payload: bytes) -> Record:
        """Write one bundle. Raises OSError with the pack as it was before."""
        record = Record(self.size, codec, len(payload), raw_length, len(table) // ROW_BYTES, table)
        try:
            write_all(self.file.fd, header_of(codec, len(payload), raw_length, table) + table, record.offset)
            write_all(self.file.fd, payload, record.payload_at)
        except OSError:
            os.ftruncate(self.file.fd, self.size)
            raise
        self.records.append(record)
        self.chunks += record.chunks
        self.size = record.end
        return record

    def make_durable(self) -> None:
        """fsync. Raises OSError; the pack is then not to be trusted any more."""
        os.fsync(self.file.fd)

    def release(self) -> None:
        """Let the lock go: from now on the pack is nobody's."""
        fcntl.flock(self.file.fd, fcntl.LOCK_UN)


def scan(fd: int, size: int) -> Iterator[Record]:
    """The records of a pack that hold a sound chunk, by reading all of it; what is damaged is passed over."""
    offset = len(PACK_MAGIC) if os.pread(fd, len(PACK_MAGIC), 0) == PACK_MAGIC else 0
    while offset + HEADER.size <= size:
        record = read_record(fd, offset, size)
        if record is None:
            offset = _next_magic(fd, offset + 1, size)
            continue
        sound = check_content(record, os.pread(fd, record.stored_length, record.payload_at))
        if sound.all():
            yield record
        elif sound.any():
            yield record._replace(sound=sound)
        offset = record.end  # its header and table hold, so its length does


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


def recover(path: Path, indexed: Callable[[str], bool], finish: Callable[[Path, list[Record]], None]) -> bool:
    """Put right a pack that a dead writer left: partial, or sealed without its index.

    Its sound chunks are kept, a torn end is cut off, and `finish` is called with it once it is durable; a partial pack
    without a sound chunk goes, and one that needs nothing any more. False where the pack is somebody's, or has been put
    right meanwhile. Raises OSError.
    """
    try:
        file = OpenFile(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        return False
    if not lock(file.fd):
        return False
    status = os.fstat(file.fd)
    try:
        if not os.path.samestat(status, path.lstat()):
            return False
    except FileNotFoundError:  # sealed between our two looks
        return False
    partial = path.suffix == ".partial"
    if indexed(path.stem):
        if partial:
            path.unlink()
        return False
    records = list(scan(file.fd, status.st_size))
    if not records:
        path.unlink()
        return False
    if partial:
        os.ftruncate(file.fd, records[-1].end)
    os.fsync(file.fd)
    finish(path, records)
    return True
