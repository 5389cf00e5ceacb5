"""What else of the old machine keeps a copy from starting, and what a tree lacks that a system needs."""

from __future__ import annotations

import re

from image_builders.disk.fixups import Context, Fixup, Outcome
from rehost.replication.tree import Change, Directory, Put, Remove, Tree

_DIRECTORIES = ((b"dev", 0o755), (b"proc", 0o555), (b"run", 0o755), (b"sys", 0o555), (b"tmp", 0o1777))
_RESUME = b"etc/initramfs-tools/conf.d/resume"
_CRYPTTAB = b"etc/crypttab"
_DEVICE_MAP = (b"boot/grub/device.map", b"boot/grub2/device.map")


def _fix(tree: Tree, context: Context) -> Outcome:
    changes: list[Change] = []
    warnings: list[str] = []
    for path, mode in _DIRECTORIES:
        entry = tree.get(path)
        if entry is None or not (entry.is_directory or entry.is_symlink):
            changes.append(Directory(path, mode))
    selection = context.selection
    for mount_point in (*(d.mount_point for d in selection.dropped), *sorted(selection.copied.mounts)):
        path = mount_point.strip("/").encode("utf-8", "surrogateescape")
        if tree.get(path) is None:
            changes.append(Directory(path))
    resume = tree.read(_RESUME)
    if resume is not None and _lost_swap(resume, context):
        changes.append(Put(_RESUME, b"# Rehost: the swap area that was named here is not on this disk.\nRESUME=none\n"))
    crypttab = tree.read(_CRYPTTAB)
    if crypttab is not None and (lines := crypttab.splitlines()):
        kept = [
            line if not line.strip() or line.startswith(b"#") else b"# Rehost: not encrypted here: " + line
            for line in lines
        ]
        if kept != lines:
            changes.append(Put(_CRYPTTAB, b"\n".join(kept) + b"\n"))
            warnings.append("The entries of /etc/crypttab are commented out: nothing is encrypted in the image.")
    changes += [Remove(path) for path in _DEVICE_MAP if tree.get(path) is not None]
    return Outcome(tuple(changes), tuple(warnings))


def _lost_swap(resume: bytes, context: Context) -> bool:
    named = re.search(rb"^\s*RESUME=(\S+)", resume, re.MULTILINE)
    if named is None or named[1].lower() in (b"none", b"auto", b"uuid=none"):
        return False
    return named[1].decode("ascii", "replace").lower() not in {f"uuid={s.uuid}" for s in context.selection.swaps}


FIXUP = Fixup(
    name="leftovers",
    order=60,
    about=(
        "Directories that the kernel's own filesystems are mounted on appear where they are missing; a resume device, "
        "encrypted volumes and GRUB's device map of the old machine are taken out, since the start would wait for "
        "them. The machine id is kept: it is the same server."
    ),
    fix=_fix,
    reads=(_RESUME, _CRYPTTAB, *_DEVICE_MAP),
    sees=tuple(path for path, _ in _DIRECTORIES),
)
