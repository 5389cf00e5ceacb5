"""The rules of a job that need the clock, the region or the source's inventory.

Every rule names the fields that it looks at, gives the faults that it finds and raises nothing, so that one answer can
tell them all. A rule over a field that is wrong already is left out: what it would say is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from rehost.catalog.faults import Fault
from rehost.catalog.job import DataDisk, ExecuteAt, JobSpec, PartitionSpec
from rehost.disk_formats import KINDS
from rehost.regions.regions import RegionRecord
from rehost.replication.pass_plan import conflicts, plan_pass
from rehost.source.inventory import Disk, Inventory, Partition

GIB = 1 << 30
START_AHEAD = (timedelta(minutes=10), timedelta(days=30))
VALID_AHEAD = (timedelta(days=7), timedelta(days=90))
# A request that says "ten minutes from now", perhaps in whole seconds, arrives a little later.
_ON_THE_WAY = timedelta(seconds=1)
_BOOT_MOUNTS = ("/boot", "/boot/efi", "/efi")  # no container needs what is there


@dataclass(frozen=True)
class Asked:
    """What is judged, and what it is judged by."""

    spec: JobSpec
    inventory: Inventory  # of the source
    region: RegionRecord
    moment: datetime


def check(
    asked: Asked, *, changed: Collection[str] | None = None, faulty: Collection[str] = frozenset()
) -> list[Fault]:
    """The faults that the rules find.

    `changed` are the fields of a change (None: the job is new, every rule counts); only the rules that look at one of
    them are asked, with the other fields as they stand. `faulty` are fields that are known to be wrong or unknown.
    """
    return [
        fault
        for fields, rule in _RULES
        if (changed is None or not fields.isdisjoint(changed)) and fields.isdisjoint(faulty)
        for fault in rule(asked)
    ]


def _valid_until(asked: Asked) -> Iterator[Fault]:
    least, most = VALID_AHEAD
    if asked.spec.valid_until is not None and not _ahead(asked.spec.valid_until, asked.moment, least, most):
        yield Fault("/valid_until", "is 7 to 90 days ahead")


def _start_at(asked: Asked) -> Iterator[Fault]:
    execution = asked.spec.execution
    if isinstance(execution, ExecuteAt) and not _ahead(execution.start_at, asked.moment, *START_AHEAD):
        reason = "the first start is 10 minutes to 30 days ahead"
        yield Fault("/execution/start_at", reason, "Schedule.OutOfRange", {"reason": reason})


def _start_before_the_end(asked: Asked) -> Iterator[Fault]:
    execution, end = asked.spec.execution, asked.spec.valid_until
    if isinstance(execution, ExecuteAt) and end is not None and execution.start_at >= end:
        yield Fault("/execution/start_at", "is before valid_until")


def _ahead(when: datetime, moment: datetime, least: timedelta, most: timedelta) -> bool:
    return least - _ON_THE_WAY < when - moment <= most


def _container(asked: Asked) -> Iterator[Fault]:
    if asked.spec.targets.container_image is None:
        return
    if asked.inventory.os_id == "windows":
        yield Fault("/targets/container_image", "cannot be made of a Windows server")
    in_blocks = [v.mount_point for v in plan_pass(asked.inventory, chosen(asked.spec)).in_blocks]
    missing = [mount_point for mount_point in in_blocks if mount_point not in _BOOT_MOUNTS]
    if missing:
        yield Fault(
            "/targets/container_image",
            f"needs files, and {', '.join(missing)} would be copied block by block: leave `block` off there, or ask "
            "for the container image in a job of its own",
        )


def chosen(spec: JobSpec) -> frozenset[str]:
    """The devices of the partitions that are asked for block by block, those of disks that are left out aside."""
    if not spec.disks.block_replication:
        return frozenset()
    data = (partition for disk in spec.disks.data if disk.include for partition in disk.partitions)
    return frozenset(p.device for p in (*spec.disks.system.partitions, *data) if p.block)


def _network(asked: Asked) -> Iterator[Fault]:
    asked_for = asked.spec.network
    vpcs = {vswitch.id: network.vpc_id for network in asked.region.networks for vswitch in network.vswitches}
    vpc = vpcs.get(asked_for.vswitch_id or "")
    if asked_for.vswitch_id is not None and vpc is None:
        yield Fault("/network/vswitch_id", f"is no vSwitch of the region {asked.region.id}")
    if asked_for.vpc_id is not None and all(network.vpc_id != asked_for.vpc_id for network in asked.region.networks):
        yield Fault("/network/vpc_id", f"is no VPC of the region {asked.region.id}")
    elif asked_for.vpc_id is not None and vpc is not None and asked_for.vpc_id != vpc:
        facts = {"vswitch_id": asked_for.vswitch_id, "vpc_id": vpc}
        yield Fault(
            "/network/vpc_id", f"is not the VPC of the vSwitch, which lies in {vpc}", "VSwitchVpc.Mismatch", facts
        )


def _tracking(asked: Asked) -> Iterator[Fault]:
    disks = asked.spec.disks
    if disks.change_tracking and not disks.block_replication:
        yield Fault("/disks/change_tracking", "needs `disks.block_replication`: it is about blocks")
    if disks.change_tracking and asked.spec.incremental is None:
        yield Fault("/disks/change_tracking", "needs `incremental`: a job that runs once has nothing to compare with")


def _disks(whole: Asked) -> Iterator[Fault]:
    spec, inventory = whole.spec, whole.inventory
    asked = spec.disks
    disks = {disk.index: disk for disk in inventory.disks}
    system = disks.get(0)
    used = used_bytes(system) if system else sum(volume.used_bytes for volume in inventory.volumes)
    at = "/disks/system"
    if system is not None and _keeps_layout(system, spec):
        yield from _kept_disk(at, system, asked.system.size_gib, asked.system.partitions, spec, inventory)
    else:
        yield from _disk(at, 0, system, used, asked.system.size_gib, asked.system.partitions, asked.block_replication)
    for number, data in enumerate(asked.data):
        at = f"/disks/data/{number}"
        disk = disks.get(data.index)
        if disk is None:
            reason = f"the source has no disk {data.index}"
            facts = {"index": data.index, "reason": reason}
            yield Fault(f"{at}/index", reason, "DataDiskIndex.Invalid", facts)
            continue
        if data.include and _keeps_layout(disk, spec):
            yield from _kept_disk(at, disk, data.size_gib, data.partitions, spec, inventory)
            continue
        wants_blocks = any(partition.block for partition in data.partitions)
        if data.include and not wants_blocks:
            yield Fault(
                f"{at}/include",
                "a data disk is built only where it is copied block by block: set `block` on its partitions, or leave "
                "it out with `include: false`",
            )
        used = used_bytes(disk)
        yield from _disk(at, data.index, disk, used, data.size_gib, data.partitions, asked.block_replication)


def _formats(asked: Asked) -> Iterator[Fault]:
    """A VHD holds a disk of 2,040 GiB at most."""
    image = asked.spec.targets.image
    data = {disk.index: disk for disk in asked.spec.disks.data}
    for disk in asked.inventory.disks:
        wanted = asked.spec.disks.system if disk.index == 0 else data.get(disk.index)
        if isinstance(wanted, DataDisk) and not wanted.include:
            continue
        size = wanted.size_gib * GIB if wanted and wanted.size_gib else disk.size_bytes
        for name in image.formats if image else ():
            most = KINDS[name].most_bytes
            if most is not None and size > most:
                yield Fault(
                    "/targets/image/formats",
                    f"{name} holds a disk of {most // GIB} GiB at most, and disk {disk.index} has "
                    f"{-(-size // GIB)} GiB: ask for qcow2 or raw",
                )


def _keeps_layout(disk: Disk, spec: JobSpec) -> bool:
    """Whether a partition of the disk is asked for in blocks."""
    wanted = chosen(spec)
    return any(partition.device in wanted for partition in disk.partitions)


def _kept_disk(
    at: str,
    disk: Disk,
    size_gib: int | None,
    partitions: tuple[PartitionSpec, ...],
    spec: JobSpec,
    inventory: Inventory,
) -> Iterator[Fault]:
    """The rules of a disk that is copied block by block: it may become larger, and nothing on it changes its place."""
    present = {partition.device: partition for partition in disk.partitions}
    for number, asked in enumerate(partitions):
        partition = present.get(asked.device)
        place = f"{at}/partitions/{number}"
        if partition is None:
            yield Fault(f"{place}/device", f"disk {disk.index} of the source has no partition of that name")
            continue
        if asked.block and not partition.can_block:
            yield _cannot_block(place, asked, partition)
        if asked.size_bytes is not None and asked.size_bytes != partition.size_bytes:
            yield Fault(
                f"{place}/size_bytes",
                "cannot change on a disk that is copied block by block, as its layout is kept: leave it out, or leave "
                "`block` off on every partition of the disk",
            )
    for partition, reason in conflicts(disk, inventory, chosen(spec)):
        yield Fault(
            f"{at}/partitions",
            f"{partition.device} has to be `block: true` too, or no partition of the disk: {reason}",
        )
    if size_gib is not None and size_gib * GIB < disk.size_bytes:
        needed_gib = -(-disk.size_bytes // GIB)
        reason = f"is at least {needed_gib}, as the layout is kept where blocks are copied"
        yield _too_small(f"{at}/size_gib", reason, f"Disk {disk.index}", f"{size_gib} GiB", f"{needed_gib} GiB")


def _too_small(at: str, reason: str, what: str, size: str, needed: str) -> Fault:
    return Fault(at, reason, "DiskSize.TooSmall", {"what": what, "size": size, "needed": needed})


def _cannot_block(at: str, asked: PartitionSpec, partition: Partition) -> Fault:
    reason = partition.cannot_block_reason or "it cannot be read block by block"
    facts = {"device": asked.device, "reason": reason}
    return Fault(f"{at}/block", f"is not possible here: {reason}", "Partition.CannotBlock", facts)


def used_bytes(disk: Disk) -> int:
    """What the filesystems of a disk hold, as far as it is known; the builder measures once more."""
    return sum(partition.used_bytes or 0 for partition in disk.partitions)


def _disk(
    at: str,
    index: int,
    disk: Disk | None,
    used: int,
    size_gib: int | None,
    partitions: tuple[PartitionSpec, ...],
    block_replication: bool,
) -> Iterator[Fault]:
    present = {partition.device: partition for partition in disk.partitions} if disk else {}
    needed = used
    for number, asked in enumerate(partitions):
        partition = present.get(asked.device)
        if partition is None:
            yield Fault(f"{at}/partitions/{number}/device", f"disk {index} of the source has no partition of that name")
            continue
        yield from _partition(f"{at}/partitions/{number}", asked, partition, block_replication)
        if asked.size_bytes is not None:
            needed += max(0, asked.size_bytes - (partition.used_bytes or 0))
    needed_gib = needed // GIB + 1
    if size_gib is not None and size_gib * GIB <= needed:
        reason = f"is at least {needed_gib}"
        yield _too_small(f"{at}/size_gib", reason, f"Disk {index}", f"{size_gib} GiB", f"{needed_gib} GiB")
    elif size_gib is None and disk is not None and partitions and needed > disk.size_bytes:
        reason, size = "do not fit a disk of the source's size", f"{disk.size_bytes} bytes"
        yield _too_small(f"{at}/partitions", reason, f"Disk {index}", size, f"{needed_gib} GiB")


def _partition(at: str, asked: PartitionSpec, partition: Partition, block_replication: bool) -> Iterator[Fault]:
    used = partition.used_bytes or 0
    if asked.size_bytes is not None and asked.size_bytes <= used:
        reason, size = f"is more than the {used} bytes that are used", f"{asked.size_bytes} bytes"
        yield _too_small(f"{at}/size_bytes", reason, f"Partition {asked.device}", size, f"more than {used} bytes")
    if asked.block and not partition.can_block:
        yield _cannot_block(at, asked, partition)
    elif asked.block and not block_replication:
        yield Fault(f"{at}/block", "needs `disks.block_replication`")


_RULES: tuple[tuple[frozenset[str], Callable[[Asked], Iterator[Fault]]], ...] = (
    (frozenset({"valid_until"}), _valid_until),
    (frozenset({"execution"}), _start_at),
    (frozenset({"execution", "valid_until"}), _start_before_the_end),
    (frozenset({"source_id", "targets", "disks"}), _container),
    (frozenset({"disks", "incremental"}), _tracking),
    (frozenset({"source_id", "disks"}), _disks),
    (frozenset({"source_id", "targets", "disks"}), _formats),
    (frozenset({"region_id", "network"}), _network),
)
"""The fields that a rule looks at, and the rule. Rules with `source_id` need the inventory."""
