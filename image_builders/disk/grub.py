"""The boot loader: GRUB for BIOS in the BIOS boot partition, GRUB for UEFI on the EFI system partition.

Both are made by the worker's `grub-mkimage` with the worker's modules, and search the filesystem of /boot by its UUID.
What `grub-install` would do on a mounted disk is done on the bytes (GRUB's include/grub/i386/pc/boot.h and
util/setup.c): the code of boot.img goes into the MBR with the first sector of core.img at 0x5C; the first sector of
core.img says at 0x1F4 where the rest lies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from image_builders.disk.gpt import BOOT_CODE_BYTES, SECTOR
from rehost.errors import BuildNoBootLoader, ProgramFailed, ProgramNotFound
from rehost.replication.tree import Put, Remove
from rehost.run import run

MODULES_PATH = Path("/usr/lib/grub")
_KERNEL_SECTOR_AT = 0x5C  # of boot.img: the sector of core.img, 64 bits
_DRIVE_CHECK_AT = 0x66  # of boot.img: a jump that is made to nothing on hard disks, as grub-install does
_BLOCK_LIST_AT = 0x1F4  # of core.img's first sector: sector (64 bits), sectors (16), segment (16)
_BLOCK_LIST = struct.Struct("<QHH")
_CORE_SEGMENT = 0x820
_TIMEOUT = 120.0

_COMMON = [
    *("part_gpt", "part_msdos", "ext2", "search", "search_fs_uuid", "search_fs_file", "search_label"),
    *("normal", "configfile", "linux", "gzio", "loadenv", "echo", "test", "true", "sleep", "regexp"),
    *("serial", "terminal", "terminfo", "all_video", "gfxterm", "font", "ls", "cat", "minicmd", "reboot", "halt"),
]
_OF_PLATFORM = {"i386-pc": ["biosdisk", "vga_text"], "x86_64-efi": ["efi_gop", "efi_uga"]}


@dataclass(frozen=True)
class BiosLoader:
    """The two pieces of GRUB for BIOS, with the places in them that depend on where core lies."""

    boot_code: bytes  # at most 440 bytes, for the MBR
    core: bytes  # for the start of the BIOS boot partition


def platforms(boot_mode: str) -> tuple[str, ...]:
    """GRUB's platforms for a boot mode."""
    return {"bios": ("i386-pc",), "uefi": ("x86_64-efi",), "both": ("i386-pc", "x86_64-efi")}[boot_mode]


def _core(platform: str, boot_uuid: UUID, grub_directory: str, scratch: Path) -> bytes:
    """The core of GRUB with what it needs to find its menu; `grub_directory` as in the filesystem: /boot/grub."""
    folder = _modules(platform)
    early = scratch / f"early-{platform}.cfg"
    early.write_text(f"search.fs_uuid {boot_uuid} root\nset prefix=($root){grub_directory}\n", encoding="ascii")
    output = scratch / f"core-{platform}"
    modules = _COMMON + _OF_PLATFORM[platform]
    argv = ["grub-mkimage", "-d", str(folder), "-O", platform, "-c", str(early), "-p", grub_directory]
    try:
        run([*argv, "-o", str(output), *modules], timeout=_TIMEOUT)
    except (ProgramNotFound, ProgramFailed) as error:
        raise BuildNoBootLoader(boot_mode=platform, reason=error.message) from error
    return output.read_bytes()


def _modules(platform: str) -> Path:
    folder = MODULES_PATH / platform
    if not (folder / "moddep.lst").is_file():
        raise BuildNoBootLoader(boot_mode=platform, reason=f"{folder} has no modules")
    return folder


def bios_loader(boot_uuid: UUID, grub_directory: str, start: int, room: int, scratch: Path) -> BiosLoader:
    """GRUB for BIOS, for a partition of `room` bytes that begins at byte `start`. Raises BuildNoBootLoader."""
    core = bytearray(_core("i386-pc", boot_uuid, grub_directory, scratch))
    if len(core) > room:
        raise BuildNoBootLoader(boot_mode="i386-pc", reason=f"core.img has {len(core)} bytes, of {room} that fit")
    try:
        boot = bytearray((MODULES_PATH / "i386-pc/boot.img").read_bytes()[:SECTOR])
    except OSError as error:
        raise BuildNoBootLoader(boot_mode="i386-pc", reason=str(error)) from error
    first = start // SECTOR
    sectors = -(-len(core) // SECTOR)
    struct.pack_into("<Q", boot, _KERNEL_SECTOR_AT, first)
    boot[_DRIVE_CHECK_AT : _DRIVE_CHECK_AT + 2] = b"\x90\x90"
    _BLOCK_LIST.pack_into(core, _BLOCK_LIST_AT, first + 1, sectors - 1, _CORE_SEGMENT)
    return BiosLoader(bytes(boot[:BOOT_CODE_BYTES]), bytes(core))


def write_core(target: BinaryIO, start: int, loader: BiosLoader) -> None:
    """Put core.img at the start of its partition."""
    target.seek(start)
    target.write(loader.core)


def efi_loader(boot_uuid: UUID, grub_directory: str, scratch: Path) -> bytes:
    """GRUB for UEFI: the content of EFI/BOOT/BOOTX64.EFI. It is not signed: Secure Boot has to be off."""
    return _core("x86_64-efi", boot_uuid, grub_directory, scratch)


def module_changes(boot_mode: str, directory: bytes) -> Iterator[Put | Remove]:
    """GRUB's modules and lists for `directory` in the tree, as grub-install puts them there.

    They have to be those of the core that loads them: a menu made by update-grub on the target loads some by name.
    Raises BuildNoBootLoader.
    """
    for platform in platforms(boot_mode):
        folder = directory + b"/" + platform.encode("ascii")
        yield Remove(folder)
        for path in sorted(_modules(platform).iterdir()):
            if path.suffix in (".mod", ".lst"):
                mtime_ns = path.stat().st_mtime_ns
                yield Put(folder + b"/" + path.name.encode("ascii"), path.read_bytes(), mode=0o644, mtime_ns=mtime_ns)
