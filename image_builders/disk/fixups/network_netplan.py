"""netplan: one file that matches every network card takes the place of those that named the old ones."""

from __future__ import annotations

import re

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.fixups._network import (
    NETWORK_READS,
    NETWORK_SEES,
    set_aside,
    static_warning,
    uses_netplan,
    uses_network_manager,
)
from rehost.replication.tree import Change, Put, Tree, printable

_FOLDER = b"etc/netplan"
_OWN = _FOLDER + b"/99-rehost.yaml"
_CONTENT = """# Rehost: every network card, whatever its name, asks for an address by DHCP.
network:
  version: 2
  renderer: {renderer}
  ethernets:
    rehost:
      match:
        name: "e*"
      dhcp4: true
      dhcp6: true
      optional: false
"""


def _fix(tree: Tree, context: Context) -> Outcome:
    if not uses_netplan(tree):
        return Outcome()
    changes: list[Change] = []
    warnings: list[str] = []
    for path in tree.children(_FOLDER):
        content = tree.read(path)
        if not path.endswith(b".yaml") or path == _OWN or content is None:
            continue
        changes += set_aside(tree, path, content)
        text = content.decode("utf-8", "surrogateescape")
        # For the warning alone: what YAML makes of it does not matter, since the file is not used.
        addresses = re.findall(
            r"[\[\s\"',-]((?:\d{1,3}\.){3}\d{1,3}/\d{1,2}|[0-9a-fA-F:]*::?[0-9a-fA-F:]+/\d{1,3})", text
        )
        gateway = re.search(r"(?:gateway4|gateway6|via)\s*:\s*[\"']?([0-9a-fA-F.:]+)", text)
        if addresses:
            warnings.append(static_warning(path, addresses, gateway[1] if gateway else None))
        if re.search(r"^\s*(bridges|bonds|vlans|tunnels|wifis)\s*:", text, re.MULTILINE):
            warnings.append(f"/{printable(path)} has interfaces built on cards; they are not made in the image.")
    renderer = "NetworkManager" if uses_network_manager(tree) else "networkd"
    changes.append(Put(_OWN, _CONTENT.format(renderer=renderer).encode(), mode=0o600, public=True))
    return Outcome(tuple(changes), tuple(warnings))


FIXUP = Fixup(
    name="network: netplan",
    order=43,
    about=(
        "netplan brings up any network card by DHCP, since cards have other names and addresses on the target and "
        "the network is another; its files of the old cards are kept under another name."
    ),
    fix=_fix,
    reads=(*NETWORK_READS, _FOLDER + b"/*.yaml"),
    sees=NETWORK_SEES,
)
