"""Block devices and mounts of the running machine, from /sys, /proc and the devices' own superblocks."""

import os
import re
import struct
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent import superblocks, used
from rehost.agent.inventory_files import listed, read_bytes, read_text

_DEVICES = 1000
_MOUNTS = 1000
_EXTENDED = (0x05, 0x0F, 0x85)
_LOCAL = frozenset(
    "ext2 ext3 ext4 xfs btrfs vfat msdos exfat f2fs jfs reiserfs ntfs ntfs3 fuseblk zfs nilfs2 bcachefs".split()
)
_LEFT_OUT = re.compile(r"(ram|loop|zram|sr|fd|nbd)\d+$|mmcblk\d+(boot|rpmb)")


def devices() -> List[Dict[str, Any]]:
    """Every block device that can hold a server's data: disks, partitions, and the layers made of them.

    `below` names the devices that one is made of: a partition's disk, the members of LVM, mdraid, LUKS.
    """
    names = [os.fsdecode(name) for name in listed(b"/", b"sys/class/block")]
    kept = [name for name in names if not _LEFT_OUT.match(name)]
    found = [_device(name) for name in kept[:_DEVICES]]
    return [device for device in found if device is not None]


def _device(name: str) -> Optional[Dict[str, Any]]:
    base = "/sys/class/block/" + name
    number = _attribute(base, "dev")
    size = int(_attribute(base, "size") or 0) * 512
    if not number or not size:
        return None
    device = {"name": name, "number": number, "size_bytes": size, "path": "/dev/" + name.replace("!", "/")}
    below = sorted(os.listdir(base + "/slaves")) if os.path.isdir(base + "/slaves") else []
    facts = dict(device, below=below, kind="disk")  # type: Dict[str, Any]
    partition = _attribute(base, "partition")
    if partition:
        facts["kind"] = "partition"
        facts["partition"] = int(partition)
        facts["start"] = int(_attribute(base, "start") or 0) * 512
        facts["below"] = [os.path.basename(os.path.dirname(os.path.realpath(base)))]
    elif name.startswith("dm-"):
        facts["kind"] = _dm_kind(_attribute(base, "dm/uuid"))
        mapped = _attribute(base, "dm/name")
        if mapped:
            facts["path"] = "/dev/mapper/" + mapped
    elif name.startswith("md"):
        facts["kind"] = "mdraid"
    elif "/virtual/" in os.path.realpath(base):
        facts["kind"] = "virtual"
    facts.update(_contents(facts["path"], number, size, facts["kind"] == "disk"))
    return facts


def _attribute(base: str, name: str) -> str:
    return read_text(b"/", os.fsencode(base + "/" + name), 4096).strip()


def _dm_kind(uuid: str) -> str:
    if uuid.startswith("LVM-"):
        return "lvm"
    return "luks" if uuid.startswith("CRYPT-") else "dm"


