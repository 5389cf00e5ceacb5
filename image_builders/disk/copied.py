"""Disks that are copied block by block: what is decided before anything is written.

The layout of such a disk is kept. What is not in a region is a partition whose files were copied, and is made anew in
its own place; or it is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from image_builders.disk.gpt import SECTOR
from image_builders.disk.regions import Blocks, check_regions
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import Copied
from rehost.disk_formats import KINDS
from rehost.errors import BuildDiskTooSmall, BuildUnsupported
from rehost.replication.tree import printable
from rehost.source.inventory import Disk, Inventory, Partition
from rehost.source.layers import devices_under


@dataclass(frozen=True)
class CopiedDisk:
    """One disk to be put together from blocks."""

    disk: Disk
    size_bytes: int  # of the image's disk, a multiple of 512
    regions: tuple[int, ...]  # their numbers
    in_blocks: frozenset[str]  # devices of partitions that a region holds: "0_2"

    @property
    def index(self) -> int:
        return self.disk.index

    @property
    def in_files(self) -> tuple[Partition, ...]:
        """The partitions that no region holds."""
        return tuple(p for p in self.disk.partitions if p.device not in self.in_blocks)


def copied_disks(inventory: Inventory, blocks: Blocks, request: DiskRequest) -> tuple[CopiedDisk, ...]:
    """The disks that the regions lie on, by index.

    Raises ManifestInvalid for regions that lie on no disk or on each other, BuildDiskTooSmall where a disk is to be
    smaller than the source's, BuildUnsupported for an architecture other than x86_64.
    """
    if inventory.architecture not in ("x86_64", "amd64"):
        shown = printable(inventory.architecture.encode("utf-8", "replace"))
        raise BuildUnsupported(what="A disk image", reason=f"the source is {shown}, not x86_64")
    check_regions(blocks.regions, {disk.index: disk.size_bytes for disk in inventory.disks})
    found = []
    for disk in sorted(inventory.disks, key=lambda disk: disk.index):
        numbers = tuple(n for n, region in enumerate(blocks.regions) if region.disk == disk.index)
        if not numbers or disk.index in request.left_out:
            continue
        unit = max(KINDS[name].multiple for name in (*request.formats, "raw"))
        own = -(-disk.size_bytes // unit) * unit
        size = request.size_bytes if disk.index == 0 else request.data_sizes.get(disk.index)
        size = own if size is None else size // SECTOR * SECTOR
        if size < own:
            raise BuildDiskTooSmall(
                what=f"disk {disk.index}, which is copied block by block,", size_bytes=size, needed_bytes=own
            )
        devices = frozenset(p.device for p in disk.partitions if _is_held(p, disk.index, blocks))
        found.append(CopiedDisk(disk, size, numbers, devices))
    return tuple(found)


def _is_held(partition: Partition, disk: int, blocks: Blocks) -> bool:
    """Whether one region holds the whole partition."""
    end = partition.start + partition.size_bytes
    return any(r.disk == disk and r.start <= partition.start and end <= r.start + r.size_bytes for r in blocks.regions)


def copied_mounts(
    inventory: Inventory, disks: tuple[CopiedDisk, ...], part_uuids: dict[str, str] | None = None
) -> Copied:
    """What of the server's mounts lies on those blocks, also through LVM, mdraid and LUKS."""
    held = {
        partition.path: partition
        for disk in disks
        for partition in disk.disk.partitions
        if partition.device in disk.in_blocks
    }
    mounts = {
        volume.mount_point: volume.uuid
        for volume in inventory.volumes
        if held.keys() & devices_under(volume.device, inventory)
    }
    return Copied(frozenset(disk.index for disk in disks), mounts, part_uuids or {})
