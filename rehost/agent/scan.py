"""The walk over the source's volumes: one row a name, sent in batches."""

import array
import errno
import fcntl
import json
import os
import platform
import re
import stat
import struct
import sys
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from rehost.agent.output import Output
from rehost.agent.protocol import (
    PATH_BYTES,
    ROW_COLUMNS,
    ROWS,
    ROWS_BATCH,
    ROWS_BYTES,
    SCANNED,
    SKIPPED_TOLD,
    XATTRS_BYTES,
    Codec,
)
from rehost.agent.walk import Walker, open_quietly

# _IOR('f', 1, long) of <linux/fs.h>; these machines have the direction one bit lower.
_DIRECTION_BIT = 29 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 30
_GET_FLAGS = (2 << _DIRECTION_BIT) | (struct.calcsize("l") << 16) | (ord("f") << 8) | 1
_KEPT_FLAGS = 0x10 | 0x20 | 0x40  # i, a, d of chattr


def serve(context: Any, body: bytes) -> None:
    """Answer one SCAN."""
    Scan(context.output, context.codec(1), context.walker, json.loads(body.decode("ascii"))).run()


class Scan:
    """One scan: which volumes, what is left out, and the rows not sent yet."""

    def __init__(self, output: Output, codec: Codec, walker: Walker, request: Dict[str, Any]) -> None:
        self._output = output
        self._codec = codec
        self._walker = walker
        self._exclude = re.compile(request["exclude"]) if request["exclude"] else None
        self._volumes = [volume.encode("latin-1") for volume in request["volumes"]]
        self._mounts = mount_points(walker.root)
        self._left_out: Set[bytes] = set()
        self._roots: Set[Tuple[int, int]] = set()
        self._flagless: Set[int] = set()
        self._proc = os.path.isdir("/proc/self/fd")
        self._skipped: List[Tuple[str, str]] = []
        self._skipped_total = 0
        self._rows = 0
        self._clear()

    def run(self) -> None:
        """Send every row, then what was skipped."""
        kept = [(number, path) for number, path in enumerate(self._volumes) if not self._excluded_with_parents(path)]
        paths = {path for _, path in kept}
        for number, path in kept:
            self._between(path, kept)
            self._volume(number, path, paths)
        self._flush()
        told = {"rows": self._rows, "skipped": self._skipped, "skipped_total": self._skipped_total}
        self._output.send(SCANNED, json.dumps(told).encode("ascii"))

    # --- the walk ---

    def _volume(self, number: int, root: bytes, volumes: Set[bytes]) -> None:
        try:
            fd = self._walker.directory(root)
            status = os.fstat(fd)
        except OSError as error:
            self._skip(root, error)
            return
        self._add(root, number, status, None, self._xattrs(root, fd), self._flags(fd, status))
        if (status.st_dev, status.st_ino) in self._roots:
            self._skip(root, "the same filesystem is mounted elsewhere too, and taken there")
            return
        self._roots.add((status.st_dev, status.st_ino))
        pending = [root]
        while pending:
            directory = pending.pop()
            try:
                fd = self._walker.directory(directory)
                if os.fstat(fd).st_dev != status.st_dev:
                    continue  # something was mounted there a moment ago
                below: List[bytes] = []
                for name in _names(fd):
                    path = directory + b"/" + name if directory else name
                    if self._entry(path, name, fd, number, status.st_dev, volumes):
                        below.append(path)
                pending.extend(reversed(below))
            except OSError as error:
                self._skip(directory, error)

    def _entry(self, path: bytes, name: bytes, fd: int, number: int, device: int, volumes: Set[bytes]) -> bool:
        """Add the row of one name; whether to go into it."""
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            self._skip(path, error)
            return False
        is_directory = stat.S_ISDIR(status.st_mode)
        if self._excluded(path, is_directory):
            return False
        if len(path) >= PATH_BYTES:
            self._skip(path, "the path is too long")
            return False
        if is_directory and path in volumes:
            return False  # it comes as the root of its own volume
        if is_directory and (status.st_dev != device or path in self._mounts):
            if path not in self._mounts:
                self._skip(path, "another filesystem that is no mount, such as a btrfs subvolume")
            if path not in self._left_out:
                self._left_out.add(path)
                self._add(path, number, status, None, [], 0)
            return False
        target: Optional[bytes] = None
        flags = 0
        try:
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(name, dir_fd=fd)
            if is_directory or stat.S_ISREG(status.st_mode):
                flags = self._flags_of(name, fd, status)
        except OSError as error:
            if error.errno == errno.ENOENT or target is None and stat.S_ISLNK(status.st_mode):
                self._skip(path, error)
                return False
        self._add(path, number, status, target, self._xattrs_of(path, name, fd), flags)
        return is_directory

    def _between(self, volume: bytes, volumes: List[Tuple[int, bytes]]) -> None:
        """Rows for the directories between a mount that was left out and a volume below it, which nobody else adds."""
        parts = volume.split(b"/")
        for depth in range(1, len(parts)):
            above = b"/".join(parts[:depth])
            if above in self._left_out or not any(above.startswith(left + b"/") for left in self._left_out):
                continue
            _, number = max((len(v), n) for n, v in volumes if not v or above.startswith(v + b"/"))
            try:
                self._add(above, number, os.fstat(self._walker.directory(above)), None, [], 0)
                self._left_out.add(above)
            except OSError as error:
                self._skip(above, error)

    def _excluded(self, path: bytes, is_directory: bool) -> bool:
        if self._exclude is None:
            return False
        text = "/" + path.decode("utf-8", "surrogateescape") + ("\0" if is_directory else "")
        return self._exclude.fullmatch(text) is not None

    def _excluded_with_parents(self, path: bytes) -> bool:
        parts = path.split(b"/") if path else []
        return any(self._excluded(b"/".join(parts[:depth]), True) for depth in range(1, len(parts) + 1))

    # --- attributes ---

    def _xattrs_of(self, path: bytes, name: bytes, fd: int) -> List[Tuple[bytes, bytes]]:
        if not self._proc:
            return []
        # There is no listxattrat() that all kernels have; the last component is not followed here either.
        return self._xattrs(path, b"/proc/self/fd/%d/%s" % (fd, name))

    def _xattrs(self, path: bytes, where: Any) -> List[Tuple[bytes, bytes]]:
        follow = isinstance(where, int)
        try:
            names = os.listxattr(where, follow_symlinks=follow)
        except OSError:
            return []
        found: List[Tuple[bytes, bytes]] = []
        total = 0
        for name in sorted(names):
            try:
                value = os.getxattr(where, name, follow_symlinks=follow)
            except OSError:
                continue
            total += len(name) + len(value)
            if total > XATTRS_BYTES:
                self._skip(path, "too many extended attributes")
                break
            found.append((os.fsencode(name), value))
        return found

    def _flags_of(self, name: bytes, fd: int, status: os.stat_result) -> int:
        if status.st_dev in self._flagless:
            return 0
        try:
            opened = open_quietly(name, 0, fd)
        except OSError:
            return 0
        try:
            return self._flags(opened, status)
        finally:
            os.close(opened)

    def _flags(self, fd: int, status: os.stat_result) -> int:
        # The kernel writes an int, whatever the number of the call says.
        answer = array.array("i", [0, 0])
        try:
            fcntl.ioctl(fd, _GET_FLAGS, answer)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
                self._flagless.add(status.st_dev)
            return 0
        return answer[0] & _KEPT_FLAGS

    # --- rows ---

    def _clear(self) -> None:
        self._paths: List[bytes] = []
        self._targets: List[bytes] = []
        self._numbers: Dict[str, Any] = {name: array.array(code) for name, code in ROW_COLUMNS if code}
        self._xattr_bytes: List[bytes] = []
        self._held = 0

    def _add(
        self,
        path: bytes,
        volume: int,
        status: os.stat_result,
        target: Optional[bytes],
        xattrs: List[Tuple[bytes, bytes]],
        flags: int,
    ) -> None:
        mode = status.st_mode
        special = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        self._paths.append(path)
        self._targets.append(target or b"")
        for name, value in (
            ("volume", volume),
            ("mode", mode),
            ("uid", status.st_uid),
            ("gid", status.st_gid),
            ("size", status.st_size if stat.S_ISREG(mode) else 0),
            ("atime_ns", status.st_atime_ns),
            ("mtime_ns", status.st_mtime_ns),
            ("ctime_ns", status.st_ctime_ns),
            ("rdev_major", os.major(status.st_rdev) if special else 0),
            ("rdev_minor", os.minor(status.st_rdev) if special else 0),
            ("flags", flags),
            ("dev", self._walker.devices.get(status.st_dev, status.st_dev)),
            ("ino", status.st_ino),
            ("xattr_count", len(xattrs)),
        ):
            self._numbers[name].append(value)
        for key, content in xattrs:
            self._numbers["xattr_name_length"].append(len(key))
            self._numbers["xattr_value_length"].append(len(content))
            self._xattr_bytes += (key, content)
            self._held += len(key) + len(content)
        self._held += len(path) + len(target or b"")
        self._rows += 1
        if len(self._paths) >= ROWS_BATCH or self._held >= ROWS_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._paths:
            return
        blobs = {
            "paths": b"\0".join(self._paths),
            "targets": b"\0".join(self._targets),
            "xattr_bytes": b"".join(self._xattr_bytes),
        }
        pieces = [struct.pack(">I", len(self._paths))]
        for name, code in ROW_COLUMNS:
            if code is None:
                column = blobs[name]
            else:
                numbers = self._numbers[name]
                if sys.byteorder == "big":
                    numbers.byteswap()
                column = numbers.tobytes()
            pieces += (struct.pack(">I", len(column)), column)
        self._output.send(ROWS, *self._codec.pack(b"".join(pieces)))
        self._clear()

    def _skip(self, path: bytes, reason: Any) -> None:
        self._skipped_total += 1
        if len(self._skipped) < SKIPPED_TOLD:
            text = os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else str(reason)
            self._skipped.append((path[:PATH_BYTES].decode("latin-1"), text[:200]))


