"""What is asked of the disk builder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Format = Literal["qcow2", "raw", "vhd"]
BootMode = Literal["bios", "uefi", "both"]


@dataclass(frozen=True)
class DiskRequest:
    """A disk image to be made. Sizes are in bytes; those not given follow from the source."""

    image_id: str
    name: str
    formats: tuple[Format, ...] = ("qcow2",)
    boot_mode: BootMode = "both"
    size_bytes: int | None = None
    partition_sizes: Mapping[str, int] = field(default_factory=dict)  # device of the source "0_1": bytes
    source_id: str | None = None
    snapshot_id: str | None = None
