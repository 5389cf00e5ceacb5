"""From the blocks of a source to an index of them: which are in use, what changed, and what of that is new."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from rehost.agent.block_kinds import PIECE_BLOCKS
from rehost.progress import Progress
from rehost.replication.block_index import HASH_BYTES, BlockIndex, BlockIndexWriter, Cursor, Rows
from rehost.replication.block_zeros import inside
from rehost.replication.contents import Delivery
from rehost.replication.snapshots import Region
from rehost.replication.store import Store
from rehost.source.block_session import (
    BLOCK_BYTES,
    NEW,
    SAME,
    Area,
    BlockBatch,
    BlockSession,
    DeviceState,
    Piece,
    UsedBlocks,
    blocks_of,
)

Runs = np.ndarray
"""u64, shape (n, 2): first block, number of blocks; ascending, apart from each other."""

_NO_RUNS: Runs = np.empty((0, 2), np.uint64)

EVERYTHING: Mapping[Area, Runs | None] = MappingProxyType({})


@dataclass(frozen=True)
class AreaReport:
    """What became of one area. Sizes in bytes."""

    area: Area
    rule: str  # as in UsedBlocks
    reason: str
    used_bytes: int
    bytes_read: int  # on the source
    bytes_changed: int  # of blocks that the parent has not, or otherwise
    whole: bool  # whether all that is in use was read


@dataclass(frozen=True)
class BlockReport:
    """What one pass over blocks did. Sizes in bytes."""

    areas: tuple[AreaReport, ...]
    bytes_new: int  # content of chunks that the store did not have, before its compression
    bytes_on_wire: int  # all that was received from the source in this session
    seconds: float
    reading_seconds: float  # of them, without the maps

    @property
    def bytes_read(self) -> int:
        """Read on the source."""
        return sum(area.bytes_read for area in self.areas)

    @property
    def bytes_changed(self) -> int:
        """Of blocks that the parent has not, or otherwise."""
        return sum(area.bytes_changed for area in self.areas)


@dataclass(frozen=True)
class BlockCopy:
    """The result of a pass: what the snapshot says of regions, and the blocks table to save with it."""

    regions: tuple[Region, ...]
    path: Path
    report: BlockReport

    @property
    def index(self) -> BlockIndex:
        """The index, as the parent of a further pass."""
        return BlockIndex(self.path, self.regions)


def parent_index(store: Store, snapshot_id: str | None) -> BlockIndex | None:
    """The index of blocks of a snapshot; None where it has none. Raises SnapshotNotFound."""
    if snapshot_id is None:
        return None
    snapshot = store.snapshot(snapshot_id)
    return BlockIndex(store.table_path(snapshot_id, "blocks"), snapshot.regions) if snapshot.regions else None


def transfer_blocks(
    session: BlockSession,
    store: Store,
    areas: Sequence[Area],
    target: Path,
    *,
    parent: BlockIndex | None,
    state: Callable[[Area], DeviceState],
    only: Mapping[Area, Runs | None] = EVERYTHING,
    allow: Callable[[Mapping[Area, UsedBlocks], int], None] | None = None,
    all_read: Callable[[], None] | None = None,
    progress: Progress,
) -> BlockCopy:
    """Copy the blocks in use of these areas, and write the index of them all to `target`.

    An area that `only` has runs for has these read, and blocks in use that the parent knows nothing of; the others are
    as the parent has them. `allow` is told of the maps and of the bytes that will be read before anything is, and may
    raise; `all_read` is called when the source is not needed any more, and may raise too. Whatever ends it, chunks that
    arrived are durable and are not sent again. Memory is bounded, whatever the size. Raises what the session and the
    store raise.
    """
    began = time.monotonic()
    maps = {area: session.used_blocks(area, state(area)) for area in areas}
    plans = [_Plan(session, store, area, maps[area], parent, only.get(area)) for area in areas]
    total = sum(plan.expected_bytes() for plan in plans)
    if allow is not None:
        allow(maps, total)
    reading = time.monotonic()
    regions: list[Region] = []
    reports: list[AreaReport] = []
    done = 0
    with BlockIndexWriter(target) as writer, Delivery(store, session.host, lambda _: None) as delivery:
        for number, plan in enumerate(plans):
            for rows, zeros, count in plan.run(delivery):
                writer.add(number, rows)
                writer.add_zeros(number, zeros)
                done = min(total, done + count)
                progress(done, total, "reading blocks")
            regions.append(plan.region())
            reports.append(plan.report())
        if all_read is not None:
            all_read()
        delivery.settle()
    finished = time.monotonic()
    report = BlockReport(
        areas=tuple(reports),
        bytes_new=delivery.bytes_new,
        bytes_on_wire=session.bytes_on_wire(),
        seconds=finished - began,
        reading_seconds=finished - reading,
    )
    return BlockCopy(tuple(regions), target, report)


@dataclass
class _Plan:
    """One area: what of it is to be read, and how what was read and the parent's rows come together.

    The windows of blocks in use are gone through twice, at their own pace: once when they are asked for, and once when
    their answers are here. Only which blocks of a window were asked for is kept between.
    """

    session: BlockSession
    store: Store
    area: Area
    used: UsedBlocks
    parent: BlockIndex | None
    only: Runs | None
    asked: deque[np.ndarray] = field(default_factory=deque)  # of each window: the places in it that are read
    bytes_read: int = 0
    bytes_changed: int = 0
    bytes_kept: int = 0  # of blocks in the index

    def __post_init__(self) -> None:
        offered = list(self.session.hashes())
        self.hash = offered[0]
        self.number = None
        if self.parent is not None:
            self.number = self.parent.number(self.area.disk, self.area.start, self.area.size_bytes)
            if self.number is not None:
                before = self.parent.regions[self.number]
                if before.hash in offered and before.block_bytes == BLOCK_BYTES:
                    self.hash = before.hash
                else:  # what is known cannot be compared
                    self.number = None
        if self.number is None:
            self.only = None
        self.zeros: Runs = _NO_RUNS
        if self.parent is not None and self.number is not None:
            self.zeros = self.parent.zeros(self.number)

    def expected_bytes(self) -> int:
        """About what will be read."""
        count = self.used.blocks if self.only is None else min(self.used.blocks, int(self.only[:, 1].sum()))
        return min(self.area.size_bytes, count * BLOCK_BYTES)

    def run(self, delivery: Delivery) -> Iterator[tuple[Rows, np.ndarray, int]]:
        """Rows of the index in order, blocks that are zeros, and with each some number of bytes that were read."""
        batches = self.session.read_blocks(self.area, self.hash, self._pieces(), delivery.wanted, delivery.deliver)
        windows = self._windows()
        known = self._cursor()
        told = _Told()
        for batch in batches:
            read = self._lengths(batch.blocks)
            self.bytes_read += read
            told.add(batch)
            yield Rows.none(), batch.blocks[:0], read
            while self.asked and told.count >= len(self.asked[0]):
                yield *self._merged(next(windows), known, self.asked.popleft(), told), 0
        while self.asked:
            yield *self._merged(next(windows), known, self.asked.popleft(), told), 0

    def _windows(self) -> Iterator[np.ndarray]:
        """Blocks in use, some at a time."""
        held: list[tuple[int, int]] = []
        room = PIECE_BLOCKS
        for first, count in self.used.runs:
            at, left = int(first), int(count)
            while left:
                part = min(left, room)
                held.append((at, part))
                at, left, room = at + part, left - part, room - part
                if not room:
                    yield blocks_of(np.array(held, np.uint64))
                    held, room = [], PIECE_BLOCKS
        if held:
            yield blocks_of(np.array(held, np.uint64))

    def _cursor(self) -> Cursor:
        if self.parent is None or self.number is None:
            return Cursor(iter(()))
        return Cursor(self.parent.rows(self.number))

    def _pieces(self) -> Iterator[Piece]:
        cursor = self._cursor()
        for blocks in self._windows():
            here, rows = cursor.take(blocks)
            known = np.zeros((len(blocks), HASH_BYTES), np.uint8)
            if len(rows):
                # A chunk that the store lost is sent again by itself: its block is not known.
                there = np.array(self.store.has([name.tobytes() for name in rows.names]), bool)
                places = np.flatnonzero(here)[there]
                known[places] = rows.hashes[there]
                here = np.zeros(len(blocks), bool)
                here[places] = True
            read = np.ones(len(blocks), bool)
            if self.only is not None:  # what is in use and not known is read too
                read = ~(here | inside(blocks, self.zeros)) | inside(blocks, self.only)
            places = np.flatnonzero(read).astype(np.uint16)
            self.asked.append(places)
            yield Piece(blocks[places], known[places])

    def _merged(self, blocks: np.ndarray, cursor: Cursor, asked: np.ndarray, told: _Told) -> tuple[Rows, np.ndarray]:
        """The rows and the zeros of one window: those that were read as they are now, the others as they were."""
        here, rows = cursor.take(blocks)
        states, fresh_hashes, fresh_names = told.take(len(asked))
        state = np.full(len(blocks), SAME, np.uint8)
        state[asked] = states
        hashes = np.zeros((len(blocks), HASH_BYTES), np.uint8)
        names = np.zeros((len(blocks), rows.names.shape[1]), np.uint8)
        hashes[here], names[here] = rows.hashes, rows.names
        new = state == NEW
        changed = new & ~(here & (names == _spread(new, fresh_names)).all(axis=1))
        hashes[new], names[new] = fresh_hashes, fresh_names
        kept = new | (here & (state == SAME))
        self.bytes_changed += self._lengths(blocks[changed | (here & (state != SAME) & ~new)])
        self.bytes_kept += self._lengths(blocks[kept])
        return Rows(blocks[kept], hashes[kept], names[kept]), blocks[~kept]

    def _lengths(self, blocks: np.ndarray) -> int:
        """Bytes of ascending blocks."""
        if not len(blocks):
            return 0
        return (len(blocks) - 1) * BLOCK_BYTES + self.area.block_length(int(blocks[-1]))

    def region(self) -> Region:
        """What the snapshot says of it."""
        by_records = self.used.rule != "nonzero"
        return Region(
            disk=self.area.disk,
            start=self.area.start,
            size_bytes=self.area.size_bytes,
            device=self.area.device,
            filesystem=self.area.filesystem or self.used.filesystem,
            used_by=self.used.rule,
            used_bytes=min(self.used.used_bytes, self.area.size_bytes) if by_records else self.bytes_kept,
            block_bytes=BLOCK_BYTES,
            hash=self.hash,
        )

    def report(self) -> AreaReport:
        """What became of it."""
        return AreaReport(
            area=self.area,
            rule=self.used.rule,
            reason=self.used.reason,
            used_bytes=self.region().used_bytes,
            bytes_read=self.bytes_read,
            bytes_changed=self.bytes_changed,
            whole=self.only is None,
        )


class _Told:
    """Answers that wait for the rest of their window."""

    def __init__(self) -> None:
        self.count = 0
        self._states: deque[np.ndarray] = deque()
        self._hashes: deque[np.ndarray] = deque()
        self._names: deque[np.ndarray] = deque()

    def add(self, batch: BlockBatch) -> None:
        """Further answers."""
        self.count += len(batch.states)
        self._states.append(batch.states)
        self._hashes.append(batch.hashes)
        self._names.append(batch.names)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states of the next blocks, and hash and SHA-256 of those that are new."""
        self.count -= count
        states = _front(self._states, count, np.empty(0, np.uint8))
        new = int((states == NEW).sum())
        hashes = _front(self._hashes, new, np.empty((0, HASH_BYTES), np.uint8))
        return states, hashes, _front(self._names, new, np.empty((0, 32), np.uint8))


def _front(parts: deque[np.ndarray], count: int, nothing: np.ndarray) -> np.ndarray:
    taken = [nothing]
    while count:
        part = parts.popleft()
        taken.append(part[:count])
        if len(part) > count:
            parts.appendleft(part[count:])
        count -= len(taken[-1])
    return np.concatenate(taken)


def _spread(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values at the marked places, zeros elsewhere."""
    spread = np.zeros((len(places), values.shape[1]), np.uint8)
    spread[places] = values
    return spread
