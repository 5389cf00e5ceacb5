"""What of a server moves onto the image's disk: filesystems, swap areas, the EFI system partition; and what does not.

This comes before any size is known: fix-ups need the UUIDs alone, sizes need the tree that the fix-ups made.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from image_builders.disk.request import DiskRequest
from rehost.errors import BuildUnsupported
from rehost.replication.tree import printable
from rehost.source.inventory import Inventory, Partition, Volume
from rehost.source.layers import devices_under, disks_under

ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
_NAMESPACE = uuid.UUID("5b0f5b3e-6a0f-5d0c-9a55-6b1f3f6f7a10")  # of every id that is derived, drawn once at random
_KEPT_FILESYSTEMS = ("ext2", "ext3", "ext4")
_LABEL_BYTES = 16  # of ext4 and of swap areas
_MOUNT_POINT = re.compile(r"/(?!.*//)(?:[^\0]*[^/\0])?")


@dataclass(frozen=True)
class Filesystem:
    """A volume of the manifest that gets a partition of its own, as ext4."""

    mount_point: str  # absolute: "/", "/home"
    uuid: uuid.UUID
    label: str
    device: str | None  # disk and partition of the source: "0_1"; None where it was on no partition
    source_bytes: int | None  # the size that it had on the source, where a partition or volume was known

    @property
    def disk(self) -> int | None:
        """The index of its disk, where it is on a partition."""
        return int(self.device.partition("_")[0]) if self.device else None


@dataclass(frozen=True)
class SwapArea:
    """A swap partition that is made anew, empty, under its old UUID."""

    uuid: uuid.UUID
    label: str
    device: str
    source_bytes: int


@dataclass(frozen=True)
class Dropped:
    """A volume that does not come along, and why: its rows leave the tree, its mount point stays as a directory."""

    mount_point: str
    reason: str


@dataclass(frozen=True)
class Copied:
    """What comes along block by block, beside the files: disks by index, and the mounts of volumes on their blocks.

    `mounts` has the volume's UUID (as fstab writes it) by mount point, None where it is not known.
    """

    disks: frozenset[int] = frozenset()
    mounts: Mapping[str, str | None] = field(default_factory=dict)
    part_uuids: Mapping[str, str] = field(default_factory=dict)  # PARTUUID by device, of partitions that keep theirs

    def holds(self, path: bytes) -> bool:
        """Whether that path of the tree (relative to the root) lies on a volume that is copied by blocks."""
        absolute = b"/" + path
        return any(m != "/" and _holds(m.encode("utf-8", "surrogateescape"), absolute) for m in self.mounts)


NOTHING_COPIED = Copied()


@dataclass(frozen=True)
class Selection:
    """What moves. `filesystems` has the root first, then the others by mount point."""

    filesystems: tuple[Filesystem, ...]
    swaps: tuple[SwapArea, ...]
    dropped: tuple[Dropped, ...]
    boot_mode: str
    esp_mount_point: str | None  # where the source had its EFI system partition
    esp_serial: int  # 32 bits; the FAT's serial number
    warnings: tuple[str, ...]
    copied: Copied = NOTHING_COPIED

    @property
    def root(self) -> Filesystem:
        return self.filesystems[0]

    @property
    def has_esp(self) -> bool:
        return self.boot_mode in ("uefi", "both")

    @property
    def esp_uuid(self) -> str:
        """As blkid and fstab write it: 1A2B-3C4D."""
        return f"{self.esp_serial >> 16:04X}-{self.esp_serial & 0xFFFF:04X}"

    @property
    def root_partition_guid(self) -> uuid.UUID:
        """The root partition's id in the table, for kernels that have no initramfs to search for a UUID."""
        return derived_uuid("root partition", self.root.uuid, self.esp_serial)

    @property
    def root_part_uuid(self) -> str:
        """PARTUUID= of the root: its partition's own where that is kept."""
        return self.copied.part_uuids.get(self.root.device or "") or str(self.root_partition_guid)

    def filesystem_of(self, path: bytes) -> Filesystem:
        """The filesystem that holds a path of the tree (relative to the root)."""
        absolute = b"/" + path
        holders = [f for f in self.filesystems if _holds(f.mount_point.encode("utf-8", "surrogateescape"), absolute)]
        return max(holders, key=lambda f: len(f.mount_point))


def _holds(mount_point: bytes, absolute: bytes) -> bool:
    return mount_point == b"/" or absolute == mount_point or absolute.startswith(mount_point + b"/")


def derived_uuid(*parts: object) -> uuid.UUID:
    """A UUID that follows from these parts alone, so that the same inputs make the same image."""
    return uuid.uuid5(_NAMESPACE, "\0".join(str(part) for part in parts))


