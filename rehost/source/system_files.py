"""Files of /etc that tell what a server is: os-release, fstab, and how each interface gets its addresses.

Pure functions over text that may say anything; what cannot be understood is left out.
"""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rehost.source.facts import clean

Method = Literal["static", "dhcp", "unknown"]

_VALUE_LENGTH = 256


def parse_os_release(text: str) -> dict[str, str]:
    """The assignments of an os-release file (man 5 os-release), values unquoted and cleaned."""
    found: dict[str, str] = {}
    for line in text.splitlines()[:200]:
        name, separator, value = line.partition("=")
        if not separator or not re.fullmatch(r"[A-Z0-9_]{1,64}", name.strip()):
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        found[name.strip()] = clean(" ".join(words))[:_VALUE_LENGTH]
    return found


@dataclass(frozen=True)
class FstabLine:
    """One line of fstab."""

    source: str  # UUID=…, LABEL=…, PARTUUID=…, /dev/…
    mount_point: str
    filesystem: str
    options: str

    def option(self, name: str) -> bool:
        """Whether that option is given."""
        return name in self.options.split(",")


def parse_fstab(text: str) -> list[FstabLine]:
    """The lines of an fstab (man 5 fstab) that mount something somewhere, with \\040 and its kind undone."""
    found = []
    for line in text.splitlines()[:1000]:
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        source, mount_point, filesystem = (_unescaped(field) for field in fields[:3])
        if mount_point.startswith("/") and mount_point == clean(mount_point):
            options = clean(fields[3]) if len(fields) > 3 else "defaults"
            found.append(FstabLine(source.replace('"', ""), mount_point, clean(filesystem), options))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match.group(1), 8)), text)


def network_methods(files: Mapping[str, str]) -> dict[str, Method]:
    """Interface → how its addresses come, from the files of ifupdown, netplan, NetworkManager, networkd and ifcfg.

    `files` maps the path of a file, without a slash at the start, to its text. A key "" speaks of every interface
    that is not named. The first file that names an interface decides.
    """
    found: dict[str, Method] = {}
    for path, text in sorted(files.items(), key=lambda item: item[0]):
        name = path.rpartition("/")[2]
        if path.startswith("etc/network/interfaces"):
            methods = _ifupdown(text)
        elif path.startswith("etc/netplan/"):
            methods = _netplan(text)
        elif path.startswith("etc/NetworkManager/"):
            methods = _keyfile(text)
        elif path.startswith("etc/systemd/network/"):
            methods = _networkd(text)
        elif name.startswith("ifcfg-"):
            methods = _ifcfg(name.removeprefix("ifcfg-"), text)
        else:
            continue
        for interface, method in methods.items():
            found.setdefault(interface, method)
    return found


def _ifupdown(text: str) -> dict[str, Method]:
    found: dict[str, Method] = {}
    for match in re.finditer(r"^[ \t]*iface[ \t]+(\S+)[ \t]+inet6?[ \t]+(\S+)", text, re.MULTILINE):
        name, kind = match.group(1), match.group(2)
        if kind in ("dhcp", "static"):
            found.setdefault(name, "dhcp" if kind == "dhcp" else "static")
    return found


def _netplan(text: str) -> dict[str, Method]:
    """By indentation alone: the names two levels below `network:`, and dhcp4 or addresses below each."""
    found: dict[str, Method] = {}
    kinds = ("ethernets:", "bonds:", "bridges:", "vlans:", "wifis:")
    kind_indent, name_indent, name = -1, -1, ""
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        indent = len(line) - len(line.lstrip(" "))
        if stripped in kinds:
            kind_indent, name_indent, name = indent, -1, ""
        elif kind_indent >= 0 and indent <= kind_indent:
            kind_indent, name = -1, ""
        elif kind_indent >= 0 and (name_indent < 0 or indent == name_indent) and stripped.endswith(":"):
            name_indent, name = indent, stripped[:-1].strip("\"'")
        elif name and re.match(r"dhcp[46]:\s*(true|yes|on)\b", stripped, re.IGNORECASE):
            found[name] = "dhcp"
        elif name and stripped.startswith("addresses:") and name_indent < indent:
            found.setdefault(name, "static")
        elif name and (match := re.match(r"set-name:\s*(\S+)", stripped)) and name in found:
            found[match.group(1)] = found[name]
    return found


def _sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of an ini file, those of the same name apart; keys in lower case."""
    found: list[tuple[str, dict[str, str]]] = []
    for piece in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
        parser = configparser.RawConfigParser(strict=False, delimiters=("=",), allow_no_value=True)
        try:
            parser.read_string(piece)
        except (configparser.Error, ValueError):
            continue
        found += [(name, {key: value or "" for key, value in parser.items(name)}) for name in parser.sections()]
    return found


def _keyfile(text: str) -> dict[str, Method]:
    sections = dict(reversed(_sections(text)))
    interface = sections.get("connection", {}).get("interface-name", "")
    method = sections.get("ipv4", {}).get("method", "")
    if method == "manual":
        return {interface: "static"}
    return {interface: "dhcp"} if method == "auto" else {}


def _networkd(text: str) -> dict[str, Method]:
    names: list[str] = []
    method: Method | None = None
    for section, values in _sections(text):
        if section == "Match":
            names += values.get("name", "").split()
        if section == "Network" and values.get("dhcp", "").lower() in ("yes", "true", "ipv4", "ipv6", "both"):
            method = "dhcp"
        elif section in ("Network", "Address") and values.get("address"):
            method = method or "static"
    if method is None:
        return {}
    # A pattern such as en* speaks of every interface, as far as can be told without the interface.
    return {name if re.fullmatch(r"[A-Za-z0-9._-]+", name) else "": method for name in names or [""]}


def _ifcfg(name: str, text: str) -> dict[str, Method]:
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip().upper()] = value.strip().strip("\"'").lower()
    method = values.get("BOOTPROTO", "")
    interface = values.get("DEVICE", "") or name
    if method.startswith("dhcp"):
        return {interface: "dhcp"}
    return {interface: "static"} if method in ("static", "none") and ("IPADDR" in values or "IPADDR0" in values) else {}
