"""The record of a disk image, which is also its image.json."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rehost.disk_formats import DiskFormat
from rehost.source.inventory import Record

Firmware = Literal["bios", "uefi"]


class DiskFile(Record):
    """One disk in one format."""

    index: int
    role: Literal["system", "data"]
    format: DiskFormat
    virtual_size: int  # bytes of the disk
    file_size: int  # bytes of the file
    sha256: str
    location: str  # absolute path of the file


class ImagePartition(Record):
    """One partition of the system disk; places in bytes."""

    number: int
    role: Literal["bios", "esp", "filesystem", "swap", "other"]
    start: int
    size_bytes: int
    type: str  # GUID of GPT, or the MBR's byte: 0x83
    guid: str  # as PARTUUID= names it
    filesystem: str | None
    uuid: str | None
    label: str | None
    mount_point: str | None
    source_device: str | None  # "0_1"


class ImageFixup(Record):
    """What a fix-up did, and why."""

    name: str
    about: str
    changes: int
    diff: str = ""  # unified, up to 16 KiB; content that is closed to others is named, not shown


class DiskImage(Record):
    """A finished disk image; image.json beside its files says the same."""

    kind: Literal["disk"] = "disk"
    id: str
    name: str
    disks: tuple[DiskFile, ...]
    boot_modes: tuple[Firmware, ...]
    architecture: str
    os: str
    disk_guid: str  # of GPT; the signature of an MBR in eight digits; empty without a table
    partitions: tuple[ImagePartition, ...]
    source_id: str | None
    snapshot_id: str | None
    created_at: datetime
    fixups: tuple[ImageFixup, ...]
    fixups_diff: str  # absolute path
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SystemDisk:
    """What a builder says of the system disk that it made; `diff` shows the edits of its files to people."""

    boot_modes: tuple[Firmware, ...]
    disk_guid: str
    partitions: tuple[ImagePartition, ...]
    fixups: tuple[ImageFixup, ...]
    diff: str
    warnings: tuple[str, ...]
