"""Whether a store is sound; what is hurt in it is named, and put right as far as it can be without the servers.

A chunk that is damaged must not count as had: its pack is written anew from what is sound in it, and then goes. The
next pass of a source that needs the chunk finds that it is missing, reads it again and sends it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid, SnapshotNotFound, StoreUnreadable
from rehost.replication.backends.interface import Backend
from rehost.replication.backends.leases import Lease
from rehost.replication.care.alone import alone, still_held
from rehost.replication.care.holdings import Holdings, each_names, read_holdings
from rehost.replication.care.rewriting import Rewriter, copy_records, opened, records_of
from rehost.replication.pack_index import INDEX_SCHEMA, index_table, names_of, read_index
from rehost.replication.packs import Record, storage_error
from rehost.replication.snapshot_tables import check_blocks, check_files
from rehost.replication.snapshots import Snapshot, Snapshots
from rehost.replication.tree import printable

PATIENCE_SECONDS = 600.0  # a pack may be without its index while it is published
_PATHS = 10
_ROWS = 65_536

Progress = Callable[[int, int], None]
"""Called with packs read, packs in all."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    kind: str  # pack_damaged, pack_missing, index_missing, index_damaged, snapshot_damaged
    name: str  # the id of the pack or snapshot
    detail: str
    chunks: int  # that are damaged, as far as that is known
    healed: bool  # the store is right again but for content that is lost
    remedy: str


@dataclass(frozen=True)
class Touched:
    """A snapshot that needs chunks which are lost."""

    snapshot_id: str
    source_id: str
    chunks: int
    paths: tuple[str, ...]  # ten at most: files, or places on a disk
    remedy: str


@dataclass(frozen=True)
class Checked:
    """What a check found. A store is sound where both lists are empty."""

    read_data: bool
    packs: int
    chunks: int
    bytes_read: int
    snapshots: int
    findings: tuple[Finding, ...]
    touched: tuple[Touched, ...]

    @property
    def sound(self) -> bool:
        """Nothing is lost, and nothing is left to be put right."""
        return not self.touched and all(finding.healed for finding in self.findings)


def check(
    place: Backend,
    *,
    read_data: bool = False,
    report_only: bool = False,
    patience_seconds: float = PATIENCE_SECONDS,
    progress: Progress = lambda done, total: None,
) -> Checked:
    """Look through the store. With `read_data` every byte of every pack is read and compared with its name.

    With `report_only` nothing is put right. Raises StoreBusy, StoreLeaseLost, StoreUnreadable, StoreNoSpace,
    StoreIOFailed.
    """
    try:
        with alone(place) as lease:
            return _Check(place, lease, report_only, patience_seconds).run(read_data, progress)
    except OSError as error:
        raise storage_error(error, place.shown) from error


class _Check:
    def __init__(self, place: Backend, lease: Lease, report_only: bool, patience_seconds: float) -> None:
        self._place = place
        self._lease = lease
        self._report_only = report_only
        self._patience_seconds = patience_seconds
        self._findings: list[Finding] = []
        self._lost: list[tuple[str, np.ndarray]] = []  # packs and names of damaged chunks that were left as they are
        self._bytes_read = 0

    def run(self, read_data: bool, progress: Progress) -> Checked:
        ids = Snapshots(self._place).ids()  # before the holdings: what one of these needs was indexed before it
        holdings = read_holdings(self._place)
        packs = len(holdings.packs)
        for id, reason in holdings.unreadable.items():
            self._remake(id, "index_damaged", f"its index cannot be read: {reason}")
        for id, age in holdings.unindexed.items():
            if age >= self._patience_seconds:
                self._remake(id, "index_missing", "it has no index")
        for id in holdings.without_pack:
            self._pack_missing(id)
        for number, pack in enumerate(holdings.packs if read_data else ()):
            progress(number, packs)
            if not pack.condemned:
                self._read(holdings, number)
        if self._findings and not self._report_only:
            del holdings
            holdings = read_holdings(self._place)
        holdings = _without(holdings, self._lost)
        touched = self._snapshots(ids, holdings)
        return Checked(
            read_data, packs, len(holdings.names), self._bytes_read, len(ids), tuple(self._findings), tuple(touched)
        )

    def _pack_missing(self, id: str) -> None:
        healed = not self._report_only
        if healed:
            self._place.delete(f"indexes/{id}.parquet")
        self._found("pack_missing", id, "the pack of this index is gone", 0, healed)

    def _read(self, holdings: Holdings, number: int) -> None:
        """Compare a pack with its index."""
        id, size = holdings.packs[number].id, holdings.packs[number].size
        self._bytes_read += size
        try:
            index = read_index(self._place.fetch(f"indexes/{id}.parquet").read_bytes(), size)
            hurt = self._hurt(id, index)
            if len(hurt):
                hurt = self._hurt(id, index)  # what a second reading does not see was not the disk
        except FileNotFoundError:
            return  # gone meanwhile
        if len(hurt):
            if self._report_only:
                self._lost.append((id, hurt))
            self._remake(id, "pack_damaged", f"{len(hurt)} of its {len(index)} chunks are damaged", len(hurt))

    def _hurt(self, id: str, index: pa.Table) -> np.ndarray:
        """The names of chunks that are not, or not sound, where the index has them."""
        with opened(self._place, id) as (fd, size):
            records = records_of(fd, size)
        sound = index_table(records) if records else INDEX_SCHEMA.empty_table()
        there = set(_places(sound))
        missing = np.array([place not in there for place in _places(index)], bool)
        return np.unique(names_of(index["sha256"])[missing])

    def _remake(self, id: str, kind: str, detail: str, chunks: int = 0) -> None:
        """Write a pack anew from what is sound in it, and let the old one go."""
        healed = not self._report_only
        if healed:
            still_held(self._place, self._lease)
            rewriter = Rewriter(self._place)
            try:
                with opened(self._place, id) as (fd, size):
                    copy_records(rewriter, fd, records_of(fd, size), _sound)
            except FileNotFoundError:
                return  # gone meanwhile
            rewriter.finish()
            self._place.delete(f"packs/{id}.pack")
            self._place.delete(f"indexes/{id}.parquet")
            detail += f"; what is sound in it is in {', '.join(rewriter.packs)} now" if rewriter.packs else ""
        self._found(kind, id, detail, chunks, healed)

    def _found(self, kind: str, name: str, detail: str, chunks: int, healed: bool) -> None:
        remedy = (
            "Nothing is left to do here; what snapshots lost by it is told with them."
            if healed
            else "Run the check without --report-only."
        )
        self._findings.append(Finding(kind, name, detail, chunks, healed, remedy))

    def _snapshots(self, ids: list[str], holdings: Holdings) -> list[Touched]:
        snapshots = Snapshots(self._place)
        touched = []
        for id in ids:
            try:
                described = snapshots.load(id)
                _check_tables(snapshots, described)
                lost = _missing(snapshots, id, holdings)
                if len(lost):
                    paths = tuple(_paths(snapshots, described, lost))
                    remedy = (
                        f"The next sync of source {described.source_id} sends them again by itself, as far as the "
                        "server still has them."
                    )
                    touched.append(Touched(id, described.source_id, len(lost), paths, remedy))
            except SnapshotNotFound:
                continue  # gone meanwhile
            except (StoreUnreadable, ManifestInvalid) as error:
                remedy = (
                    "The next sync of its source takes a new snapshot, without this one's help. Until this one is "
                    f"gone nothing can be collected: `rehost store forget {id}` takes it away."
                )
                self._findings.append(Finding("snapshot_damaged", id, error.message, 0, False, remedy))
        return touched


