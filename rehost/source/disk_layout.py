"""What lies on a server's disk images: tables, filesystems, which one is the root, and what is mounted where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rehost.agent import superblocks
from rehost.errors import RehostError, SourceUnsupported
from rehost.source.disk_images import RawImage
from rehost.source.ext4_reader import Ext4Image
from rehost.source.facts import clean
from rehost.source.image_tree import ImageTree
from rehost.source.partition_tables import BIOS_BOOT_TYPE, ESP_TYPE, PartitionTable, TablePartition, read_table
from rehost.source.system_files import FstabLine, parse_fstab

READ_FILESYSTEMS = ("ext2", "ext3", "ext4")
_LOCAL = (*READ_FILESYSTEMS, "xfs", "btrfs", "vfat", "auto", "f2fs", "jfs", "reiserfs", "ntfs", "ntfs3", "exfat")
_ESP_MOUNT_POINTS = ("/boot/efi", "/efi")
_ROOT_TELLS = (b"etc/fstab", b"etc/os-release", b"usr/lib/os-release")
_INIT_TELLS = (b"sbin/init", b"usr/sbin/init", b"usr/lib/systemd/systemd", b"etc/inittab", b"etc/passwd")
_WHAT_TO_DO = {
    "LVM2_member": "is part of LVM",
    "linux_raid_member": "is part of an mdraid array",
    "crypto_LUKS": "is encrypted (LUKS)",
}


@dataclass(frozen=True)
class Found:
    """A partition of an image, or the whole image where it has no table, and what its superblock says."""

    disk: int
    image: RawImage
    table: PartitionTable | None
    partition: TablePartition
    filesystem: str | None
    uuid: str | None
    label: str | None
    size_bytes: int | None  # of the filesystem
    used_bytes: int | None

    @property
    def shown(self) -> str:
        """The partition for messages and for `Partition.path`: FILE#1."""
        return f"{self.image.shown}#{self.partition.number}" if self.table else self.image.shown


@dataclass(frozen=True)
class MountedImage:
    """A filesystem with a reader, at its mount point."""

    mount_point: str
    found: Found
    reader: Ext4Image
    options: str


@dataclass(frozen=True)
class NotRead:
    """A mount of fstab that cannot be read."""

    mount_point: str
    reason: str
    optional: bool  # fstab says noauto or nofail, or the image builder makes it anew


@dataclass(frozen=True)
class Layout:
    """Everything that was found."""

    images: tuple[RawImage, ...]
    tables: tuple[PartitionTable | None, ...]
    partitions: tuple[Found, ...]
    mounts: tuple[MountedImage, ...]  # root first, then by mount point
    not_read: tuple[NotRead, ...]
    mount_points: dict[str, str] = field(default_factory=dict)  # Found.shown → mount point, with and without reader

    def tree(self) -> ImageTree:
        """The server's files."""
        return ImageTree({mount.mount_point.strip("/").encode(): mount.reader for mount in self.mounts})

    def has_type(self, kind: str) -> bool:
        """Whether a partition of that type is there."""
        return any(found.partition.type == kind for found in self.partitions)


def read_layout(images: Sequence[RawImage], stack: ExitStack) -> Layout:
    """Find out what is on the images; readers are closed with the stack.

    Raises SourceImageDamaged and SourceUnsupported, the latter naming what is there, where no root can be read.
    """
    tables = tuple(read_table(image.read, image.size_bytes, image.shown) for image in images)
    partitions = tuple(
        found
        for disk, (image, table) in enumerate(zip(images, tables, strict=True))
        for found in _partitions(disk, image, table)
    )
    root, reader = _root(partitions, stack)
    lines = parse_fstab((ImageTree({b"": reader})).text(b"etc/fstab"))
    options = next((line.options for line in lines if line.mount_point == "/"), "")
    mounts = [MountedImage("/", root, reader, options)]
    not_read: list[NotRead] = []
    mount_points = {root.shown: "/"}
    for line in lines:
        point = "/" + line.mount_point.strip("/")
        if point == "/" or line.filesystem not in _LOCAL or line.option("bind") or line.option("rbind"):
            continue
        if ".." in point.split("/") or "//" in point or point in [mount.mount_point for mount in mounts]:
            continue
        found = _named(line.source, partitions)
        if found is not None:
            mount_points.setdefault(found.shown, point)
        if found is None or found.filesystem not in READ_FILESYSTEMS:
            not_read.append(_not_read(point, line, found))
        elif found not in [mount.found for mount in mounts]:
            mounts.append(MountedImage(point, found, _reader(found, stack), line.options))
    mounts.sort(key=lambda mount: (mount.mount_point != "/", mount.mount_point))
    return Layout(tuple(images), tables, partitions, tuple(mounts), tuple(not_read), mount_points)