def mount_points(root: bytes) -> Set[bytes]:
    """What is mounted below the root, as paths relative to it. Empty where there is no mountinfo.

    A directory that is bind-mounted onto itself (as Docker and chroots do, to change how mounts spread) shows what is
    there anyway, and is nobody else's volume: it is not among them. The fields are those of proc(5).
    """
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return set()
    prefix = root.rstrip(b"/") + b"/"
    mounts: Dict[bytes, Tuple[bytes, bytes, bytes]] = {}
    found = set()
    for line in lines:
        number, parent, device, top, point = line.split(b" ")[:5]
        top, point = _unescaped(top), _unescaped(point)
        mounts[number] = (device, top, point)
        if point.startswith(prefix) and point != prefix and not _onto_itself(mounts.get(parent), mounts[number]):
            found.add(point[len(prefix) :])
    return found


def _onto_itself(parent: Optional[Tuple[bytes, bytes, bytes]], mount: Tuple[bytes, bytes, bytes]) -> bool:
    if parent is None or parent[0] != mount[0]:
        return False
    below = mount[2][len(parent[2].rstrip(b"/")) :]
    return mount[2].startswith(parent[2]) and parent[1].rstrip(b"/") + below == mount[1]


def _unescaped(path: bytes) -> bytes:
    """The kernel writes space, tab, newline and backslash as octal escapes."""
    return re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m.group(1), 8)]), path)


def _names(fd: int) -> Iterator[bytes]:
    if os.scandir in os.supports_fd:  # from Python 3.7 on: entry by entry
        with os.scandir(fd) as entries:
            for entry in entries:
                yield os.fsencode(entry.name)
    else:
        for name in os.listdir(fd):
            yield os.fsencode(name)
