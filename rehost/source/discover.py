"""From the facts that the agent gathered to the inventory of the public contract.

The agent tells what it read; what that means is decided here: which disk is the system disk, which mounts are
volumes, what can be replicated by blocks. Facts are hostile: see `facts`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from rehost.errors import SourceProtocol
from rehost.source.facts import Facts, clean
from rehost.source.inventory import Disk, Interface, Inventory, Layer, Listener, Partition, Volume
from rehost.source.system_files import Method, network_methods, parse_fstab, parse_os_release

BLOCK_FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "swap")
VOLUME_FILESYSTEMS = (*BLOCK_FILESYSTEMS[:-1], "vfat")

_TEXT = 65_536
_DEVICES = 1000
_MOUNTS = 1000
_EXTENDED_TYPES = ("0x05", "0x0f", "0x85")
_ARCHITECTURES = r"[A-Za-z0-9_]{1,32}"


def cannot_block_reason(
    filesystem: str | None, *, type: str | None = None, mounted: bool = False, member: bool = False, needs: str = ""
) -> str | None:
    """Why a partition cannot be replicated by blocks; None where it can.

    `type` is the partition's, `member` says that another device is made of it, `needs` what else its filesystem needs.
    What nobody's records tell of is read whole, but only where nobody writes to it meanwhile.
    """
    if needs:
        return f"its filesystem has {needs}"
    if filesystem == "linux_raid_member":
        return "it is part of an mdraid array"
    if (type or "").lower() in _EXTENDED_TYPES:
        return "it is an extended partition: the partitions inside are replicated"
    if filesystem in BLOCK_FILESYSTEMS or filesystem in ("LVM2_member", "crypto_LUKS"):
        return None
    if mounted:
        return f"it is mounted, and which blocks {filesystem or 'its filesystem'} uses is not known"
    return "another device is made of it, and which of its blocks are in use is not known" if member else None


def inventory_of(facts: dict[str, Any], host: str = "the source") -> Inventory:
    """The inventory that these facts tell of. `host` is for messages.

    Raises SourceProtocol for a fact of a wrong type, length or range, and where a server's root is missing.
    """
    told = Facts(facts, host)
    os_release = parse_os_release(told.raw("os_release", _TEXT))
    devices = _devices(told)
    mounts = _mounts(told)
    if told.flag("running") and not any(mount.mount_point == "/" for mount in mounts):
        raise SourceProtocol(host=host, reason="nothing is mounted at /")
    disks = _disks(devices, mounts, host)
    boot_mode = told.text("boot_mode") or "unknown"
    architecture = told.text("architecture") or "unknown"
    if not re.fullmatch(_ARCHITECTURES, architecture):
        raise told.wrong("architecture", "is no name of an architecture")
    return Inventory(
        hostname=told.text("hostname") or "unknown",
        os_id=os_release.get("ID") or "unknown",
        os_version=os_release.get("VERSION_ID"),
        os_name=os_release.get("PRETTY_NAME"),
        kernel=told.text("kernel"),
        architecture=architecture,
        boot_mode=cast(Literal["bios", "uefi", "unknown"], boot_mode if boot_mode in ("bios", "uefi") else "unknown"),
        kernel_command_line=told.text("kernel_command_line", 16_384),
        cores=told.number("cores", 1, 65_536),
        memory_bytes=told.number("memory_bytes"),
        init=told.text("init"),
        interfaces=tuple(_interfaces(told)),
        disks=disks,
        layers=tuple(_layers(devices)),
        volumes=tuple(_volumes(told, devices, mounts)),
        listeners=tuple(_listeners(told)),
        failed_units=told.texts("failed_units", 2000),
        active_services=told.texts("active_services", 2000),
        tools={clean(name)[:64]: clean(path) for name, path in told.mapping("tools", 100, 256).items()},
    )


# --- block devices --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Device:
    name: str
    path: str
    number: str  # major:minor
    kind: str
    size_bytes: int
    below: tuple[str, ...]
    partition: int
    start: int
    table: str | None
    types: Mapping[str, str]
    type: str | None
    filesystem: str | None
    uuid: str | None
    label: str | None
    needs: str  # what else than this device its filesystem needs
    readable: bool


def _devices(told: Facts) -> dict[str, _Device]:
    found: dict[str, _Device] = {}
    for fact in told.objects("devices", _DEVICES):
        name = fact.text("name")
        if name is None or name in found:
            raise fact.wrong("name", "is missing or there twice")
        found[name] = _Device(
            name=name,
            path=fact.text("path", 4096) or name,
            number=fact.text("number", 32) or "",
            kind=fact.choice("kind", ("disk", "partition", "lvm", "luks", "dm", "mdraid", "virtual")),
            size_bytes=fact.needed_number("size_bytes", 1),
            below=fact.texts("below", 256),
            partition=fact.number("partition", 1, 65_535) or 0,
            start=fact.number("start") or 0,
            table=fact.text("table", 32),
            types={clean(key): clean(value) for key, value in fact.mapping("types", 2048, 64).items()},
            type=fact.text("type", 64),
            filesystem=fact.text("filesystem", 64),
            uuid=fact.text("uuid", 64),
            label=fact.text("label"),
            needs=fact.text("needs", 200) or "",
            readable=not fact.flag("unreadable"),
        )
    return found


def _disks_under(device: _Device, devices: Mapping[str, _Device]) -> list[str]:
    """The names of the whole disks that a device lies on, through every layer."""
    seen: set[str] = set()
    found: list[str] = []
    todo = [device.name]
    while todo:
        name = todo.pop(0)
        if name in seen or name not in devices:
            continue
        seen.add(name)
        todo = [*devices[name].below, *todo]
        if not devices[name].below:
            found.append(name)
    return found


def _disks(devices: Mapping[str, _Device], mounts: Sequence[_Mount], host: str) -> tuple[Disk, ...]:
    root = next((mount for mount in mounts if mount.mount_point == "/"), None)
    by_number = {device.number: device for device in devices.values()}
    root_device = by_number.get(root.number) if root else None
    system = _disks_under(root_device, devices) if root_device else []
    whole = [device for device in devices.values() if device.kind == "disk" or device.name in system]
    # Stable: the others stay in the order in which they were told.
    whole.sort(key=lambda device: system.index(device.name) if device.name in system else len(system))
    mounted = {mount.number: mount for mount in reversed(mounts)}
    return tuple(_disk(index, device, devices, mounted, host) for index, device in enumerate(whole))


def _disk(index: int, disk: _Device, devices: Mapping[str, _Device], mounted: Mapping[str, _Mount], host: str) -> Disk:
    parts = sorted(
        (device for device in devices.values() if device.kind == "partition" and disk.name in device.below),
        key=lambda device: device.partition,
    )
    for part in parts:
        if part.start + part.size_bytes > disk.size_bytes:
            raise SourceProtocol(host=host, reason=f"the partition {part.path} ends beyond its disk")
    members = {name for device in devices.values() if device.kind != "partition" for name in device.below}
    table = disk.table if disk.table in ("gpt", "dos") else None
    if not parts and (disk.filesystem or disk.number in mounted):
        parts = [disk]
    return Disk(
        index=index,
        path=disk.path,
        size_bytes=disk.size_bytes,
        table=cast(Literal["gpt", "dos"] | None, table),
        partitions=tuple(
            _partition(index, part, disk, mounted.get(part.number), part.name in members) for part in parts
        ),
    )


def _partition(index: int, part: _Device, disk: _Device, mount: _Mount | None, member: bool) -> Partition:
    filesystem = part.filesystem or (mount.filesystem if mount else None)
    kind = part.type or disk.types.get(str(part.partition))
    reason: str | None = "the device may not be read"
    if part.readable:
        reason = cannot_block_reason(filesystem, type=kind, mounted=mount is not None, member=member, needs=part.needs)
    return Partition(
        path=part.path,
        device=f"{index}_{part.partition}",
        start=part.start,
        size_bytes=part.size_bytes,
        type=kind,
        filesystem=filesystem,
        uuid=part.uuid,
        label=part.label,
        mount_point=mount.mount_point if mount else None,
        used_bytes=mount.used_bytes if mount else None,
        can_block=reason is None,
        cannot_block_reason=reason,
    )


def _layers(devices: Mapping[str, _Device]) -> Iterator[Layer]:
    for device in devices.values():
        if device.kind in ("lvm", "mdraid", "luks"):
            yield Layer(
                kind=cast(Literal["lvm", "mdraid", "luks"], device.kind),
                path=device.path,
                members=tuple(devices[name].path if name in devices else name for name in device.below),
                size_bytes=device.size_bytes,
            )


# --- mounts and volumes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mount:
    mount_point: str
    filesystem: str
    number: str
    root: str
    options: str
    size_bytes: int
    used_bytes: int


def _mounts(told: Facts) -> list[_Mount]:
    """The mounts in the order in which they were made; of two on one mount point the later one is seen."""
    found: dict[str, _Mount] = {}
    for fact in told.objects("mounts", _MOUNTS):
        point = fact.raw("mount_point", 4096)
        if not point.startswith("/") or point != clean(point) or ".." in point.split("/"):
            raise fact.wrong("mount_point", "is no absolute path of printable characters")
        size = fact.needed_number("size_bytes")
        found.pop(point, None)
        found[point] = _Mount(
            mount_point=point,
            filesystem=fact.text("filesystem", 64) or "unknown",
            number=fact.text("number", 32) or "",
            root=fact.raw("root", 4096),
            options=fact.text("options", 4096) or "",
            size_bytes=size,
            used_bytes=fact.needed_number("used_bytes", 0, size),
        )
    # A device may be mounted whole and by parts: whole and near the root comes first.
    return sorted(found.values(), key=lambda mount: (mount.mount_point != "/", len(mount.root), mount.mount_point))


def _volumes(told: Facts, devices: Mapping[str, _Device], mounts: Sequence[_Mount]) -> list[Volume]:
    by_number = {device.number: device for device in devices.values()}
    seen: set[tuple[str, str]] = set()
    volumes = []
    for mount in mounts:
        is_root = mount.mount_point == "/"
        if mount.filesystem not in VOLUME_FILESYSTEMS and not is_root:
            continue
        # Subvolumes of btrfs are mounts of one device, each with files of its own; elsewhere they are bind mounts.
        key = (mount.number, mount.root if mount.filesystem == "btrfs" else "")
        if key in seen and not is_root:
            continue
        seen.add(key)
        device = by_number.get(mount.number)
        volumes.append(
            Volume(
                mount_point=mount.mount_point,
                filesystem=mount.filesystem,
                uuid=device.uuid if device else None,
                label=device.label if device else None,
                size_bytes=mount.size_bytes,
                used_bytes=mount.used_bytes,
                device=device.path if device and device.kind in ("partition", "disk") else None,
                options=mount.options,
            )
        )
    if not any(volume.mount_point == "/" for volume in volumes):
        volumes.append(_root_of_tree(told))
    return sorted(_with_fstab(told, volumes), key=lambda volume: (volume.mount_point != "/", volume.mount_point))


def _root_of_tree(told: Facts) -> Volume:
    """The root of a tree that is no mount of its own: its fstab says what it was; sizes are not known (0)."""
    line = next((line for line in parse_fstab(told.raw("fstab", _TEXT)) if line.mount_point == "/"), None)
    filesystem = line.filesystem if line is not None and line.filesystem in VOLUME_FILESYSTEMS else "ext4"
    return Volume(mount_point="/", filesystem=filesystem, size_bytes=0, used_bytes=0)


def _with_fstab(told: Facts, volumes: Sequence[Volume]) -> Iterator[Volume]:
    """What the superblock could not tell, because it may not be read, stands in fstab."""
    lines = {line.mount_point: line for line in parse_fstab(told.raw("fstab", _TEXT))}
    for volume in volumes:
        line = lines.get(volume.mount_point)
        kind, _, value = line.source.partition("=") if line else ("", "", "")
        value = clean(value)[:64]
        if volume.uuid is None and kind == "UUID" and re.fullmatch(r"[0-9A-Fa-f-]{4,36}", value):
            volume = volume.model_copy(update={"uuid": value})
        if volume.label is None and kind == "LABEL" and value:
            volume = volume.model_copy(update={"label": value})
        yield volume


# --- network --------------------------------------------------------------------------------------------------


def _interfaces(told: Facts) -> Iterator[Interface]:
    methods = network_methods(told.mapping("network_files", 200, 16_384))
    facts = list(told.objects("interfaces", 200))
    hardware = [fact for fact in facts if fact.flag("hardware")]
    for fact in facts:
        name = fact.text("name", 64)
        if name is None:
            raise fact.wrong("name", "is missing")
        gateway = fact.text("gateway", 64)
        method: Method = methods.get(name, "unknown")
        # A file for every interface speaks of one certainly where there is only one.
        if method == "unknown" and hardware == [fact]:
            method = methods.get("", "unknown")
        yield Interface(
            name=name,
            mac=fact.text("mac", 64),
            addresses=tuple(_address(address, fact) for address in fact.texts("addresses", 64, 64)),
            gateway=_address(gateway, fact) if gateway else None,
            method=method,
        )


def _address(text: str, fact: Facts) -> str:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        raise fact.wrong("addresses", "holds something else than addresses") from None
    return text


def _listeners(told: Facts) -> Iterator[Listener]:
    for fact in told.objects("listeners", 1000):
        yield Listener(
            protocol=cast(Literal["tcp", "udp"], fact.choice("protocol", ("tcp", "udp"))),
            address=_address(fact.raw("address", 64), fact),
            port=fact.needed_number("port", 1, 65_535),
            process=fact.text("process"),
            unit=fact.text("unit"),
        )
