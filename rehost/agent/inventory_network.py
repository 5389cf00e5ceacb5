"""Interfaces, addresses and listening sockets, from the kernel itself: no `ip`, no `ss`."""

import os
import re
import socket
import struct
from typing import Any, Dict, List, Set, Tuple

from rehost.agent.inventory_files import read_text

_INTERFACES = 200
_LISTENERS = 1000
_PROCESSES = 20000
_RTM_NEWADDR, _RTM_GETADDR, _NLMSG_DONE, _NLMSG_ERROR = 20, 22, 3, 2
_REQUEST_DUMP = 0x1 | 0x100 | 0x200
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def interfaces() -> List[Dict[str, Any]]:
    """Every interface but the loopback: name, mac, addresses with prefix length, gateway, whether it is hardware."""
    addresses = _addresses()
    gateways = _gateways()
    found = []
    names = sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else sorted(addresses)
    for name in names[:_INTERFACES]:
        # The type of a loopback interface is 772, ARPHRD_LOOPBACK.
        base = b"sys/class/net/" + os.fsencode(name) + b"/"
        if name == "lo" or read_text(b"/", base + b"type", 64).strip() == "772" or not _is_interface(name):
            continue
        mac = read_text(b"/", base + b"address", 64).strip()
        found.append(
            {
                "name": name,
                "mac": mac or None,
                "addresses": addresses.get(name, [])[:64],
                "gateway": gateways.get(name),
                "hardware": os.path.exists("/sys/class/net/" + name + "/device"),
            }
        )
    return found


def _is_interface(name: str) -> bool:
    return os.path.isdir("/sys/class/net/" + name) or not os.path.isdir("/sys/class/net")


def _addresses() -> Dict[str, List[str]]:
    """Interface → addresses, by a dump over rtnetlink (man 7 rtnetlink); addresses of the link alone are left out."""
    found = {}  # type: Dict[str, List[str]]
    try:
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    except OSError:
        return found
    with channel:
        channel.settimeout(5)
        channel.bind((0, 0))
        channel.send(struct.pack("=IHHIIBBBBI", 24, _RTM_GETADDR, _REQUEST_DUMP, 1, 0, 0, 0, 0, 0, 0))
        names = dict(socket.if_nameindex())
        while True:
            raw = channel.recv(1 << 17)
            at = 0
            while at + 16 <= len(raw):
                length, kind = struct.unpack_from("=IH", raw, at)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
                    return found
                if kind == _RTM_NEWADDR:
                    _take_address(raw[at + 16 : at + length], names, found)
                at += (length + 3) & ~3


def _take_address(raw: bytes, names: Dict[int, str], found: Dict[str, List[str]]) -> None:
    family, prefix, _, scope, index = struct.unpack_from("=BBBBI", raw)
    if scope >= 253 or family not in (socket.AF_INET, socket.AF_INET6) or index not in names:
        return
    values = {}
    at = 8
    while at + 4 <= len(raw):
        length, kind = struct.unpack_from("=HH", raw, at)
        if length < 4:
            break
        values[kind] = raw[at + 4 : at + length]
        at += (length + 3) & ~3
    # On a point-to-point link IFA_ADDRESS is the other end.
    address = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS))
    if address is not None:
        found.setdefault(names[index], []).append("%s/%d" % (socket.inet_ntop(family, address), prefix))


def _gateways() -> Dict[str, str]:
    found = {}  # type: Dict[str, str]
    for line in read_text(b"/", b"proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000" and fields[2] != "00000000":
            found.setdefault(fields[0], socket.inet_ntoa(struct.pack("=I", int(fields[2], 16))))
    for line in read_text(b"/", b"proc/net/ipv6_route").splitlines():
        fields = line.split()
        if len(fields) == 10 and fields[0] == "0" * 32 and fields[1] == "00" and fields[4] != "0" * 32:
            found.setdefault(fields[9], socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[4])))
    return found


def listeners() -> List[Dict[str, Any]]:
    """The sockets that wait for somebody: protocol, address, port, and the process and systemd unit behind them."""
    found = []  # type: List[Tuple[str, str, int, str]]
    inodes = set()  # type: Set[str]
    for name, listening in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in read_text(b"/", b"proc/net/" + name.encode("ascii"), 4 << 20).splitlines()[1:]:
            fields = line.split()
            if len(fields) < 10 or fields[3] != listening or len(found) >= _LISTENERS:
                continue
            address, _, port = fields[1].partition(":")
            found.append((name[:3], _address(address), int(port, 16), fields[9]))
            inodes.add(fields[9])
    owners = _owners(inodes)
    return [
        {
            "protocol": protocol,
            "address": address,
            "port": port,
            "process": owners.get(inode, (None, None))[0],
            "unit": owners.get(inode, (None, None))[1],
        }
        for protocol, address, port, inode in found
        if port
    ]


def _address(text: str) -> str:
    """/proc/net prints each word of 32 bits in the machine's own order."""
    words = [struct.pack("=I", int(text[at : at + 8], 16)) for at in range(0, len(text), 8)]
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))


def _owners(inodes: Set[str]) -> Dict[str, Tuple[Any, Any]]:
    """Inode of a socket → name and unit of the first process, by number, that has it open; of systemd only if alone."""
    owners = {}  # type: Dict[str, Tuple[Any, Any]]
    pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), key=lambda pid: (pid == 1, pid))
    for pid in pids[:_PROCESSES]:
        directory = "/proc/%d/fd" % pid
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            try:
                target = os.readlink(directory + "/" + name)
            except OSError:
                continue
            inode = target[8:-1] if target.startswith("socket:[") else ""
            if inode in inodes and inode not in owners:
                owners[inode] = (_process(pid), _unit(pid))
    return owners


def _process(pid: int) -> Any:
    return read_text(b"/", b"proc/%d/comm" % pid, 256).strip() or None


def _unit(pid: int) -> Any:
    text = read_text(b"/", b"proc/%d/cgroup" % pid, 16384)
    match = re.search(r"/([^/\n]+\.service)(?:/|$)", text, re.MULTILINE)
    return match.group(1) if match else None
