"""What the network fix-ups share: who configures the network in a tree, and what was fixed in it by hand."""

from __future__ import annotations

import fnmatch
import re
import stat

from image_builders.disk.fixups import Context
from rehost.replication.tree import Change, Put, Remove, Tree, printable

DHCP_CLIENTS = ("dhclient", "dhcpcd", "udhcpc")
_ASIDE = b".before-rehost"  # appended to the name of a configuration that is set aside
_WANTS = (b"etc/systemd/system/multi-user.target.wants/", b"etc/systemd/system/network-online.target.wants/")
_PROGRAMS = (b"usr/sbin/", b"sbin/", b"usr/bin/", b"bin/", b"usr/lib/systemd/", b"lib/systemd/")
_NAMED = ("ifup", "netplan", "NetworkManager", "systemd-networkd", *DHCP_CLIENTS)
_SERVICES = (b"NetworkManager", b"systemd-networkd", b"systemd-resolved")
# What the questions below look at, for the fix-ups that ask them.
NETWORK_READS = (b"etc/network/interfaces",)
NETWORK_SEES = (
    *(folder + name.encode() for folder in _PROGRAMS for name in _NAMED),
    *(wants + service + b".service" for wants in _WANTS for service in _SERVICES),
    *(b"etc/rc[S235].d/S[0-9][0-9]" + service for service in _SERVICES),
    b"etc/netplan/*.yaml",
)
_ETHERNET = ("en*", "eth*", "em[0-9]*", "p[0-9]*p[0-9]*")


def has_program(tree: Tree, name: str) -> bool:
    """A program of that name, or a link to one; what the link leads to is not looked at."""
    for folder in _PROGRAMS:
        real = tree.resolve(folder)
        if real is not None and tree.get(real.path + b"/" + name.encode()) is not None:
            return True
    return False


def is_enabled(tree: Tree, service: str) -> bool:
    """A unit that systemd starts, by the links that enabling it makes; or a System V one by its start links."""
    if any(tree.get(wants + service.encode() + b".service") is not None for wants in _WANTS):
        return True
    started = re.compile(rb"etc/rc[S2-5]\.d/S\d\d" + re.escape(service.encode()))
    return any(started.fullmatch(path) for rc in (b"S", b"2", b"3", b"5") for path in tree.children(b"etc/rc%s.d" % rc))


def uses_netplan(tree: Tree) -> bool:
    return has_program(tree, "netplan") and any(p.endswith(b".yaml") for p in tree.children(b"etc/netplan"))


def uses_network_manager(tree: Tree) -> bool:
    return has_program(tree, "NetworkManager") and is_enabled(tree, "NetworkManager")


def uses_networkd(tree: Tree) -> bool:
    return has_program(tree, "systemd-networkd") and is_enabled(tree, "systemd-networkd")


def uses_ifupdown(tree: Tree) -> bool:
    """ifupdown with a DHCP client that it can call."""
    present = has_program(tree, "ifup") and tree.read(b"etc/network/interfaces") is not None
    return present and any(has_program(tree, client) for client in DHCP_CLIENTS)


def is_ethernet(name: str, context: Context) -> bool:
    """Whether a name in a configuration means one of the old machine's network cards (or a VLAN or alias on one)."""
    base = re.split(r"[.:]", name)[0]
    if base == "lo":
        return False
    if any(fnmatch.fnmatchcase(base, pattern) for pattern in _ETHERNET):
        return True
    return any(
        interface.name == base and interface.mac and interface.gateway for interface in context.inventory.interfaces
    )


def set_aside(tree: Tree, path: bytes, content: bytes) -> list[Change]:
    """Keep a configuration under a name by which nothing reads it, as closed to others as it was."""
    entry = tree.resolve(path)
    mode = stat.S_IMODE(entry.mode) if entry is not None else 0o600
    return [Remove(path), Put(path + _ASIDE, content, mode=mode)]


def static_warning(path: bytes, addresses: list[str], gateway: str | None) -> str:
    """The sentence about an address that was fixed by hand; the texts come from the source."""
    shown = ", ".join(printable(a.encode("utf-8", "surrogateescape"))[:60] for a in addresses[:8])
    way = f" with the gateway {printable(gateway.encode('utf-8', 'surrogateescape'))[:60]}" if gateway else ""
    return (
        f"The static address {shown}{way} in /{printable(path)} is not used: the image asks for one by DHCP on every "
        "network card, since the target network is another."
    )
