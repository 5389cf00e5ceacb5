"""What is asked of the disk builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rehost.disk_formats import DiskFormat

BootMode = Literal["bios", "uefi", "both"]


@dataclass(frozen=True)
class DiskRequest:
    """A disk image to be made. Sizes are in bytes; those not given follow from the source.

    `boot_mode` both: where the disk is copied by blocks, whatever it has.
    """

    image_id: str
    name: str
    formats: tuple[DiskFormat, ...] = ("qcow2",)
    boot_mode: BootMode = "both"
    size_bytes: int | None = None
    partition_sizes: Mapping[str, int] = field(default_factory=dict)  # device of the source "0_1": bytes
    data_sizes: Mapping[int, int] = field(default_factory=dict)  # index of a data disk that was copied by blocks: bytes
    left_out: frozenset[int] = frozenset()  # data disks that are in no image, though the snapshot may have them
    source_id: str | None = None
    snapshot_id: str | None = None
