"""The walk over the source's volumes: one row a name, sent in batches in the order of the paths' bytes.

Names of a directory are looked at in order. What is in a directory "a" has paths that begin with "a/", which come
behind those of "a-b" and before those of "a0": so each directory to go into waits as its name with a slash until its
turn among the names beside it. Nothing is held but the names of the directories from the root to the present one.
"""

import array
import errno
import fcntl
import heapq
import json
import os
import platform
import re
import struct
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from rehost.agent.output import Output
from rehost.agent.pipeline import Ordered
from rehost.agent.protocol import (
    PATH_BYTES,
    ROW_COLUMNS,
    ROWS,
    ROWS_BATCH,
    ROWS_BYTES,
    SCANNED,
    SKIPPED_TOLD,
    XATTRS_BYTES,
)
from rehost.agent.status import (
    ATTRIBUTES_MASK,
    DEVICE,
    DIRECTORY,
    INODE,
    KEPT_FLAGS,
    LINK,
    MODE_HIGH,
    REGULAR,
    device_bytes,
    looker,
    packed,
    with_flags,
)
from rehost.agent.walk import Walker, open_quietly

# _IOR('f', 1, long) of <linux/fs.h>; these machines have the direction one bit lower.
_DIRECTION_BIT = 29 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 30
_GET_FLAGS = (2 << _DIRECTION_BIT) | (struct.calcsize("l") << 16) | (ord("f") << 8) | 1
_FRAMES_QUEUED = 4


def serve(context: Any, body: bytes) -> None:
    """Answer one SCAN."""

    def work() -> Any:
        codec = context.codec(1)
        return lambda raw: codec.pack(raw)

    def emit(pieces: List[bytes]) -> None:
        context.output.send(ROWS, *pieces)

    frames = Ordered(work, emit, 1, _FRAMES_QUEUED, context.fail)
    try:
        Scan(context.output, frames, context.walker, json.loads(body.decode("ascii"))).run()
    finally:
        os.chdir("/")  # the walk is done in the directories' own places


class _Directory:
    """A directory in the middle of its walk."""

    __slots__ = ("device", "names", "path", "pending", "prefix", "volume")

    def __init__(self, path: bytes, volume: int, device: bytes, names: List[bytes]) -> None:
        self.path = path
        self.prefix = path + b"/" if path else b""
        self.volume = volume
        self.device = device
        self.names = names  # still to be looked at, the next one last
        self.pending: List[Tuple[bytes, int, Optional[bytes]]] = []  # to go into: name and slash, volume, device


