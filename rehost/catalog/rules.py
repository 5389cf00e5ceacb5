"""The rules of a job that need the clock, the region or the source's inventory.

Every function gives the faults that it finds and raises nothing, so that one answer can tell them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from rehost.catalog.faults import Fault
from rehost.catalog.job import ExecuteAt, JobSpec, PartitionSpec
from rehost.replication.pass_plan import conflicts, plan_pass
from rehost.source.inventory import Disk, Inventory, Partition

GIB = 1 << 30
START_AHEAD = (timedelta(minutes=10), timedelta(days=30))
VALID_AHEAD = (timedelta(days=7), timedelta(days=90))
_ON_THE_WAY = timedelta(minutes=1)  # a request that says "ten minutes from now" arrives a little later
_BOOT_MOUNTS = ("/boot", "/boot/efi", "/efi")  # no container needs what is there


def check(spec: JobSpec, inventory: Inventory, moment: datetime) -> list[Fault]:
    """Every fault of a job for that source, asked for at that moment."""
    return [*_times(spec, moment), *_targets(spec, inventory), *_disks(spec, inventory), *_network(spec)]


def _times(spec: JobSpec, moment: datetime) -> Iterator[Fault]:
    least, most = VALID_AHEAD
    if spec.valid_until is not None and not least - _ON_THE_WAY <= spec.valid_until - moment <= most:
        yield Fault("/valid_until", "is 7 to 90 days ahead")
    if not isinstance(spec.execution, ExecuteAt):
        return
    least, most = START_AHEAD
    if not least - _ON_THE_WAY <= spec.execution.start_at - moment <= most:
        reason = "the first start is 10 minutes to 30 days ahead"
        yield Fault("/execution/start_at", reason, "Schedule.OutOfRange", {"reason": reason})
    elif spec.valid_until is not None and spec.execution.start_at >= spec.valid_until:
        yield Fault("/execution/start_at", "is before valid_until")


def _targets(spec: JobSpec, inventory: Inventory) -> Iterator[Fault]:
    if spec.targets.container_image is None:
        return
    if inventory.os_id == "windows":
        yield Fault("/targets/container_image", "cannot be made of a Windows server")
    in_blocks = [v.mount_point for v in plan_pass(inventory, chosen(spec)).in_blocks]
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


def _network(spec: JobSpec) -> Iterator[Fault]:
    # Regions have no networks of their own yet: every worker reaches every source over the network that it has.
    for name in ("vpc_id", "vswitch_id"):
        if getattr(spec.network, name) is not None:
            yield Fault(f"/network/{name}", "is unknown in this region, which has no networks configured")


def _disks(spec: JobSpec, inventory: Inventory) -> Iterator[Fault]:
    asked = spec.disks
    if asked.change_tracking and not asked.block_replication:
        yield Fault("/disks/change_tracking", "needs `disks.block_replication`: it is about blocks")
    if asked.change_tracking and spec.incremental is None:
        yield Fault("/disks/change_tracking", "needs `incremental`: a job that runs once has nothing to compare with")
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
        facts = {"size_gib": size_gib, "index": disk.index, "needed_gib": needed_gib}
        reason = f"is at least {needed_gib}, as the layout is kept where blocks are copied"
        yield Fault(f"{at}/size_gib", reason, "DiskSize.TooSmall", facts)


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
    if size_gib is not None and size_gib * GIB <= needed:
        needed_gib = needed // GIB + 1
        facts = {"size_gib": size_gib, "index": index, "needed_gib": needed_gib}
        yield Fault(f"{at}/size_gib", f"is at least {needed_gib}", "DiskSize.TooSmall", facts)
    elif size_gib is None and disk is not None and partitions and needed > disk.size_bytes:
        facts = {"size_gib": disk.size_bytes // GIB, "index": index, "needed_gib": needed // GIB + 1}
        yield Fault(f"{at}/partitions", "do not fit a disk of the source's size", "DiskSize.TooSmall", facts)


def _partition(at: str, asked: PartitionSpec, partition: Partition, block_replication: bool) -> Iterator[Fault]:
    if asked.size_bytes is not None and asked.size_bytes <= (partition.used_bytes or 0):
        yield Fault(f"{at}/size_bytes", f"is more than the {partition.used_bytes} bytes that are used")
    if asked.block and not partition.can_block:
        yield _cannot_block(at, asked, partition)
    elif asked.block and not block_replication:
        yield Fault(f"{at}/block", "needs `disks.block_replication`")
