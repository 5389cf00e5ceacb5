"""A private room for mounts: a process in a mount namespace of its own, where nobody else sees them.

What is mounted there is reached by /proc/PID/root. The mounts go when the process does, and it goes with the one that
made it: nothing needs to be unmounted, and nothing can be left mounted.
"""

import ctypes
import os
import signal
from typing import Any, Dict, Optional

from rehost.agent import children
from rehost.agent.programs import Refused

# <linux/mount.h>, <linux/sched.h>, <linux/prctl.h>
RDONLY, NOSUID, NODEV, NOEXEC, NOATIME = 1, 2, 4, 8, 1024
_REC, _SLAVE = 16384, 1 << 19
_NEWNS = 0x00020000
_PDEATHSIG = 1
_PLACES = ("/mnt", "/tmp", "/var", "/home")
_SECONDS = 60.0


class Room:
    """The room as its maker sees it."""

    def __init__(self) -> None:
        parent = os.getpid()
        self._process, self._lines = children.start(lambda lines: _Inside(lines, parent).run())
        self._place = str(self._ask({})["place"])
        self._count = 0

    def mount(self, device: str, filesystem: str, flags: int, data: str) -> str:
        """Mount a device; the path by which its root is reached from outside. Raises Refused."""
        self._count += 1
        order = {"device": device, "filesystem": filesystem, "flags": flags | NOSUID | NODEV | NOEXEC | NOATIME}
        self._ask(dict(order, data=data, name=str(self._count)))
        return "/proc/%d/root%s/%d" % (self._process, self._place, self._count)

    def close(self) -> None:
        """End it, and all that is mounted in it."""
        self._lines.close()
        try:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        except OSError:
            pass  # it had ended, and was waited for

    def _ask(self, order: Dict[str, Any]) -> Dict[str, Any]:
        answer: Optional[Dict[str, Any]] = None
        try:
            if order:
                self._lines.send(order)
            answer = self._lines.receive(_SECONDS)
        except (OSError, EOFError):
            pass
        if answer is None or "refused" in answer:
            if not order:
                self.close()
            raise Refused(str(answer["refused"]) if answer else "the process that mounts it ended or hangs")
        return answer


class _Inside:
    """The process of the room."""

    def __init__(self, lines: children.Lines, parent: int) -> None:
        self._lines = lines
        self._parent = parent
        self._libc = ctypes.CDLL(None, use_errno=True)

    def run(self) -> None:
        self._libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:
            return
        try:
            place = self._move_in()
            self._lines.send({"place": place})
        except Refused as refusal:
            self._lines.send({"refused": str(refusal)})
            return
        while True:
            order = self._lines.receive()
            assert order is not None
            try:
                target = place + "/" + str(order["name"])
                os.mkdir(target, 0o700)
                self._mount(order["device"], target, order["filesystem"], int(order["flags"]), order["data"])
                self._lines.send({})
            except (Refused, OSError) as refusal:
                self._lines.send({"refused": str(refusal)})

    def _move_in(self) -> str:
        if self._libc.unshare(_NEWNS) != 0:
            raise Refused("no mount namespace of its own: " + os.strerror(ctypes.get_errno()))
        # What is unmounted outside goes here too, so that the room keeps no filesystem busy; not the other way round.
        self._mount(None, "/", None, _REC | _SLAVE, None)
        place = next((path for path in _PLACES if os.path.isdir(path)), None)
        if place is None:
            raise Refused("there is no directory to mount at")
        self._mount("tmpfs", place, "tmpfs", NOSUID | NODEV | NOEXEC, "mode=0700,size=1m")
        return place

    def _mount(
        self, device: Optional[str], target: str, filesystem: Optional[str], flags: int, data: Optional[str]
    ) -> None:
        words = [None if word is None else os.fsencode(word) for word in (device, target, filesystem, data)]
        if self._libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
            raise Refused("mount of %s: %s" % (device or target, os.strerror(ctypes.get_errno())))
