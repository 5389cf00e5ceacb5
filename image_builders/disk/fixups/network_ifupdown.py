"""ifupdown: any network card that appears is brought up by DHCP.

interfaces(5), since ifupdown 0.8 (Debian 9): `allow-hotplug /en*` stands for each card whose name matches, and a
mapping gives each the logical interface `rehost`. (The shorter `allow-hotplug /en*=rehost` is understood by `ifup -a`
alone, not when udev names one card.) Hotplug and not auto: cards may appear after `ifup -a` ran, and one without a
cable would hold up the start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.fixups._network import (
    NETWORK_READS,
    NETWORK_SEES,
    has_program,
    is_ethernet,
    static_warning,
    uses_ifupdown,
    uses_netplan,
    uses_network_manager,
    uses_networkd,
)
from rehost.replication.tree import Change, Put, Tree, printable

_MAIN = b"etc/network/interfaces"
_FOLDER = b"etc/network/interfaces.d"
_SCRIPT = b"etc/network/rehost-mapping"
_OWN = """
# Rehost: every network card, whatever its name, asks for an address by DHCP.
allow-hotplug /en* /eth* /em* /p[0-9]*
mapping en* eth* em* p[0-9]*
    script /etc/network/rehost-mapping
iface rehost inet dhcp
"""
_SCRIPT_CONTENT = (
    b"#!/bin/sh\n# The logical interface of every network card; see /etc/network/interfaces.\necho rehost\n"
)
_MARK = "iface rehost inet dhcp"
_LOOPBACK = re.compile(rb"^\s*iface\s+lo\s", re.MULTILINE)
_STANZA = ("iface", "mapping", "auto", "rename", "source", "source-directory", "no-auto-down", "no-scripts", "template")


@dataclass
class _Read:
    """What a file says of cards of the old machine."""

    lines: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    gateway: str | None = None
    dependents: list[str] = field(default_factory=list)


def _without_cards(text: str, context: Context) -> _Read:
    """The file with every stanza of a network card commented out, and of what is built on one."""
    read = _Read()
    cut = False
    stanzas: list[list[str]] = []
    for line in text.splitlines():
        word = (line.split() or [""])[0]
        starts = word in _STANZA or word.startswith("allow-")
        if starts or not stanzas:
            stanzas.append([])
        stanzas[-1].append(line)
    for stanza in stanzas:
        words = next((line.split() for line in stanza if line.strip()), [""])
        cut = False
        if words[0] == "iface" and len(words) > 1:
            below = [w for line in stanza[1:] for w in _members(line)]
            cut = is_ethernet(words[1], context) or any(is_ethernet(w, context) for w in below)
            if cut and below:
                read.dependents.append(words[1])
            if cut:
                for line in stanza[1:]:
                    option = line.split()
                    if len(option) > 1 and option[0] == "address":
                        read.addresses.append(option[1])
                    elif len(option) > 1 and option[0] == "gateway":
                        read.gateway = option[1]
        elif words[0] == "mapping" or words[0] == "rename":
            cut = True
        elif words[0] == "auto" or words[0].startswith("allow-"):
            names = [w for w in words[1:] if not w.startswith("/") and not is_ethernet(w, context)]
            if names != words[1:]:
                read.lines += [
                    f"# Rehost: {stanza[0].strip()}",
                    *([" ".join([words[0], *names])] if names else []),
                    *stanza[1:],
                ]
                continue
        read.lines += [
            f"# Rehost: {line}" if cut and line.strip() and line.lstrip()[:1] != "#" else line for line in stanza
        ]
    return read


def _members(line: str) -> list[str]:
    words = line.split()
    if words and re.fullmatch(r"(bridge|bond|vlan)[_-](ports|slaves|raw[_-]device)|slaves", words[0]):
        return [w for w in words[1:] if w != "none"]
    return []


def _fix(tree: Tree, context: Context) -> Outcome:
    if not has_program(tree, "ifup") or tree.read(_MAIN) is None or uses_netplan(tree):
        return Outcome()
    changes: list[Change] = []
    warnings: list[str] = []
    for path in [_MAIN, *tree.children(_FOLDER)]:
        before = tree.read(path)
        if before is None:
            continue
        text = before.decode("utf-8", "surrogateescape")
        if path == _MAIN and _MARK in text:
            return Outcome()
        read = _without_cards(text, context)
        if read.addresses:
            warnings.append(static_warning(path, read.addresses, read.gateway))
        for name in read.dependents:
            shown = printable(name.encode("utf-8", "surrogateescape"))[:40]
            warnings.append(f"The interface {shown} in /{printable(path)} was built on a card and is commented out.")
        after = "\n".join(read.lines) + "\n"
        if path == _MAIN:
            if not any(_LOOPBACK.search(tree.read(p) or b"") for p in (path, *tree.children(_FOLDER))):
                after += "\nauto lo\niface lo inet loopback\n"
            # Where NetworkManager or systemd-networkd runs, it takes every card that is not named here; where there is
            # no DHCP client, systemd-networkd is enabled by its own fix-up.
            if uses_ifupdown(tree) and not uses_network_manager(tree) and not uses_networkd(tree):
                after += _OWN
                changes.append(Put(_SCRIPT, _SCRIPT_CONTENT, mode=0o755))
        if after.encode("utf-8", "surrogateescape") != before:
            changes.append(Put(path, after.encode("utf-8", "surrogateescape")))
    return Outcome(tuple(changes), tuple(warnings))


FIXUP = Fixup(
    name="network: ifupdown",
    order=40,
    about=(
        "/etc/network/interfaces brings up any network card by DHCP, since cards have other names on the target and "
        "the network is another; what was said of the old cards stays there as comments."
    ),
    fix=_fix,
    reads=(*NETWORK_READS, _FOLDER + b"/*", _SCRIPT),
    sees=NETWORK_SEES,
)
