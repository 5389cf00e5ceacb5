"""What is edited in a server's files so that they start as a container: pure functions from a Tree to changes."""

from __future__ import annotations

from image_builders.container.left_out import rules
from rehost.replication.tree import Change, Put, Symlink, Tree

_UNIT_DIRECTORIES = (b"etc/systemd/system", b"usr/lib/systemd/system", b"lib/systemd/system", b"run/systemd/system")
_FSTAB_BYTES = 1 << 20


def fix_ups(tree: Tree, systemd: bool) -> list[Change]:
    """All changes, in the order in which they are made."""
    return [
        *fstab(tree),
        *mtab(tree),
        *machine_id(tree),
        *resolv_conf(tree),
        *([*masks(tree), *users()] if systemd else []),
    ]


def fstab(tree: Tree) -> list[Change]:
    """Every mount of /etc/fstab becomes a comment: what was mounted is in the image, devices are the host's."""
    content = tree.read(b"etc/fstab", _FSTAB_BYTES)
    if content is None:
        return []
    lines = [b"# not mounted in a container: " + line if _is_entry(line) else line for line in content.splitlines()]
    edited = b"\n".join(lines) + b"\n" if lines else b""
    return [] if edited == content else [Put(b"etc/fstab", edited)]


def _is_entry(line: bytes) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith(b"#")


def mtab(tree: Tree) -> list[Change]:
    """/etc/mtab shows the mounts of the container instead of a list that the source wrote once."""
    entry = tree.get(b"etc/mtab")
    if entry is None or (entry.is_symlink and (entry.target or b"").endswith(b"/mounts")):
        return []
    return [Symlink(b"etc/mtab", b"../proc/self/mounts")]


def machine_id(tree: Tree) -> list[Change]:
    """An empty machine id: each container draws its own at its start.

    Empty, not absent: without the file systemd takes the start for the first boot of a new system and presets its
    units anew (machine-id(5)), and the services that the administrator had switched off would start.
    """
    changes: list[Change] = []
    entry = tree.get(b"etc/machine-id")
    if entry is not None and (not entry.is_file or entry.size):
        changes.append(Put(b"etc/machine-id", b"", mode=0o444))
    dbus = tree.get(b"var/lib/dbus/machine-id")
    if dbus is not None and dbus.is_file:
        changes.append(Symlink(b"var/lib/dbus/machine-id", b"/etc/machine-id"))
    return changes


def resolv_conf(tree: Tree) -> list[Change]:
    """/etc/resolv.conf becomes a plain file: the engine mounts its own over it, and a link would lead into /run."""
    entry = tree.get(b"etc/resolv.conf")
    if entry is None or not entry.is_symlink:
        return []
    return [Put(b"etc/resolv.conf", b"", mode=0o644)]


def masks(tree: Tree) -> list[Change]:
    """The units that no container can or should start are masked, where the server has them."""
    return [
        Symlink(b"etc/systemd/system/" + unit.encode(), b"/dev/null")
        for mask in rules().masks
        for unit in mask.units
        if _has_unit(tree, unit.encode())
    ]


def users() -> list[Change]:
    """No service gets a user namespace of its own: a container without privileges may not make one.

    systemd goes on without most of a unit's sandbox where it cannot have it, but a unit with `PrivateUsers=yes`
    (Debian's Redis is one) fails with status 217/USER. A drop-in for all services (systemd.unit(5), from systemd 246
    on) counts more than the unit itself and less than the unit's own drop-ins.
    """
    content = b"# In a container without privileges no user namespace can be made.\n[Service]\nPrivateUsers=no\n"
    return [Put(b"etc/systemd/system/service.d/50-rehost.conf", content)]


def _has_unit(tree: Tree, unit: bytes) -> bool:
    if any(tree.get(directory + b"/" + unit) is not None for directory in _UNIT_DIRECTORIES):
        return True
    # systemd makes a unit out of a start script of the same name when it starts.
    name, _, suffix = unit.rpartition(b".")
    return suffix == b"service" and tree.get(b"etc/init.d/" + name) is not None
