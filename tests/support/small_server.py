"""A server of a few files with all that the disk builder looks for, and its inventory: /boot of its own, an ESP."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

from rehost.replication.tree import Tree
from rehost.source.inventory import Disk, Inventory, Partition, Volume
from tests.support.small_tree import small_tree

MIB = 1 << 20
ROOT_UUID = "41111111-2222-4333-8444-555555555555"
BOOT_UUID = "11111111-2222-4333-8444-555555555555"
ESP_DEVICE = "0_1"
VERSION = "6.1.0-1-amd64"


def cpio(*names: str) -> bytes:
    """An archive of empty files, in the form newc."""
    out = bytearray()
    for name in (*names, "TRAILER!!!"):
        fields = [1, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4)
    return bytes(out)


def server_tree(modules: Sequence[str] = ("virtio_blk", "virtio_pci", "ext4")) -> Tree:
    initramfs = gzip.compress(cpio(*(f"usr/lib/modules/{VERSION}/{name}.ko" for name in modules)), mtime=0)
    return small_tree(
        {
            f"boot/vmlinuz-{VERSION}": b"MZ not a kernel" * 1000,
            f"boot/initrd.img-{VERSION}": initramfs,
            "boot/efi/EFI/debian/grubx64.efi": b"old",
            "boots/kept": b"a name that begins like a mount point",
            "etc/fstab": b"/dev/vda3 / ext4 defaults 0 1\n",
            "etc/default/grub": b'GRUB_CMDLINE_LINUX=""\n',
            "var/big": b"x" * 300_000,
            "lib": "usr/lib",
            "usr/lib/x": b"",
        }
    )


def server() -> Inventory:
    esp = Partition(
        path="/dev/vda1", device=ESP_DEVICE, start=MIB, size_bytes=100 * MIB, filesystem="vfat", uuid="ABCD-1234"
    )
    boot = Partition(
        path="/dev/vda2", device="0_2", start=101 * MIB, size_bytes=128 * MIB, filesystem="ext4", uuid=BOOT_UUID
    )
    root = Partition(
        path="/dev/vda3", device="0_3", start=300 * MIB, size_bytes=400 * MIB, filesystem="ext4", uuid=ROOT_UUID
    )

    def volume(mount_point: str, partition: Partition) -> Volume:
        return Volume(
            mount_point=mount_point,
            filesystem=partition.filesystem or "ext4",
            uuid=partition.uuid,
            size_bytes=partition.size_bytes,
            used_bytes=MIB,
            device=partition.path,
        )

    return Inventory(
        hostname="web",
        os_id="debian",
        os_name="Debian GNU/Linux 12 (bookworm)",
        architecture="x86_64",
        kernel_command_line=f"BOOT_IMAGE=/vmlinuz-{VERSION} root=UUID={ROOT_UUID} ro quiet",
        disks=(Disk(index=0, path="/dev/vda", size_bytes=800 * MIB, table="gpt", partitions=(esp, boot, root)),),
        volumes=(volume("/", root), volume("/boot", boot), volume("/boot/efi", esp)),
    )
