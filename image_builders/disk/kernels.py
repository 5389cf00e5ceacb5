"""The kernels of a tree, newest first."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rehost.errors import BuildNoKernel
from rehost.replication.tree import Tree, printable

_KERNEL = re.compile(rb"boot/vmlinu[zx]-([A-Za-z0-9._+~-]{1,128})")  # such names need no quotes anywhere
KERNEL_FILES = (b"boot/vmlinu[zx]-*", b"boot/initrd*", b"boot/initramfs*")  # patterns of all that is looked at here
_INITRAMFS = (b"initrd.img-%s", b"initramfs-%s.img", b"initrd-%s", b"initramfs-%s", b"initrd-%s.img")


@dataclass(frozen=True)
class Kernel:
    """A kernel and its initramfs, as paths in the tree."""

    version: str
    path: bytes
    initramfs: bytes | None


def find_kernels(tree: Tree, hostname: str) -> tuple[Kernel, ...]:
    """Every kernel directly under /boot, newest first, rescue kernels last. Raises BuildNoKernel."""
    found: list[Kernel] = []
    for path in tree.children(b"boot"):
        match = _KERNEL.fullmatch(path)
        entry = tree.get(path)
        # A kernel that is a symbolic link would be one that GRUB, which reads one filesystem, may not find.
        if match is None or entry is None or not entry.is_file or entry.size == 0:
            continue
        version = match[1]
        names = (b"boot/" + pattern % version for pattern in _INITRAMFS)
        initramfs = next((name for name in names if (e := tree.get(name)) is not None and e.is_file), None)
        found.append(Kernel(version.decode("ascii"), path, initramfs))
    if not found:
        raise BuildNoKernel(source=printable(hostname.encode("utf-8", "surrogateescape")))
    return tuple(sorted(found, key=lambda kernel: _version_key(kernel.version), reverse=True))


def _version_key(version: str) -> tuple[bool, tuple[tuple[int, int, str], ...]]:
    """Numbers by value, `~` before the end of the version, as dpkg and GRUB sort."""
    parts = re.findall(r"\d+|~|[^\d~]+", version)
    keys = tuple((3, int(p), "") if p.isdigit() else (0, 0, "") if p == "~" else (2, 0, p) for p in parts)
    return "rescue" not in version, (*keys, (1, 0, ""))
