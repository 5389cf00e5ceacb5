"""Disks that were copied block by block, put together: blocks at their places, the table fitted, files beside them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from image_builders.disk.copied import CopiedDisk, copied_mounts
from image_builders.disk.copied_look import look_at_boot, look_at_root, of_number, roles
from image_builders.disk.delivery import Meter
from image_builders.disk.ext4 import write_ext4
from image_builders.disk.gpt_end import settle_table
from image_builders.disk.plan import DiskPlan, EditedTree, files_of, needed_of, plan_tree
from image_builders.disk.record import ImageFixup, ImagePartition, SystemDisk
from image_builders.disk.regions import Blocks, write_regions
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import Copied, Filesystem, Selection, label_of, uuid_of
from image_builders.disk.swap import write_swap
from rehost.errors import (
    BuildDiskTooSmall,
    BuildNoBootLoader,
    BuildTableUnreadable,
    BuildUnsupported,
    SourceImageDamaged,
    SourceUnsupported,
)
from rehost.replication.tree import Tree, printable
from rehost.source.inventory import Inventory, Partition
from rehost.source.partition_tables import PartitionTable, read_table

_WRITTEN = ("ext2", "ext3", "ext4")


def content_of(disk: CopiedDisk, blocks: Blocks) -> int:
    """Bytes of the disk's blocks, for progress."""
    return sum(blocks.regions[number].used_bytes for number in disk.regions)


def write_blocks(disk: CopiedDisk, blocks: Blocks, tree: Tree, raw: Path, meter: Meter) -> None:
    """Make the raw disk and write the regions into it; the GPT is fitted to the disk's size.

    Raises ManifestInvalid, BuildDiskTooSmall, BuildUnsupported, BuildTableUnreadable, and what the store does.
    """
    total = content_of(disk, blocks)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        meter.step(done / total if total else 0.0, total, f"writing disk {disk.index}")

    with raw.open("x+b") as target:
        target.truncate(disk.size_bytes)
        write_regions(target, blocks, disk.regions, tree, told)
        settle_table(target, disk.size_bytes)
        target.flush()
        os.fsync(target.fileno())
    meter.end_step(total)


def table_of_disk(disk: CopiedDisk, raw: Path) -> PartitionTable | None:
    """The partition table on the raw disk. Raises BuildTableUnreadable."""
    with raw.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        try:
            return read_table(read, disk.size_bytes, f"disk {disk.index}")
        except (SourceImageDamaged, SourceUnsupported) as error:
            raise BuildTableUnreadable(reason=str(error.facts["reason"])) from error


def finish_data(disks: Sequence[CopiedDisk], raws: dict[int, Path], plan: DiskPlan) -> tuple[str, ...]:
    """What is left to do on copied data disks of a system disk that is laid out anew; warnings.

    Raises what write_ext4 does.
    """
    indexes = {disk.index for disk in disks}
    own = tuple(f for f in plan.selection.filesystems if f.disk in indexes)
    edited = EditedTree(plan.selection, plan.tree, plan.kernels, (), ())
    written = _write_files(disks, raws, edited, own)
    return tuple(warning for disk in disks for warning in _made_or_empty(disk, raws[disk.index], written))


