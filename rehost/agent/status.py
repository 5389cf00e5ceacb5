"""The status of a name, as the 144 bytes with which the kernel's struct statx begins (linux/stat.h), little-endian.

statx(2) tells the flags of chattr too, so that no file need be opened for them. Python has no face for it, so it is
called in the C library; where that cannot be, the same bytes are made of lstat(2), and say that they know no flags.
"""

import os
import struct
import sys
from typing import Any, Callable, Optional

from rehost.agent.protocol import STATUS_BYTES

# attributes (8), nlink, uid, gid, mode, ino, size, blocks, attributes_mask, then times as seconds and nanoseconds
# (atime, birth, ctime, mtime), then the device numbers of the node and of the filesystem.
_STATUS = struct.Struct("<8xQIIIH2xQQQQqI4x16xqI4xqI4xIIII")
ATTRIBUTES, MODE_HIGH, ATTRIBUTES_MASK = 8, 29, 56  # places of the bytes that a scan looks at
INODE = slice(32, 40)
DEVICE = slice(136, 144)
KEPT_FLAGS = 0x10 | 0x20 | 0x40  # i, a, d of chattr: the same numbers here and in FS_IOC_GETFLAGS
FIFO, CHARACTER, DIRECTORY, BLOCK, REGULAR, LINK = 1, 2, 4, 6, 8, 10  # the upper half of MODE_HIGH
_HERE = -100  # AT_FDCWD
_LINK_ITSELF = 0x100 | 0x800  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT
_BASIC = 0x7FF  # STATX_BASIC_STATS
_NANO = 10**9

Looker = Callable[[bytes], bytes]
"""A name in the working directory -> its status; links are not followed. Raises OSError."""


def looker() -> Looker:
    """The quicker of the two ways that works here."""
    return _by_statx() or (lambda name: packed(os.stat(name, follow_symlinks=False)))


def packed(status: os.stat_result, flags: Optional[int] = None) -> bytes:
    """The same bytes of what os.stat told; `flags` where they are known."""
    ns = [divmod(time, _NANO) for time in (status.st_atime_ns, status.st_ctime_ns, status.st_mtime_ns)]
    return _STATUS.pack(
        flags or 0,
        status.st_nlink & 0xFFFFFFFF,
        status.st_uid,
        status.st_gid,
        status.st_mode,
        status.st_ino,
        status.st_size,
        status.st_blocks,
        0 if flags is None else KEPT_FLAGS,
        *ns[0],
        *ns[1],
        *ns[2],
        os.major(status.st_rdev),
        os.minor(status.st_rdev),
        os.major(status.st_dev),
        os.minor(status.st_dev),
    )


def device_bytes(number: int) -> bytes:
    """The bytes of a status at DEVICE for a device of that number."""
    return struct.pack("<II", os.major(number), os.minor(number))


def with_flags(status: bytes, flags: int) -> bytes:
    """The status with other flags."""
    return status[:ATTRIBUTES] + bytes((flags & KEPT_FLAGS,)) + status[ATTRIBUTES + 1 :]


def _by_statx() -> Optional[Looker]:
    if sys.byteorder != "little":
        return None
    try:
        import ctypes

        statx: Any = ctypes.CDLL(None, use_errno=True).statx
    except (ImportError, OSError, AttributeError):
        return None
    statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    buffer = bytearray(256)
    held = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    address, view, errno = ctypes.addressof(held), memoryview(buffer)[:STATUS_BYTES], ctypes.get_errno

    def look(name: bytes, held: Any = held) -> bytes:  # `held` lives as long as the function
        if statx(_HERE, name, _LINK_ITSELF, _BASIC, address):
            raise OSError(errno(), os.strerror(errno()), name)
        return bytes(view)

    try:
        look(b".")
    except OSError:  # a kernel before 4.11, or a filter of calls
        return None
    return look
