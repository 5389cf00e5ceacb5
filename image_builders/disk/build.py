"""From a tree to the files of a disk image, in one pass, as an ordinary user.

The raw disk is a sparse file that everything is written into at its place: the table, the boot loader, the
filesystems. The other formats are made from it. `image.json` is written last: a folder without one holds no image.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import UUID

import pyarrow as pa

from image_builders.disk import esp, formats, gpt, grub, swap
from image_builders.disk.ext4 import write_ext4
from image_builders.disk.fixups.boot_loader import grub_directory, inside_filesystem
from image_builders.disk.layout import Layout, PlannedPartition
from image_builders.disk.plan import DiskPlan, files_of, plan_disk
from image_builders.disk.request import DiskRequest, Format
from rehost.errors import BuildConversionDiffers, BuildTableUnreadable, StoreNoSpace
from rehost.progress import Progress, silent
from rehost.replication.tree import Tree, printable
from rehost.source.inventory import Inventory, Record

# Names that do not depend on what the image is called: a name from outside never becomes a path.
_RAW_PARTIAL = "disk-0.raw.partial"
_SCRATCH = "scratch.partial"
_RECORD = "image.json"
_DIFF = "fixups.diff"


class DiskFile(Record):
    """One disk in one format."""

    index: int
    role: Literal["system", "data"]
    format: Format
    virtual_size: int  # bytes of the disk
    file_size: int  # bytes of the file
    sha256: str
    location: str  # absolute path of the file


class ImagePartition(Record):
    """One partition of the system disk; places in bytes."""

    number: int
    role: Literal["bios", "esp", "filesystem", "swap"]
    start: int
    size_bytes: int
    type: str
    guid: str
    filesystem: str | None
    uuid: str | None
    label: str | None
    mount_point: str | None
    source_device: str | None  # "0_1"


class ImageFixup(Record):
    """What a fix-up did, and why."""

    name: str
    about: str
    changes: int


class DiskImage(Record):
    """A finished disk image; image.json beside its files says the same."""

    kind: Literal["disk"] = "disk"
    id: str
    name: str
    disks: tuple[DiskFile, ...]
    boot_modes: tuple[Literal["bios", "uefi"], ...]
    architecture: str
    os: str
    disk_guid: str
    partitions: tuple[ImagePartition, ...]
    source_id: str | None
    snapshot_id: str | None
    created_at: datetime
    fixups: tuple[ImageFixup, ...]
    fixups_diff: str  # absolute path
    warnings: tuple[str, ...]


def build_disk(
    tree: Tree, inventory: Inventory, request: DiskRequest, directory: Path, progress: Progress = silent
) -> DiskImage:
    """Build the image into `directory`, which holds nothing else; leftovers of an earlier try there are replaced.

    Raises what plan_disk does, BuildNoBootLoader, StoreNoSpace, and the errors of the programs that are run.
    """
    plan = plan_disk(tree, inventory, request)
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    wanted = tuple(dict.fromkeys(request.formats)) or ("qcow2",)
    with _whole_or_nothing(directory):
        _clear(directory)
        scratch = directory / _SCRATCH
        scratch.mkdir()
        raw = directory / _RAW_PARTIAL
        meter = _Meter(progress, plan, wanted)
        _write_raw(plan, raw, scratch, meter)
        files = _deliver(raw, plan.layout, wanted, directory, meter)
        shutil.rmtree(scratch)
        _write_durably(directory / _DIFF, _report(plan).encode("utf-8", "backslashreplace"))
        image = DiskImage(
            id=request.image_id,
            name=_plain(request.name),
            disks=files,
            boot_modes=_boot_modes(request.boot_mode),
            architecture="x86_64",
            os=_plain(inventory.os_name or inventory.os_id),
            disk_guid=str(plan.layout.disk_guid),
            partitions=tuple(_partition_record(p, plan) for p in plan.layout.partitions),
            source_id=request.source_id,
            snapshot_id=request.snapshot_id,
            created_at=datetime.now(UTC),
            fixups=tuple(ImageFixup(name=f.name, about=f.about, changes=f.changes) for f in plan.fixups),
            fixups_diff=str(directory / _DIFF),
            warnings=plan.warnings,
        )
        text = json.dumps(image.model_dump(mode="json"), indent=2, ensure_ascii=True) + "\n"
        _write_durably(directory / _RECORD, text.encode("ascii"))
    meter.finish()
    return image


class _Meter:
    """One progress over all steps: the content once, then for each format once for writing and once for hashing."""

    def __init__(self, progress: Progress, plan: DiskPlan, wanted: tuple[Format, ...]) -> None:
        self._progress = progress
        sizes = plan.tree.table()["size"].to_numpy()
        self.content = int(sizes.sum()) if len(sizes) else 0
        self._total = max(self.content * (1 + 2 * len(wanted)), 1)
        self._base = 0
        self._told = 0

    def step(self, part: float, weight: int, note: str) -> None:
        done = self._base + int(min(max(part, 0.0), 1.0) * weight)
        if done > self._told:
            self._told = min(done, self._total)
            self._progress(self._told, self._total, note)

    def end_step(self, weight: int) -> None:
        self._base += weight

    def finish(self) -> None:
        self._progress(self._total, self._total, "finished")


def _write_raw(plan: DiskPlan, raw: Path, scratch: Path, meter: _Meter) -> None:
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
    meter.end_step(meter.content)


def _write_filesystem(
    target: BinaryIO, partition: PlannedPartition, plan: DiskPlan, tree: Tree, table: pa.Table, meter: _Meter
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


def _deliver(
    raw: Path, layout: Layout, wanted: tuple[Format, ...], directory: Path, meter: _Meter
) -> tuple[DiskFile, ...]:
    """Make each format from the raw disk, check it, hash it; the raw disk itself last, by a rename."""
    files: list[DiskFile] = []
    for name in sorted(wanted, key=lambda n: n == "raw"):
        final = directory / f"disk-0.{name}"
        if name == "raw":
            partial = raw
        else:
            partial = directory / f"disk-0.{name}.partial"
            note = f"converting to {name}"
            formats.convert(raw, partial, name, lambda part, note=note: meter.step(part, meter.content, note))  # type: ignore[misc]
        meter.end_step(meter.content)
        size = partial.stat().st_size
        hashed = 0

        def count(step: int, name: str = name, size: int = size) -> None:
            nonlocal hashed
            hashed += step
            meter.step(hashed / size, meter.content, f"SHA-256 of {name}")

        digest = formats.sha256_of(partial, count)
        virtual = formats.virtual_size(partial, name)
        if virtual != layout.size_bytes:
            raise BuildConversionDiffers(
                format=name, reason=f"it holds a disk of {virtual} bytes, not {layout.size_bytes}"
            )
        _sync(partial)
        partial.rename(final)
        meter.end_step(meter.content)
        files.append(
            DiskFile(
                index=0,
                role="system",
                format=name,
                virtual_size=virtual,
                file_size=size,
                sha256=digest,
                location=str(final),
            )
        )
    raw.unlink(missing_ok=True)
    return tuple(sorted(files, key=lambda file: wanted.index(file.format)))


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


def _boot_modes(mode: str) -> tuple[Literal["bios", "uefi"], ...]:
    modes: dict[str, tuple[Literal["bios", "uefi"], ...]] = {
        "bios": ("bios",),
        "uefi": ("uefi",),
        "both": ("bios", "uefi"),
    }
    return modes[mode]


def _report(plan: DiskPlan) -> str:
    """The diff of all fix-ups, with what each is for on top."""
    lines = [f"# {fixup.name}: {fixup.about}" for fixup in plan.fixups]
    platforms = " and ".join(grub.platforms(plan.selection.boot_mode))
    lines.append(f"# boot loader files: GRUB's modules for {platforms} lie beside its menu; they are not shown.")
    return "\n".join([*lines, "", plan.diff])


def _clear(directory: Path) -> None:
    """Remove what an earlier try left: the record first, so that no folder speaks of files that are gone."""
    for name in (_RECORD, _DIFF, _RAW_PARTIAL):
        (directory / name).unlink(missing_ok=True)
    for name in ("raw", "qcow2", "vhd"):
        (directory / f"disk-0.{name}").unlink(missing_ok=True)
        (directory / f"disk-0.{name}.partial").unlink(missing_ok=True)
    for name in (_RECORD, _DIFF):
        (directory / f"{name}.partial").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / _SCRATCH)


def _write_durably(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _whole_or_nothing(directory: Path) -> Iterator[None]:
    """What was not finished is removed; a full disk is told of as what it is."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            _clear(directory)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreNoSpace(path=directory) from error
        raise
