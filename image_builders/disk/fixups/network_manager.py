"""NetworkManager: profiles of wired connections are no longer bound to one card, nor to one address."""

from __future__ import annotations

import re

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.fixups._network import (
    NETWORK_READS,
    NETWORK_SEES,
    static_warning,
    uses_netplan,
    uses_network_manager,
)
from rehost.replication.tree import Change, Put, Tree

_FOLDER = b"etc/NetworkManager/system-connections"
_BINDINGS = ("interface-name", "mac-address", "cloned-mac-address", "permanent-mac-address", "match-device")
_SECTION = re.compile(r"^\s*\[([^\]]*)\]\s*$")


def _fix(tree: Tree, context: Context) -> Outcome:
    if not uses_network_manager(tree) or uses_netplan(tree):
        return Outcome()
    changes: list[Change] = []
    warnings: list[str] = []
    for path in tree.children(_FOLDER):
        before = tree.read(path)
        if before is None:
            continue
        text = before.decode("utf-8", "surrogateescape")
        if not re.search(r"^\s*type\s*=\s*(ethernet|802-3-ethernet)\s*$", text, re.MULTILINE):
            continue
        after, addresses, gateway = _unbound(text)
        if addresses:
            warnings.append(static_warning(path, addresses, gateway))
        content = after.encode("utf-8", "surrogateescape")
        if content != before:
            changes.append(Put(path, content))
    return Outcome(tuple(changes), tuple(warnings))


def _unbound(text: str) -> tuple[str, list[str], str | None]:
    """The profile without what binds it to a card; a static IPv4 address becomes DHCP."""
    section = ""
    lines: list[str] = []
    addresses: list[str] = []
    gateway: str | None = None
    for line in text.splitlines():
        heading = _SECTION.match(line)
        if heading:
            section = heading[1]
        key, _, value = (part.strip() for part in line.partition("="))
        if section in ("connection", "ethernet", "802-3-ethernet", "match") and key in _BINDINGS:
            lines.append(f"# Rehost: {line}")
        elif section in ("ipv4", "ipv6") and key == "method" and value == "manual":
            lines += [f"# Rehost: {line}", "method=auto"]
        elif section in ("ipv4", "ipv6") and re.fullmatch(r"addresse?s?\d*|gateway|route\d+|dns", key):
            if key.startswith("address"):
                address, _, way = value.partition(",")
                addresses.append(address)
                gateway = way or gateway
            elif key == "gateway":
                gateway = value
            lines.append(f"# Rehost: {line}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n", addresses, gateway


FIXUP = Fixup(
    name="network: NetworkManager",
    order=42,
    about=(
        "Wired profiles of NetworkManager are bound to no card and ask for an address by DHCP, since cards have other "
        "names and addresses on the target and the network is another."
    ),
    fix=_fix,
    reads=(*NETWORK_READS, _FOLDER + b"/*"),
    sees=NETWORK_SEES,
)
