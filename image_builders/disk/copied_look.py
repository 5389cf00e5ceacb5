"""A look at a disk that was put together from blocks: how it boots, and what of the usual fix-ups is not in it.

Nothing of a filesystem that was copied is edited but the EFI system partition, where a loader is put where firmware
that has never seen the disk looks for it. The rest is read and told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from image_builders.disk.copied import CopiedDisk
from image_builders.disk.ext4_tree import boot_tree
from image_builders.disk.fixups import Context, all_fixups
from image_builders.disk.gpt import BOOT_CODE_BYTES
from image_builders.disk.initramfs import check_drivers
from image_builders.disk.kernels import find_kernels
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import Copied, select
from rehost.errors import BuildError, ProgramFailed, ProgramTimeout, SourceError
from rehost.replication.tree import Tree, printable
from rehost.run import run
from rehost.source.ext4_reader import Ext4Image
from rehost.source.inventory import Inventory, Partition
from rehost.source.partition_tables import BIOS_BOOT_TYPE, ESP_TYPE, PartitionTable, TablePartition

Firmware = Literal["bios", "uefi"]

_READ = ("ext2", "ext3", "ext4")
_SECONDS = 120.0
_ENVIRONMENT = {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "946684800", "TZ": "UTC"}
_ENTRIES_READ = 100  # of the menu, as systemd and Fedora keep them
_REMOVABLE = "::/EFI/BOOT/BOOTX64.EFI"
_LOADERS = ("grubx64.efi", "systemd-bootx64.efi")  # shim is of no use alone, and Secure Boot is off in any case
_VENDOR = re.compile(r"::/EFI/[A-Za-z0-9._-]{1,64}/")
_DISK_NAME = re.compile(
    rb"^\s*/dev/(?:[a-z]+d[a-z]+[0-9]*|nvme[0-9]\S*|mmcblk[0-9]\S*|disk/by-(?:id|path)/\S*)\s", re.MULTILINE
)


@dataclass(frozen=True)
class BootLook:
    """How a disk starts. `loader` is the vendor's loader that was put at the removable path, where that was needed."""

    modes: tuple[Firmware, ...]
    loader: str | None
    warnings: tuple[str, ...]


def look_at_boot(
    raw: Path, target: BinaryIO, table: PartitionTable | None, inventory: Inventory, scratch: Path
) -> BootLook:
    """What firmware finds on the raw disk."""
    modes: list[Firmware] = []
    warnings: list[str] = []
    loader: str | None = None
    target.seek(0)
    if _boots_by_bios(target.read(512), inventory):
        modes.append("bios")
    for partition in table.partitions if table else ():
        if partition.type not in (ESP_TYPE, "0xef"):
            continue
        image = f"{raw}@@{partition.start}"
        try:
            found = _loader_on(image, scratch)
        except (ProgramFailed, ProgramTimeout) as error:
            warnings.append(f"The EFI system partition {partition.number} cannot be read: {error.message}")
            continue
        if found is None:
            warnings.append(f"The EFI system partition {partition.number} has no boot loader that is known.")
            continue
        if found:
            loader = found
        modes.append("uefi")
        break
    return BootLook(tuple(modes), loader, tuple(warnings))


def _boots_by_bios(sector: bytes, inventory: Inventory) -> bool:
    """Boot code that is GRUB's, or that starts an active partition, or by which the source is known to have started.

    Partitioning tools leave code in the first sector that starts nothing, also on disks that start by UEFI.
    """
    code = sector[:BOOT_CODE_BYTES]
    if not any(code):
        return False
    active = any(sector[at] == 0x80 for at in range(446, 510, 16) if len(sector) == 512)
    return b"GRUB" in code or active or inventory.boot_mode == "bios"


def _loader_on(image: str, scratch: Path) -> str | None:
    """None: no loader; "": one at the removable path; else the vendor's loader that was put there."""
    if _listed(image, _REMOVABLE):
        return ""
    for folder in _listed(image, "::/EFI/"):
        if not _VENDOR.fullmatch(folder):
            continue
        names = {name.rpartition("/")[2].lower(): name for name in _listed(image, folder)}
        found = next((names[name] for name in _LOADERS if name in names), None)
        if found is None:
            continue
        copy = scratch / "vendor.efi"
        _mtools("mcopy", "-n", "-o", "-i", image, found, str(copy))
        if not _listed(image, "::/EFI/BOOT/"):
            _mtools("mmd", "-D", "s", "-i", image, "::/EFI/BOOT")
        _mtools("mcopy", "-D", "o", "-i", image, str(copy), _REMOVABLE)
        return found.removeprefix("::")
    return None


def _listed(image: str, path: str) -> list[str]:
    """What mdir lists there, one full name each, folders with a slash at the end; empty where nothing is."""
    completed = run(["mdir", "-b", "-i", image, path], timeout=_SECONDS, env=_ENVIRONMENT, check=False)
    if completed.status != 0 and "not found" not in completed.stderr.lower():
        raise ProgramFailed(program="mdir", status=completed.status, stderr=completed.stderr.strip()[-500:])
    return completed.stdout.decode("utf-8", "replace").splitlines()


def _mtools(*argv: str) -> None:
    run(argv, timeout=_SECONDS, env=_ENVIRONMENT)


# --- what starts from it --------------------------------------------------------------------------------------


