"""A files table from a tar, its content into the store: a tree without a server, and without unpacking anything.

GNU and PAX tars are read: long names, extended attributes as `SCHILY.xattr.*` (what GNU tar and bsdtar write), times
with fractions, hard links, devices, sparse files; compressed by gzip, bzip2 or xz as well.
"""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import BinaryIO, Protocol

import pyarrow as pa

from rehost.errors import TarRefused
from rehost.replication.bundles import BUNDLE_BYTES, RAW, Bundle
from rehost.replication.manifest import (
    CHUNK_BYTES,
    DEVICE_MAJOR_MAX,
    DEVICE_MINOR_MAX,
    PATH_BYTES_MAX,
    Chunk,
    Entry,
    table_of,
    validate,
)
from rehost.replication.store import Store
from rehost.replication.tree import printable

_XATTR = "SCHILY.xattr."
_BUFFER_BYTES = 1 << 16  # tarfile copies what is left of it at each read
_PUTS_UNDER_WAY = 8
_BUNDLE_CHUNKS = 4096
_NOBODY = 0xFFFF_FFFF
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class _Content(Protocol):
    def read(self, size: int, /) -> bytes | None: ...
    def seek(self, position: int, /) -> int: ...


def import_tar(stream: BinaryIO, store: Store) -> pa.Table:
    """The files table of a tar; its content is in the store, and durable.

    The stream is read once from its beginning to its end; memory does not grow with the content. A later member takes
    the place of an earlier one of the same name, as unpacking would have it; directories that no member names appear
    with mode 755. Raises TarRefused for a damaged tar and for members that would leave the tree (absolute, with `..`,
    hard links to what is not there), ManifestInvalid for a member under a symbolic link or with attributes that no
    file can have, and what the store raises.
    """
    entries: dict[bytes, Entry] = {b"": Entry(b"", stat.S_IFDIR | 0o755)}
    with _Writer(store) as writer:
        try:
            # Names that are not UTF-8 come back as the bytes they were.
            with tarfile.open(
                fileobj=stream, mode="r|*", bufsize=_BUFFER_BYTES, encoding="utf-8", errors="surrogateescape"
            ) as tar:
                for number, member in enumerate(tar, 1):
                    entry = _entry(member, number, entries)
                    if entry.is_file and not member.islnk():
                        content = tar.extractfile(member)
                        assert isinstance(content, io.BufferedReader)  # it is a regular file
                        # Below the buffer: a stream cannot tell whether it is seekable, and seeks forward all the same.
                        entry = replace(entry, chunks=tuple(writer.put(content.raw, _pieces(member))))
                    entries[entry.path] = entry
                    tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member otherwise
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise TarRefused(member="?", reason=f"the tar is damaged: {error}") from error
    store.flush()
    try:
        table = table_of(_linked(_with_parents(entries)))
    except (ValueError, OverflowError) as error:
        raise TarRefused(member="?", reason=f"a number is out of range: {error}") from error
    validate(table)
    return table