def _contents(path: str, number: str, size: int, whole: bool) -> Dict[str, Any]:
    """The superblock, and of whole disks the partition table; by udev's notes where the device may not be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return dict(_udev(number), unreadable=True)
    try:

        def read(offset: int, length: int) -> bytes:
            return os.pread(descriptor, length, offset)

        facts = dict(superblocks.probe(read, size))  # type: Dict[str, Any]
        if facts.get("filesystem") in used.MAPS:
            facts["needs"] = used.needs(read, str(facts["filesystem"]))
        if whole:
            facts.update(_table(read, int(read_text(b"/", b"sys/class/block/" + _name(path), 64) or 512)))
        return facts
    except (OSError, struct.error):
        return dict(_udev(number), unreadable=True)
    finally:
        os.close(descriptor)


def _name(path: str) -> bytes:
    return os.fsencode(path[len("/dev/") :].replace("/", "!")) + b"/queue/logical_block_size"


def _udev(number: str) -> Dict[str, Any]:
    names = {
        "ID_FS_TYPE": "filesystem",
        "ID_FS_UUID": "uuid",
        "ID_FS_LABEL": "label",
        "ID_PART_TABLE_TYPE": "table",
        "ID_PART_ENTRY_TYPE": "type",
    }
    facts = {}  # type: Dict[str, Any]
    for line in read_text(b"/", b"run/udev/data/b" + number.encode("ascii")).splitlines():
        key, _, value = line[2:].partition("=")
        if line.startswith("E:") and key in names and value:
            facts[names[key]] = value
    return facts


def _table(read: superblocks.Reader, sector: int) -> Dict[str, Any]:
    """The kind of the partition table, and the type of each partition by its number."""
    first = read(0, 512)
    if first[510:512] != b"\x55\xaa":
        return {}
    kinds = [first[at + 4] for at in range(446, 510, 16)]
    if 0xEE in kinds:
        return _gpt(read, sector)
    if not any(kinds) or any(first[at] not in (0, 0x80) for at in range(446, 510, 16)):
        return {}
    types = {}
    for number, at in enumerate(range(446, 510, 16), 1):
        if first[at + 4]:
            types[str(number)] = "0x%02x" % first[at + 4]
    for at in range(446, 510, 16):
        if first[at + 4] in _EXTENDED:
            types.update(_logical(read, sector, struct.unpack_from("<I", first, at + 8)[0]))
    return {"table": "dos", "types": types}


def _logical(read: superblocks.Reader, sector: int, extended: int) -> Dict[str, str]:
    types = {}
    at = extended
    for number in range(5, 128):
        raw = read(at * sector, 512)
        if raw[510:512] != b"\x55\xaa":
            break
        if raw[450]:
            types[str(number)] = "0x%02x" % raw[450]
        link = struct.unpack_from("<I", raw, 470)[0]
        if raw[466] not in _EXTENDED or not link:
            break
        at = extended + link
    return types


def _gpt(read: superblocks.Reader, sector: int) -> Dict[str, Any]:
    header = read(sector, 92)
    if header[:8] != b"EFI PART":
        return {"table": "gpt"}
    start, count, size = struct.unpack_from("<QII", header, 72)
    types = {}
    if 128 <= size <= 4096 and count <= 1024:
        raw = read(start * sector, count * size)
        for number in range(len(raw) // size):
            guid = raw[number * size : number * size + 16]
            if any(guid):
                types[str(number + 1)] = _guid(guid)
    return {"table": "gpt", "types": types}


def _guid(raw: bytes) -> str:
    first, second, third = struct.unpack_from("<IHH", raw)
    rest = "".join("%02x" % byte for byte in bytearray(raw[8:]))
    return "%08x-%04x-%04x-%s-%s" % (first, second, third, rest[:4], rest[4:])


def mounts(root: bytes) -> List[Dict[str, Any]]:
    """The mounts of local filesystems at and below the root, each with its size and use.

    A mount point is given relative to the root, as a path that begins with a slash. Mounts of other kinds are left
    out, but for the root itself: statvfs of a network filesystem whose server is away would never return.
    """
    found = []  # type: List[Dict[str, Any]]
    for line in os.fsdecode(read_bytes(b"/", b"proc/self/mountinfo", 4 << 20)).split("\n"):
        mount = _mount(line, os.fsdecode(root).rstrip("/"))
        if mount is not None and len(found) < _MOUNTS:
            found.append(mount)
    return found


def _mount(line: str, root: str) -> Optional[Dict[str, Any]]:
    left, separator, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not separator or len(before) < 6 or len(after) < 3:
        return None
    point = _unescaped(before[4])
    if point != root and point != (root or "/") and not point.startswith(root + "/"):
        return None
    filesystem = _unescaped(after[0])
    inside = point[len(root) :] or "/"
    if filesystem not in _LOCAL and inside != "/":
        return None
    size, used = _use(point)
    source = _unescaped(after[1])
    return {
        "mount_point": inside,
        "filesystem": filesystem,
        "number": _number(before[2], source),
        "root": _unescaped(before[3]),
        "source": source,
        "options": before[5],
        "size_bytes": size,
        "used_bytes": used,
    }


def _unescaped(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match.group(1), 8)), text)


def _number(number: str, source: str) -> str:
    """major:minor of the device; btrfs mounts carry a number of their own, so that of the device node is taken."""
    if number.startswith("0:") and source.startswith("/dev/"):
        try:
            device = os.stat(source).st_rdev
        except OSError:
            return number
        return "%d:%d" % (os.major(device), os.minor(device))
    return number


def _use(point: str) -> Tuple[int, int]:
    try:
        facts = os.statvfs(point)
    except OSError:
        return 0, 0
    return facts.f_blocks * facts.f_frsize, (facts.f_blocks - facts.f_bfree) * facts.f_frsize
