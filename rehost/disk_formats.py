"""The formats of a disk image: one table for the catalog, the builder, the test boots and the downloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DiskFormat = Literal["qcow2", "qcow2-plain", "raw", "vhd", "vhd-dynamic"]


@dataclass(frozen=True)
class FormatKind:
    """One format."""

    driver: str  # as QEMU's programs call it
    ending: str  # of file names, behind the dot; two formats of one disk have different ones
    media_type: str  # as the shared MIME-info database of freedesktop.org has them
    options: tuple[str, ...] = ()  # of `qemu-img convert -o`
    compressed: bool = False
    most_bytes: int | None = None  # of the disk inside
    multiple: int = 512  # of the disk inside, in bytes


_QCOW2 = "application/x-qemu-disk"
_VHD = "application/x-vhd-disk"
# 2,040 GiB: the block table of a dynamic VHD has no more, and importers take no larger fixed one.
_VHD_BYTES = 2040 << 30
_VHD_MULTIPLE = 1 << 20  # importers like Azure's take no other size

KINDS: Mapping[DiskFormat, FormatKind] = {
    "qcow2": FormatKind("qcow2", "qcow2", _QCOW2, ("compression_type=zstd",), compressed=True),
    # Version 2 of the format, which has no feature bits, and no compressed cluster: whatever reads qcow2 reads it.
    "qcow2-plain": FormatKind("qcow2", "plain.qcow2", _QCOW2, ("compat=0.10",)),
    "raw": FormatKind("raw", "raw", "application/x-raw-disk-image"),
    # A fixed VHD is the raw disk and a footer of 512 bytes; without force_size sizes are rounded to whole cylinders.
    "vhd": FormatKind(
        "vpc", "vhd", _VHD, ("subformat=fixed", "force_size=on"), most_bytes=_VHD_BYTES, multiple=_VHD_MULTIPLE
    ),
    "vhd-dynamic": FormatKind(
        "vpc",
        "dynamic.vhd",
        _VHD,
        ("subformat=dynamic", "force_size=on"),
        most_bytes=_VHD_BYTES,
        multiple=_VHD_MULTIPLE,
    ),
}


def driver_of(name: str) -> str:
    """QEMU's name of that format. Raises KeyError for an unknown one."""
    return {str(known): kind.driver for known, kind in KINDS.items()}[name]


def media_type_of(name: str) -> str:
    """The media type of a file in that format; raw's for one that is not known."""
    return {str(known): kind.media_type for known, kind in KINDS.items()}.get(name, KINDS["raw"].media_type)


def ending_of(name: str) -> str:
    """What a file of that format ends in; the name itself for one that is not known."""
    return {str(known): kind.ending for known, kind in KINDS.items()}.get(name, name)