def _entry(member: tarfile.TarInfo, number: int, entries: dict[bytes, Entry]) -> Entry:
    """The entry of a member, without content; a hard link gets that of what it leads to."""
    path = _path(member.name)
    if member.islnk():
        leads_to = entries.get(_path(member.linkname))
        if leads_to is None or leads_to.is_directory:
            raise TarRefused(member=printable(path), reason="it is a hard link to nothing that came before it")
        return replace(leads_to, path=path)
    kind = _KINDS.get(member.type)
    if kind is None:
        raise TarRefused(member=printable(path), reason=f"its type {member.type!r} is unknown")
    present = entries.get(path)
    if present is not None and present.is_directory and kind != stat.S_IFDIR:
        raise TarRefused(member=printable(path), reason="it takes the place of a directory")
    if not path and kind != stat.S_IFDIR:
        raise TarRefused(member="/", reason="the top of the tree is not a directory")
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    if device and not (0 <= member.devmajor <= DEVICE_MAJOR_MAX and 0 <= member.devminor <= DEVICE_MINOR_MAX):
        raise TarRefused(member=printable(path), reason="its device number is out of range")
    if not (0 <= member.uid < _NOBODY and 0 <= member.gid < _NOBODY and member.size >= 0):
        raise TarRefused(member=printable(path), reason="its owner or size is out of range")
    mtime_ns = _nanoseconds(member, "mtime")
    return Entry(
        path,
        kind | stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        size=member.size if kind == stat.S_IFREG else 0,
        atime_ns=_nanoseconds(member, "atime") if "atime" in member.pax_headers else mtime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=_nanoseconds(member, "ctime") if "ctime" in member.pax_headers else mtime_ns,
        rdev_major=member.devmajor if device else 0,
        rdev_minor=member.devminor if device else 0,
        target=_bytes(member.linkname) if kind == stat.S_IFLNK else None,
        xattrs=tuple(
            sorted(
                (_bytes(name.removeprefix(_XATTR)), _bytes(value))
                for name, value in member.pax_headers.items()
                if name.startswith(_XATTR)
            )
        ),
        ino=number,
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _path(name: str) -> bytes:
    """The path of a member: `./` goes from its front, `/` from its end. Raises TarRefused where it leaves the tree."""
    raw = _bytes(name)
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if raw.startswith(b"/") or b".." in parts or b"\0" in raw or len(raw) > PATH_BYTES_MAX:
        raise TarRefused(member=printable(raw[:PATH_BYTES_MAX]), reason="it would leave the tree")
    return b"/".join(parts)


def _nanoseconds(member: tarfile.TarInfo, field: str) -> int:
    """A time, exact where the tar has it as a decimal: a float has not enough digits."""
    text = member.pax_headers.get(field)
    try:
        number = Decimal(text if text is not None else int(member.mtime))
        if abs(number) < 1 << 33:  # the year 2242
            return int((number * 1_000_000_000).to_integral_value(rounding="ROUND_FLOOR"))
    except ArithmeticError:  # Decimal's complaints about what is no number
        pass
    raise TarRefused(member=printable(_bytes(member.name)), reason=f"its {field} is no time")


def _pieces(member: tarfile.TarInfo) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole, cut at the multiples of CHUNK_BYTES."""
    sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    runs = sparse if sparse is not None else [(0, member.size)]
    for start, length in runs:
        at, end = start, start + length
        while at < end:
            cut = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield at, cut - at
            at = cut


class _Writer:
    """Joins chunks to bundles and puts these into the store in threads, a bounded number at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tar")
        self._under_way: deque[Future[int]] = deque()
        self._chunks: dict[bytes, bytes] = {}  # of the next bundle, by name
        self._size = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._close()
                while self._under_way:
                    self._under_way.popleft().result()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def put(self, content: _Content, pieces: Iterator[tuple[int, int]]) -> Iterator[Chunk]:
        for offset, length in pieces:
            content.seek(offset)
            data = content.read(length)
            if data is None or len(data) != length:
                raise tarfile.ReadError("unexpected end of data")
            name = hashlib.sha256(data).digest()
            if name not in self._chunks:
                if self._size + length > BUNDLE_BYTES or len(self._chunks) >= _BUNDLE_CHUNKS:
                    self._close()
                self._chunks[name] = data
                self._size += length
            yield Chunk(offset, length, name)

    def _close(self) -> None:
        if not self._chunks:
            return
        chunks, self._chunks, self._size = self._chunks, {}, 0
        bundle = Bundle(tuple(chunks), tuple(map(len, chunks.values())), RAW, b"".join(chunks.values()))
        self._under_way.append(self._threads.submit(self._store.put_bundle, bundle))
        if len(self._under_way) > _PUTS_UNDER_WAY:
            self._under_way.popleft().result()


def _with_parents(entries: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Directories that no member names; they get the times of the root."""
    root = entries[b""]
    missing: set[bytes] = set()
    for path in entries:
        above = path.rpartition(b"/")[0]
        while above not in entries and above not in missing:
            missing.add(above)
            above = above.rpartition(b"/")[0]
    made = replace(root, mode=stat.S_IFDIR | 0o755, uid=0, gid=0, xattrs=(), ino=0)
    return {**entries, **{path: replace(made, path=path) for path in missing}}


def _linked(entries: dict[bytes, Entry]) -> list[Entry]:
    """The entries, those of one inode with a link group."""
    names = Counter(entry.ino for entry in entries.values() if not entry.is_directory)
    return [
        replace(entry, link_group=entry.ino) if not entry.is_directory and names[entry.ino] > 1 else entry
        for entry in entries.values()
    ]