def _sound(record: Record) -> np.ndarray:
    return np.ones(record.chunks, bool) if record.sound is None else record.sound


def _places(index: pa.Table) -> list[tuple[bytes, int, int, int]]:
    columns = ("sha256", "offset", "place", "length")
    return list(zip(*(index[name].to_pylist() for name in columns), strict=True))


def _without(holdings: Holdings, lost: list[tuple[str, np.ndarray]]) -> Holdings:
    """The holdings without what is damaged."""
    kept = np.ones(len(holdings.names), bool)
    numbers = {pack.id: number for number, pack in enumerate(holdings.packs)}
    for id, names in lost:
        if id in numbers:
            rows = np.flatnonzero(holdings.pack == numbers[id])
            kept[rows[np.isin(holdings.names[rows], names)]] = False
    if kept.all():
        return holdings
    return Holdings(
        holdings.packs, holdings.names[kept], holdings.pack[kept], holdings.length[kept], holdings.stored[kept]
    )


def _check_tables(snapshots: Snapshots, described: Snapshot) -> None:
    kinds = snapshots.kinds(described.id)
    if not kinds:
        raise StoreUnreadable(path=described.id, reason="its tables are gone")
    for kind in kinds:
        path = snapshots.table_path(described.id, kind)
        try:
            if kind == "files":
                check_files(path)
            else:
                check_blocks(path, [(region.size_bytes, region.block_bytes) for region in described.regions])
        except (pa.ArrowException, OSError) as error:
            raise StoreUnreadable(path=path, reason=f"the table is damaged: {error}") from error


def _missing(snapshots: Snapshots, id: str, holdings: Holdings) -> np.ndarray:
    """The names that a snapshot needs and the store has not, sorted."""
    lost: list[np.ndarray] = []

    def take(names: np.ndarray) -> None:
        lost.append(names[holdings.find(names) < 0])

    each_names(snapshots, id, take)
    return np.unique(np.concatenate(lost)) if lost else np.empty(0)


def _paths(snapshots: Snapshots, described: Snapshot, lost: np.ndarray) -> list[str]:
    """Where the first of the lost chunks belong."""
    found: list[str] = []
    for kind in snapshots.kinds(described.id):
        columns = ["path", "chunks"] if kind == "files" else ["region", "block", "sha256"]
        with pq.ParquetFile(snapshots.table_path(described.id, kind)) as file:
            for batch in file.iter_batches(_ROWS, columns=columns):
                chunks = batch["chunks"] if kind == "files" else None
                names = names_of(pc.struct_field(chunks.flatten(), "sha256") if chunks is not None else batch["sha256"])
                hit = np.flatnonzero(np.isin(names, lost))
                if chunks is not None:
                    rows = np.unique(pc.list_parent_indices(chunks).to_numpy()[hit])
                    found += ["/" + printable(batch["path"][row].as_py()) for row in rows[:_PATHS].tolist()]
                else:
                    for row in hit[:_PATHS].tolist():
                        region = described.regions[batch["region"][row].as_py()]
                        at = region.start + batch["block"][row].as_py() * region.block_bytes
                        found.append(f"disk {region.disk}, byte {at}")
                if len(found) >= _PATHS:
                    return found[:_PATHS]
    return found
