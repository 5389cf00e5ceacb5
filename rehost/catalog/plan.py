"""What a job would do, as far as it can be said without copying anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from rehost.catalog.bandwidth import limit_at, seconds_for
from rehost.catalog.database import now
from rehost.catalog.job import ExecuteAt, JobSpec
from rehost.catalog.plan_warnings import warnings
from rehost.catalog.records import Source
from rehost.catalog.rules import GIB, chosen
from rehost.regions.regions import RegionRecord
from rehost.replication.pass_plan import PassPlan, plan_pass
from rehost.replication.survey import ASSUMED_BYTES_PER_SECOND, Survey, warnings_of
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


class Estimate(Record):
    """How long the copy takes at most: what is read, at that rate or the limits of the hours, whichever is less."""

    seconds: int | None  # None: more than a year
    bytes_per_second: int  # of content, without a limit
    rate: Literal["measured", "assumed"]
    limit_kbps: int  # that counts when it begins; 0: none


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
    bytes_to_read: int  # at most, in the first run; with a survey in the next one
    bytes_in_blocks: int  # of these, what is copied block by block
    static_addresses: tuple[str, ...]
    starts_at: datetime | None  # of a timed start
    spec: JobSpec  # with every default in it
    estimate: Estimate
    survey: Survey | None = None  # what a walk over the source found, where one was asked for
    warnings: tuple[str, ...]


def plan(spec: JobSpec, source: Source, region: RegionRecord) -> Plan:
    """The plan of a job that has passed the rules, by the inventory alone."""
    inventory = source.inventory
    taken = plan_pass(inventory, chosen(spec))
    in_blocks = [p for disk in inventory.disks for p in disk.partitions if p.device in taken.partitions]
    bytes_in_blocks = sum(p.size_bytes if p.used_bytes is None else p.used_bytes for p in in_blocks)
    size = sum(volume.used_bytes for volume in taken.volumes) + bytes_in_blocks
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
        bytes_to_read=size,
        bytes_in_blocks=bytes_in_blocks,
        static_addresses=tuple(
            f"{interface.name} {address}"
            for interface in inventory.interfaces
            if interface.method == "static"
            for address in interface.addresses
        ),
        starts_at=spec.execution.start_at if isinstance(spec.execution, ExecuteAt) else None,
        spec=spec,
        estimate=_estimate(spec, size, ASSUMED_BYTES_PER_SECOND, "assumed"),
        warnings=tuple(warnings(spec, source, taken)),
    )


def surveyed(before: Plan, found: Survey) -> Plan:
    """The plan with what a walk over the source found; it says nothing of what is copied block by block."""
    of_files = {volume.mount_point: volume.bytes_to_read for volume in found.volumes}
    size = sum(of_files.get(v.mount_point, 0) for v in before.volumes if v.mode == "files") + before.bytes_in_blocks
    return before.model_copy(
        update={
            "survey": found,
            "bytes_to_read": size,
            "estimate": _estimate(before.spec, size, found.bytes_per_second, found.rate),
            "warnings": (*before.warnings, *warnings_of(found)),
        }
    )


def _estimate(spec: JobSpec, size: int, bytes_per_second: int, rate: Literal["measured", "assumed"]) -> Estimate:
    begin = spec.execution.start_at if isinstance(spec.execution, ExecuteAt) else now()
    return Estimate(
        seconds=seconds_for(size, bytes_per_second, spec.replication, begin),
        bytes_per_second=bytes_per_second,
        rate=rate,
        limit_kbps=limit_at(spec.replication, begin),
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
