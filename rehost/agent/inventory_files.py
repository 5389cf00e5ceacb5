"""What the files of a tree tell of a server; symbolic links are followed inside the tree, as a chroot would."""

import os
import re
import stat
from typing import Dict, List, Optional

_TEXT_BYTES = 65536
_FILES = 200
_LINKS = 40
_NETWORK_DIRECTORIES = (
    (b"etc/network/interfaces.d", None),
    (b"etc/netplan", (b".yaml", b".yml")),
    (b"etc/NetworkManager/system-connections", None),
    (b"etc/systemd/network", (b".network",)),
    (b"etc/sysconfig/network-scripts", None),
    (b"etc/sysconfig/network", None),
)
_SECRET = re.compile(r"psk|passw|secret|private|\bkey|wep-|pin\b|token", re.IGNORECASE)
_MACHINES = {
    3: "i686",
    0x15: "ppc64le",
    0x16: "s390x",
    0x28: "armv7l",
    0x3E: "x86_64",
    0xB7: "aarch64",
    0xF3: "riscv64",
}


def resolve(root: bytes, path: bytes) -> Optional[bytes]:
    """Where the path leads on this machine, without ever leaving the root; None where it leads nowhere."""
    if root == b"/":
        full = b"/" + path.lstrip(b"/")
        return full if os.path.exists(full) else None
    todo = [part for part in path.split(b"/") if part not in (b"", b".")]
    at = []  # type: List[bytes]
    links = 0
    while todo:
        part = todo.pop(0)
        if part == b"..":
            at = at[:-1]
            continue
        full = os.path.join(root, *(at + [part]))
        try:
            mode = os.lstat(full).st_mode
        except OSError:
            return None
        if stat.S_ISLNK(mode):
            links += 1
            if links > _LINKS:
                return None
            target = os.readlink(full)
            if target.startswith(b"/"):
                at = []
            todo = [p for p in target.split(b"/") if p not in (b"", b".")] + todo
        else:
            at.append(part)
    return os.path.join(root, *at) if at else root


def read_bytes(root: bytes, path: bytes, limit: int = _TEXT_BYTES) -> bytes:
    """The start of a regular file, b"" where there is none or it may not be read."""
    found = resolve(root, path)
    if found is None:
        return b""
    try:
        # A FIFO must not hold the agent up.
        descriptor = os.open(found, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        pieces = []
        while limit > 0:
            piece = os.read(descriptor, min(limit, 65536))
            if not piece:
                break
            pieces.append(piece)
            limit -= len(piece)
        return b"".join(pieces)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def read_text(root: bytes, path: bytes, limit: int = _TEXT_BYTES) -> str:
    """The start of a regular file as text."""
    return read_bytes(root, path, limit).decode("utf-8", "replace")


def listed(root: bytes, path: bytes) -> List[bytes]:
    """The names in a directory, sorted; empty where there is none."""
    found = resolve(root, path)
    try:
        return sorted(os.listdir(found)) if found is not None else []
    except OSError:
        return []


def network_files(root: bytes) -> Dict[str, str]:
    """The files that say how interfaces get their addresses: path → text, lines with secrets left out."""
    paths = [b"etc/network/interfaces"]
    for directory, endings in _NETWORK_DIRECTORIES:
        for name in listed(root, directory):
            if directory.startswith(b"etc/sysconfig") and not name.startswith(b"ifcfg-"):
                continue
            if endings is None or name.endswith(endings):
                paths.append(directory + b"/" + name)
    found = {}
    for path in paths[:_FILES]:
        text = read_text(root, path, 16384)
        if text:
            kept = [line for line in text.splitlines() if not _SECRET.search(line)]
            found[path.decode("utf-8", "replace")] = "\n".join(kept)
    return found


def newest_kernel(root: bytes) -> Optional[str]:
    """The highest version below lib/modules."""

    def version(name: bytes) -> List[int]:
        return [int(number) for number in re.findall(rb"\d{1,9}", name)]

    names = [name for name in listed(root, b"lib/modules") if name[:1].isdigit()]
    return max(names, key=version).decode("utf-8", "replace") if names else None


def architecture(root: bytes) -> str:
    """As `uname -m` would say it, by the ELF header of a program that every server has."""
    for path in (b"bin/sh", b"usr/bin/env", b"sbin/init"):
        machine = elf_machine(read_bytes(root, path, 20))
        if machine is not None:
            return machine
    return "unknown"


def elf_machine(head: bytes) -> Optional[str]:
    """The machine of a program whose first 20 bytes are given; None where it is none, or of an unknown one."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    return _MACHINES.get(head[18] << 8 | head[19] if head[5] == 2 else head[19] << 8 | head[18])


def boot_mode(root: bytes) -> str:
    """By what the boot loader left behind."""
    if listed(root, b"boot/efi/EFI") or listed(root, b"efi/EFI"):
        return "uefi"
    for directory in (b"boot/grub", b"boot/grub2"):
        if listed(root, directory + b"/i386-pc"):
            return "bios"
        if listed(root, directory + b"/x86_64-efi"):
            return "uefi"
    return "unknown"


def init(root: bytes) -> Optional[str]:
    """systemd, openrc or sysvinit, by where /sbin/init leads."""
    path = resolve(root, b"sbin/init")
    if path is not None and b"systemd" in path:
        return "systemd"
    if resolve(root, b"sbin/openrc") is not None:
        return "openrc"
    return "sysvinit" if path is not None and resolve(root, b"etc/inittab") is not None else None
