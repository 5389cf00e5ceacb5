"""Trees for tests: a nasty one made by hand, and the comparison of two trees in every attribute that is kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rehost.replication.manifest import CHUNK_BYTES, KEPT_FLAGS

FS_IOC_GETFLAGS = 0x8008_6601
FS_IOC_SETFLAGS = 0x4008_6602
NODUMP = 0x40

_SECOND = 1_000_000_000


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of system.posix_acl_*: (tag, permissions, id) each; tags 1 owner, 2 user, 4 group, 8, 0x10, 0x20."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFF_FFFF
ACCESS_ACL = acl((1, 6, NO_ID), (2, 4, 1234), (4, 4, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID))
DEFAULT_ACL = acl((1, 7, NO_ID), (2, 5, 1234), (4, 5, NO_ID), (0x10, 5, NO_ID), (0x20, 0, NO_ID))
# cap_net_bind_service=ep, as setcap writes it (revision 2).
CAPABILITY = struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0)


def make_nasty_tree(directory: Path, *, huge: bool = True) -> None:
    """Fill an empty directory with everything that a tree may hold; what only root can make is left out for others.

    `huge` adds a file of 1 TiB with one block of data in the middle.
    """
    root = os.geteuid() == 0
    top = os.fsencode(directory)

    def at(name: bytes) -> bytes:
        return os.path.join(top, name)

    def write(name: bytes, content: bytes, mode: int = 0o644) -> bytes:
        path = at(name)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    # Names, and the order of bytes: "a-b" sorts between "a" and "a/x".
    os.mkdir(at(b"a"))
    write(b"a/x", b"in a\n")
    write(b"a-b", b"beside a\n")
    write(b"a.b", b"beside a, too\n")
    os.mkdir(at(b"names"))
    names = [
        b"new\nline",
        b"-rf",
        b" ",
        b"\xff\xfe not UTF-8",
        b"quote'\"`$(x)\\",
        b"n" * 255,
        "ü\u202eß".encode(),
        b"\x01\x7f",
    ]
    for name in names:
        write(b"names/" + name, name)
    deep = b"deep"
    for level in range(40):
        os.mkdir(at(deep))
        deep += b"/level %d" % level
    write(deep, b"down here\n")
    os.mkdir(at(b"empty directory"))
    os.mkdir(at(b"many"))
    for number in range(300):
        write(b"many/%05d" % number, b"%d\n" % number)

    # Sizes around the cuts, and holes.
    write(b"empty", b"")
    write(b"one byte", b"1")
    block = bytes(range(256)) * 4096
    write(b"one chunk", block[:CHUNK_BYTES])
    write(b"one chunk and a byte", block[:CHUNK_BYTES] + b"!")
    write(b"three chunks less a byte", (block * 3)[: 3 * CHUNK_BYTES - 1])
    write(b"zeros that are there", bytes(200_000))
    for name, size, pieces in (
        (b"all hole", 5_000_000, []),
        (b"hole first", 3 * CHUNK_BYTES, [(2 * CHUNK_BYTES, b"x" * 4096)]),
        (b"hole last", 3 * CHUNK_BYTES + 17, [(0, b"y" * 65_536)]),
        (b"holes between", 10 * CHUNK_BYTES, [(65_536, b"a" * 65_536), (5 * CHUNK_BYTES - 65_536, b"b" * 131_072)]),
        *([(b"huge and hollow", 1 << 40, [(1 << 39, b"far away" * 512)])] if huge else []),
    ):
        with open(at(name), "wb") as file:
            file.truncate(size)
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)

    # Links.
    os.mkdir(at(b"links"))
    for length in (1, 59, 60, 61, 1000, 4000):
        os.symlink(b"t" * length, at(b"links/of %d" % length))
    os.symlink(b"/etc/passwd", at(b"links/absolute"))
    os.symlink(b"../../../../../../etc", at(b"links/climbs out"))
    os.symlink(b"loop", at(b"links/loop"))
    os.symlink(b"..", at(b"links/to a directory"))
    os.mkdir(at(b"hard"))
    os.mkdir(at(b"hard/sub"))
    first = write(b"hard/z first made", b"many names\n" * 10)
    os.link(first, at(b"hard/a sorts first"))
    os.link(first, at(b"hard/sub/elsewhere"))
    os.symlink(b"nowhere", at(b"hard/link"))
    os.link(at(b"hard/link"), at(b"hard/the same link"), follow_symlinks=False)

    # Kinds.
    os.mkfifo(at(b"fifo"))
    os.link(at(b"fifo"), at(b"hard/fifo"))
    # bind() takes 107 bytes at most: the socket is made by a short name, seen from its own folder.
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{folder}/socket")
    finally:
        os.close(folder)
    if root:
        os.mknod(at(b"character device"), stat.S_IFCHR | 0o620, os.makedev(5, 1))
        os.mknod(at(b"block device"), stat.S_IFBLK | 0o660, os.makedev(259, 70_000))

    # Rights and owners.
    for mode in (0o000, 0o400, 0o777, 0o1644, 0o2755, 0o4755, 0o6711):
        write(b"mode %04o" % mode, b"%o\n" % mode)
    if root:
        os.chown(at(b"mode 4755"), 1234, 4321)
        os.chown(at(b"a/x"), 70_000, 4_000_000_000)
        os.chown(at(b"links/loop"), 1234, 1234, follow_symlinks=False)
        os.chown(at(b"fifo"), 33, 33)
    for mode in (0o000, 0o400, 0o777, 0o1644, 0o2755, 0o4755, 0o6711):
        os.chmod(at(b"mode %04o" % mode), mode)
    os.mkdir(at(b"sticky"))
    os.chmod(at(b"sticky"), 0o1777)
    os.mkdir(at(b"set group id"))
    os.chmod(at(b"set group id"), 0o2775)
    if root:
        os.mkdir(at(b"shut"))
        write(b"shut/inside", b"behind a door\n")
        os.chmod(at(b"shut"), 0o000)

    # Extended attributes.
    write(b"with attributes", b"content\n")
    for name, value in (
        (b"user.empty", b""),
        (b"user.bytes", bytes(range(256))),
        (b"user." + b"n" * 200, b"long name"),
    ):
        os.setxattr(at(b"with attributes"), name, value)
    os.setxattr(at(b"a"), b"user.on.directory", b"yes")
    write(b"with ACL", b"only for some\n", 0o640)
    os.setxattr(at(b"with ACL"), b"system.posix_acl_access", ACCESS_ACL)
    os.mkdir(at(b"with default ACL"))
    os.setxattr(at(b"with default ACL"), b"system.posix_acl_default", DEFAULT_ACL)
    os.mkdir(at(b"with default ACL/made after"))
    if root:
        os.setxattr(write(b"with capability", b"program\n", 0o755), b"security.capability", CAPABILITY)
        os.setxattr(at(b"with attributes"), b"trusted.kept", b"for root")
        os.setxattr(at(b"links/absolute"), b"trusted.on.link", b"yes", follow_symlinks=False)

    # Flags, where the filesystem has them.
    write(b"no dump", b"left out of backups\n")
    with contextlib.suppress(OSError):
        set_flags(at(b"no dump"), NODUMP)

    # Times: sub-second, before 1970, after 2038; directories last.
    write(b"before 1970", b"old\n")
    os.utime(at(b"before 1970"), ns=(-1_234_567_890, -(3 * 365 * 86_400 * _SECOND) - 1))
    write(b"after 2038", b"new\n")
    os.utime(at(b"after 2038"), ns=(5_000_000_000 * _SECOND + 123_456_789, 5_000_000_001 * _SECOND + 999_999_999))
    os.utime(at(b"links/absolute"), ns=(_SECOND, 1_500_000_000 * _SECOND + 7), follow_symlinks=False)
    os.utime(at(b"fifo"), ns=(2 * _SECOND, 1_400_000_000 * _SECOND + 8))
    os.utime(at(b"a"), ns=(3 * _SECOND, 1_300_000_000 * _SECOND + 9))
    os.utime(at(b"empty directory"), ns=(4 * _SECOND, 0))
    os.chmod(top, 0o755)
    os.utime(top, ns=(1_200_000_000 * _SECOND, 1_100_000_000 * _SECOND + 5))


def set_flags(path: bytes, flags: int) -> None:
    """chattr: of a file or directory the flags that are kept; the filesystem's own stay as they are."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        present = struct.unpack("=l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))[:4])[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=ll", present & ~KEPT_FLAGS | flags, 0))
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Seen:
    """What is kept of one name. `names` are all names of its inode, `data` where its content is not a hole."""

    mode: str
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    device: tuple[int, int]
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    flags: int
    data: tuple[tuple[int, int, bytes], ...]
    names: tuple[bytes, ...]


