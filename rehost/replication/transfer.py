"""From a source to a snapshot: scan its names, read what changed, store what is new, publish the manifest.

All tables are files that are sorted by path and worked on a row group at a time, two or three of them side by side.
What is held for the whole of a tree is a few bytes a row: where its content comes from, and which names are one inode.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid, SnapshotNotFound, SourceProtocol, StoreUnreadable
from rehost.progress import Progress
from rehost.replication.compare import LINK_COLUMNS, SAME, LinkCandidates, Links, carried_over, kinds, numbers
from rehost.replication.comparison import compared_again
from rehost.replication.contents import Contents, ContentsFile, Delivery, requests
from rehost.replication.manifest import FILES_SCHEMA, SCAN_SCHEMA, Validator, single
from rehost.replication.result import Origins, Result, files_table, write_result
from rehost.replication.rows import BYTES_A_GROUP, ROWS_A_GROUP, Rows
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.told import Told
from rehost.replication.tree import printable
from rehost.source.inventory import Inventory
from rehost.source.session import FileRequest, ReportsSkipped, Session, TellsTime

_SKIPPED_KEY = b"rehost.skipped"
_BEGAN_KEY = b"rehost.began_ns"
_NAMES_AT_ONCE = 16_384
_CHOSEN_BY = tuple(dict.fromkeys(("path", *SAME, *LINK_COLUMNS)))
_PARENTS = ("path", "mode", *SAME, "unstable", "chunks")


@dataclass(frozen=True)
class TransferReport:
    """What one transfer did. Sizes in bytes."""

    files_total: int  # rows of the manifest
    files_changed: int  # regular files that were read, an inode with several names counted once
    bytes_scanned: int  # content that was read and hashed on the source for the manifest
    bytes_new: int  # content of chunks that the store did not have, before its compression
    bytes_on_wire: int  # all that was received from the source in this session
    unstable: tuple[str, ...]  # kept changing while they were read
    vanished: tuple[str, ...]  # gone, or of another kind, between the scan and the reading
    unreadable: tuple[str, ...]  # with the reason; left out


def scan(session: Session, inventory: Inventory, exclude: Sequence[str], directory: Path, progress: Progress) -> Path:
    """Write `scan.parquet` into the directory: every name of the inventory's volumes, as SCAN_SCHEMA, sorted by path.

    Raises SourceProtocol for rows that break a rule of the manifest, and what the session does.
    """
    path = directory / "scan.parquet"
    rules = Validator()
    size = 0
    with pq.ParquetWriter(
        path,
        SCAN_SCHEMA,
        compression="zstd",
        compression_level=1,
        use_dictionary=["volume", "mode", "uid", "gid", "rdev_major", "rdev_minor", "flags", "dev", "nlink"],
        write_statistics=False,
    ) as writer:
        try:
            for table in _groups(session.scan(inventory.volumes, exclude)):
                rules.check(files_table(table))
                writer.write_table(table, row_group_size=ROWS_A_GROUP)
                size += int(numbers(table, "size").sum())
                progress(size, 0, "looking at every name")
            rules.finish()
        except ManifestInvalid as error:
            raise SourceProtocol(host=session.host, reason=str(error)) from error
        skipped = session.skipped() if isinstance(session, ReportsSkipped) else ()
        told = [f"/{printable(item.path)}: {item.reason}" for item in skipped]
        began = session.scan_began_ns() if isinstance(session, TellsTime) else None
        writer.add_key_value_metadata({_SKIPPED_KEY: json.dumps(told), _BEGAN_KEY: json.dumps(began)})
    return path


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables that make good row groups: not too short, and bounded in rows and bytes."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if held and (rows + batch.num_rows > ROWS_A_GROUP or size + batch.nbytes > BYTES_A_GROUP):
            yield pa.Table.from_batches(held, SCAN_SCHEMA).combine_chunks()
            held, rows, size = [], 0, 0
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
    if held:
        yield pa.Table.from_batches(held, SCAN_SCHEMA).combine_chunks()


def transfer(
    session: Session,
    store: Store,
    scan_path: Path,
    *,
    snapshot: Snapshot,
    parent_id: str | None,
    checksum: bool,
    progress: Progress,
    blocks: Path | None = None,
) -> tuple[Snapshot, TransferReport]:
    """Read what changed since the parent, store what is new, and publish the snapshot with its figures.

    `blocks` is the table of the snapshot's regions, where it has any; their chunks are in the store.

    Whatever ends it, chunks that arrived are durable and are not sent again. With `checksum` every file that did not
    change since is read on the source once more and compared. Files of its own are written beside the scan's. Raises
    what the session and the store raise, SnapshotFileChanged, and StoreChunkMissing where a chunk that the manifest
    needs is not there in the end.
    """
    told = pq.read_metadata(scan_path).metadata or {}
    work = _Transfer(session, scan_path, *_parent(store, parent_id), progress)
    work.choose(store)
    contents, files = scan_path.with_name("contents.parquet"), scan_path.with_name("files.parquet")
    with Delivery(store, session.host, work.delivered) as delivery:
        with ContentsFile(contents) as spool:
            work.read(delivery, spool)
        delivery.settle()
        origins = work.origins(contents)
        result = write_result(scan_path, files, origins)
        if checksum and (late := compared_again(session, files, result.comparable, delivery)):
            delivery.settle()
            origins.late += _by_scan_row(late, np.flatnonzero(~work.dropped))
            result = write_result(scan_path, files, origins)
    finished = snapshot.model_copy(
        update={
            "parent_id": parent_id if work.parent is not None else None,
            "scan_began_ns": json.loads(told.get(_BEGAN_KEY, b"null")),
            "files_total": result.files_total,
            "bytes_total": result.bytes_total + sum(region.used_bytes for region in snapshot.regions),
        }
    )
    store.save_snapshot(finished, files, blocks)
    work.unreadable.start_with(json.loads(told.get(_SKIPPED_KEY, b"[]")))
    return finished, _report(work, result, delivery.bytes_new, session.bytes_on_wire())


def _report(work: _Transfer, result: Result, bytes_new: int, bytes_on_wire: int) -> TransferReport:
    return TransferReport(
        files_total=result.files_total,
        files_changed=work.files_read,
        bytes_scanned=work.bytes_scanned,
        bytes_new=bytes_new,
        bytes_on_wire=bytes_on_wire,
        unstable=result.unstable.paths(),
        vanished=work.vanished.paths(),
        unreadable=work.unreadable.paths(),
    )


@dataclass
class _Transfer:
    """One transfer under way: which rows need reading, and what came of it."""

    session: Session
    scan: Path
    parent: Path | None
    looked_ns: int | None  # when the parent's scan began, by the source's clock
    progress: Progress
    links: Links = field(init=False)
    files_read: int = 0
    bytes_scanned: int = 0
    vanished: Told = field(default_factory=Told)
    unreadable: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        rows = pq.read_metadata(self.scan).num_rows
        self.kept = np.full(rows, -1, np.int32)  # the parent's row that has the content of this one
        self.need = np.zeros(rows, bool)
        self.dropped = np.zeros(rows, bool)
        self.late: list[pa.RecordBatch] = []  # contents that were read by a later name of their inode
        self._total = self._done = self._ahead = 0

    def choose(self, store: Store) -> None:
        """Which first names have their content still from the parent, and which must be read."""
        candidates = LinkCandidates()
        with contextlib.ExitStack() as stack:
            scanned = stack.enter_context(Rows(self.scan, SCAN_SCHEMA, _CHOSEN_BY))
            parent = None
            if self.parent is not None:
                parent = stack.enter_context(Rows(self.parent, FILES_SCHEMA, _PARENTS))
            for start, table in scanned.groups():
                candidates.add(start, table)
                files = (kinds(table) == stat.S_IFREG) & (numbers(table, "size") > 0)
                if parent is not None:
                    known = parent.taken
                    before = parent.up_to_path(single(table["path"])[-1].as_py()).combine_chunks()
                    kept = np.where(files, carried_over(table, before, self.looked_ns), -1)
                    rows = np.flatnonzero(kept >= 0)
                    chunks = single(before["chunks"])
                    if len(rows) != len(chunks):
                        chunks = chunks.take(pa.array(kept[rows]))
                    rows = rows[_all_present(store, chunks)]
                    self.kept[start + rows] = known + kept[rows]
                    files[rows] = False
                self.need[start : start + table.num_rows] = files
        self.links = candidates.links()
        self.need[self.links.further()] = False
        if self.need.any():
            with Rows(self.scan, SCAN_SCHEMA, ["size"]) as scanned:
                for start, table in scanned.groups_with(self.need):
                    self._total += int(numbers(table, "size")[self.need[start : start + table.num_rows]].sum())

    def read(self, delivery: Delivery, spool: ContentsFile) -> None:
        """Read what is needed; where a name is gone, by the next name of the same inode."""
        need, contents = self.need, Contents(spool.add)
        while need.any():
            others: list[int] = []
            asked: deque[FileRequest] = deque()
            wished = requests(self.scan, SCAN_SCHEMA, need, asked)
            for content in self.session.read(wished, delivery.wanted, delivery.deliver):
                request = asked.popleft()
                if content.error is None:
                    contents.add(content)
                    self.bytes_scanned += sum(chunk.length for chunk in content.chunks)
                else:
                    self._drop(request, content.error)
                    if (other := self.links.after(request.index)) is not None:
                        others.append(other)
                self._file_done(request.size)
            contents.pack()
            self.files_read += contents.count
            need = np.zeros_like(self.need)
            need[others] = True
            contents = Contents(self.late.append)
        if self.dropped.any():
            self.links.without(self.dropped)

    def origins(self, contents: Path) -> Origins:
        """Where the content of every row comes from."""
        return Origins(self.parent, self.kept, contents, self.late, self.links, self.dropped)

    def _drop(self, request: FileRequest, error: str) -> None:
        self.dropped[request.index] = True
        if error in ("vanished", "replaced"):
            self.vanished.add(request.path)
        else:
            self.unreadable.add(request.path, error.removeprefix("unreadable: "))

    def delivered(self, size: int) -> None:
        """Progress inside a long file: what of it has arrived."""
        self._ahead = min(self._ahead + size, self._total - self._done)
        self.progress(self._done + self._ahead, self._total, "reading files")

    def _file_done(self, size: int) -> None:
        self._done = min(self._done + size, self._total)
        self._ahead = max(0, self._ahead - size)
        self._ahead = min(self._ahead, self._total - self._done)
        self.progress(self._done + self._ahead, self._total, "reading files")


def _by_scan_row(contents: list[pa.RecordBatch], kept: np.ndarray) -> list[pa.RecordBatch]:
    """Contents by row of the files table as contents by row of the scan; `kept` are the scan's rows that are in it."""
    return [
        pa.RecordBatch.from_arrays([pa.array(kept[numbers(batch, "row")]), *batch.columns[1:]], schema=batch.schema)
        for batch in contents
    ]


def _parent(store: Store, parent_id: str | None) -> tuple[Path | None, int | None]:
    if parent_id is None:
        return None, None
    try:
        return store.table_path(parent_id, "files"), store.snapshot(parent_id).scan_began_ns
    except (SnapshotNotFound, StoreUnreadable):
        return None, None  # then all is read, and what the store has is still not sent


def _all_present(store: Store, lists: pa.Array) -> np.ndarray:
    """For each list of chunks, whether the store has them all."""
    names = pc.struct_field(lists.flatten(), "sha256")
    found = [
        np.asarray(store.has(names.slice(start, _NAMES_AT_ONCE).to_pylist()), bool)
        for start in range(0, len(names), _NAMES_AT_ONCE)
    ]
    missing = np.concatenate(([0], np.cumsum(~np.concatenate(found)) if found else []))
    ends = np.concatenate(([0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False)))).astype(np.int64)
    return np.asarray(missing[ends[1:]] == missing[ends[:-1]])
