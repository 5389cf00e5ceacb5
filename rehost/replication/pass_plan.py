"""How a pass takes each partition: block by block, by its files, or not at all.

A disk on which a partition was chosen keeps its layout. So everything of it comes along in blocks that no file of a
volume stands for: tables, boot loaders, the EFI system partition, swap, what is not mounted, what nobody knows.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rehost.replication.manifest import SCAN_SCHEMA
from rehost.source.inventory import Disk, Inventory, Partition, Volume
from rehost.source.layers import devices_under

FILE_FILESYSTEMS = ("ext2", "ext3", "ext4")  # what is made anew from files, in its old place


@dataclass(frozen=True)
class PassPlan:
    """What a pass copies, and how."""

    disks: tuple[int, ...]  # that keep their layout, by index
    partitions: frozenset[str]  # of these disks, in blocks: "0_2"
    volumes: tuple[Volume, ...]  # whose files are copied
    in_blocks: tuple[Volume, ...]  # that come along in blocks


def plan_pass(inventory: Inventory, chosen: Collection[str]) -> PassPlan:
    """Decide for each partition; `chosen` are the devices that are asked for in blocks."""
    disks = [disk for disk in inventory.disks if any(p.device in chosen for p in disk.partitions)]
    partitions = {p for disk in disks for p in disk.partitions if _in_blocks(p, inventory, chosen)}
    paths = {partition.path for partition in partitions}
    in_blocks = [v for v in inventory.volumes if paths & devices_under(v.device, inventory)]
    return PassPlan(
        disks=tuple(disk.index for disk in disks),
        partitions=frozenset(partition.device for partition in partitions),
        volumes=tuple(volume for volume in inventory.volumes if volume not in in_blocks),
        in_blocks=tuple(in_blocks),
    )


def _in_blocks(partition: Partition, inventory: Inventory, chosen: Collection[str]) -> bool:
    if partition.device in chosen:
        return True
    return not any(
        volume.device == partition.path and volume.filesystem in FILE_FILESYSTEMS for volume in inventory.volumes
    )


def conflicts(disk: Disk, inventory: Inventory, chosen: Collection[str]) -> Iterator[tuple[Partition, str]]:
    """Partitions that were not chosen, of a disk whose layout is kept, and that can only come along in blocks.

    That is said, not done: which files of a server are copied is never decided behind its owner's back.
    """
    for partition in disk.partitions:
        if partition.device in chosen:
            continue
        for volume in inventory.volumes:
            if volume.device == partition.path:
                if volume.filesystem not in (*FILE_FILESYSTEMS, "vfat", "msdos"):
                    yield partition, f"{volume.mount_point} is {volume.filesystem}, for which there is no writer"
                    break
            elif partition.path in devices_under(volume.device, inventory):
                yield partition, f"{volume.mount_point} lies on it through LVM, mdraid or LUKS"
                break


def with_places(batches: Iterable[pa.RecordBatch], volumes: Sequence[Volume]) -> Iterator[pa.RecordBatch]:
    """A scan of these volumes (SCAN_SCHEMA, sorted by path) with the directories above them that are in none.

    A manifest begins with the root and has every parent; where the root is in blocks no scan tells of them.
    """
    missing = _places(volumes)
    for batch in batches:
        paths = batch["path"]
        start = 0
        while missing and batch.num_rows > start and missing[0] < paths[batch.num_rows - 1].as_py():
            at = next(n for n in range(start, batch.num_rows) if paths[n].as_py() > missing[0])
            if at > start:
                yield batch.slice(start, at - start)
            yield _directory(missing.pop(0))
            start = at
        if batch.num_rows > start:
            yield batch.slice(start)
    for path in missing:
        yield _directory(path)


def _places(volumes: Sequence[Volume]) -> list[bytes]:
    points = {volume.mount_point.strip("/").encode("utf-8", "surrogateescape") for volume in volumes}
    above = set() if b"" in points else {b""}
    for point in () if b"" in points else points:
        parts = point.split(b"/")
        above |= {b"/".join(parts[:depth]) for depth in range(1, len(parts))}
    # A place within a volume is told by that volume's own scan.
    return sorted(path for path in above if not any(path == p or path.startswith(p + b"/") for p in points))


def _directory(path: bytes) -> pa.RecordBatch:
    row: dict[str, Any] = {field.name: 0 for field in SCAN_SCHEMA if pa.types.is_integer(field.type)}
    row |= {"path": path, "mode": stat.S_IFDIR | 0o755, "target": None, "xattrs": [], "nlink": 2}
    return pa.RecordBatch.from_pylist([row], schema=SCAN_SCHEMA)
