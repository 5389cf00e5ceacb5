"""What an image will be, worked out without touching anything: the layout, the edited tree, the diff, the warnings."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from image_builders.disk.ext4 import needed_bytes
from image_builders.disk.fixups import Context, all_fixups
from image_builders.disk.fixups.boot_loader import BOOT_LOADER
from image_builders.disk.initramfs import check_drivers
from image_builders.disk.kernels import Kernel, find_kernels
from image_builders.disk.layout import MIB, Layout, lay_out
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import NOTHING_COPIED, Copied, Filesystem, Selection, select
from rehost.errors import BuildInitramfsLacksDriver, BuildUnsupported
from rehost.replication.manifest import FILES_SCHEMA, Entry
from rehost.replication.tree import Change, Tree, printable
from rehost.source.inventory import Inventory

_GRUB_BYTES = 16 * MIB  # what the boot loader's own files need, both kinds of firmware together
_DIFF_MOST = 16_384  # characters of one fix-up's diff in a record
_SPARE = 1.03  # a filesystem without a free block does not start


@dataclass(frozen=True)
class FixupReport:
    """One fix-up that changed something or had something to say."""

    name: str
    about: str
    changes: int
    warnings: tuple[str, ...]
    diff: str  # what it changed, for people; see Tree.diff


@dataclass(frozen=True)
class DiskPlan:
    """All that the builder does, decided. `tree` is the edited tree; `diff` shows every edit to people."""

    selection: Selection
    layout: Layout
    tree: Tree
    kernels: tuple[Kernel, ...]
    fixups: tuple[FixupReport, ...]
    diff: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class EditedTree:
    """The files that move, as the fix-ups leave them."""

    selection: Selection
    tree: Tree
    kernels: tuple[Kernel, ...]
    fixups: tuple[FixupReport, ...]
    warnings: tuple[str, ...]


def plan_disk(tree: Tree, inventory: Inventory, request: DiskRequest, copied: Copied = NOTHING_COPIED) -> DiskPlan:
    """Work out a disk image: pure, nothing is written. `copied` is what comes along by blocks, on other disks.

    Raises BuildUnsupported, BuildNoKernel, BuildInitramfsLacksDriver and BuildDiskTooSmall.
    """
    if copied.holds(b"boot/grub"):
        raise BuildUnsupported(what="A disk image", reason="/boot is on a data disk that is copied block by block")
    edited = plan_tree(tree, inventory, request, copied)
    own = [f for f in edited.selection.filesystems if f.disk in (0, None)]
    selection = replace(edited.selection, filesystems=tuple(own))
    needed = needed_of(edited)
    boot = edited.selection.filesystem_of(b"boot/grub").mount_point
    needed[boot] += _GRUB_BYTES
    layout, more = lay_out(selection, needed, inventory, request)
    return DiskPlan(
        selection=edited.selection,
        layout=layout,
        tree=edited.tree,
        kernels=edited.kernels,
        fixups=edited.fixups,
        diff=edited.tree.diff(),
        warnings=(*edited.warnings, *more),
    )


def needed_of(edited: EditedTree) -> dict[str, int]:
    """The least size in bytes of each filesystem, by mount point."""
    table, selection = edited.tree.table(), edited.selection
    return {f.mount_point: int(needed_bytes(files_of(table, selection, f)) * _SPARE) for f in selection.filesystems}


def plan_tree(tree: Tree, inventory: Inventory, request: DiskRequest, copied: Copied = NOTHING_COPIED) -> EditedTree:
    """What moves as files, with every fix-up made that can be: what is copied by blocks is not edited.

    Raises BuildUnsupported, BuildNoKernel, BuildInitramfsLacksDriver.
    """
    selection = select(inventory, request, copied)
    edited = Tree(_without_dropped(tree.table(), selection), tree)
    boot_copied = copied.holds(b"boot/grub")
    kernels = () if boot_copied else find_kernels(edited, inventory.hostname)
    warnings = [*selection.warnings, *_driver_warnings(edited, kernels)]
    context = Context(inventory, selection, kernels)
    reports: list[FixupReport] = []
    for fixup in all_fixups():
        if boot_copied and fixup.name == BOOT_LOADER:
            warnings.append(
                "/boot is copied block by block: GRUB's menu is the source's, without a console on the serial port."
            )
            continue
        outcome = fixup.fix(edited, context)
        changes = tuple(change for change in outcome.changes if _may_edit(change, copied))
        before, edited = edited, edited.apply(changes)
        warnings += outcome.warnings
        if changes or outcome.warnings:
            diff = _bounded(edited.diff(before))
            reports.append(FixupReport(fixup.name, fixup.about, len(changes), outcome.warnings, diff))
    return EditedTree(selection, edited, kernels, tuple(reports), tuple(warnings))


def _bounded(diff: str) -> str:
    """A diff for records and pages: whole lines, up to a bound."""
    if len(diff) <= _DIFF_MOST:
        return diff
    shown = diff[: diff.rfind("\n", 0, _DIFF_MOST) + 1] or diff[:_DIFF_MOST] + "\n"
    return f"{shown}(and {diff.count(chr(10), len(shown)):,} more lines; fixups.diff beside the image has them all)\n"


def _may_edit(change: Change, copied: Copied) -> bool:
    """Not where the volume is copied by blocks; the directory that it is mounted on is no part of it."""
    mount_points = {_relative(mount_point) for mount_point in copied.mounts}
    return change.path in mount_points or not copied.holds(change.path)


def _driver_warnings(tree: Tree, kernels: tuple[Kernel, ...]) -> list[str]:
    """Warnings about kernels that may not find their disk; raises for the newest, which is the one that starts."""
    warnings: list[str] = []
    for kernel in kernels:
        name = "/" + printable(kernel.initramfs or kernel.path)
        check = check_drivers(tree, kernel.version, kernel.initramfs)
        if check.missing and kernel is kernels[0]:
            raise BuildInitramfsLacksDriver(initramfs=name, drivers=", ".join(check.missing))
        if check.missing:
            warnings.append(f"{name} has no {', '.join(check.missing)}: that kernel would not find its disk.")
        elif check.unknown:
            warnings.append(f"Whether {name} has the drivers of the disk is not known: {check.unknown}.")
    return warnings


def _owners(table: pa.Table, mount_points: list[bytes]) -> npt.NDArray[np.int32]:
    """For each row the index of the mount point that what is below it is on; b"" is the root, and first.

    By path alone: what the source says of volumes and what edits inherit does not matter.
    """
    paths = table["path"]
    owners = np.zeros(len(table), dtype=np.int32)
    for index in sorted(range(len(mount_points)), key=lambda i: len(mount_points[i])):
        if mount_points[index]:
            below = pc.starts_with(paths, mount_points[index] + b"/")
            owners[below.combine_chunks().to_numpy(zero_copy_only=False).astype(bool)] = index
    return owners


def _relative(mount_point: str) -> bytes:
    return mount_point.strip("/").encode("utf-8", "surrogateescape")


def _without_dropped(table: pa.Table, selection: Selection) -> pa.Table:
    kept = [_relative(f.mount_point) for f in selection.filesystems]
    dropped = [_relative(d.mount_point) for d in selection.dropped]
    if not dropped:
        return table
    return table.filter(pa.array(_owners(table, kept + dropped) < len(kept)))


def files_of(table: pa.Table, selection: Selection, filesystem: Filesystem) -> pa.Table:
    """The files table of one filesystem: paths relative to its root, whose row is b""; sorted by path.

    Where another filesystem is mounted, an empty directory is left.
    """
    mount_points = [_relative(f.mount_point) for f in selection.filesystems]
    own = _relative(filesystem.mount_point)
    index = mount_points.index(own)
    inner = table.filter(pa.array(_owners(table, mount_points) == index))
    if own:
        paths = pc.binary_replace_slice(inner["path"], 0, len(own) + 1, b"").cast(pa.binary())
        inner = inner.set_column(0, FILES_SCHEMA.field("path"), paths)
    for other in mount_points:
        parent = max(
            (m for m in mount_points if m != other and (not m or other.startswith(m + b"/"))), key=len, default=b""
        )
        if other and parent == own:
            at = other[len(own) + 1 :] if own else other
            inner = inner.filter(pc.not_equal(inner["path"], at))
            inner = _with_directory(inner, Entry(at, stat.S_IFDIR | 0o755))
    if own:
        found = table.filter(pc.equal(table["path"], own))
        is_directory = len(found) == 1 and stat.S_ISDIR(found["mode"][0].as_py())
        if is_directory:
            found = found.set_column(0, FILES_SCHEMA.field("path"), pa.array([b""], pa.binary()))
            inner = pa.concat_tables([found.cast(FILES_SCHEMA), inner])
    if len(inner) == 0 or inner["path"][0].as_py() != b"":
        inner = _with_directory(inner, Entry(b"", stat.S_IFDIR | 0o755))
    return inner.combine_chunks()


def _with_directory(table: pa.Table, entry: Entry) -> pa.Table:
    """The table with that row in its place."""
    at = pc.sum(pc.less(table["path"], entry.path)).as_py() or 0
    row = pa.Table.from_pylist([entry.row()], schema=FILES_SCHEMA)
    return pa.concat_tables([table.slice(0, at), row, table.slice(at)])
