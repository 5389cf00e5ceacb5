"""From a source to a snapshot: scan its names, read what changed, store what is new, publish the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid, SnapshotFileChanged, SnapshotNotFound, SourceProtocol, StoreChunkMissing
from rehost.progress import Progress
from rehost.replication.compare import (
    carried_over,
    first_names,
    is_file,
    numbers,
    replaced,
    with_link_groups,
)
from rehost.replication.contents import CHUNKS_TYPE, Contents, Delivery, chunk_lists
from rehost.replication.manifest import FILES_SCHEMA, validate
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.tree import printable
from rehost.source.inventory import Inventory
from rehost.source.session import FileContent, FileRequest, ReportsSkipped, Session

_SKIPPED_KEY = b"rehost.skipped"
_TOLD = 1000  # paths of one kind in a report
_COMPARED_AT_ONCE = 1024
_NAMES_AT_ONCE = 65_536


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
    """Write `scan.parquet` into the directory: every name of the inventory's volumes, sorted, link groups set.

    Chunks are empty. Raises SourceProtocol for a table that breaks a rule of the manifest, and what the session does.
    """
    batches: list[pa.Table] = []
    size = 0
    for batch in session.scan(inventory.volumes, exclude):
        batches.append(_unread(batch))
        size += pc.sum(batch["size"]).as_py() or 0
        progress(size, 0, "looking at every name")
    table = with_link_groups(pa.concat_tables([FILES_SCHEMA.empty_table(), *batches]).combine_chunks())
    try:
        validate(table.combine_chunks())
    except ManifestInvalid as error:
        raise SourceProtocol(host=session.host, reason=str(error)) from error
    skipped = session.skipped() if isinstance(session, ReportsSkipped) else ()
    told = json.dumps([f"/{printable(item.path)}: {item.reason}" for item in skipped])
    path = directory / "scan.parquet"
    table = table.replace_schema_metadata({**(FILES_SCHEMA.metadata or {}), _SKIPPED_KEY: told.encode()})
    pq.write_table(table, path, compression="zstd")
    return path


def _unread(batch: pa.RecordBatch) -> pa.Table:
    """Rows of a scan as rows of a files table, without any content."""
    rows = batch.num_rows
    known = dict(zip(batch.schema.names, batch.columns, strict=True))
    known["link_group"] = pa.nulls(rows, pa.uint64())
    known["chunks"] = pa.array([[]] * rows, CHUNKS_TYPE)
    known["unstable"] = pa.array(np.zeros(rows, bool))
    return pa.Table.from_arrays([known[name] for name in FILES_SCHEMA.names], schema=FILES_SCHEMA)


def transfer(
    session: Session,
    store: Store,
    scan_path: Path,
    *,
    snapshot: Snapshot,
    parent_id: str | None,
    checksum: bool,
    progress: Progress,
) -> tuple[Snapshot, TransferReport]:
    """Read what changed since the parent, store what is new, and publish the snapshot with its figures.

    Whatever ends it, chunks that arrived are durable and are not sent again. With `checksum` every file that did not
    change since is read on the source once more and compared. Raises what the session and the store raise,
    SnapshotFileChanged, and StoreChunkMissing where a chunk that the manifest needs is not there in the end.
    """
    table = pq.read_table(scan_path, schema=FILES_SCHEMA).combine_chunks()
    skipped = json.loads((pq.read_schema(scan_path).metadata or {}).get(_SKIPPED_KEY, b"[]"))
    work = _Transfer(session, table, _parent(store, parent_id), progress)
    with Delivery(store, session.host, work.delivered) as delivery:
        work.choose(store)
        work.read(delivery)
        result = work.table()
        if checksum:
            delivery.settle()
            result = _compared_again(session, result, delivery)
    _require_chunks(store, result)
    once = first_names(result) == np.arange(result.num_rows)
    finished = snapshot.model_copy(
        update={
            "parent_id": parent_id if work.parent is not None else None,
            "files_total": result.num_rows,
            "bytes_total": int(numbers(result, "size")[once].sum()),
        }
    )
    store.save_snapshot(finished, result)
    report = TransferReport(
        files_total=result.num_rows,
        files_changed=work.contents.count,
        bytes_scanned=work.bytes_scanned,
        bytes_new=delivery.bytes_new,
        bytes_on_wire=session.bytes_on_wire(),
        unstable=_told(_paths(result, np.flatnonzero(result["unstable"].to_numpy()))),
        vanished=_told(work.vanished),
        unreadable=_told([*skipped, *work.unreadable]),
    )
    return finished, report


@dataclass
class _Transfer:
    """One transfer under way: which rows need reading, and what was read."""

    session: Session
    scanned: pa.Table
    parent: pa.Table | None
    progress: Progress
    contents: Contents = field(default_factory=Contents)
    bytes_scanned: int = 0
    vanished: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.scanned.num_rows
        self.first = first_names(self.scanned)
        self.kept = np.full(rows, -1, np.int64)  # by first name: the parent's row
        self.content = np.full(rows, -1, np.int64)  # by first name: the position in `contents`
        self.dropped = np.zeros(rows, bool)
        self.need = np.empty(0, np.int64)
        self.sizes = numbers(self.scanned, "size")
        self._total = self._done = self._ahead = 0

    def choose(self, store: Store) -> None:
        """Which first names have their content still from the parent, and which must be read."""
        files = is_file(self.scanned) & (self.sizes > 0)
        files &= self.first == np.arange(self.scanned.num_rows)
        if self.parent is not None and self.parent.num_rows:
            kept = np.where(files, carried_over(self.scanned, self.parent), -1)
            rows = np.flatnonzero(kept >= 0)
            complete = _all_present(store, self.parent["chunks"].combine_chunks().take(pa.array(kept[rows])))
            self.kept[rows[complete]] = kept[rows[complete]]
        self.need = np.flatnonzero(files & (self.kept < 0))
        self._total = int(self.sizes[self.need].sum())

    def read(self, delivery: Delivery) -> None:
        """Read what is needed; where a name is gone, by the next name of the same inode."""
        rows = self.need
        order = np.argsort(self.first, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        while len(rows):
            others: list[int] = []
            for content in self.session.read(_requests(self.scanned, rows), delivery.wanted, delivery.deliver):
                row = content.index
                if content.error is None:
                    self.content[self.first[row]] = self.contents.add(content)
                    self.bytes_scanned += sum(chunk.length for chunk in content.chunks)
                else:
                    self._drop(row, content.error)
                    after = place[row] + 1
                    if after < len(order) and self.first[order[after]] == self.first[row]:
                        others.append(int(order[after]))
                self._file_done(int(self.sizes[row]))
            rows = np.array(sorted(others), np.int64)
        delivery.settle()

    def _drop(self, row: int, error: str) -> None:
        self.dropped[row] = True
        path = _paths(self.scanned, [row])[0]
        if error in ("vanished", "replaced"):
            self.vanished.append(path)
        else:
            self.unreadable.append(f"{path}: {error.removeprefix('unreadable: ')}")

    def delivered(self, size: int) -> None:
        """Progress inside a long file: what of it has arrived."""
        self._ahead = min(self._ahead + size, self._total - self._done)
        self.progress(self._done + self._ahead, self._total, "reading files")

    def _file_done(self, size: int) -> None:
        self._done = min(self._done + size, self._total)
        self._ahead = max(0, self._ahead - size)
        self._ahead = min(self._ahead, self._total - self._done)
        self.progress(self._done + self._ahead, self._total, "reading files")

    def table(self) -> pa.Table:
        """The files table: statuses of the readings, chunks from the parent and the readings."""
        parents = self.parent["chunks"].chunks if self.parent is not None else []
        lists = [*parents, *self.contents.chunks(), pa.array([[]], CHUNKS_TYPE)]
        known = self.parent.num_rows if self.parent is not None else 0
        kept, read = self.kept[self.first], self.content[self.first]
        nothing = known + self.contents.count
        source = np.where(kept >= 0, kept, np.where(read >= 0, known + read, nothing))
        columns = {"chunks": pa.concat_arrays(lists).take(pa.array(source))}
        facts = self.contents.numbers()
        if len(facts):
            was_read = read >= 0
            for at, name in enumerate(("size", "mtime_ns", "ctime_ns"), start=1):
                kind = FILES_SCHEMA.field(name).type
                old = numbers(self.scanned, name).astype(np.int64)
                columns[name] = pa.array(np.where(was_read, facts[read, at], old)).cast(kind)
            columns["unstable"] = pa.array(was_read & (facts[read, 4] != 0))
        return with_link_groups(replaced(self.scanned, **columns).filter(pa.array(~self.dropped)))


def _compared_again(session: Session, table: pa.Table, delivery: Delivery) -> pa.Table:
    """The table, compared with the source once more; files that differ though their status does not are read again."""
    once = (first_names(table) == np.arange(table.num_rows)) & is_file(table) & (numbers(table, "size") > 0)
    rows = np.flatnonzero(once & ~table["unstable"].to_numpy())
    differing: dict[int, FileContent] = {}
    for batch in _batches(session.read(_requests(table, rows), _none_wanted, delivery.deliver)):
        same = [content for content in batch if content.error is None and _same_status(table, content)]
        expected = table["chunks"].combine_chunks().take(pa.array([c.index for c in same], pa.int64()))
        if same and not expected.equals(chunk_lists(same)):
            for at, content in enumerate(same):
                if not expected.slice(at, 1).equals(chunk_lists([content])):
                    differing[content.index] = content
    if not differing:
        return table
    contents = Contents()
    again = np.array(sorted(differing), np.int64)
    changing: list[int] = []
    for content in session.read(_requests(table, again), delivery.wanted, delivery.deliver):
        seen = differing[content.index]
        if content.error is not None or content.unstable or content.chunks != seen.chunks:
            changing.append(content.index)
        else:
            contents.add(content)
    delivery.settle()
    if changing:
        raise SnapshotFileChanged(count=len(changing), path=_paths(table, changing[:1])[0])
    source = np.arange(table.num_rows)
    source[again] = table.num_rows + np.arange(len(again))
    lists = pa.concat_arrays([*table["chunks"].chunks, *contents.chunks()])
    return replaced(table, chunks=lists.take(pa.array(source[first_names(table)])))


def _same_status(table: pa.Table, content: FileContent) -> bool:
    row = table.slice(content.index, 1).select(["size", "mtime_ns", "ctime_ns"]).to_pylist()[0]
    return not content.unstable and (content.size, content.mtime_ns, content.ctime_ns) == tuple(row.values())


def _none_wanted(names: Sequence[bytes]) -> list[bool]:
    return [False] * len(names)


def _batches(contents: Iterable[FileContent]) -> Iterator[list[FileContent]]:
    batch: list[FileContent] = []
    for content in contents:
        batch.append(content)
        if len(batch) >= _COMPARED_AT_ONCE:
            yield batch
            batch = []
    yield batch


def _parent(store: Store, parent_id: str | None) -> pa.Table | None:
    if parent_id is None:
        return None
    try:
        return store.files(parent_id).combine_chunks()
    except SnapshotNotFound:
        return None  # then all is read, and what the store has is still not sent


def _requests(table: pa.Table, rows: np.ndarray) -> Iterator[FileRequest]:
    for start in range(0, len(rows), _NAMES_AT_ONCE):
        some = rows[start : start + _NAMES_AT_ONCE]
        taken = table.select(["path", "size"]).take(pa.array(some))
        for row, path, size in zip(some.tolist(), taken["path"].to_pylist(), taken["size"].to_pylist(), strict=True):
            yield FileRequest(row, path, size)


def _all_present(store: Store, lists: pa.Array) -> np.ndarray:
    """For each list of chunks, whether the store has them all."""
    names = pc.struct_field(lists.flatten(), "sha256").dictionary_encode()
    present = _present(store, names.dictionary)
    here = present[names.indices.to_numpy()] if len(names) else np.empty(0, bool)
    missing = np.concatenate(([0], np.cumsum(~here)))
    ends = np.concatenate(([0], np.cumsum(pc.list_value_length(lists).to_numpy())))
    return np.asarray(missing[ends[1:]] == missing[ends[:-1]])


def _present(store: Store, names: pa.Array) -> np.ndarray:
    found = [
        here
        for start in range(0, len(names), _NAMES_AT_ONCE)
        for here in store.has(names.slice(start, _NAMES_AT_ONCE).to_pylist())
    ]
    return np.array(found, bool)


def _require_chunks(store: Store, table: pa.Table) -> None:
    names = pc.unique(pc.struct_field(table["chunks"].combine_chunks().flatten(), "sha256"))
    missing = np.flatnonzero(~_present(store, names))
    if len(missing):
        raise StoreChunkMissing(sha256=names[int(missing[0])].as_py().hex())


def _paths(table: pa.Table, rows: Sequence[int] | np.ndarray) -> list[str]:
    taken = table["path"].take(pa.array(rows, pa.int64())).to_pylist()
    return [f"/{printable(path)}" for path in taken]


def _told(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths for the report; of very many, the first, and how many more there are."""
    if len(paths) <= _TOLD:
        return tuple(paths)
    return (*paths[:_TOLD], f"… and {len(paths) - _TOLD} more")
