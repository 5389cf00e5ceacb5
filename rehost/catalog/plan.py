"""What a job would do, as far as it can be said without copying anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from rehost.catalog.job import ExecuteAt, JobSpec
from rehost.catalog.records import Source
from rehost.catalog.rules import GIB, chosen
from rehost.catalog.states import SourceState
from rehost.regions.regions import RegionRecord
from rehost.replication.pass_plan import PassPlan, plan_pass
from rehost.source.inventory import Inventory, Record


class PlannedVolume(Record):
    """A filesystem that is copied."""

    mount_point: str
    mode: Literal["blocks", "files"]
    filesystem: str
    used_bytes: int


class PlannedPartition(Record):
    """A partition on the way; a target size of None is chosen when the image is built, from the source's."""

    device: str
    mode: Literal["blocks", "files"]  # files: those of the volume on it, where there is one
    mount_point: str | None
    filesystem: str | None
    source_bytes: int
    target_bytes: int | None


class PlannedDisk(Record):
    """A disk on the way."""

    index: int
    role: Literal["system", "data"]
    include: bool
    source_bytes: int
    target_bytes: int | None
    partitions: tuple[PlannedPartition, ...]


class Plan(Record):
    """The answer to a dry run: nothing was stored, nothing was started."""

    dry_run: Literal[True] = True
    source_id: str
    hostname: str
    os: str
    region_id: str
    image_name: str | None  # None: made of the job's name, or no disk image was asked for
    formats: tuple[str, ...]
    boot_mode: str | None
    container_reference: str | None
    mode: Literal["files", "blocks", "both"]
    volumes: tuple[PlannedVolume, ...]
    disks: tuple[PlannedDisk, ...]
    exclude: tuple[str, ...]
    bytes_to_read: int  # at most, in the first run
    static_addresses: tuple[str, ...]
    starts_at: datetime | None  # of a timed start
    spec: JobSpec  # with every default in it
    warnings: tuple[str, ...]


def plan(spec: JobSpec, source: Source, region: RegionRecord) -> Plan:
    """The plan of a job that has passed the rules."""
    inventory = source.inventory
    taken = plan_pass(inventory, chosen(spec))
    in_blocks = [p for disk in inventory.disks for p in disk.partitions if p.device in taken.partitions]
    image, container = spec.targets.image, spec.targets.container_image
    reference = None
    if container is not None:
        path = f"{container.namespace}/{container.repository}:{container.tag}"
        reference = f"{region.registry}/{path}" if region.registry else path
    return Plan(
        source_id=source.id,
        hostname=inventory.hostname,
        os=inventory.os_name or inventory.os_id,
        region_id=region.id,
        image_name=(image.name or spec.name) if image else None,
        formats=image.formats if image else (),
        boot_mode=(image.boot_mode or "both") if image else None,
        container_reference=reference,
        mode="files" if not taken.disks else "both" if taken.volumes else "blocks",
        volumes=tuple(
            PlannedVolume(
                mount_point=v.mount_point,
                mode="blocks" if v in taken.in_blocks else "files",
                filesystem=v.filesystem,
                used_bytes=v.used_bytes,
            )
            for v in inventory.volumes
        ),
        disks=tuple(_disks(spec, inventory, taken)),
        exclude=spec.exclude,
        bytes_to_read=sum(volume.used_bytes for volume in taken.volumes)
        + sum(p.size_bytes if p.used_bytes is None else p.used_bytes for p in in_blocks),
        static_addresses=tuple(
            f"{interface.name} {address}"
            for interface in inventory.interfaces
            if interface.method == "static"
            for address in interface.addresses
        ),
        starts_at=spec.execution.start_at if isinstance(spec.execution, ExecuteAt) else None,
        spec=spec,
        warnings=tuple(_warnings(spec, source, taken)),
    )


def _disks(spec: JobSpec, inventory: Inventory, taken: PassPlan) -> Iterator[PlannedDisk]:
    data = {disk.index: disk for disk in spec.disks.data}
    for disk in inventory.disks:
        asked = spec.disks.system if disk.index == 0 else data.get(disk.index)
        sizes = {p.device: p.size_bytes for p in asked.partitions} if asked else {}
        yield PlannedDisk(
            index=disk.index,
            role="system" if disk.index == 0 else "data",
            include=disk.index == 0 or disk.index in taken.disks,
            source_bytes=disk.size_bytes,
            target_bytes=asked.size_gib * GIB if asked and asked.size_gib else None,
            partitions=tuple(
                PlannedPartition(
                    device=p.device,
                    mode="blocks" if p.device in taken.partitions else "files",
                    mount_point=p.mount_point,
                    filesystem=p.filesystem,
                    source_bytes=p.size_bytes,
                    target_bytes=sizes.get(p.device),
                )
                for p in disk.partitions
            ),
        )


def _warnings(spec: JobSpec, source: Source, taken: PassPlan) -> Iterator[str]:
    inventory = source.inventory
    if source.state is SourceState.IN_USE:
        yield "The source has an unfinished job: this job can be made when that one is finished or deleted."
    if any(volume.mount_point == "/" for volume in taken.in_blocks):
        yield "The root is copied block by block: its network settings, consoles and fstab stay as they are."
    elif any(interface.method == "static" for interface in inventory.interfaces):
        yield "The source has static addresses; the image asks its new network for one, so that both can run."
    if spec.targets.image is not None and inventory.kernel is None:
        yield "No kernel is known on the source; a disk image needs one under /boot."
    blocks = {
        partition.path
        for disk in inventory.disks
        for partition in disk.partitions
        if partition.device in taken.partitions
    }
    for kind in sorted({layer.kind for layer in inventory.layers if not blocks.intersection(layer.members)}):
        yield f"The source uses {kind}; the image has the files of those volumes."
    for disk in inventory.disks:
        if disk.index != 0 and disk.index not in taken.disks and spec.targets.image is not None:
            yield f"Data disk {disk.index} ({disk.path}) is copied to the store, but is in no disk image."
    if inventory.failed_units:
        yield f"Units that fail on the source: {', '.join(inventory.failed_units)}. They may fail in the image too."