def look_at_tree(directory: Path, *, flags: bool = True) -> dict[bytes, Seen]:
    """Every name of a tree (b"" is its top) with what is kept of it."""
    top = os.fsencode(directory)
    inodes: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    found: dict[bytes, os.stat_result] = {}
    for name in _walk(top):
        status = os.lstat(os.path.join(top, name))
        found[name] = status
        inodes[status.st_dev, status.st_ino].append(name)
    seen = {}
    for name, status in found.items():
        path = os.path.join(top, name)
        regular, directory_ = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
        device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        attributes = sorted(os.fsencode(attribute) for attribute in os.listxattr(path, follow_symlinks=False))
        seen[name] = Seen(
            mode=stat.filemode(status.st_mode),
            owner=(status.st_uid, status.st_gid),
            size=status.st_size if regular else 0,
            mtime_ns=status.st_mtime_ns,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0),
            target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
            xattrs=tuple((attribute, os.getxattr(path, attribute, follow_symlinks=False)) for attribute in attributes),
            flags=_flags(path) if flags and (regular or directory_) else 0,
            data=tuple(_data(path)) if regular else (),
            names=tuple(sorted(inodes[status.st_dev, status.st_ino])) if not directory_ else (),
        )
    return seen


def assert_same_tree(a: Path, b: Path, *, flags: bool = True) -> None:
    """Both trees hold the same names with the same content, holes, links and attributes (atime and ctime aside)."""
    left, right = look_at_tree(a, flags=flags), look_at_tree(b, flags=flags)
    assert sorted(left) == sorted(right)
    for name, seen in left.items():
        assert right[name] == seen, name


def _walk(top: bytes) -> Iterator[bytes]:
    yield b""
    todo = [b""]
    while todo:
        at = todo.pop()
        with os.scandir(os.path.join(top, at)) as entries:
            for entry in entries:
                name = os.path.join(at, entry.name)
                yield name
                if entry.is_dir(follow_symlinks=False):
                    todo.append(name)


def _flags(path: bytes) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return 0
    try:
        answer = fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
        return int(struct.unpack("=l", answer[:4])[0]) & KEPT_FLAGS
    except OSError:
        return 0
    finally:
        os.close(fd)


def _data(path: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(from, to, content) of each run that is not a hole; a file that we may not read has none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        return
    try:
        size, at = os.fstat(fd).st_size, 0
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, at, os.pread(fd, at - start, start)
    finally:
        os.close(fd)