def select(inventory: Inventory, request: DiskRequest, copied: Copied = NOTHING_COPIED) -> Selection:
    """What of this server moves to the image as files: the volumes of the system disk, and of disks in `copied`.

    Volumes that are copied by blocks are not among them. Raises BuildUnsupported for an architecture other than x86_64,
    for a filesystem that has no writer, and for mount points that cannot be.
    """
    if inventory.architecture not in ("x86_64", "amd64"):
        raise BuildUnsupported(
            what="A disk image",
            reason=f"the source is {printable(inventory.architecture.encode())}, only x86_64 has a boot loader here",
        )
    partitions = {p.path: p for disk in inventory.disks for p in disk.partitions}
    volumes = inventory.volumes or (Volume(mount_point="/", filesystem="ext4", size_bytes=0, used_bytes=0),)
    kept: list[Filesystem] = []
    dropped: list[Dropped] = []
    warnings: list[str] = []
    esp_mount_point: str | None = None
    seen_mounts: set[str] = set()
    seen_uuids: set[uuid.UUID] = set()
    for volume in sorted(volumes, key=lambda v: (v.mount_point != "/", v.mount_point)):
        shown = printable(volume.mount_point.encode("utf-8", "surrogateescape"))
        parts = volume.mount_point.split("/")
        if not _MOUNT_POINT.fullmatch(volume.mount_point) or "." in parts or ".." in parts:
            raise BuildUnsupported(what="A disk image", reason=f"{shown} is no mount point")
        if volume.mount_point in seen_mounts:
            raise BuildUnsupported(what="A disk image", reason=f"two volumes are mounted at {shown}")
        seen_mounts.add(volume.mount_point)
        if volume.mount_point in copied.mounts:
            continue
        partition = partitions.get(volume.device or "")
        if _is_esp(volume, partition):
            if volume.mount_point == "/boot":
                raise BuildUnsupported(
                    what="A disk image", reason="/boot is the EFI system partition, so the kernels lie on FAT"
                )
            esp_mount_point = esp_mount_point or volume.mount_point
            dropped.append(Dropped(volume.mount_point, "the EFI system partition is made anew"))
            continue
        disks = disks_under(volume.device, inventory)
        if volume.mount_point != "/" and disks and not disks & {0, *copied.disks}:
            dropped.append(Dropped(volume.mount_point, f"it is on data disk {min(disks)}, which is not in this image"))
            warnings.append(f"{shown} is on data disk {min(disks)} and is not in this image.")
            continue
        if volume.filesystem not in _KEPT_FILESYSTEMS and inventory.disks:
            raise BuildUnsupported(
                what="A disk image",
                reason=f"{shown} is {printable(volume.filesystem.encode())}, and there is a writer for ext4 alone",
            )
        if any(
            layer.kind == "luks" and layer.path in devices_under(volume.device, inventory) for layer in inventory.layers
        ):
            warnings.append(f"{shown} is encrypted on the source and is not encrypted in the image.")
        own = uuid_of(volume.uuid)
        if own is None or own in seen_uuids:
            own = derived_uuid("filesystem", inventory.hostname, volume.mount_point, volume.uuid)
        seen_uuids.add(own)
        size = partition.size_bytes if partition else volume.size_bytes
        kept.append(
            Filesystem(
                mount_point=volume.mount_point,
                uuid=own,
                label=label_of(volume.label),
                device=partition.device if partition else None,
                source_bytes=size if size > 0 and inventory.disks else None,
            )
        )
    if not kept or kept[0].mount_point != "/":
        raise BuildUnsupported(what="A disk image", reason="the source has no root volume")
    inputs = [inventory.hostname, request.boot_mode, *(f"{f.mount_point}={f.uuid}" for f in kept)]
    return Selection(
        filesystems=tuple(kept),
        swaps=tuple(_swaps(inventory, seen_uuids)),
        dropped=tuple(dropped),
        boot_mode=request.boot_mode,
        esp_mount_point=esp_mount_point,
        esp_serial=derived_uuid("esp", *inputs).int & 0xFFFFFFFF,
        warnings=tuple(warnings),
        copied=copied,
    )


def _is_esp(volume: Volume, partition: Partition | None) -> bool:
    if volume.filesystem not in ("vfat", "msdos"):
        return False
    typed = partition is not None and (partition.type or "").lower() in (ESP_TYPE, "ef", "0xef")
    return typed or volume.mount_point in ("/boot/efi", "/efi", "/boot")


def _swaps(inventory: Inventory, taken: set[uuid.UUID]) -> list[SwapArea]:
    found: list[SwapArea] = []
    for partition in (p for disk in inventory.disks if disk.index == 0 for p in disk.partitions):
        own = uuid_of(partition.uuid)
        if partition.filesystem != "swap" or own is None or own in taken:
            continue
        taken.add(own)
        found.append(SwapArea(own, label_of(partition.label), partition.device, partition.size_bytes))
    return found


def uuid_of(text: str | None) -> uuid.UUID | None:
    """The UUID that a text of the source says; None where it says none."""
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        return None


def label_of(text: str | None) -> str:
    """A label that ext4 and swap areas can hold; one that is too long or not printable is left out."""
    label = text or ""
    return label if label.isprintable() and len(label.encode("utf-8", "surrogateescape")) <= _LABEL_BYTES else ""
