"""Where everything lies on the disk: partitions with their places and ids, aligned to 1 MiB.

The order is BIOS boot, EFI system, the filesystems by mount point, swap, and the root last, so that it can grow when
the disk does.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import ESP_TYPE, Filesystem, Selection, SwapArea, derived_uuid
from rehost.errors import BuildDiskTooSmall
from rehost.source.inventory import Inventory

MIB = 1 << 20
GIB = 1 << 30
ALIGNMENT = MIB
BIOS_BOOT_BYTES = MIB
ESP_BYTES = 100 * MIB
_HEAD_BYTES = MIB  # the protective MBR and the table lie before the first partition
_TAIL_BYTES = MIB  # the backup table needs 33 sectors at the end
_SWAP_LEAST_BYTES = 64 * MIB
_LARGEST_BYTES = 16 << 40  # of ext4 without 64-bit block numbers, and of what the clouds take

BIOS_BOOT_TYPE = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
LINUX_TYPE = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
SWAP_TYPE = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")

Role = Literal["bios", "esp", "filesystem", "swap"]


@dataclass(frozen=True)
class PlannedPartition:
    """One partition; `start` and `size_bytes` are in bytes, multiples of 1 MiB."""

    number: int
    role: Role
    start: int
    size_bytes: int
    type_guid: uuid.UUID
    guid: uuid.UUID
    name: str
    filesystem: Filesystem | None = None
    swap: SwapArea | None = None


@dataclass(frozen=True)
class Layout:
    """A whole disk."""

    size_bytes: int
    disk_guid: uuid.UUID
    partitions: tuple[PlannedPartition, ...]

    def of_role(self, role: Role) -> tuple[PlannedPartition, ...]:
        return tuple(p for p in self.partitions if p.role == role)


def lay_out(
    selection: Selection, needed: Mapping[str, int], inventory: Inventory, request: DiskRequest
) -> tuple[Layout, tuple[str, ...]]:
    """The layout, and warnings.

    `needed` gives the least size in bytes of each filesystem by mount point. Raises BuildDiskTooSmall with the figures.
    """
    least = {f.mount_point: _up(needed[f.mount_point]) for f in selection.filesystems}
    fixed = _HEAD_BYTES + _TAIL_BYTES
    fixed += BIOS_BOOT_BYTES if selection.boot_mode in ("bios", "both") else 0
    fixed += ESP_BYTES if selection.has_esp else 0
    size = _disk_bytes(selection, fixed + sum(least.values()), inventory, request)
    sizes, warnings = _sizes(selection, least, size - fixed, request)
    ids = (inventory.hostname, selection.boot_mode, size, *(f"{f.mount_point}={f.uuid}" for f in selection.filesystems))
    partitions: list[PlannedPartition] = []
    at = _HEAD_BYTES

    def add(
        role: Role,
        size_bytes: int,
        type_guid: uuid.UUID,
        name: str,
        filesystem: Filesystem | None = None,
        swap: SwapArea | None = None,
    ) -> None:
        nonlocal at
        number = len(partitions) + 1
        is_root = filesystem is selection.root
        guid = selection.root_partition_guid if is_root else derived_uuid("partition", number, *ids)
        partitions.append(PlannedPartition(number, role, at, size_bytes, type_guid, guid, name, filesystem, swap))
        at += size_bytes

    if selection.boot_mode in ("bios", "both"):
        add("bios", BIOS_BOOT_BYTES, BIOS_BOOT_TYPE, "BIOS boot")
    if selection.has_esp:
        add("esp", ESP_BYTES, uuid.UUID(ESP_TYPE), "EFI system")
    for filesystem in selection.filesystems[1:]:
        add("filesystem", sizes[filesystem.mount_point], LINUX_TYPE, _name(filesystem), filesystem=filesystem)
    for swap in selection.swaps:
        add("swap", sizes[swap.device], SWAP_TYPE, "swap", swap=swap)
    add("filesystem", sizes["/"], LINUX_TYPE, "root", filesystem=selection.root)
    return Layout(size, derived_uuid("disk", *ids), tuple(partitions)), tuple(warnings)


def _disk_bytes(selection: Selection, least: int, inventory: Inventory, request: DiskRequest) -> int:
    system = next((disk for disk in inventory.disks if disk.index == 0), None)
    swap = sum(_SWAP_LEAST_BYTES for _ in selection.swaps)
    if request.size_bytes is not None:
        size = request.size_bytes // ALIGNMENT * ALIGNMENT
    elif system is not None:
        size = system.size_bytes // ALIGNMENT * ALIGNMENT
        if size < least + swap:
            # The source's disk was full, or its volumes lay on several: our own partitions come on top.
            size = -(-(least + swap + 512 * MIB) // GIB) * GIB
    else:
        size = max(-(-(int(least * 1.3) + 512 * MIB) // GIB) * GIB, 4 * GIB)
    if size < least + swap:
        raise BuildDiskTooSmall(what="disk", size_bytes=size, needed_bytes=least + swap)
    if size > _LARGEST_BYTES:
        raise BuildDiskTooSmall(what="disk (16 TiB is the most)", size_bytes=_LARGEST_BYTES, needed_bytes=size)
    return size


def _sizes(
    selection: Selection, least: Mapping[str, int], room: int, request: DiskRequest
) -> tuple[dict[str, int], list[str]]:
    """The size of each filesystem (by mount point) and swap area (by device) within `room` bytes."""
    sizes: dict[str, int] = {}
    wishes: dict[str, int] = {}
    floors = dict(least)
    warnings: list[str] = []
    known: set[str] = set()
    for filesystem in selection.filesystems:
        key, floor = filesystem.mount_point, least[filesystem.mount_point]
        asked = request.partition_sizes.get(filesystem.device or "")
        if filesystem.device:
            known.add(filesystem.device)
        if asked is not None:
            sizes[key] = _down(asked)
            if sizes[key] < floor:
                raise BuildDiskTooSmall(what=f"partition for {key}", size_bytes=asked, needed_bytes=floor)
        elif key != "/":
            wishes[key] = max(floor, _up(filesystem.source_bytes or int(floor * 1.3) + 256 * MIB))
    for swap in selection.swaps:
        known.add(swap.device)
        floors[swap.device] = _SWAP_LEAST_BYTES
        asked = request.partition_sizes.get(swap.device)
        if asked is not None:
            sizes[swap.device] = max(_down(asked), ALIGNMENT)
        else:
            wishes[swap.device] = max(_SWAP_LEAST_BYTES, _up(swap.source_bytes))
    for device in sorted(set(request.partition_sizes) - known):
        warnings.append(f"A size was asked for partition {device}, which is not one of this image; it was left aside.")
    rest = room - sum(sizes.values())
    root_floor = 0 if "/" in sizes else floors["/"]
    if rest < root_floor + sum(floors[key] for key in wishes):
        needed = sum(sizes.values()) + root_floor + sum(floors[key] for key in wishes)
        raise BuildDiskTooSmall(what="disk", size_bytes=room, needed_bytes=needed)
    over = root_floor + sum(wishes.values()) - rest
    spare = sum(wishes[key] - floors[key] for key in wishes)
    if over > 0:
        # Too much was wished for: each gives up its part of what it does not need.
        for key in wishes:
            wishes[key] = max(floors[key], _down(wishes[key] - over * (wishes[key] - floors[key]) // spare - 1))
        warnings.append("The disk is too small for the source's partition sizes; all but the root became smaller.")
    sizes |= wishes
    sizes.setdefault("/", _down(rest - sum(wishes.values())))
    return sizes, warnings


def _name(filesystem: Filesystem) -> str:
    """The partition's name in the table: the mount point, where it is plain."""
    name = filesystem.mount_point[1:37]
    return name if name.isascii() and name.isprintable() else "filesystem"


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _down(size: int) -> int:
    return size // ALIGNMENT * ALIGNMENT