def _partitions(disk: int, image: RawImage, table: PartitionTable | None) -> Iterator[Found]:
    whole = TablePartition(0, 0, image.size_bytes, "", "")
    for partition in table.partitions if table else (whole,):
        start, size = partition.start, partition.size_bytes

        def read(offset: int, length: int, start: int = start, size: int = size) -> bytes:
            return image.read(start + offset, max(0, min(length, size - offset)))

        facts = superblocks.probe(read, size)
        texts = {name: clean(value) for name, value in facts.items() if isinstance(value, str)}
        # The sizes are the superblock's own words: they are kept within the partition.
        numbers = {name: min(value, size) for name, value in facts.items() if isinstance(value, int)}
        yield Found(
            disk,
            image,
            table,
            partition,
            texts.get("filesystem"),
            texts.get("uuid"),
            texts.get("label"),
            numbers.get("size_bytes"),
            numbers.get("used_bytes"),
        )


def _reader(found: Found, stack: ExitStack) -> Ext4Image:
    start, size = found.partition.start, found.partition.size_bytes
    return stack.enter_context(Ext4Image(found.image.path, start, size, found.shown))


def _root(partitions: Sequence[Found], stack: ExitStack) -> tuple[Found, Ext4Image]:
    """The filesystem that holds /etc/fstab or an os-release, and an init; the first one on the system disk."""
    failures: list[RehostError] = []
    for found in partitions:
        if found.filesystem not in READ_FILESYSTEMS:
            continue
        try:
            reader = _reader(found, stack)
            tree = ImageTree({b"": reader})
            if any(map(tree.exists, _ROOT_TELLS)) and any(map(tree.exists, _INIT_TELLS)):
                return found, reader
        except RehostError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    there = [f"{found.shown} {what_it_is(found.filesystem)}" for found in partitions]
    raise SourceUnsupported(
        source=", ".join(dict.fromkeys(found.image.shown for found in partitions)) or "the disk images",
        reason=f"no ext2, ext3 or ext4 filesystem with a server's root was found ({'; '.join(there[:20])}): "
        "start the server and migrate it over SSH",
    )


def what_it_is(filesystem: str | None) -> str:
    """What a partition without a reader is, as the end of a sentence that begins with its name."""
    if filesystem is None:
        return "holds nothing that is known"
    return _WHAT_TO_DO.get(filesystem, f"holds {filesystem}")


def _not_read(point: str, line: FstabLine, found: Found | None) -> NotRead:
    # The disk builder makes an EFI system partition of its own.
    made_anew = line.filesystem == "vfat" and point in _ESP_MOUNT_POINTS
    optional = made_anew or line.option("noauto") or line.option("nofail")
    if found is None:
        reason = f"{clean(line.source)[:100]}, which /etc/fstab mounts at {point}, is on none of the disk images"
    else:
        what = what_it_is(found.filesystem)
        reason = f"{found.shown}, mounted at {point}, {what}, for which disk images have no reader"
    return NotRead(point, reason, optional)


def _named(source: str, partitions: Sequence[Found]) -> Found | None:
    """The partition that the first field of an fstab line names."""
    kind, separator, value = source.partition("=")
    if not separator and (match := re.fullmatch(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)", source)):
        kind, value = match.group(1).upper(), match.group(2)
    for found in partitions:
        names = {
            "UUID": found.uuid,
            "LABEL": found.label,
            "PARTUUID": found.partition.part_uuid,
            "PARTLABEL": found.partition.name,
        }
        if kind in names and value and (names[kind] or "").lower() == value.lower():
            return found
    if match := re.fullmatch(r"/dev/(?:[sv]|xv|h)d([a-z])(\d{1,3})", source):
        place = ord(match.group(1)) - ord("a"), int(match.group(2))
    elif match := re.fullmatch(r"/dev/(?:nvme(\d{1,2})n1|mmcblk(\d{1,2}))p(\d{1,3})", source):
        place = int(match.group(1) or match.group(2)), int(match.group(3))
    else:
        return None
    return next((found for found in partitions if (found.disk, found.partition.number) == place), None)


def boot_mode(layout: Layout, tree: ImageTree) -> str:
    """bios or uefi, by the partitions that the firmware needs and by what GRUB left behind; unknown without either."""
    esp, bios_boot = layout.has_type(ESP_TYPE), layout.has_type(BIOS_BOOT_TYPE)
    dos = any(table is not None and table.kind == "dos" for table in layout.tables)
    if esp and bios_boot:
        return "bios" if tree.listed(b"boot/grub/i386-pc") or tree.listed(b"boot/grub2/i386-pc") else "uefi"
    if esp or any(found.partition.type == "0xef" for found in layout.partitions):
        return "uefi"
    return "bios" if bios_boot or dos else "unknown"
