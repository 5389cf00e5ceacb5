"""A session with a source that is nowhere: rows and contents are made as they are asked for."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rehost.replication.bundles import Bundle
from rehost.replication.manifest import FILES_SCHEMA, SCAN_SCHEMA, Chunk
from rehost.source.inventory import Inventory, Volume
from rehost.source.session import FileContent, FileRequest, Skipped

_BATCH = 4096
_A_BUNDLE = 256
_IN_A_DIRECTORY = 1000
SIZE = 12  # bytes of each file that is no directory


@dataclass
class MadeUpSession:
    """A tree of so many files, 1,000 in a directory, each of 12 bytes of its own; every `linked` of them one inode.

    `changed` are numbers of files that have other content, and another change time, than a fresh one has.
    """

    files: int
    linked: int = 1
    changed: frozenset[int] = frozenset()
    began_ns: int | None = 2_000_000_000_000_000_000
    host: str = "nowhere"
    read_files: int = 0
    limits: list[int] = field(default_factory=list)

    def bytes_on_wire(self) -> int:
        return self.read_files * SIZE

    def inventory(self) -> Inventory:
        raise NotImplementedError

    def skipped(self) -> Sequence[Skipped]:
        return ()

    def scan_began_ns(self) -> int | None:
        return self.began_ns

    def set_bandwidth_limit(self, kbps: int) -> None:
        self.limits.append(kbps)

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield self._batch([b""], np.array([-1]))
        for first in range(0, self.files, _IN_A_DIRECTORY):
            last = min(first + _IN_A_DIRECTORY, self.files)
            directory = b"d%07d" % (first // _IN_A_DIRECTORY)
            paths = [directory, *(directory + b"/file-%09d" % number for number in range(first, last))]
            yield self._batch(paths, np.concatenate(([-1], np.arange(first, last))))

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        batch: list[FileRequest] = []
        for request in requests:
            batch.append(request)
            if len(batch) == _A_BUNDLE:
                yield from self._contents(batch, wanted, deliver)
                batch = []
        yield from self._contents(batch, wanted, deliver)

    def _contents(
        self,
        batch: Sequence[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        raws = [self.content(self._inode(int(request.path[-9:]))) for request in batch]
        names = [hashlib.sha256(raw).digest() for raw in raws]
        asked = dict(zip(names, raws, strict=True))
        chosen = [raw for (_, raw), want in zip(asked.items(), wanted(list(asked)), strict=True) if want]
        if chosen:
            deliver(Bundle.of(chosen))
        for request, name in zip(batch, names, strict=True):
            self.read_files += 1
            number = self._inode(int(request.path[-9:]))
            yield FileContent(request.index, SIZE, 5, self._ctime(number), (Chunk(0, SIZE, name),), False)

    def content(self, inode: int) -> bytes:
        """What the file of that number holds."""
        return struct.pack(">Q4s", inode, b"new\n" if inode in self.changed else b"old\n")

    def _inode(self, number: int) -> int:
        return number // self.linked

    def _ctime(self, inode: int) -> int:
        return 1_000_000_007 + (inode in self.changed)

    def _batch(self, paths: list[bytes], files: np.ndarray) -> pa.RecordBatch:
        """Rows of SCAN_SCHEMA; -1 among the numbers is a directory."""
        is_file = files >= 0
        inodes = np.where(is_file, files // self.linked, 0)
        values = {
            "path": pa.array(paths, pa.binary()),
            "mode": np.where(is_file, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755),
            "size": np.where(is_file, SIZE, 0),
            "mtime_ns": np.full(len(paths), 5),
            "ctime_ns": 1_000_000_007 + np.isin(inodes, list(self.changed)) * is_file,
            "ino": np.where(is_file, inodes + 1_000, 1),
            "nlink": np.where(is_file, self.linked, 2),
            "target": pa.nulls(len(paths), pa.binary()),
            "xattrs": pa.array([[]] * len(paths), FILES_SCHEMA.field("xattrs").type),
        }
        none = np.zeros(len(paths), np.int64)
        arrays = [
            value if isinstance(value := values.get(name, none), pa.Array) else pa.array(value).cast(kind)
            for name, kind in zip(SCAN_SCHEMA.names, SCAN_SCHEMA.types, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCAN_SCHEMA)


@dataclass
class Node:
    """A name in a tree that is nowhere."""

    kind: int = stat.S_IFREG
    ino: int = 0
    content: bytes = b""
    ctime_ns: int = 7
    nlink: int = 1
    target: bytes | None = None
    error: str | None = None  # what becomes of reading it
    now: bytes | None = None  # what it holds when it is read, where the scan saw another length


@dataclass
class TreeSession:
    """A source that holds these names; the root is there by itself."""

    tree: dict[bytes, Node]
    began_ns: int | None = 1 << 60
    host: str = "nowhere"
    read_paths: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)  # names of chunks
    limits: list[int] = field(default_factory=list)
    rows_a_batch: int = 3

    def bytes_on_wire(self) -> int:
        return 0

    def inventory(self) -> Inventory:
        raise NotImplementedError

    def scan_began_ns(self) -> int | None:
        return self.began_ns

    def set_bandwidth_limit(self, kbps: int) -> None:
        self.limits.append(kbps)

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        rows = [(b"", Node(stat.S_IFDIR, ino=1, nlink=9)), *sorted(self.tree.items())]
        for at in range(0, len(rows), self.rows_a_batch):
            yield pa.RecordBatch.from_pylist(
                [
                    {
                        **dict.fromkeys(SCAN_SCHEMA.names, 0),
                        "path": path,
                        "mode": node.kind | 0o644,
                        "size": len(node.content),
                        "ctime_ns": node.ctime_ns,
                        "ino": node.ino,
                        "nlink": node.nlink,
                        "target": node.target,
                        "xattrs": [],
                    }
                    for path, node in rows[at : at + self.rows_a_batch]
                ],
                schema=SCAN_SCHEMA,
            )

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        for request in requests:
            self.read_paths.append(request.path)
            node = self.tree[request.path]
            if node.error is not None:
                yield FileContent(request.index, 0, 0, 0, (), False, node.error)
                continue
            raw = node.content if node.now is None else node.now
            cuts = [raw[at : at + 4] for at in range(0, len(raw), 4)]
            names = [hashlib.sha256(cut).digest() for cut in cuts]
            for cut, name, want in zip(cuts, names, wanted(names), strict=True):
                if want and name not in self.sent:
                    self.sent.append(name)
                    deliver(self.bundle(cut))
            chunks = tuple(
                Chunk(4 * at, len(cut), name) for at, (cut, name) in enumerate(zip(cuts, names, strict=True))
            )
            yield FileContent(request.index, len(raw), 0, node.ctime_ns, chunks, False)

    def bundle(self, raw: bytes) -> Bundle:
        """How a chunk is sent."""
        return Bundle.of([raw])
