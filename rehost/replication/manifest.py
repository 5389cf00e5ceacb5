"""The manifest of a snapshot: every file of a server, as an Arrow table with one row a name.

The row of the server's root has the path b"". Paths are raw bytes relative to the root, without a slash at either
end; rows are sorted by path as bytes, so a directory comes before what is in it. What a row's chunks do not cover,
up to its size, is a hole. Names that share an inode share a `link_group`, and all their rows say the same of content
and attributes.

docs/formats.md describes the file on disk.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

SHA256_BYTES = 32
CHUNK_BYTES = 1 << 20  # content is cut at multiples of this, from the start of the file

CHUNK_TYPE = pa.struct(
    [
        pa.field("offset", pa.uint64(), nullable=False),  # bytes from the start of the file
        pa.field("length", pa.uint32(), nullable=False),  # bytes
        pa.field("sha256", pa.binary(SHA256_BYTES), nullable=False),
    ]
)
XATTR_TYPE = pa.struct(
    [
        pa.field("name", pa.binary(), nullable=False),  # with its namespace: b"user.x", b"system.posix_acl_access"
        pa.field("value", pa.binary(), nullable=False),
    ]
)

FILES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("volume", pa.uint16(), nullable=False),  # index into the snapshot's volumes
        pa.field("mode", pa.uint32(), nullable=False),  # st_mode: type and permission bits
        pa.field("uid", pa.uint32(), nullable=False),
        pa.field("gid", pa.uint32(), nullable=False),
        pa.field("size", pa.uint64(), nullable=False),  # bytes; 0 for all but regular files
        pa.field("atime_ns", pa.int64(), nullable=False),  # since the epoch
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("ctime_ns", pa.int64(), nullable=False),
        pa.field("rdev_major", pa.uint32(), nullable=False),  # character and block devices
        pa.field("rdev_minor", pa.uint32(), nullable=False),
        pa.field("flags", pa.uint32(), nullable=False),  # FS_IOC_GETFLAGS: only a, d, i of chattr are kept
        pa.field("dev", pa.uint64(), nullable=False),  # st_dev and st_ino on the source: for finding what changed
        pa.field("ino", pa.uint64(), nullable=False),
        pa.field("link_group", pa.uint64(), nullable=True),  # set where two or more rows are one inode
        pa.field("target", pa.binary(), nullable=True),  # of symbolic links
        pa.field("xattrs", pa.list_(XATTR_TYPE), nullable=False),
        pa.field("chunks", pa.list_(CHUNK_TYPE), nullable=False),
        pa.field("unstable", pa.bool_(), nullable=False),  # kept changing while it was read
    ],
    metadata={b"rehost.format": b"files/1"},
)

KEPT_FLAGS = 0x10 | 0x20 | 0x40  # FS_IMMUTABLE_FL, FS_APPEND_FL, FS_NODUMP_FL


class Chunk(NamedTuple):
    """A piece of a file's content: where in the file, how long, and its name in the store."""

    offset: int
    length: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the manifest; the fields are those of FILES_SCHEMA."""

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    rdev_major: int = 0
    rdev_minor: int = 0
    flags: int = 0
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    chunks: tuple[Chunk, ...] = ()
    volume: int = 0
    dev: int = 0
    ino: int = 0
    link_group: int | None = None
    unstable: bool = False

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    def row(self) -> dict[str, Any]:
        """The row that FILES_SCHEMA takes."""
        row: dict[str, Any] = {name: getattr(self, name) for name in FILES_SCHEMA.names}
        row["xattrs"] = [{"name": name, "value": value} for name, value in self.xattrs]
        row["chunks"] = [chunk._asdict() for chunk in self.chunks]
        return row


def entry_of(row: dict[str, Any]) -> Entry:
    """The Entry of a row as `RecordBatch.to_pylist` gives it."""
    return Entry(
        **{
            **row,
            "xattrs": tuple((x["name"], x["value"]) for x in row["xattrs"]),
            "chunks": tuple(Chunk(c["offset"], c["length"], c["sha256"]) for c in row["chunks"]),
        }
    )


def table_of(entries: list[Entry]) -> pa.Table:
    """A files table, sorted by path."""
    rows = [entry.row() for entry in sorted(entries, key=lambda e: e.path)]
    return pa.Table.from_pylist(rows, schema=FILES_SCHEMA)


class ChunkReader(Protocol):
    """Whatever gives content by name: the store, or the store with edits over it."""

    def read_chunk(self, sha256: bytes) -> bytes:
        """The bytes of that name, already compared with it. Raises StoreChunkMissing, StoreChunkCorrupt."""
        ...
