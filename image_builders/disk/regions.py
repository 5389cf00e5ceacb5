"""Blocks of a snapshot's regions, written at their places in a sparse disk: holes stay holes.

Chunks are fetched, unpacked and compared with their names by several threads; one thread writes, in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid
from rehost.replication.manifest import BLOCKS_SCHEMA, CHUNK_BYTES_MAX, ChunkReader
from rehost.replication.snapshots import Region

_ROWS_A_BATCH = 16_384
_PIECE_BYTES = 4 << 20  # unpacked by one thread at once
_WORKERS_MOST = 4
_COLUMNS = ["region", "block", "sha256"]


@dataclass(frozen=True)
class Blocks:
    """What a snapshot has in blocks: the regions, and the Parquet file of its blocks table."""

    regions: tuple[Region, ...]
    table: Path


@dataclass(frozen=True)
class _Piece:
    """Blocks that lie one after the other in the disk: their place, their lengths and their chunks."""

    start: int
    lengths: tuple[int, ...]
    names: tuple[bytes, ...]


def write_regions(
    target: BinaryIO, blocks: Blocks, wanted: Sequence[int], chunks: ChunkReader, told: Callable[[int], None]
) -> None:
    """Write the blocks of these regions (by number) at their places; what is in no block is not touched.

    `target` reads as zeros there, and is as long as the regions need. `chunks.read_chunk` is called by several threads
    at once. `told` is given bytes as they are written. Raises ManifestInvalid for a table that breaks its rules, and
    what the reader raises.
    """
    workers = min(_WORKERS_MOST, os.cpu_count() or 1)
    chosen = {number: blocks.regions[number] for number in wanted}
    descriptor = target.fileno()
    target.flush()
    under_way: deque[tuple[int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="unpack") as pool:
        try:
            for piece in _pieces(blocks, chosen):
                under_way.append((piece.start, pool.submit(_content, piece, chunks)))
                if len(under_way) > 2 * workers:
                    told(_write(descriptor, *under_way.popleft()))
            while under_way:
                told(_write(descriptor, *under_way.popleft()))
        finally:
            for _, future in under_way:
                future.cancel()


def _write(descriptor: int, start: int, future: Future[bytes]) -> int:
    content = memoryview(future.result())
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], start + done)
    return done


def _content(piece: _Piece, chunks: ChunkReader) -> bytes:
    content = []
    for length, name in zip(piece.lengths, piece.names, strict=True):
        raw = chunks.read_chunk(name)
        if len(raw) != length:
            raise ManifestInvalid(path="", reason=f"a block of {length} bytes names a chunk of {len(raw)}")
        content.append(raw)
    return b"".join(content)


def _pieces(blocks: Blocks, chosen: Mapping[int, Region]) -> Iterator[_Piece]:
    """The blocks of the chosen regions, neighbours joined."""
    for numbers, places, names in checked_rows(blocks):
        for number in np.unique(numbers).tolist():
            region = chosen.get(number)
            if region is None:
                continue
            rows = np.flatnonzero(numbers == number)
            yield from _joined(region, places[rows], names.take(pa.array(rows)))


def _joined(region: Region, places: npt.NDArray[np.uint64], names: pa.Array) -> Iterator[_Piece]:
    most = max(1, _PIECE_BYTES // region.block_bytes)
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    for run in np.split(np.arange(len(places)), breaks):
        for at in range(0, len(run), most):
            rows = run[at : at + most]
            offset = int(places[rows[0]]) * region.block_bytes
            left = region.size_bytes - offset
            lengths = [min(region.block_bytes, left - n * region.block_bytes) for n in range(len(rows))]
            taken = names.slice(int(rows[0]), len(rows)).to_pylist()
            yield _Piece(region.start + offset, tuple(lengths), tuple(taken))


def checked_rows(blocks: Blocks) -> Iterator[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint64], pa.Array]]:
    """The table batch by batch, as region numbers, block numbers and names; each batch is checked.

    Raises ManifestInvalid where rows are not in order, or name a region or a block that is not there.
    """
    counts = np.array([-(-r.size_bytes // r.block_bytes) for r in blocks.regions], np.uint64)
    last: tuple[int, int] | None = None
    try:
        file = pq.ParquetFile(blocks.table)
        if not file.schema_arrow.equals(BLOCKS_SCHEMA):
            raise ManifestInvalid(path="", reason="the blocks table has other columns than a blocks table")
        for batch in file.iter_batches(batch_size=_ROWS_A_BATCH, columns=_COLUMNS):
            if not batch.num_rows:
                continue
            numbers = batch["region"].to_numpy().astype(np.uint16)
            places = batch["block"].to_numpy().astype(np.uint64)
            if int(numbers.max()) >= len(counts) or bool((places >= counts[numbers]).any()):
                raise ManifestInvalid(path="", reason="the blocks table names a block beyond its region")
            same = numbers[1:] == numbers[:-1]
            in_order = (numbers[1:] > numbers[:-1]) | (same & (places[1:] > places[:-1]))
            if not bool(in_order.all()) or (last is not None and (int(numbers[0]), int(places[0])) <= last):
                raise ManifestInvalid(path="", reason="the blocks table is not sorted by region and block")
            last = (int(numbers[-1]), int(places[-1]))
            yield numbers, places, batch["sha256"]
    except pa.ArrowException as error:
        raise ManifestInvalid(path="", reason=f"the blocks table cannot be read: {error}") from error


def check_regions(regions: Sequence[Region], disk_bytes: Mapping[int, int]) -> None:
    """Whether regions lie on their disks (sizes by index) and none lies on another. Raises ManifestInvalid."""
    ends: dict[int, int] = {}
    for region in sorted(regions, key=lambda r: (r.disk, r.start)):
        if region.disk not in disk_bytes:
            raise ManifestInvalid(path="", reason=f"a region lies on disk {region.disk}, which is not known")
        if region.size_bytes <= 0 or region.start < ends.get(region.disk, 0):
            raise ManifestInvalid(path="", reason=f"two regions of disk {region.disk} lie on each other")
        if not 512 <= region.block_bytes <= CHUNK_BYTES_MAX:
            raise ManifestInvalid(path="", reason=f"a region has blocks of {region.block_bytes} bytes")
        ends[region.disk] = region.start + region.size_bytes
        if ends[region.disk] > disk_bytes[region.disk]:
            raise ManifestInvalid(path="", reason=f"a region ends beyond disk {region.disk}")
