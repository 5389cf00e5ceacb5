"""From a tree to the files of a disk image, in one pass, as an ordinary user.

The raw disk is a sparse file that everything is written into at its place: the table, the boot loader, the
filesystems. The other formats are made from it. `image.json` is written last: a folder without one holds no image.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import pyarrow as pa

from image_builders.disk import esp, gpt, grub, swap
from image_builders.disk.copied import copied_disks, copied_mounts
from image_builders.disk.copied_build import content_of, finish_data, finish_system, write_blocks
from image_builders.disk.delivery import (
    DIFF,
    RECORD,
    SCRATCH,
    Meter,
    clear,
    deliver,
    raw_partial,
    whole_or_nothing,
    write_durably,
)
from image_builders.disk.ext4 import write_ext4
from image_builders.disk.fixups.boot_loader import grub_directory, inside_filesystem
from image_builders.disk.layout import Layout, PlannedPartition
from image_builders.disk.plan import DiskPlan, files_of, plan_disk
from image_builders.disk.record import DiskImage, Firmware, ImageFixup, ImagePartition, SystemDisk
from image_builders.disk.regions import Blocks
from image_builders.disk.request import DiskRequest
from rehost.errors import BuildTableUnreadable
from rehost.progress import Progress, silent
from rehost.replication.tree import Tree, printable
from rehost.source.inventory import Inventory


def build_disk(
    tree: Tree,
    inventory: Inventory,
    request: DiskRequest,
    directory: Path,
    progress: Progress = silent,
    blocks: Blocks | None = None,
) -> DiskImage:
    """Build the image into `directory`, which holds nothing else; leftovers of an earlier try there are replaced.

    `blocks` is what the snapshot has in blocks: a disk with a region keeps its layout; a system disk without one is
    laid out anew for the tree's files. Raises what plan_disk and copied_disks do, BuildNoBootLoader, StoreNoSpace, and
    the errors of the programs that are run.
    """
    copied = copied_disks(inventory, blocks, request) if blocks is not None else ()
    system_copied = any(disk.index == 0 for disk in copied)
    plan = None if system_copied else plan_disk(tree, inventory, request, copied_mounts(inventory, copied))
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    wanted = tuple(dict.fromkeys(request.formats)) or ("qcow2",)
    contents = {disk.index: content_of(disk, blocks) for disk in copied} if blocks is not None else {}
    if plan is not None:
        contents[0] = _content_of(plan)
    with whole_or_nothing(directory):
        clear(directory)
        scratch = directory / SCRATCH
        scratch.mkdir()
        raws = {index: raw_partial(directory, index) for index in sorted(contents)}
        meter = Meter(progress, sum(contents.values()), wanted)
        for disk in copied:
            assert blocks is not None
            write_blocks(disk, blocks, tree, raws[disk.index], meter)
        if plan is not None:
            _write_raw(plan, raws[0], scratch, meter)
            warnings = finish_data(copied, raws, plan)
            made = _system_of(plan, warnings)
        else:
            made = finish_system(copied, raws, tree, inventory, request, scratch)
        sizes = {disk.index: disk.size_bytes for disk in copied}
        if plan is not None:
            sizes[0] = plan.layout.size_bytes
        files = [
            file
            for index, raw in raws.items()
            for file in deliver(raw, index, sizes[index], wanted, directory, meter, contents[index])
        ]
        shutil.rmtree(scratch)
        write_durably(directory / DIFF, made.diff.encode("utf-8", "backslashreplace"))
        image = DiskImage(
            id=request.image_id,
            name=_plain(request.name),
            disks=tuple(files),
            boot_modes=made.boot_modes,
            architecture="x86_64",
            os=_plain(inventory.os_name or inventory.os_id),
            disk_guid=made.disk_guid,
            partitions=made.partitions,
            source_id=request.source_id,
            snapshot_id=request.snapshot_id,
            created_at=datetime.now(UTC),
            fixups=made.fixups,
            fixups_diff=str(directory / DIFF),
            warnings=made.warnings,
        )
        text = json.dumps(image.model_dump(mode="json"), indent=2, ensure_ascii=True) + "\n"
        write_durably(directory / RECORD, text.encode("ascii"))
    meter.finish()
    return image


def _content_of(plan: DiskPlan) -> int:
    sizes = plan.tree.table()["size"].to_numpy()
    return int(sizes.sum()) if len(sizes) else 0


def _write_raw(plan: DiskPlan, raw: Path, scratch: Path, meter: Meter) -> None:
    layout, selection = plan.layout, plan.selection
    directory = grub_directory(plan.tree)
    tree = plan.tree.apply(grub.module_changes(selection.boot_mode, directory))
    boot_uuid = selection.filesystem_of(directory).uuid
    inside = inside_filesystem(directory, selection)
    table = tree.table()
    boot_code = b""
    with raw.open("x+b") as target:
        target.truncate(layout.size_bytes)
        for partition in layout.partitions:
            if partition.role == "bios":
                loader = grub.bios_loader(boot_uuid, inside, partition.start, partition.size_bytes, scratch)
                grub.write_core(target, partition.start, loader)
                boot_code = loader.boot_code
            elif partition.swap is not None:
                area = partition.swap
                swap.write_swap(target, partition.start, partition.size_bytes, area.uuid, area.label)
            elif partition.filesystem is not None:
                _write_filesystem(target, partition, plan, tree, table, meter)
        written = _gpt_of(layout)
        gpt.write_table(target, written, boot_code)
        target.flush()
        for partition in layout.of_role("esp"):
            loader_bytes = grub.efi_loader(boot_uuid, inside, scratch)
            esp.write_esp(raw, partition.start, partition.size_bytes, selection.esp_serial, loader_bytes, scratch)
        if gpt.read_table(target, layout.size_bytes) != written:
            raise BuildTableUnreadable(reason="it differs from the layout")
        target.flush()
        os.fsync(target.fileno())


def _write_filesystem(
    target: BinaryIO, partition: PlannedPartition, plan: DiskPlan, tree: Tree, table: pa.Table, meter: Meter
) -> None:
    filesystem = partition.filesystem
    assert filesystem is not None
    files = files_of(table, plan.selection, filesystem)
    weight = int(files["size"].to_numpy().sum()) if len(files) else 0

    def told(done: int, total: int, note: str = "") -> None:
        meter.step(done / total if total else 0.0, weight, note or f"writing {filesystem.mount_point}")

    write_ext4(
        target,
        partition.start,
        partition.size_bytes,
        files,
        tree,
        uuid=filesystem.uuid,
        label=filesystem.label,
        progress=told,
    )
    meter.end_step(weight)


def _gpt_of(layout: Layout) -> gpt.Table:
    entries = tuple(
        gpt.GptEntry(p.number, p.start, p.size_bytes, p.type_guid, p.guid, p.name) for p in layout.partitions
    )
    return gpt.Table(layout.size_bytes, layout.disk_guid, entries)


def _partition_record(partition: PlannedPartition, plan: DiskPlan) -> ImagePartition:
    held = partition.filesystem or partition.swap
    kind = {"bios": None, "esp": "vfat", "filesystem": "ext4", "swap": "swap"}[partition.role]
    own: UUID | str | None = held.uuid if held else (plan.selection.esp_uuid if partition.role == "esp" else None)
    mount_point = _plain(partition.filesystem.mount_point) if partition.filesystem else None
    if partition.role == "esp":
        mount_point = plan.selection.esp_mount_point
    return ImagePartition(
        number=partition.number,
        role=partition.role,
        start=partition.start,
        size_bytes=partition.size_bytes,
        type=str(partition.type_guid),
        guid=str(partition.guid),
        filesystem=kind,
        uuid=str(own) if own else None,
        label=(held.label or None) if held else None,
        mount_point=mount_point,
        source_device=held.device if held else None,
    )


def _plain(text: str) -> str:
    """Text of the source, or of a user, as any reader of JSON takes it."""
    return printable(text.encode("utf-8", "surrogateescape"))


def _system_of(plan: DiskPlan, warnings: tuple[str, ...]) -> SystemDisk:
    modes: dict[str, tuple[Firmware, ...]] = {"bios": ("bios",), "uefi": ("uefi",), "both": ("bios", "uefi")}
    return SystemDisk(
        boot_modes=modes[plan.selection.boot_mode],
        disk_guid=str(plan.layout.disk_guid),
        partitions=tuple(_partition_record(p, plan) for p in plan.layout.partitions),
        fixups=tuple(ImageFixup(name=f.name, about=f.about, changes=f.changes, diff=f.diff) for f in plan.fixups),
        diff=_report(plan),
        warnings=(*plan.warnings, *warnings),
    )


def _report(plan: DiskPlan) -> str:
    """The diff of all fix-ups, with what each is for on top."""
    lines = [f"# {fixup.name}: {fixup.about}" for fixup in plan.fixups]
    platforms = " and ".join(grub.platforms(plan.selection.boot_mode))
    lines.append(f"# boot loader files: GRUB's modules for {platforms} lie beside its menu; they are not shown.")
    return "\n".join([*lines, "", plan.diff])
