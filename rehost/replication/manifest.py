"""The manifest of a snapshot: every file of a server, as an Arrow table with one row a name.

The row of the server's root has the path b"". Paths are raw bytes relative to the root, without a slash at either
end; rows are sorted by path as bytes, so a directory comes before what is in it. What a row's chunks do not cover,
up to its size, is a hole. Names that share an inode share a `link_group`, and all their rows say the same of content
and attributes.

docs/formats.md describes the file on disk.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid
from rehost.replication import digests

SHA256_BYTES = 32
CHUNK_BYTES = 1 << 20  # content is cut at multiples of this, from the start of the file
CHUNK_BYTES_MAX = 16 << 20  # no chunk of any manifest is longer

# What Linux allows: PATH_MAX and NAME_MAX, XATTR_NAME_MAX and XATTR_SIZE_MAX, the width of a dev_t.
PATH_BYTES_MAX = 4095
NAME_BYTES_MAX = 255
XATTR_NAME_BYTES_MAX = 255
XATTR_VALUE_BYTES_MAX = 65_536
DEVICE_MAJOR_MAX = (1 << 12) - 1
DEVICE_MINOR_MAX = (1 << 20) - 1
_NOBODY = 0xFFFF_FFFF  # as an owner this means "leave it" to chown
_NO_ROOT = "the root is missing, or is not a directory"

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

# What a scan tells of a name: the files table without what only reading and comparing can say, and the number of names.
SCAN_SCHEMA = pa.schema(
    [
        *(field for field in FILES_SCHEMA if field.name not in ("link_group", "chunks", "unstable")),
        pa.field("nlink", pa.uint32(), nullable=False),
    ],
    metadata={b"rehost.format": b"scan/1"},
)

# Blocks of regions (see snapshots.Region), sorted by region and block; a block that is not there is zeros.
BLOCKS_SCHEMA = pa.schema(
    [
        pa.field("region", pa.uint16(), nullable=False),  # index into the snapshot's regions
        pa.field("block", pa.uint64(), nullable=False),  # counted from the region's start in its block_bytes
        pa.field("hash", pa.binary(16), nullable=False),  # by the region's `hash`: finds what changed, names nothing
        pa.field("sha256", pa.binary(SHA256_BYTES), nullable=False),  # the chunk; the last block may be shorter
    ],
    metadata={b"rehost.format": b"blocks/1"},
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


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """A files table, sorted by path."""
    ordered = sorted(entries, key=lambda e: e.path)
    columns = []
    for field in FILES_SCHEMA:
        values = [getattr(entry, field.name) for entry in ordered]
        if field.name in ("xattrs", "chunks"):
            columns.append(_list_column(values, field.type))
        else:
            columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=FILES_SCHEMA)


def _list_column(values: list[tuple[tuple[Any, ...], ...]], kind: pa.ListType) -> pa.ListArray:
    items = [item for value in values for item in value]
    fields = list(kind.value_type)
    children = [pa.array([item[at] for item in items], field.type) for at, field in enumerate(fields)]
    lengths = np.fromiter((len(value) for value in values), np.int64, len(values))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(children, fields=fields), type=kind)


class ChunkReader(Protocol):
    """Whatever gives content by name: the store, or the store with edits over it."""

    def read_chunk(self, sha256: bytes) -> bytes:
        """The bytes of that name, already compared with it. Raises StoreChunkMissing, StoreChunkCorrupt."""
        ...


# --- rules ----------------------------------------------------------------------------------------------------


def validate(table: pa.Table) -> None:
    """Refuse a files table that breaks a rule, before anybody works by it. Raises ManifestInvalid.

    It holds afterwards: the columns are those of FILES_SCHEMA without nulls where none may be; rows are sorted by path
    and no path comes twice; the first row is the root, a directory; every other path is of plain names (none empty,
    `.` or `..`, no NUL, at most 255 bytes each and 4,095 in all) and its parent is a directory of the table, so no
    path goes through a symbolic link; only files have sizes and chunks, only symbolic links targets, only devices
    numbers; chunks are in order, do not overlap and end within the file; extended attributes are within Linux's
    limits, none twice on a file; names of one link group are never directories and agree in kind, volume, size,
    content, target and device; owners are numbers that chown takes; flags are those that are kept.
    """
    validate_batches([table.combine_chunks()])


def validate_batches(batches: Iterable[pa.Table | pa.RecordBatch]) -> None:
    """The same for a table that comes in pieces, with bounded memory. Raises ManifestInvalid."""
    rules = Validator()
    for batch in batches:
        rules.check(batch)
    rules.finish()


def validate_file(path: Path) -> None:
    """The same for a table in a Parquet file, a row group at a time. Raises ManifestInvalid."""
    with pq.ParquetFile(path) as file:
        validate_batches(file.read_row_group(n, use_threads=False) for n in range(file.num_row_groups))


class Validator:
    """The rules for a table that comes piece by piece: what later pieces need to know of earlier ones.

    That is the last path, the few directories that rows to come can be in, and 17 bytes for each link group.
    """

    def __init__(self) -> None:
        self.last: bytes | None = None
        self.open: list[bytes] = []
        self._groups = np.empty(0, np.uint64)  # sorted
        self._kinds = np.empty(0, np.uint8)  # of each group's first row
        self._contents = np.empty(0, np.uint64)  # digests of what the others must have too

    def check(self, batch: pa.Table | pa.RecordBatch) -> None:
        """The next rows of the table. Raises ManifestInvalid; then the table is refused, and this is of no more use."""
        if not batch.schema.equals(FILES_SCHEMA):
            raise ManifestInvalid(path="", reason="its columns are not those of a files table")
        if not batch.num_rows:
            return
        rules = _Rules(batch, self)
        rules.no_nulls()
        rules.paths()
        rules.parents()
        rules.kinds()
        rules.chunks()
        rules.xattrs()
        rules.link_groups()
        self._go_on(rules)

    def finish(self) -> None:
        """There are no more rows."""
        if self.last is None:
            raise ManifestInvalid(path="", reason=_NO_ROOT)

    def _go_on(self, rules: _Rules) -> None:
        last: bytes = rules.columns["path"][rules.count - 1].as_py()
        # What comes after `last` can be in a directory d only if d <= last < d + b"0", the byte after a slash: d is
        # the root, or `last`, or how `last` begins up to a byte below that.
        ways = [b"", *(last[:at] for at in range(1, len(last)) if last[at] < ord("0")), *([last] if last else [])]
        known = pc.is_in(pa.array(ways, pa.binary()), value_set=rules.directories)
        self.last, self.open = last, [way for way, there in zip(ways, known.to_pylist(), strict=True) if there]

    def first_of_groups(
        self, groups: np.ndarray, kinds: np.ndarray, contents: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kind and content of the first row of each of these (distinct, sorted) groups, learning those not seen yet."""
        at = np.searchsorted(self._groups, groups)
        seen = at < len(self._groups)
        seen[seen] = self._groups[at[seen]] == groups[seen]
        first_kinds, first_contents = kinds.copy(), contents.copy()
        first_kinds[seen], first_contents[seen] = self._kinds[at[seen]], self._contents[at[seen]]
        new = ~seen
        self._groups = np.insert(self._groups, at[new], groups[new])
        self._kinds = np.insert(self._kinds, at[new], kinds[new])
        self._contents = np.insert(self._contents, at[new], contents[new])
        return first_kinds, first_contents