def look_at_root(
    raw: Path, disk: CopiedDisk, inventory: Inventory, copied: Copied, request: DiskRequest
) -> tuple[str, ...]:
    """Warnings about a root that was copied by blocks; the filesystems of that disk are read, never written.

    Raises BuildNoKernel where it has none.
    """
    by_path = {partition.path: partition for partition in disk.disk.partitions}
    readable: dict[bytes, Partition] = {}
    for volume in inventory.volumes:
        partition = by_path.get(volume.device or "")
        if partition is not None and volume.mount_point in ("/", "/boot", "/usr") and volume.filesystem in _READ:
            readable[volume.mount_point.strip("/").encode()] = partition
    root = next((volume for volume in inventory.volumes if volume.mount_point == "/"), None)
    if b"" not in readable or root is None:
        kind = printable((root.filesystem if root else "unknown").encode("utf-8", "replace"))
        return (
            f"The root filesystem ({kind}) was copied block by block and is not read here: a console on the serial "
            "port, the network of the new place and the drivers of a virtio disk in the initramfs were neither checked "
            "nor set up.",
        )
    boot = next((volume for volume in inventory.volumes if volume.mount_point == "/boot"), None)
    boot_is_read = boot is None or b"boot" in readable
    try:
        with ExitStack() as stack:
            images = {
                path: stack.enter_context(Ext4Image(raw, p.start, p.size_bytes, f"the image's partition {p.device}"))
                for path, p in readable.items()
            }
            tree = boot_tree(images)
            return tuple(_told(tree, inventory, copied, request, boot_is_read))
    except SourceError as error:
        return (f"The root filesystem was copied block by block and cannot be looked into: {error.message}",)


def _told(tree: Tree, inventory: Inventory, copied: Copied, request: DiskRequest, boot_is_read: bool) -> Iterator[str]:
    if boot_is_read:
        yield from _drivers(tree, inventory)
    else:
        yield "/boot is on a filesystem that is not read here: whether its initramfs finds a virtio disk is not known."
    yield from _start_of(tree, inventory)
    others = {volume.mount_point: volume.uuid for volume in inventory.volumes if volume.mount_point != "/"}
    try:
        selection = select(inventory, request, Copied(copied.disks, others))
    except BuildError as error:
        yield f"The network's settings were not looked at: {error.message}"
        return
    context = Context(inventory, selection, ())
    for fixup in all_fixups():
        if fixup.name.startswith("network") and fixup.fix(tree, context).changes:
            yield (
                f"The root was copied block by block, so the fix-up “{fixup.name}” was not made: the copy keeps the "
                "source's network settings, and may not be reachable in another network."
            )


def _drivers(tree: Tree, inventory: Inventory) -> Iterator[str]:
    kernels = find_kernels(tree, inventory.hostname)
    for kernel in kernels:
        name = "/" + printable(kernel.initramfs or kernel.path)
        check = check_drivers(tree, kernel.version, kernel.initramfs)
        if check.missing and kernel is kernels[0]:
            yield (
                f"{name}, with which the image starts, has no {', '.join(check.missing)}: on virtio disks it will not "
                "find its root. Add them to the initramfs on the source (Debian: /etc/initramfs-tools/modules)."
            )
        elif check.missing:
            yield f"{name} has no {', '.join(check.missing)}: that kernel would not find its disk."
        elif check.unknown:
            yield f"Whether {name} has the drivers of a virtio disk is not known: {check.unknown}."


def _start_of(tree: Tree, inventory: Inventory) -> Iterator[str]:
    fstab = tree.read(b"etc/fstab", 1 << 18) or b""
    named = sorted({printable(match.strip()) for match in _DISK_NAME.findall(fstab)})
    if named:
        yield (
            f"/etc/fstab names {', '.join(named[:5])}, and the disk has another name in the image: write `UUID=` there "
            "on the source, or the start may end in emergency mode."
        )
    if not _speaks_on_serial_port(tree, inventory):
        yield (
            "The root was copied block by block, so no console on the serial port was set up: a test boot without its "
            "probe has nothing to read, and a cloud's serial console stays dark."
        )


def _speaks_on_serial_port(tree: Tree, inventory: Inventory) -> bool:
    """Whether a kernel of the copied menu, or the one that ran on the source, is told of a serial port."""
    menus = [b"boot/grub/grub.cfg", b"boot/grub2/grub.cfg", *tree.children(b"boot/loader/entries")[:_ENTRIES_READ]]
    texts = [inventory.kernel_command_line or "", *((tree.read(path) or b"").decode("latin-1") for path in menus)]
    return any("console=ttyS" in text for text in texts)


def roles(partition: TablePartition, known: Partition | None) -> Literal["bios", "esp", "filesystem", "swap", "other"]:
    """What a partition of a copied disk is, for the image's record."""
    if partition.type == BIOS_BOOT_TYPE:
        return "bios"
    if partition.type in (ESP_TYPE, "0xef"):
        return "esp"
    filesystem = known.filesystem if known else None
    if filesystem == "swap":
        return "swap"
    return "filesystem" if filesystem and not filesystem.endswith(("_member", "LUKS")) else "other"


def of_number(disk: CopiedDisk) -> Mapping[int, Partition]:
    """The inventory's partitions of a disk by their numbers in its table."""
    return {int(partition.device.partition("_")[2]): partition for partition in disk.disk.partitions}
