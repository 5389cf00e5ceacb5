"""Snapshots in blocks of disks that are files here: regions as a source would tell of them, chunks in memory."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from image_builders.disk.regions import Blocks
from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.block_pass import CopiedBlocks, FilesBeside, copy_blocks
from rehost.replication.manifest import BLOCKS_SCHEMA, Chunk, ChunkReader, Entry, table_of
from rehost.replication.pass_plan import plan_pass
from rehost.replication.snapshots import Region, Snapshot
from rehost.replication.store import Store
from rehost.replication.transfer import scan, transfer
from rehost.replication.tree import Tree
from rehost.source.connect import DiskConnection
from rehost.source.disk_session import DiskSession
from rehost.source.inventory import Disk, Inventory
from rehost.source.session import Session
from tests.support.ext4_images import Chunks

BLOCK = 65_536


def inventory_of_disks(*disks: Path) -> Inventory:
    """What a session over these disk images tells of the server."""
    connection = DiskConnection(kind="disk", disks=tuple(str(disk) for disk in disks))
    with DiskSession(connection) as session:
        return session.inventory()


def regions_of(disk: Disk, left_out: Collection[str] = ()) -> Iterator[Region]:
    """The disk from end to end: its partitions, and the tables and gaps between them."""
    at = 0

    def gap(end: int) -> Iterator[Region]:
        if end > at:
            yield Region(disk=disk.index, start=at, size_bytes=end - at, used_by="nonzero", used_bytes=0)

    for partition in sorted(disk.partitions, key=lambda partition: partition.start):
        yield from gap(partition.start)
        at = partition.start + partition.size_bytes
        if partition.device not in left_out:
            yield Region(
                disk=disk.index,
                start=partition.start,
                size_bytes=partition.size_bytes,
                device=partition.device,
                filesystem=partition.filesystem,
                used_by="nonzero",
                used_bytes=0,
            )
    yield from gap(disk.size_bytes)


def blocks_of(raws: Sequence[Path], regions: Sequence[Region], table: Path, chunks: Keeps) -> Blocks:
    """Read the regions of these disks; what is not zero goes into `chunks` and the Parquet file `table`."""
    rows: list[tuple[int, int, bytes, bytes]] = []
    measured = []
    for number, region in enumerate(regions):
        used, data = 0, -1
        with raws[region.disk].open("rb") as file:
            for block in range(-(-region.size_bytes // region.block_bytes)):
                offset = block * region.block_bytes
                end = min(offset + region.block_bytes, region.size_bytes)
                if data < region.start + offset:
                    data = _data_after(file.fileno(), region.start + offset)
                if data >= region.start + end:
                    continue
                file.seek(region.start + offset)
                raw = file.read(min(region.block_bytes, region.size_bytes - offset))
                if raw.count(0) < len(raw):
                    chunk = chunks.put(0, raw)
                    rows.append((number, block, xxhash.xxh3_128_digest(raw), chunk.sha256))
                    used += len(raw)
        measured.append(region.model_copy(update={"used_bytes": used}))
    arrays = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(BLOCKS_SCHEMA)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=BLOCKS_SCHEMA), table)
    return Blocks(tuple(measured), table)


class Keeps(Protocol):
    """Where content goes."""

    def put(self, offset: int, content: bytes) -> Chunk: ...


class Together:
    """Two ChunkReaders as one: content of blocks, and of files."""

    def __init__(self, chunks: Chunks, files: ChunkReader) -> None:
        self._chunks, self._files = chunks, files

    def read_chunk(self, sha256: bytes) -> bytes:
        return self._chunks.content.get(sha256) or self._files.read_chunk(sha256)


def _data_after(descriptor: int, at: int) -> int:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError:
        return sys.maxsize  # nothing but a hole up to the end


def tree_over(chunks: Chunks, *entries: Entry) -> Tree:
    """A tree of these entries, the root among them, over those chunks."""
    return Tree(table_of([Entry(b"", 0o040755), *entries]), chunks)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def taken(
    source: Path, store: Store, folder: Path, chosen: Collection[str], parent: str | None = None
) -> tuple[Snapshot, CopiedBlocks]:
    """One pass, as the stages of a run do it."""
    folder.mkdir()
    with DiskSession(DiskConnection(kind="disk", disks=(str(source),))) as session:
        inventory = session.inventory().model_copy(update={"architecture": "x86_64"})
        plan = plan_pass(inventory, chosen)
        session_of_files = cast(Session, FilesBeside(session))
        table = scan(session_of_files, inventory.model_copy(update={"volumes": plan.volumes}), (), folder, silent)
        copied = copy_blocks(session, store, inventory, plan, folder, parent_id=parent, progress=silent)
        begun = Snapshot(
            id=new_id("n"),
            source_id="s-1",
            created_at=datetime.now(UTC),
            inventory=inventory,
            volumes=plan.volumes,
            regions=copied.copy.regions,
            consistency=copied.consistency,
        )
        finished, _ = transfer(
            session,
            store,
            table,
            snapshot=begun,
            parent_id=parent,
            checksum=False,
            progress=silent,
            blocks=copied.copy.path,
        )
    return finished, copied