class Scan:
    """One scan: which volumes, what is left out, and the rows not sent yet."""

    def __init__(self, output: Output, frames: Ordered, walker: Walker, request: Dict[str, Any]) -> None:
        self._output = output
        self._frames = frames
        self._walker = walker
        self._exclude = re.compile(request["exclude"]) if request["exclude"] else None
        volumes = [volume.encode("latin-1") for volume in request["volumes"]]
        self._volumes = {path: number for number, path in enumerate(volumes) if not self._excluded_with_parents(path)}
        # Names below a directory that lead to a volume: they are looked at even where nothing else there is.
        self._ways: Dict[bytes, Set[bytes]] = {}
        for path in self._volumes:
            while path:
                above, _, name = path.rpartition(b"/")
                self._ways.setdefault(above, set()).add(name)
                path = above
        self._mounts = mount_points(walker.root)
        # Of files that are read in a snapshot: they are told with the device of the volume that it stands for.
        self._devices = {device_bytes(found): device_bytes(told) for found, told in walker.devices.items()}
        self._look = looker()
        self._roots: Set[Tuple[bytes, bytes]] = set()
        self._reached: Set[bytes] = set()
        self._flagless: Set[bytes] = set()
        self._skipped: List[Tuple[str, str]] = []
        self._skipped_total = 0
        self._rows = 0
        self._clear()

    def run(self) -> None:
        """Send every row, then when the walk began and what was skipped."""
        began_ns = int(time.time() * 1e9)
        if b"" in self._volumes:
            top = self._root(b"", self._volumes[b""])
            stack = [] if top is None else self._opened(b"", *top)
        else:
            stack = [_Directory(b"", 0, b"", sorted(self._ways.get(b"", ()), reverse=True))]
        while stack:
            directory = stack[-1]
            try:
                os.fchdir(self._walker.directory(directory.path))
                below = self._names_of(directory)
            except OSError as error:
                self._skip(directory.path, error)
                below = None
            if below is None:
                stack.pop()
            else:
                key, volume, device = below
                stack += self._opened(directory.prefix + key[:-1], volume, device)
        for path in sorted(set(self._volumes) - self._reached):
            self._skip(path, "nothing leads to this mount any more")
        self._flush()
        self._frames.finish()
        told = {
            "rows": self._rows,
            "now_ns": began_ns,
            "skipped": self._skipped,
            "skipped_total": self._skipped_total,
        }
        self._output.send(SCANNED, json.dumps(told).encode("ascii"))

    # --- the walk ---

    def _root(self, path: bytes, volume: int) -> Optional[Tuple[int, bytes]]:
        """Add the row of a volume's root; its number and device where it is to be gone into."""
        self._reached.add(path)
        try:
            fd = self._walker.directory(path)
            status = packed(os.fstat(fd), self._flags(fd))
        except OSError as error:
            self._skip(path, error)
            return None
        self._add(path, volume, status, self._xattrs(path, fd))
        identity = (status[DEVICE], status[INODE])
        if identity in self._roots:
            self._skip(path, "the same filesystem is mounted elsewhere too, and taken there")
            return None
        self._roots.add(identity)
        return volume, status[DEVICE]

    def _opened(self, path: bytes, volume: int, device: Optional[bytes]) -> List[_Directory]:
        """The directory with its names, or nothing; without a device only what leads to a volume below it."""
        ways = self._ways.get(path)
        if device is None:
            return [_Directory(path, volume, b"", sorted(ways or (), reverse=True))]
        try:
            fd = self._walker.directory(path)
            if packed(os.fstat(fd))[DEVICE] != device:
                return []  # something was mounted there a moment ago
            os.fchdir(fd)
            names = os.listdir(b".")  # nothing but their bytes: of a million names in one directory all are held
        except OSError as error:
            self._skip(path, error)
            return []
        names += ways or ()
        names.sort(reverse=True)
        return [_Directory(path, volume, device, names)]

    def _names_of(self, directory: _Directory) -> Optional[Tuple[bytes, int, Optional[bytes]]]:
        """Add the rows of its names up to the next directory to go into, which is returned; None at its end."""
        names, pending, prefix = directory.names, directory.pending, directory.prefix
        device, volume, look = directory.device, directory.volume, self._look
        ways = self._ways.get(directory.path)
        while names:
            if pending and pending[0][0] < names[-1]:
                return heapq.heappop(pending)
            name = names.pop()
            while names and names[-1] == name:  # a directory that changes meanwhile may list it twice
                names.pop()
            path = prefix + name
            if ways is not None and name in ways:
                self._way(directory, path, name)
                # The volume's root may have been opened through other directories.
                os.fchdir(self._walker.directory(directory.path))
                continue
            try:
                status = look(name)
            except OSError as error:
                self._skip(path, error)
                continue
            kind = status[MODE_HIGH] >> 4
            is_directory = kind == DIRECTORY
            if self._exclude is not None and self._excluded(path, is_directory):
                continue
            if len(path) >= PATH_BYTES:
                self._skip(path, "the path is too long")
                continue
            if is_directory:
                if status[DEVICE] != device or path in self._mounts:
                    self._left_out(path, volume, status)
                    continue
                heapq.heappush(pending, (name + b"/", volume, device))
            target = None
            if kind == LINK:
                try:
                    target = os.readlink(name)
                except OSError as error:
                    self._skip(path, error)
                    continue
            elif (kind == REGULAR or is_directory) and status[ATTRIBUTES_MASK] & KEPT_FLAGS != KEPT_FLAGS:
                status = with_flags(status, self._flags_of(name, status[DEVICE]))
            self._add(path, volume, status, self._xattrs(path, name), target)
        return heapq.heappop(pending) if pending else None

    def _way(self, directory: _Directory, path: bytes, name: bytes) -> None:
        """A name that is a volume's root, or above one."""
        if path in self._volumes:
            root = self._root(path, self._volumes[path])
            if root is not None:
                heapq.heappush(directory.pending, (name + b"/",) + root)
            return
        inside: Tuple[int, Optional[bytes]] = (directory.volume, None)
        if directory.device or self._told(directory.path):
            try:
                status = self._look(name)
                if status[MODE_HIGH] >> 4 != DIRECTORY:
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            except OSError as error:
                self._skip(path, error)
                return
            if not directory.device:
                self._add(path, directory.volume, with_flags(status, 0), ())
            elif status[DEVICE] != directory.device or path in self._mounts:
                self._left_out(path, directory.volume, status)
            else:
                if status[ATTRIBUTES_MASK] & KEPT_FLAGS != KEPT_FLAGS:
                    status = with_flags(status, self._flags_of(name, status[DEVICE]))
                self._add(path, directory.volume, status, self._xattrs(path, name))
                inside = (directory.volume, directory.device)
        heapq.heappush(directory.pending, (name + b"/",) + inside)

    def _told(self, path: bytes) -> bool:
        """Whether a volume is above that path, so that it has a row."""
        return b"" in self._volumes or any(path == v or path.startswith(v + b"/") for v in self._volumes)

    def _left_out(self, path: bytes, volume: int, status: bytes) -> None:
        """The row of a directory where something else is mounted that nobody asked for: it stays empty."""
        if path not in self._mounts:
            self._skip(path, "another filesystem that is no mount, such as a btrfs subvolume")
        self._add(path, volume, with_flags(status, 0), ())

    def _excluded(self, path: bytes, is_directory: bool) -> bool:
        if self._exclude is None:
            return False
        text = "/" + path.decode("utf-8", "surrogateescape") + ("\0" if is_directory else "")
        return self._exclude.fullmatch(text) is not None

    def _excluded_with_parents(self, path: bytes) -> bool:
        parts = path.split(b"/") if path else []
        return any(self._excluded(b"/".join(parts[:depth]), True) for depth in range(1, len(parts) + 1))

    # --- attributes ---

    def _xattrs(self, path: bytes, where: Any) -> Sequence[Tuple[bytes, bytes]]:
        """Of an open descriptor, or of a name in the working directory."""
        follow = isinstance(where, int)
        try:
            names = os.listxattr(where, follow_symlinks=follow)
        except OSError:
            return ()
        if not names:
            return ()
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

    def _flags_of(self, name: bytes, device: bytes) -> int:
        if device in self._flagless:
            return 0
        try:
            opened = open_quietly(name, 0)
        except OSError:
            return 0
        try:
            return self._flags(opened, device)
        finally:
            os.close(opened)

    def _flags(self, fd: int, device: bytes = b"") -> int:
        # The kernel writes an int, whatever the number of the call says.
        answer = array.array("i", [0, 0])
        try:
            fcntl.ioctl(fd, _GET_FLAGS, answer)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS):
                self._flagless.add(device)
            return 0
        return answer[0] & KEPT_FLAGS

    # --- rows ---

    def _clear(self) -> None:
        self._paths: List[bytes] = []
        self._statuses: List[bytes] = []
        self._targets: List[bytes] = []
        self._numbers: Dict[str, Any] = {name: array.array(code) for name, code in ROW_COLUMNS if code}
        self._of_volumes = self._numbers["volume"]
        self._xattr_bytes: List[bytes] = []
        self._held = 0

    def _add(
        self,
        path: bytes,
        volume: int,
        status: bytes,
        xattrs: Sequence[Tuple[bytes, bytes]],
        target: Optional[bytes] = None,
    ) -> None:
        for key, content in xattrs:
            self._numbers["xattr_row"].append(len(self._paths))
            self._numbers["xattr_name_length"].append(len(key))
            self._numbers["xattr_value_length"].append(len(content))
            self._xattr_bytes += (key, content)
            self._held += len(key) + len(content)
        if self._devices:
            status = status[: DEVICE.start] + self._devices.get(status[DEVICE], status[DEVICE])
        self._paths.append(path)
        self._statuses.append(status)
        self._of_volumes.append(volume)
        self._held += len(path)
        if target is not None:
            self._targets.append(target)
            self._held += len(target)
        if len(self._paths) >= ROWS_BATCH or self._held >= ROWS_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._paths:
            return
        self._rows += len(self._paths)
        blobs = {
            "paths": b"\0".join(self._paths),
            "status": b"".join(self._statuses),
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
        self._frames.submit(b"".join(pieces))
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
