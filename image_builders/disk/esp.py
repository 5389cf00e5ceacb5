"""The EFI system partition: a FAT32 filesystem with one file, made by mtools straight inside the disk's file."""

from __future__ import annotations

from pathlib import Path

from image_builders.disk.gpt import SECTOR
from rehost.run import run

BOOT_FILE = "::/EFI/BOOT/BOOTX64.EFI"  # what every x86_64 firmware starts from a disk that it does not know
_LABEL = "ESP"
_TIMEOUT = 120.0
# No configuration of the user, and the same bytes every time.
_ENVIRONMENT = {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "946684800", "TZ": "UTC"}


def write_esp(disk: Path, start: int, size_bytes: int, serial: int, loader: bytes, scratch: Path) -> None:
    """Make the filesystem at byte `start` of the file `disk`, with `loader` at EFI/BOOT/BOOTX64.EFI.

    `serial` is the 32-bit serial number that blkid shows as the UUID. Raises ProgramFailed, ProgramNotFound.
    """
    image = f"{disk}@@{start}"
    file = scratch / "BOOTX64.EFI"
    file.write_bytes(loader)
    geometry = ["-T", str(size_bytes // SECTOR), "-h", "16", "-s", "63", "-H", str(start // SECTOR), "-c", "1"]
    format_argv = ["mformat", "-i", image, "-F", *geometry, "-N", f"{serial:08x}", "-v", _LABEL, "::"]
    for argv in (
        format_argv,
        ["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", image, str(file), BOOT_FILE],
    ):
        run(argv, timeout=_TIMEOUT, env=_ENVIRONMENT)