def finish_system(
    disks: Sequence[CopiedDisk],
    raws: dict[int, Path],
    tree: Tree,
    inventory: Inventory,
    request: DiskRequest,
    scratch: Path,
) -> SystemDisk:
    """What is left to do where the system disk was copied by blocks: partitions whose files were copied are made, and
    how the disk starts is seen to. `raws` are the raw disks by index, their blocks written.

    Raises what plan_tree and write_ext4 do, BuildNoBootLoader, BuildTableUnreadable.
    """
    tables = {disk.index: table_of_disk(disk, raws[disk.index]) for disk in disks}
    part_uuids = {
        f"{index}_{partition.number}": partition.part_uuid
        for index, table in tables.items()
        for partition in (table.partitions if table else ())
    }
    copied = copied_mounts(inventory, tuple(disks), part_uuids)
    plain = replace(request, boot_mode="bios")  # no EFI system partition is made anew
    root_in_files = "/" not in copied.mounts
    if root_in_files:
        edited = plan_tree(tree, inventory, plain, copied)
    else:
        edited = EditedTree(_volumes_beside_root(inventory, copied), tree, (), (), ())
    warnings = list(edited.warnings)
    own = edited.selection.filesystems[0 if root_in_files else 1 :]
    written = _write_files(disks, raws, edited, own)
    for disk in disks:
        warnings += _made_or_empty(disk, raws[disk.index], written)
    system = disks[0]
    raw, table = raws[0], tables[0]
    with raw.open("rb") as target:
        look = look_at_boot(raw, target, table, inventory, scratch)
    warnings += look.warnings
    modes = tuple(mode for mode in look.modes if request.boot_mode in ("both", mode))
    if not modes:
        there = " and ".join(look.modes) or "nothing that firmware starts"
        raise BuildNoBootLoader(
            boot_mode=request.boot_mode, reason=f"the disk is copied block by block and has {there}"
        )
    if not root_in_files:
        warnings += look_at_root(raw, system, inventory, copied, plain)
    warnings += _left_out_mounts(inventory, copied, edited.selection)
    fixups = [ImageFixup(name=f.name, about=f.about, changes=f.changes, diff=f.diff) for f in edited.fixups]
    if look.loader is not None:
        about = (
            f"{printable(look.loader.encode())} was copied to /EFI/BOOT/BOOTX64.EFI of the EFI system partition: "
            "firmware that has never seen a disk starts that file alone."
        )
        fixups.append(ImageFixup(name="removable loader", about=about, changes=1))
    return SystemDisk(
        boot_modes=modes,
        disk_guid=_disk_id(raw, table),
        partitions=tuple(_partitions(system, table, written)),
        fixups=tuple(fixups),
        diff=edited.tree.diff() if root_in_files else "",
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _volumes_beside_root(inventory: Inventory, copied: Copied) -> Selection:
    """Volumes whose files were copied where the root is in blocks: they are made as they are, nothing is edited."""
    by_path = {p.path: p for disk in inventory.disks if disk.index in copied.disks for p in disk.partitions}
    root = Filesystem("/", UUID(int=0), "", None, None)  # its files are in the blocks; paths are counted from it
    found = [root]
    for volume in sorted(inventory.volumes, key=lambda volume: volume.mount_point):
        partition = by_path.get(volume.device or "")
        if volume.mount_point in copied.mounts or partition is None:
            continue
        own = uuid_of(volume.uuid)
        if volume.filesystem not in _WRITTEN or own is None:
            raise BuildUnsupported(
                what="A disk image",
                reason=f"{printable(volume.mount_point.encode('utf-8', 'surrogateescape'))} was copied as files and is "
                f"{printable(volume.filesystem.encode('utf-8', 'replace'))}: there is a writer for ext4 alone",
            )
        label = label_of(volume.label)
        found.append(Filesystem(volume.mount_point, own, label, partition.device, partition.size_bytes))
    return Selection(tuple(found), (), (), "bios", None, 0, (), copied)


def _write_files(
    disks: Sequence[CopiedDisk], raws: dict[int, Path], edited: EditedTree, wanted: Sequence[Filesystem]
) -> frozenset[str]:
    """Make these filesystems, whose files were copied, each in its own partition; the devices of these."""
    places = {p.device: (disk, p) for disk in disks for p in disk.in_files}
    needed = needed_of(edited) if wanted else {}
    table = edited.tree.table()
    for filesystem in wanted:
        place = places.get(filesystem.device or "")
        if place is None:
            raise BuildUnsupported(
                what="A disk image",
                reason=f"the files of {printable(filesystem.mount_point.encode('utf-8', 'surrogateescape'))} were "
                "copied, and it lies on no plain partition of a disk whose layout is kept",
            )
        disk, partition = place
        if needed[filesystem.mount_point] > partition.size_bytes:
            raise BuildDiskTooSmall(
                what=f"partition {partition.device}",
                size_bytes=partition.size_bytes,
                needed_bytes=needed[filesystem.mount_point],
            )
        with raws[disk.index].open("r+b") as target:
            write_ext4(
                target,
                partition.start,
                partition.size_bytes // 4096 * 4096,
                files_of(table, edited.selection, filesystem),
                edited.tree,
                uuid=filesystem.uuid,
                label=filesystem.label,
                progress=lambda done, total, note="": None,
            )
            target.flush()
            os.fsync(target.fileno())
    return frozenset(f.device for f in wanted if f.device)


def _made_or_empty(disk: CopiedDisk, raw: Path, written: frozenset[str]) -> Iterator[str]:
    """Swap areas that no region holds are made anew; what else was neither copied nor made is told."""
    for partition in disk.in_files:
        if partition.device in written or partition.size_bytes < 1 << 20:
            continue
        own = uuid_of(partition.uuid)
        if partition.filesystem == "swap" and own is not None:
            with raw.open("r+b") as target:
                write_swap(target, partition.start, partition.size_bytes, own, label_of(partition.label))
        else:
            yield f"Partition {partition.device} of the source was not copied: in the image it is empty."


def _left_out_mounts(inventory: Inventory, copied: Copied, selection: Selection) -> Iterator[str]:
    """Volumes that the copied root mounts, and that are in no disk of the image."""
    there = {*copied.mounts, *(filesystem.mount_point for filesystem in selection.filesystems)}
    if "/" not in copied.mounts:
        return  # the fix-ups have seen to fstab
    for volume in inventory.volumes:
        if volume.mount_point not in there:
            yield (
                f"{printable(volume.mount_point.encode('utf-8', 'surrogateescape'))} is in no disk of the image, and "
                "/etc/fstab of the copied root may wait for it: without `nofail` there the start ends in an emergency."
            )


def _disk_id(raw: Path, table: PartitionTable | None) -> str:
    if table is None:
        return ""
    with raw.open("rb") as file:
        if table.kind == "gpt":
            file.seek(512 + 56)
            return str(UUID(bytes_le=file.read(16)))
        file.seek(440)
        return f"{struct.unpack('<I', file.read(4))[0]:08x}"


def _partitions(disk: CopiedDisk, table: PartitionTable | None, written: frozenset[str]) -> Iterator[ImagePartition]:
    known = of_number(disk)
    for partition in table.partitions if table else ():
        found: Partition | None = known.get(partition.number)
        filesystem = found.filesystem if found else None
        yield ImagePartition(
            number=partition.number,
            role=roles(partition, found),
            start=partition.start,
            size_bytes=partition.size_bytes,
            type=partition.type,
            guid=partition.part_uuid,
            filesystem="ext4" if found and found.device in written else filesystem,
            uuid=found.uuid if found else None,
            label=found.label if found else None,
            mount_point=_plain(found.mount_point) if found and found.mount_point else None,
            source_device=found.device if found else None,
        )


def _plain(text: str) -> str:
    return printable(text.encode("utf-8", "surrogateescape"))