class _Rules:
    """The rules, each over whole columns of some rows that follow those that a Validator knows of."""

    def __init__(self, table: pa.Table | pa.RecordBatch, before: Validator) -> None:
        self.before = before
        self.columns: dict[str, pa.Array] = {name: single(table[name]) for name in table.schema.names}
        self.count = table.num_rows

    def refuse_where(self, bad: Any, reason: str) -> None:
        """Raise for the first row that is marked."""
        rows = np.flatnonzero(np.asarray(bad))
        if len(rows):
            path: bytes = self.columns["path"][int(rows[0])].as_py() or b""
            shown = path[:PATH_BYTES_MAX].decode("utf-8", "backslashreplace")
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
            raise ManifestInvalid(path=shown, reason=reason)

    def numbers(self, column: str) -> np.ndarray:
        return np.asarray(self.columns[column].to_numpy(zero_copy_only=False))

    def refuse_items_where(self, column: str, bad: Any, reason: str) -> None:
        """Raise for the row of the first marked item of a list column."""
        marked = np.flatnonzero(np.asarray(bad))
        if len(marked):
            rows = np.zeros(self.count, bool)
            rows[np.repeat(np.arange(self.count), self.lengths(column))[marked[0]]] = True
            self.refuse_where(rows, reason)

    def lengths(self, column: str) -> np.ndarray:
        return np.asarray(pc.list_value_length(self.columns[column]).to_numpy(zero_copy_only=False))

    def items(self, column: str, field: str) -> pa.Array:
        return pc.struct_field(self.columns[column].flatten(), field)

    def no_nulls(self) -> None:
        for field in FILES_SCHEMA:
            if not field.nullable and self.columns[field.name].null_count:
                raise ManifestInvalid(path="", reason=f"column {field.name} has a null")
        for name, kind in (("xattrs", XATTR_TYPE), ("chunks", CHUNK_TYPE)):
            if self.columns[name].flatten().null_count or any(self.items(name, f.name).null_count for f in kind):
                raise ManifestInvalid(path="", reason=f"column {name} has a null")

    def paths(self) -> None:
        paths = self.columns["path"]
        first, last = paths[0].as_py(), self.before.last
        if last is None and (first != b"" or not stat.S_ISDIR(self.columns["mode"][0].as_py())):
            raise ManifestInvalid(path="", reason=_NO_ROOT)
        unsorted = pc.greater_equal(paths.slice(0, self.count - 1), paths.slice(1))
        follows = last is None or first > last
        self.refuse_where(
            np.append(not follows, unsorted.to_numpy(zero_copy_only=False)), "it comes twice or out of order"
        )
        offsets, content = binary_parts(paths)
        starts, ends = offsets[:-1], offsets[1:]
        self.refuse_where(ends - starts > PATH_BYTES_MAX, f"its path is longer than {PATH_BYTES_MAX} bytes")
        slashes = np.flatnonzero(content == ord("/"))
        # Names begin where paths do and behind slashes, and end at slashes and where paths do: sorted, they pair up.
        begin, stop = np.sort(np.append(starts, slashes + 1)), np.sort(np.append(ends, slashes))
        length = stop - begin
        padded = np.append(content, [0, 0])
        dots = (padded[begin] == ord(".")) & ((length == 1) | ((length == 2) & (padded[begin + 1] == ord("."))))
        wrong = (length == 0) | (length > NAME_BYTES_MAX) | dots
        if last is None:
            wrong[0] = False  # the root has no name
        slashes_before = np.searchsorted(slashes, offsets)
        bad = np.zeros(self.count, bool)
        bad[np.repeat(np.arange(self.count), 1 + np.diff(slashes_before))[wrong]] = True
        bad[np.searchsorted(ends, np.flatnonzero(content == 0), side="right")] = True
        self.refuse_where(bad, "a name in its path is empty, too long, a dot or two, or has a NUL")
        # The path of the directory that each row is in ends at the row's last slash, or is empty.
        inside = np.append(slashes, 0)[slashes_before[1:] - 1]
        self.parent_lengths = np.where(np.diff(slashes_before) > 0, inside - starts, 0)
        self.path_starts, self.path_content = starts, content

    def parents(self) -> None:
        before = pa.array(self.before.open, pa.binary())
        here = self.columns["path"].filter(pa.array(self._is(stat.S_IFDIR)))
        self.directories = pa.concat_arrays([before, here])
        offsets = np.concatenate(([0], np.cumsum(self.parent_lengths)))
        taken = np.arange(offsets[-1]) + np.repeat(self.path_starts - offsets[:-1], self.parent_lengths)
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(self.path_content[taken])]
        parents = pa.Array.from_buffers(pa.binary(), self.count, buffers)
        self.refuse_where(
            pc.invert(pc.is_in(parents, value_set=self.directories)).to_numpy(zero_copy_only=False),
            "its parent is not there, or is not a directory",
        )

    def _is(self, *kinds: int) -> np.ndarray:
        return np.isin(self.numbers("mode") & 0o170000, kinds)

    def kinds(self) -> None:
        known = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
        self.refuse_where(~self._is(*known) | (self.numbers("mode") > 0o177777), "its mode names no kind of file")
        size = self.numbers("size")
        self.refuse_where(size >= 1 << 63, "it is larger than a file can be")
        self.refuse_where(~self._is(stat.S_IFREG) & (size > 0), "only files have a size")
        links = self._is(stat.S_IFLNK)
        lengths = pc.fill_null(pc.binary_length(self.columns["target"]), 0).to_numpy(zero_copy_only=False)
        self.refuse_where(links & ((lengths == 0) | (lengths > PATH_BYTES_MAX)), "its target is empty or too long")
        self.refuse_where(~links & self.columns["target"].is_valid().to_numpy(zero_copy_only=False), "it has a target")
        nul = pc.fill_null(pc.match_substring(self.columns["target"], b"\0"), False)
        self.refuse_where(nul.to_numpy(zero_copy_only=False), "its target has a NUL")
        major, minor = self.numbers("rdev_major"), self.numbers("rdev_minor")
        device = self._is(stat.S_IFCHR, stat.S_IFBLK)
        self.refuse_where(
            (major > np.where(device, DEVICE_MAJOR_MAX, 0)) | (minor > np.where(device, DEVICE_MINOR_MAX, 0)),
            "its device number is out of range",
        )
        self.refuse_where((self.numbers("uid") == _NOBODY) | (self.numbers("gid") == _NOBODY), "its owner is no number")
        self.refuse_where((self.numbers("flags") & ~np.uint32(KEPT_FLAGS)) != 0, "it has flags that are not kept")

    def chunks(self) -> None:
        counts = self.lengths("chunks")
        self.refuse_where(~self._is(stat.S_IFREG) & (counts > 0), "only files have content")
        start = self.items("chunks", "offset").to_numpy(zero_copy_only=False)
        length = self.items("chunks", "length").to_numpy(zero_copy_only=False).astype(np.uint64)
        wrong = (length == 0) | (length > CHUNK_BYTES_MAX) | (start >= 1 << 63)
        self.refuse_items_where("chunks", wrong, "a chunk is empty, too long or too far")
        end = start + length
        row = np.repeat(np.arange(self.count), counts)
        self.refuse_items_where("chunks", end > self.numbers("size")[row], "a chunk ends behind the file")
        if len(row):
            overlap = np.append(False, (row[1:] == row[:-1]) & (start[1:] < end[:-1]))
            self.refuse_items_where("chunks", overlap, "its chunks overlap or are out of order")

    def xattrs(self) -> None:
        names, values = self.items("xattrs", "name"), self.items("xattrs", "value")
        if not len(names):
            return
        length = pc.binary_length(names).to_numpy(zero_copy_only=False)
        bad = (length == 0) | (length > XATTR_NAME_BYTES_MAX)
        bad |= pc.match_substring(names, b"\0").to_numpy(zero_copy_only=False)
        bad |= pc.binary_length(values).to_numpy(zero_copy_only=False) > XATTR_VALUE_BYTES_MAX
        self.refuse_items_where("xattrs", bad, "an extended attribute's name or value is empty, too long or has a NUL")
        row = np.repeat(np.arange(self.count), self.lengths("xattrs"))
        coded = names.dictionary_encode()
        pairs = row * len(coded.dictionary) + coded.indices.to_numpy(zero_copy_only=False)
        if len(np.unique(pairs)) != len(names):
            raise ManifestInvalid(path="", reason="a file has an extended attribute twice")

    def link_groups(self) -> None:
        grouped = self.columns["link_group"].is_valid()
        rows = np.flatnonzero(grouped.to_numpy(zero_copy_only=False))
        if not len(rows):
            return
        bad = np.zeros(self.count, bool)
        bad[rows] = self._is(stat.S_IFDIR)[rows]
        self.refuse_where(bad, "a directory has no second name")
        groups = self.columns["link_group"].filter(grouped).to_numpy(zero_copy_only=False)
        distinct, first, of = np.unique(groups, return_index=True, return_inverse=True)
        kinds = ((self.numbers("mode") & 0o170000) >> 12).astype(np.uint8)[rows]
        contents = self._content_digests(pa.array(rows))
        first_kinds, first_contents = self.before.first_of_groups(distinct, kinds[first], contents[first])
        bad[rows] = kinds != first_kinds[of]
        self.refuse_where(bad, "it is of another kind than another name of its inode")
        if (contents != first_contents[of]).any():
            raise ManifestInvalid(path="", reason="names of one inode differ in volume, size, content or target")

    def _content_digests(self, rows: pa.Array) -> np.ndarray:
        """For each of these rows a digest of what all names of one inode share, but for the kind."""
        digest = digests.start(len(rows))
        for name in ("volume", "size", "rdev_major", "rdev_minor"):
            digest = digests.mixed(digest, self.columns[name].take(rows).to_numpy())
        digest = digests.mixed(digest, digests.of_binary(self.columns["target"].take(rows)))
        lists = self.columns["chunks"].take(rows)
        ends = np.concatenate(([0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))))
        items = lists.flatten()
        each = digests.start(len(items))
        for name in ("offset", "length"):
            each = digests.mixed(each, pc.struct_field(items, name).to_numpy(zero_copy_only=False))
        for words in binary_words(pc.struct_field(items, "sha256")).T:
            each = digests.mixed(each, words)
        # The offset is in each: their order needs no part in the sum, which wraps around.
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(each, dtype=np.uint64)))
        return digests.mixed(digest, sums[ends[1:]] - sums[ends[:-1]])


def single(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array."""
    if isinstance(column, pa.Array):
        return column
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def binary_words(array: pa.Array) -> np.ndarray:
    """An array of fixed-size binary values without nulls as rows of little-endian 64-bit words."""
    width = array.type.byte_width
    content = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    content = content[array.offset * width : (array.offset + len(array)) * width]
    return content.view("<u8").reshape(-1, width // 8)


def binary_parts(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, bytes) of a binary array without nulls, the offsets counted from its first byte."""
    if not len(array):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    buffers = array.buffers()
    offsets = np.frombuffer(buffers[1], np.int32, len(array) + 1, array.offset * 4).astype(np.int64)
    content = np.frombuffer(buffers[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content
