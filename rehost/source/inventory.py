"""What is known of a server: the inventory of the public contract, as frozen records that are also its JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen record; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Partition(Record):
    """One partition, or the whole disk where it has no table."""

    path: str  # /dev/vda1; for a disk image, its file with #1
    device: str  # disk and partition by number: "0_1"
    start: int  # bytes from the start of the disk
    size_bytes: int
    type: str | None = None  # GUID of GPT, hex byte of MBR
    filesystem: str | None = None  # as blkid names it: ext4, xfs, vfat, swap, LVM2_member, crypto_LUKS
    uuid: str | None = None
    label: str | None = None
    mount_point: str | None = None
    used_bytes: int | None = None
    can_block: bool = False
    cannot_block_reason: str | None = None


class Disk(Record):
    """One disk of the source."""

    index: int  # 0 is the system disk, data disks from 1
    path: str
    size_bytes: int
    table: Literal["gpt", "dos"] | None = None
    partitions: tuple[Partition, ...] = ()


class Interface(Record):
    """One network interface and how its addresses came."""

    name: str
    mac: str | None = None
    addresses: tuple[str, ...] = ()  # with prefix length: 192.0.2.7/24
    gateway: str | None = None
    method: Literal["static", "dhcp", "unknown"] = "unknown"


class Listener(Record):
    """A socket on which the server listens."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    process: str | None = None
    unit: str | None = None


class Layer(Record):
    """A device made of others: LVM, mdraid, LUKS."""

    kind: Literal["lvm", "mdraid", "luks"]
    path: str
    members: tuple[str, ...] = ()
    size_bytes: int | None = None


class Volume(Record):
    """A mounted filesystem that a snapshot takes files from; the manifest's `volume` column counts these."""

    mount_point: str  # absolute: "/", "/home"
    filesystem: str
    uuid: str | None = None
    label: str | None = None
    size_bytes: int
    used_bytes: int
    device: str | None = None  # the partition's path, where it is on one
    options: str = ""


class Inventory(Record):
    """A server as it was found."""

    hostname: str
    os_id: str  # of os-release: debian
    os_version: str | None = None
    os_name: str | None = None  # PRETTY_NAME
    kernel: str | None = None
    architecture: str  # as uname -m: x86_64
    boot_mode: Literal["bios", "uefi", "unknown"] = "unknown"
    kernel_command_line: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    init: str | None = None  # systemd, openrc, sysvinit
    interfaces: tuple[Interface, ...] = ()
    disks: tuple[Disk, ...] = ()
    layers: tuple[Layer, ...] = ()
    volumes: tuple[Volume, ...] = Field((), description="root first, then by mount point")
    listeners: tuple[Listener, ...] = ()
    failed_units: tuple[str, ...] = ()  # units that fail on the source too
    active_services: tuple[str, ...] = ()  # running systemd services
    tools: dict[str, str] = Field(default_factory=dict)  # name of a tool: where it is
