"""Opens what is below a root by directory descriptors, so that no link in a tree ever leads outside it.

There is no limit on the length of a path: every step opens one component in the directory before it.
"""

import errno
import os
from typing import Dict, List, Optional, Tuple

_OPEN_AT_ONCE = 128  # directory descriptors kept; deeper chains let go of the shallowest
_NOATIME = getattr(os, "O_NOATIME", 0)
_BASE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_quietly(name: bytes, flags: int, dir_fd: Optional[int] = None) -> int:
    """Open for reading without following a link, and without touching the access time where that is allowed."""
    try:
        return os.open(name, _BASE | _NOATIME | flags, dir_fd=dir_fd)
    except PermissionError:
        # O_NOATIME is for the owner and root alone.
        return os.open(name, _BASE | flags, dir_fd=dir_fd)


class Walker:
    """Directories below a root. The chain to the last one stays open, so that neighbours cost one step."""

    def __init__(self, root: bytes) -> None:
        self.root = os.path.realpath(root)
        # Where directories below the root are read instead, by their paths: snapshots of the volumes mounted there.
        self.elsewhere: Dict[bytes, bytes] = {}
        # Device numbers of files that are read elsewhere, and those of the volumes that they stand for.
        self.devices: Dict[int, int] = {}
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._base: Optional[bytes] = None  # of `elsewhere`, for the chain that is open
        self._base_fd = self._root_fd
        self._parts: List[bytes] = []
        self._fds: List[Optional[int]] = []
        self._last: Optional[bytes] = None  # the path that the chain leads to, where that is known

    def directory(self, path: bytes) -> int:
        """The descriptor of the directory of that path below the root; it is lent until the next call."""
        if self.elsewhere:
            last = None
            path = self._from_base(path)
        elif path == self._last and self._fds:
            lent = self._fds[-1]
            assert lent is not None
            return lent
        else:
            last = path
        self._last = None
        parts = path.split(b"/") if path else []
        same = 0
        while same < len(parts) and same < len(self._parts) and parts[same] == self._parts[same]:
            same += 1
        if same and self._fds[same - 1] is None:
            same = 0  # let go of long ago: walk from the root again
        self._forget(same)
        for part in parts[same:]:
            if part in (b"", b".", b".."):
                raise OSError(errno.EINVAL, "not a plain path")
            parent = self._fds[-1] if self._fds else self._base_fd
            assert parent is not None
            self._fds.append(open_quietly(part, os.O_DIRECTORY, parent))
            self._parts.append(part)
            if len(self._fds) > _OPEN_AT_ONCE:
                self._let_go(len(self._fds) - 1 - _OPEN_AT_ONCE)
        lent = self._fds[-1] if self._fds else self._base_fd
        assert lent is not None
        self._last = last
        return lent

    def file(self, path: bytes) -> int:
        """A new descriptor of the file of that path; the caller closes it. Devices and FIFOs open without waiting."""
        parent, _, name = path.rpartition(b"/")
        return open_quietly(name, 0, self.directory(parent))

    def forget(self) -> None:
        """Close what is open below the root, and read all of it in its own place again."""
        self.elsewhere.clear()
        self.devices.clear()
        self._rebase(None)

    def _from_base(self, path: bytes) -> bytes:
        """What is left of a path below the deepest directory that is read elsewhere, which is opened."""
        base, rest = _deepest(self.elsewhere, path)
        if base != self._base:
            self._rebase(base)
        return rest

    def _rebase(self, base: Optional[bytes]) -> None:
        self._last = None
        self._forget(0)
        if self._base_fd != self._root_fd:
            os.close(self._base_fd)
        self._base, self._base_fd = None, self._root_fd
        if base is not None:
            self._base_fd = os.open(self.elsewhere[base], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._base = base

    def _forget(self, keep: int) -> None:
        while len(self._fds) > keep:
            self._let_go(len(self._fds) - 1)
            self._fds.pop()
            self._parts.pop()

    def _let_go(self, level: int) -> None:
        fd = self._fds[level]
        if fd is not None:
            os.close(fd)
            self._fds[level] = None


def _deepest(elsewhere: Dict[bytes, bytes], path: bytes) -> Tuple[Optional[bytes], bytes]:
    base = path
    while True:
        if base in elsewhere:
            return base, path[len(base) + 1 :] if base else path
        if not base:
            return None, path
        base = base.rpartition(b"/")[0]
