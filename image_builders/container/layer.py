"""A layer: the tar of a files table, streamed from the store.

The form is POSIX.1-2001 (pax) as Go's archive/tar reads it: a ustar header for each name, preceded by an extended
header for what ustar cannot say (sub-second times, long or raw names, large owners and sizes, extended attributes as
`SCHILY.xattr.NAME`). The bytes depend on the table alone. docs/container-image.md has the details.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from image_builders.container.left_out import carried_xattr
from rehost.errors import BuildUnsupported
from rehost.replication.manifest import CHUNK_BYTES, ChunkReader, Entry, entry_of
from rehost.replication.tree import printable

BLOCK = 512
_END = bytes(2 * BLOCK)
_ROWS_AT_ONCE = 2_000
_READ_AHEAD_CHUNKS = 32  # of at most 1 MiB each
_READERS = min(4, os.cpu_count() or 1)
_ZEROS = bytes(CHUNK_BYTES)
# Go refuses extended headers above 1 MiB (archive/tar, maxSpecialFileSize); the rest is room for names and times.
_XATTR_BYTES = (1 << 20) - 65_536
_OWNER_LIMIT = 1 << 21  # what seven octal digits hold
_SIZE_LIMIT = 1 << 33  # what eleven octal digits hold
_SECOND = 1_000_000_000
_TYPES = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}
_WARNINGS_KEPT = 20


@dataclass
class Notes:
    """What the writer found out on its way: filled while the pieces are drawn."""

    entries: int = 0
    content_bytes: int = 0  # of files, holes included, hard links once
    warnings: list[str] = field(default_factory=list)
    not_carried: int = 0  # attributes that a layer or an engine loses

    def warn(self, text: str) -> None:
        """Keep the first few; `not_carried` counts all."""
        self.not_carried += 1
        if len(self.warnings) < _WARNINGS_KEPT:
            self.warnings.append(text)


def content_size(table: pa.Table) -> int:
    """The bytes of all files as a layer holds them: holes written out, hard links once."""
    kind, size = table["mode"].to_numpy() & 0o170000, table["size"].to_numpy()
    groups = table["link_group"].fill_null(0).to_numpy()
    files = kind == stat.S_IFREG
    seen: set[int] = set()
    total = int(size[files & (groups == 0)].sum(dtype="uint64")) if files.any() else 0
    for group, length in zip(groups[files & (groups != 0)].tolist(), size[files & (groups != 0)].tolist(), strict=True):
        if group not in seen:
            seen.add(group)
            total += length
    return total


def layer(table: pa.Table, chunks: ChunkReader, notes: Notes) -> Iterator[bytes]:
    """The tar of the table, piece by piece; content is read ahead by a few threads.

    The table is sorted by path and holds nothing but files, directories, symbolic links and FIFOs. Raises
    BuildUnsupported for a path that no layer may hold, StoreChunkMissing and StoreChunkCorrupt.
    """
    with ThreadPoolExecutor(_READERS, thread_name_prefix="layer") as readers:
        under_way: deque[bytes | Future[bytes]] = deque()
        reading = 0
        try:
            for piece in _pieces(table, notes):
                if isinstance(piece, bytes):
                    under_way.append(piece)
                else:
                    under_way.append(readers.submit(_checked_chunk, chunks, piece[0], piece[1]))
                    reading += 1
                while reading > _READ_AHEAD_CHUNKS or len(under_way) > 16 * _READ_AHEAD_CHUNKS:
                    first = under_way.popleft()
                    reading -= not isinstance(first, bytes)
                    yield first if isinstance(first, bytes) else first.result()
            while under_way:
                first = under_way.popleft()
                yield first if isinstance(first, bytes) else first.result()
        finally:
            readers.shutdown(wait=True, cancel_futures=True)


def _checked_chunk(chunks: ChunkReader, sha256: bytes, length: int) -> bytes:
    content = chunks.read_chunk(sha256)
    if len(content) != length:
        raise BuildUnsupported(
            what="The container image",
            reason=f"chunk {sha256.hex()} has {len(content)} bytes where the manifest says {length}",
        )
    return content


def _pieces(table: pa.Table, notes: Notes) -> Iterator[bytes | tuple[bytes, int]]:
    """Bytes of the tar, and in between (sha256, length) of the chunks that belong there."""
    first_names: dict[int, bytes] = {}
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            entry = entry_of(row)
            link_to = None
            if entry.link_group is not None and not entry.is_directory:
                first = first_names.setdefault(entry.link_group, entry.path)
                link_to = first if first != entry.path else None
            notes.entries += 1
            yield header(entry, link_to, notes)
            if entry.is_file and link_to is None and entry.size:
                notes.content_bytes += entry.size
                yield from _content(entry)
    # GNU tar's record of 20 blocks is for tapes; two blocks of zeros are the end that POSIX asks for.
    yield _END


def _content(entry: Entry) -> Iterator[bytes | tuple[bytes, int]]:
    at = 0
    for chunk in entry.chunks:
        if chunk.offset < at or chunk.offset + chunk.length > entry.size:
            raise BuildUnsupported(
                what="The container image", reason=f"the chunks of /{printable(entry.path)} do not fit its size"
            )
        yield from _zeros(chunk.offset - at)
        yield chunk.sha256, chunk.length
        at = chunk.offset + chunk.length
    yield from _zeros(entry.size - at)
    yield from _zeros(-entry.size % BLOCK)


def _zeros(count: int) -> Iterator[bytes]:
    yield from itertools.repeat(_ZEROS, count // len(_ZEROS))
    if rest := count % len(_ZEROS):
        yield _ZEROS[:rest]


def header(entry: Entry, link_to: bytes | None, notes: Notes) -> bytes:
    """The header blocks of one name; `link_to` is the first name of its inode where this is another one."""
    name = _name_of(entry)
    kind = b"1" if link_to is not None else _TYPES.get(stat.S_IFMT(entry.mode))
    if kind is None:
        raise BuildUnsupported(
            what="The container image",
            reason=f"/{printable(entry.path)} ({stat.filemode(entry.mode)}) is of a kind that a layer does not carry",
        )
    target = link_to if link_to is not None else (entry.target or b"") if entry.is_symlink else b""
    if b"\0" in target:
        raise BuildUnsupported(what="The container image", reason=f"the link /{printable(entry.path)} has no target")
    size = entry.size if kind == b"0" else 0
    seconds, fraction = divmod(entry.mtime_ns, _SECOND)
    records: list[tuple[bytes, bytes]] = []
    raw = not (name.isascii() and target.isascii())
    if raw and not _is_utf8(name + b"\n" + target):
        records.append((b"hdrcharset", b"BINARY"))  # POSIX: the names that follow are bytes, not text
    if raw or len(name) > 100:
        records.append((b"path", name))
    if raw or len(target) > 100:
        records += [(b"linkpath", target)] if target else []
    if fraction or not 0 <= seconds < _SIZE_LIMIT:
        records.append((b"mtime", _time(entry.mtime_ns)))
    records += [(b"uid", b"%d" % entry.uid)] if entry.uid >= _OWNER_LIMIT else []
    records += [(b"gid", b"%d" % entry.gid)] if entry.gid >= _OWNER_LIMIT else []
    records += [(b"size", b"%d" % size)] if size >= _SIZE_LIMIT else []
    # A further name repeats the attributes: an engine sets the owner of every name, which drops capabilities.
    records += _xattrs(entry, notes)
    main = _ustar(
        name=_ascii(name),
        mode=stat.S_IMODE(entry.mode),
        uid=entry.uid if entry.uid < _OWNER_LIMIT else 0,
        gid=entry.gid if entry.gid < _OWNER_LIMIT else 0,
        size=size if size < _SIZE_LIMIT else 0,
        mtime=seconds if 0 <= seconds < _SIZE_LIMIT else 0,
        kind=kind,
        target=_ascii(target),
    )
    if not records:
        return main
    body = b"".join(_record(key, value) for key, value in records)
    extended = _ustar(b"PaxHeaders/" + _ascii(name)[:80], 0o644, 0, 0, len(body), 0, b"x", b"")
    return extended + body + bytes(-len(body) % BLOCK) + main


def _name_of(entry: Entry) -> bytes:
    if not entry.path:
        return b"./"
    parts = entry.path.split(b"/")
    if b"\0" in entry.path or b"" in parts or b"." in parts or b".." in parts:
        raise BuildUnsupported(
            what="The container image", reason=f"/{printable(entry.path)} is not a path that a layer may hold"
        )
    return entry.path + b"/" if entry.is_directory else entry.path


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _ascii(name: bytes) -> bytes:
    """The name as the ustar header shows it to programs that know no pax; the true one is in the extended header."""
    return bytes(byte if byte < 128 else 0x5F for byte in name[:100]) if not name.isascii() else name[:100]


def _time(ns: int) -> bytes:
    """Seconds since the epoch as a decimal fraction, exactly; before it with one minus sign for the whole."""
    seconds, fraction = divmod(abs(ns), _SECOND)
    digits = f"{seconds}.{fraction:09d}".rstrip("0").rstrip(".")
    return f"{'-' if ns < 0 else ''}{digits}".encode()


def _xattrs(entry: Entry, notes: Notes) -> Iterator[tuple[bytes, bytes]]:
    room = _XATTR_BYTES
    for key, value in sorted(entry.xattrs):
        if not carried_xattr(key):
            continue
        room -= len(key) + len(value) + 32
        if room < 0 or b"=" in key or b"\0" in key or entry.is_symlink:
            notes.warn(f"/{printable(entry.path)}: the attribute {printable(key[:64])} cannot be carried by a layer.")
            continue
        if not value:
            # Written all the same: the record is right, but Go reads an empty one as none (archive/tar, mergePAX).
            notes.warn(f"/{printable(entry.path)}: engines do not set the empty attribute {printable(key[:64])}.")
        yield b"SCHILY.xattr." + key, value


def _record(key: bytes, value: bytes) -> bytes:
    """LENGTH SPACE KEY=VALUE NEWLINE, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, target: bytes) -> bytes:
    block = b"".join(
        [
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, uid, gid),
            b"%011o\0%011o\0" % (size, mtime),
            b"        ",  # the checksum counts itself as spaces
            kind,
            target.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),  # user and group by name: numbers alone count
            bytes(16),  # device numbers
            bytes(167),  # prefix: long names are in the extended header
        ]
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
