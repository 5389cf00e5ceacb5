"""The judge of filesystems: what is in an ext4 image, entry for entry, by our own reader; and the same of a manifest.

`read_filesystem` and `entries_of_table` give the same type, so that a test compares two dicts.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from rehost.replication.manifest import CHUNK_BYTES, ChunkReader, Entry, entry_of
from rehost.source.ext4_reader import Ext4Image

_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True)
class Judged:
    """One name: its attributes, its content, and where it has holes."""

    entry: Entry  # without chunks, dev, ino, volume, ctime and link_group; xattrs sorted
    digest: str  # of the content as a reader sees it, holes as zeros; "" for all but regular files
    linked_to: bytes | None  # the first path, in order, of the same inode; None where the name is the only one
    data: tuple[tuple[int, int], ...]  # (offset, length) of what is no hole, neighbours joined


class _Digest:
    """Of content, without regard to which zeros are holes: each piece of 1 MiB that is not all zeros counts."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._piece = bytearray()
        self._at = -1

    def add(self, offset: int, content: bytes) -> None:
        """Content in order of offsets; it does not cross a multiple of 1 MiB."""
        number = offset // CHUNK_BYTES
        if number != self._at:
            self._close()
            self._at = number
            if len(content) == CHUNK_BYTES:
                self._put(content)
                return
        start = offset - number * CHUNK_BYTES
        self._piece += bytes(start - len(self._piece))
        self._piece += content

    def _close(self) -> None:
        if self._piece:
            self._put(bytes(self._piece))
            self._piece.clear()

    def _put(self, piece: bytes) -> None:
        piece = piece if piece[-1:] != b"\0" else piece.rstrip(b"\0")
        if piece:
            self._hash.update(b"%d %d\n" % (self._at, len(piece)))
            self._hash.update(piece)

    def close(self) -> str:
        self._close()
        return self._hash.hexdigest()


def read_filesystem(
    path: Path, offset: int = 0, length: int | None = None, *, content: bool = True
) -> dict[bytes, Judged]:
    """Every name of the ext4 filesystem at `offset` of the file, the root as b"". lost+found is in it.

    Without `content`, digests and data are left empty. Raises SourceImageDamaged where anything does not fit.
    """
    found: dict[bytes, tuple[int, Judged]] = {}
    by_inode: dict[int, tuple[str, tuple[tuple[int, int], ...]]] = {}
    with Ext4Image(path, offset, length) as image:
        for name, inode in image.walk():
            entry = image.entry(name, inode)
            if entry.is_file and content and inode.number not in by_inode:
                digest, ranges = _Digest(), list[tuple[int, int]]()
                for at, piece in image.pieces(inode):
                    digest.add(at, piece)
                    _extend(ranges, at, len(piece))
                by_inode[inode.number] = (digest.close(), tuple(ranges))
            told = by_inode.get(inode.number, ("", ()))
            found[name] = inode.number, Judged(_plain(entry), told[0], None, told[1])
    return _link(found)


def entries_of_table(files: pa.Table, chunks: ChunkReader) -> dict[bytes, Judged]:
    """The same of a manifest's files table."""
    found: dict[bytes, tuple[int, Judged]] = {}
    groups: dict[int, int] = {}
    for number, row in enumerate(files.to_pylist(), 1):
        entry = entry_of(row)
        # A number for each inode: its link group's first row, or its own.
        inode = groups.setdefault(entry.link_group, number) if entry.link_group is not None else number
        digest, ranges = _Digest(), list[tuple[int, int]]()
        for chunk in entry.chunks:
            piece = chunks.read_chunk(chunk.sha256)
            assert len(piece) == chunk.length
            digest.add(chunk.offset, piece)
            _extend(ranges, chunk.offset, chunk.length)
        told = Judged(_plain(entry), digest.close() if entry.is_file else "", None, tuple(ranges))
        found[entry.path] = inode, told
    return _link(found)


def read_mounted(root: Path) -> dict[bytes, Judged]:
    """The same of a mounted tree, as the kernel shows it (needs root for all attributes)."""
    found: dict[bytes, tuple[int, Judged]] = {}
    base = os.fsencode(root)
    todo = [b""]
    while todo:
        name = todo.pop()
        path = base + b"/" + name if name else base
        facts = os.lstat(path)
        if stat.S_ISDIR(facts.st_mode):
            todo += [name + b"/" + child if name else child for child in sorted(os.listdir(path))]
        found[name] = facts.st_ino, _mounted(name, path, facts)
    return _link(found)


def _mounted(name: bytes, path: bytes, facts: os.stat_result) -> Judged:
    kind = stat.S_IFMT(facts.st_mode)
    device = facts.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    attributes = sorted(os.listxattr(path, follow_symlinks=False))
    digest, ranges = _Digest(), list[tuple[int, int]]()
    flags = 0
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flags = _flags(descriptor)
            if kind == stat.S_IFREG:
                _read_mounted(descriptor, facts.st_size, digest, ranges)
        finally:
            os.close(descriptor)
    entry = Entry(
        path=name,
        mode=facts.st_mode,
        uid=facts.st_uid,
        gid=facts.st_gid,
        size=facts.st_size if kind == stat.S_IFREG else 0,
        atime_ns=facts.st_atime_ns,
        mtime_ns=facts.st_mtime_ns,
        rdev_major=os.major(device),
        rdev_minor=os.minor(device),
        flags=flags,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        xattrs=tuple((os.fsencode(a), os.getxattr(path, a, follow_symlinks=False)) for a in attributes),
    )
    return Judged(entry, digest.close() if kind == stat.S_IFREG else "", None, tuple(ranges))


def _flags(descriptor: int) -> int:
    value = array.array("i", [0])
    fcntl.ioctl(descriptor, 0x80086601, value)  # FS_IOC_GETFLAGS
    return value[0] & 0x70


def _read_mounted(descriptor: int, size: int, digest: _Digest, ranges: list[tuple[int, int]]) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(descriptor, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(descriptor, min(end - at, CHUNK_BYTES - at % CHUNK_BYTES), at)
            digest.add(at, piece)
            _extend(ranges, at, len(piece))
            at += len(piece)


def _extend(ranges: list[tuple[int, int]], at: int, length: int) -> None:
    if ranges and sum(ranges[-1]) == at:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
    else:
        ranges.append((at, length))


def _plain(entry: Entry) -> Entry:
    return Entry(
        path=entry.path,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        atime_ns=entry.atime_ns,
        mtime_ns=entry.mtime_ns,
        rdev_major=entry.rdev_major,
        rdev_minor=entry.rdev_minor,
        flags=entry.flags,
        target=entry.target,
        xattrs=tuple(sorted(entry.xattrs)),
    )


def _link(found: dict[bytes, tuple[int, Judged]]) -> dict[bytes, Judged]:
    """Name the first path of each inode with several names; the inode numbers are forgotten."""
    counts = Counter(number for number, _ in found.values())
    first: dict[int, bytes] = {}
    linked: dict[bytes, Judged] = {}
    for path in sorted(found):
        number, judged = found[path]
        if counts[number] > 1:
            judged = replace(judged, linked_to=first.setdefault(number, path))
        linked[path] = judged
    return linked


def differences(one: dict[bytes, Judged], other: dict[bytes, Judged], ignore: Iterable[bytes] = ()) -> list[str]:
    """What differs, in words, for a test's message; empty where all is equal."""
    left_out = set(ignore)
    told = []
    for path in sorted((one.keys() | other.keys()) - left_out):
        a, b = one.get(path), other.get(path)
        if a != b:
            told.append(f"{path!r}: {a} != {b}")
    return told
