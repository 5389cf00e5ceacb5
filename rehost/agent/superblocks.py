"""What is in a partition, told by its superblock: the names that blkid uses.

Used on the source for its devices and on the worker for disk images. Offsets are those of each format's own
documentation; libblkid's `libblkid/src/superblocks` lists them all.
"""

import struct
from typing import Callable, Dict, Optional, Union

Facts = Dict[str, Union[str, int, None]]
Reader = Callable[[int, int], bytes]

_EXT4_INCOMPAT = 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
_EXT4_RO_COMPAT = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400


def probe(read: Reader, size: int) -> Facts:
    """`filesystem`, `uuid`, `label`, and where the superblock tells them `size_bytes` and `used_bytes`.

    `read(offset, length)` gives the bytes of a device of `size` bytes, fewer beyond its end. Unknown values are None;
    an empty dict where nothing is known.
    """
    head = read(0, 69632)
    for look in (_luks, _lvm, _ext, _xfs, _swap, _btrfs, _vfat, _others):
        found = look(head)
        if found is not None:
            return found
    return _mdraid(head, read, size) or {}


def _facts(filesystem: str, uuid: Optional[str] = None, label: Optional[str] = None, **more: Optional[int]) -> Facts:
    found = {"filesystem": filesystem, "uuid": uuid, "label": label or None}  # type: Facts
    found.update(more)
    return found


def _uuid(raw: bytes) -> Optional[str]:
    if not any(raw) or len(raw) != 16:
        return None
    text = "".join("%02x" % byte for byte in bytearray(raw))
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _label(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace").rstrip(" ")


def _u32(raw: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", raw, at)[0])


def _luks(head: bytes) -> Optional[Facts]:
    if head[:6] != b"LUKS\xba\xbe" or len(head) < 208:
        return None
    return _facts("crypto_LUKS", _label(head[168:208]))


def _lvm(head: bytes) -> Optional[Facts]:
    for sector in range(4):
        raw = head[sector * 512 : sector * 512 + 512]
        if raw[:8] == b"LABELONE" and raw[24:32] == b"LVM2 001":
            return _facts("LVM2_member")
    return None


def _ext(head: bytes) -> Optional[Facts]:
    raw = head[1024:2048]
    if len(raw) < 1024 or raw[0x38:0x3A] != b"\x53\xef":
        return None
    compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C)
    if incompat & 0x8:
        return _facts("jbd", _uuid(raw[0x68:0x78]))
    if incompat & _EXT4_INCOMPAT or ro_compat & _EXT4_RO_COMPAT:
        name = "ext4"
    else:
        name = "ext3" if compat & 0x4 else "ext2"
    wide = incompat & 0x80
    block = 1024 << min(_u32(raw, 0x18), 6)
    total = _u32(raw, 0x4) | (_u32(raw, 0x150) << 32 if wide else 0)
    free = _u32(raw, 0xC) | (_u32(raw, 0x158) << 32 if wide else 0)
    used = max(0, total - free) * block
    return _facts(name, _uuid(raw[0x68:0x78]), _label(raw[0x78:0x88]), size_bytes=total * block, used_bytes=used)


def _xfs(head: bytes) -> Optional[Facts]:
    if head[:4] != b"XFSB" or len(head) < 512:
        return None
    block = struct.unpack_from(">I", head, 4)[0]
    total, free = struct.unpack_from(">Q", head, 8)[0], struct.unpack_from(">Q", head, 144)[0]
    return _facts(
        "xfs",
        _uuid(head[32:48]),
        _label(head[108:120]),
        size_bytes=total * block,
        used_bytes=max(0, total - free) * block,
    )


def _btrfs(head: bytes) -> Optional[Facts]:
    if head[0x10040:0x10048] != b"_BHRfS_M" or len(head) < 0x1022B:
        return None
    total, used = struct.unpack_from("<QQ", head, 0x10070)
    uuid = _uuid(head[0x10020:0x10030])
    return _facts("btrfs", uuid, _label(head[0x1012B:0x1022B]), size_bytes=total, used_bytes=used)


def _swap(head: bytes) -> Optional[Facts]:
    for page in (4096, 8192, 16384, 65536):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return _facts("swap", _uuid(head[0x40C:0x41C]), _label(head[0x41C:0x42C]))
    return None


def _vfat(head: bytes) -> Optional[Facts]:
    if head[510:512] != b"\x55\xaa":
        return None
    if head[82:90] == b"FAT32   ":
        serial, label = head[67:71], head[71:82]
    elif head[54:59] in (b"FAT12", b"FAT16"):
        serial, label = head[39:43], head[43:54]
    else:
        return None
    text = "".join("%02X" % byte for byte in bytearray(reversed(serial)))
    name = label.decode("ascii", "replace").rstrip(" \0")
    return _facts("vfat", text[:4] + "-" + text[4:], "" if name == "NO NAME" else name)


def _others(head: bytes) -> Optional[Facts]:
    if head[3:11] == b"NTFS    ":
        serial = struct.unpack_from("<Q", head, 0x48)[0]
        return _facts("ntfs", "%016X" % serial)
    if head[3:11] == b"EXFAT   ":
        return _facts("exfat")
    if head[:4] == b"hsqs":
        return _facts("squashfs")
    if head[32769:32774] == b"CD001":
        return _facts("iso9660")
    if head[1024:1028] == b"\x10\x20\xf5\xf2":
        return _facts("f2fs")
    if head[0x10034:0x1003D] in (b"ReIsErFs\0", b"ReIsEr2Fs", b"ReIsEr3Fs"):
        return _facts("reiserfs")
    return None


def _mdraid(head: bytes, read: Reader, size: int) -> Optional[Facts]:
    """Version 1 of the md superblock lies at the start, 4 KiB in or 8 KiB before the end; version 0.90 near the end."""
    for at in (4096, 0):
        if head[at : at + 4] == b"\xfc\x4e\x2b\xa9":
            return _facts("linux_raid_member", _uuid(head[at + 16 : at + 32]), _label(head[at + 32 : at + 64]))
    if size < 131072:
        return None
    for at in ((size - 8192) // 4096 * 4096, size // 65536 * 65536 - 65536):
        raw = read(at, 64)
        if raw[:4] == b"\xfc\x4e\x2b\xa9":
            return _facts("linux_raid_member", _uuid(raw[16:32]))
    return None
