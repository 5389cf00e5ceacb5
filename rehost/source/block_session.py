"""The face of a source that can be copied block by block, and the areas of its disks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from rehost.agent.block_device import BLOCK_BYTES
from rehost.agent.block_kinds import NEW, SAME, ZERO
from rehost.replication.bundles import Bundle
from rehost.source.inventory import Disk

__all__ = ["BLOCK_BYTES", "NEW", "SAME", "ZERO", "Area", "BlockBatch", "BlockSession", "Piece", "UsedBlocks", "areas"]

DeviceState = Literal["live", "still", "off"]
"""Mounted and written to; frozen, or a snapshot; not mounted."""


@dataclass(frozen=True, slots=True)
class Area:
    """A stretch of a disk that is copied for itself: a partition, a partition table, a gap with boot code."""

    disk: int  # index of the inventory's disk
    start: int  # bytes from the start of that disk
    size_bytes: int
    kind: Literal["table", "gap", "partition"]
    path: str  # the device to read: the partition's own where there is one, as its cache is not that of the disk
    offset: int  # bytes from the start of that device
    device: str | None = None  # of the inventory's partition: "0_2"
    filesystem: str | None = None
    mount_point: str | None = None
    file: bool = False  # `path` is a file, not a device

    @property
    def blocks(self) -> int:
        """How many blocks it has; the last one may be shorter."""
        return -(-self.size_bytes // BLOCK_BYTES)

    def block_length(self, block: int) -> int:
        """Bytes of a block."""
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class UsedBlocks:
    """Which blocks of an area are in use."""

    rule: str  # whose records told: ext4, xfs, btrfs, swap, lvm; `nonzero`: nobody's, so all that are not zeros
    runs: np.ndarray  # u64, shape (n, 2): first block, number of blocks; ascending, apart from each other
    used_bytes: int  # as the filesystem counts them; with `nonzero` the bytes that have to be read
    filesystem: str | None = None
    reason: str = ""  # why it is `nonzero` although there is a filesystem whose records are known

    @property
    def blocks(self) -> int:
        """How many blocks are in use."""
        return int(self.runs[:, 1].sum())


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks that are asked for."""

    blocks: np.ndarray  # u64, ascending; at most PIECE_BLOCKS
    known: np.ndarray  # u8, shape (n, 16): the hash by which each is known; all zeros: it is not


@dataclass(frozen=True, slots=True)
class BlockBatch:
    """What became of blocks, in the order in which they were asked for."""

    blocks: np.ndarray  # u64
    states: np.ndarray  # u8: SAME, ZERO or NEW
    hashes: np.ndarray = field(repr=False)  # u8, shape (number of NEW, 16)
    names: np.ndarray = field(repr=False)  # u8, shape (number of NEW, 32): SHA-256


class BlockSession(Protocol):
    """A source whose blocks can be read. One thing is asked at a time."""

    host: str

    def hashes(self) -> Sequence[str]:
        """What blocks can be compared by, best first: xxh3_128, blake2b_128."""
        ...

    def bytes_on_wire(self) -> int:
        """All bytes received from the source so far."""
        ...

    def used_blocks(self, area: Area, state: DeviceState) -> UsedBlocks:
        """Which blocks are in use. On a live device this is a hint: what is in memory may not be on it yet."""
        ...

    def read_blocks(
        self,
        area: Area,
        hash_name: str,
        pieces: Iterable[Piece],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[BlockBatch]:
        """Read blocks and compare them with what is known; new ones that are wanted go to `deliver`.

        A chunk is delivered before the batch that names it is yielded. Bundles are verified by who takes them.
        """
        ...


def areas(disk: Disk, *, file: bool = False) -> tuple[Area, ...]:
    """All of a disk, in order, without gaps: tables, what is between partitions, and the partitions.

    The first area holds the MBR's boot code and the primary GPT, and a gap up to the first partition the core of a
    boot loader; the last one the GPT's backup. An extended partition holds others: what is not theirs is gaps.
    """
    found: list[Area] = []

    def between(start: int, end: int) -> None:
        if end > start:
            kind: Literal["table", "gap"] = "table" if start == 0 or end == disk.size_bytes else "gap"
            found.append(Area(disk.index, start, end - start, kind, disk.path, start, file=file))

    at = 0
    inside = [part for part in disk.partitions if (part.type or "").lower() not in ("0x05", "0x0f", "0x85")]
    for part in sorted(inside, key=lambda part: part.start):
        if part.start < at:
            continue  # it lies over another; the kernel allows that, a server does not do it
        between(at, part.start)
        own = not file and part.path != disk.path  # an image has no devices of its partitions
        found.append(
            Area(
                disk.index,
                part.start,
                part.size_bytes,
                "partition",
                part.path if own else disk.path,
                0 if own else part.start,
                device=part.device,
                filesystem=part.filesystem,
                mount_point=part.mount_point,
                file=file,
            )
        )
        at = part.start + part.size_bytes
    between(at, disk.size_bytes)
    return tuple(found)


def runs_of(blocks: np.ndarray) -> np.ndarray:
    """Ascending block numbers as runs (first, number): u64, shape (n, 2)."""
    if not len(blocks):
        return np.empty((0, 2), np.uint64)
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    firsts = np.concatenate([[0], breaks])
    counts = np.diff(np.concatenate([firsts, [len(blocks)]]))
    return np.stack([blocks[firsts], counts.astype(np.uint64)], axis=1)


def blocks_of(runs: np.ndarray) -> np.ndarray:
    """The block numbers of runs: u64."""
    counts = runs[:, 1].astype(np.int64)
    total = int(counts.sum())
    starts = np.repeat(runs[:, 0].astype(np.int64) - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return (starts + np.arange(total)).astype(np.uint64)
