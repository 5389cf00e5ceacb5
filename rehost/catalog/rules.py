"""The rules of a job that need the clock, the region or the source's inventory.

Every function gives the faults that it finds and raises nothing, so that one answer can tell them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from rehost.catalog.faults import Fault
from rehost.catalog.job import ExecuteAt, JobSpec, PartitionSpec
from rehost.source.inventory import Disk, Inventory, Partition

GIB = 1 << 30
START_AHEAD = (timedelta(minutes=10), timedelta(days=30))
VALID_AHEAD = (timedelta(days=7), timedelta(days=90))
_ON_THE_WAY = timedelta(minutes=1)  # a request that says "ten minutes from now" arrives a little later
_NOT_SERVED = "is not served by this version; leave it off"


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
    if spec.targets.container_image is not None and inventory.os_id == "windows":
        yield Fault("/targets/container_image", "cannot be made of a Windows server")


def _network(spec: JobSpec) -> Iterator[Fault]:
    # Regions have no networks of their own yet: every worker reaches every source over the network that it has.
    for name in ("vpc_id", "vswitch_id"):
        if getattr(spec.network, name) is not None:
            yield Fault(f"/network/{name}", "is unknown in this region, which has no networks configured")


def _disks(spec: JobSpec, inventory: Inventory) -> Iterator[Fault]:
    asked = spec.disks
    if asked.change_tracking:
        yield Fault("/disks/change_tracking", _NOT_SERVED)
    disks = {disk.index: disk for disk in inventory.disks}
    system = disks.get(0)
    used = used_bytes(system) if system else sum(volume.used_bytes for volume in inventory.volumes)
    yield from _disk(
        "/disks/system", 0, system, used, asked.system.size_gib, asked.system.partitions, asked.block_replication
    )
    for number, data in enumerate(asked.data):
        at = f"/disks/data/{number}"
        disk = disks.get(data.index)
        if disk is None:
            reason = f"the source has no disk {data.index}"
            facts = {"index": data.index, "reason": reason}
            yield Fault(f"{at}/index", reason, "DataDiskIndex.Invalid", facts)
            continue
        if data.include:
            yield Fault(f"{at}/include", "data disks are not built by this version; leave it out with `include: false`")
        used = used_bytes(disk)
        yield from _disk(at, data.index, disk, used, data.size_gib, data.partitions, asked.block_replication)


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
    if not asked.block:
        return
    if not partition.can_block:
        reason = partition.cannot_block_reason or "it cannot be read block by block"
        facts = {"device": asked.device, "reason": reason}
        yield Fault(f"{at}/block", f"is not possible here: {reason}", "Partition.CannotBlock", facts)
    elif not block_replication:
        yield Fault(f"{at}/block", "needs `disks.block_replication`")
    else:
        yield Fault(f"{at}/block", _NOT_SERVED)
