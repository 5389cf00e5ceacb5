"""systemd-networkd: one file that matches every network card; also where a tree has nothing else to bring one up."""

from __future__ import annotations

import re

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.fixups._network import (
    NETWORK_READS,
    NETWORK_SEES,
    has_program,
    is_enabled,
    is_ethernet,
    set_aside,
    static_warning,
    uses_ifupdown,
    uses_netplan,
    uses_network_manager,
    uses_networkd,
)
from rehost.replication.tree import Change, Put, Symlink, Tree, printable

_FOLDER = b"etc/systemd/network"
_OWN = _FOLDER + b"/10-rehost.network"
# Virtual interfaces are Ethernet, too. Kind= is known from systemd 251 on; the names hold before that.
_CONTENT = b"""# Rehost: every network card, whatever its name, asks for an address by DHCP.
[Match]
Type=ether
Kind=!*
Name=!veth* !docker* !br-* !virbr* !vnet* !tap*

[Network]
DHCP=yes
"""
_UNITS = (b"usr/lib/systemd/system/", b"lib/systemd/system/")


def _fix(tree: Tree, context: Context) -> Outcome:
    if uses_netplan(tree) or uses_network_manager(tree):
        return Outcome()
    enabled = uses_networkd(tree)
    if not enabled and uses_ifupdown(tree):
        return Outcome()
    if not has_program(tree, "systemd-networkd"):
        return Outcome(
            warnings=(
                "Neither ifupdown with a DHCP client nor systemd-networkd, NetworkManager or netplan was found: "
                "the network of the image has to be configured by hand.",
            )
        )
    changes: list[Change] = []
    warnings: list[str] = []
    for path in tree.children(_FOLDER):
        content = tree.read(path)
        if not path.endswith(b".network") or path == _OWN or content is None:
            continue
        text = content.decode("utf-8", "surrogateescape")
        if not _binds_card(text, context):
            continue
        changes += set_aside(tree, path, content)
        addresses = re.findall(r"^\s*Address\s*=\s*(\S+)", text, re.MULTILINE)
        gateway = re.search(r"^\s*Gateway\s*=\s*(\S+)", text, re.MULTILINE)
        if addresses:
            warnings.append(static_warning(path, addresses, gateway[1] if gateway else None))
    changes.append(Put(_OWN, _CONTENT, mode=0o644))
    if not enabled:
        folder = next((f for f in _UNITS if tree.get(f.rstrip(b"/")) is not None), _UNITS[0])
        unit = b"systemd-networkd.service"
        changes.append(Symlink(b"etc/systemd/system/multi-user.target.wants/" + unit, b"/" + folder + unit))
    if not is_enabled(tree, "systemd-resolved"):
        servers = re.findall(rb"^\s*nameserver\s+(\S+)", tree.read(b"etc/resolv.conf") or b"", re.MULTILINE)
        named = ", ".join(printable(s)[:60] for s in servers[:4]) or "none"
        warnings.append(
            f"Name servers stay those of /etc/resolv.conf ({named}): systemd-resolved, which would take them from "
            "DHCP, is not enabled."
        )
    return Outcome(tuple(changes), tuple(warnings))


def _binds_card(text: str, context: Context) -> bool:
    """Whether a file matches cards of the old machine, by what its [Match] section says."""
    match = re.search(r"^\s*\[Match\]\s*$(.*?)(?=^\s*\[|\Z)", text, re.MULTILINE | re.DOTALL)
    section = match[1] if match else ""
    if re.search(r"^\s*(MACAddress|PermanentMACAddress|Path|Driver|Type)\s*=", section, re.MULTILINE):
        return not re.search(r"^\s*Kind\s*=", section, re.MULTILINE)
    names = [n for line in re.findall(r"^\s*Name\s*=(.*)$", section, re.MULTILINE) for n in line.split()]
    return any(n == "*" or n.startswith("e") or is_ethernet(n, context) for n in names)


FIXUP = Fixup(
    name="network: systemd-networkd",
    order=41,
    about=(
        "systemd-networkd brings up any network card by DHCP, since cards have other names and addresses on the "
        "target and the network is another; files that named the old cards are kept under another name."
    ),
    fix=_fix,
    reads=(*NETWORK_READS, _FOLDER + b"/*.network", b"etc/resolv.conf"),
    sees=(*NETWORK_SEES, *(folder.rstrip(b"/") for folder in _UNITS)),
)
