"""FREEZE and THAW: filesystems whose writers wait, for a few seconds, whatever becomes of the agent.

A dead man's handle is started first: a process of its own that thaws when the time is over or the agent is gone. It
has everything that it needs in memory and open, and writes nothing. While a filesystem is frozen the agent writes to
its channel alone. The numbers are those of <linux/fs.h>.
"""

import ctypes
import fcntl
import json
import os
import signal
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent import children, hold, inventory_disks
from rehost.agent.children import Lines
from rehost.agent.protocol import FROZEN, THAWED

SECONDS = 10.0  # no freeze is longer

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_LOCK_ALL = 1 | 2  # MCL_CURRENT, MCL_FUTURE
_AGAIN_SECONDS = 0.05
_STACK_BYTES = 256 << 10

_frozen: "Optional[_Frozen]" = None


def freeze(context: Any, body: bytes) -> None:
    """Answer FREEZE {points: [path, …], seconds, hooks} with FROZEN {refused, hooks}."""
    global _frozen
    request = json.loads(body.decode("ascii"))
    if _frozen is not None:
        raise ValueError("a freeze inside a freeze")
    hooks: List[Dict[str, Any]] = []
    refused: Optional[str] = None
    if context.root != b"/":
        refused = "the source is a tree of files and no running server"
    else:
        hooks = hold.run_hook("pre_snapshot", request["hooks"])
        if all(hook["status"] == 0 for hook in hooks):
            points = [b"/" + point.encode("latin-1") for point in request["points"]]
            frozen = _Frozen(_one_each(points), min(SECONDS, float(request["seconds"])))
            refused = frozen.freeze()
            if refused is None:
                _frozen = frozen
            else:
                hooks += hold.run_hook("post_snapshot", {})
    _tell(context, FROZEN, {"refused": refused, "hooks": hooks})


def thaw(context: Any, body: bytes) -> None:
    """Answer THAW with THAWED {held, seconds, hooks}."""
    global _frozen
    held, seconds = (False, 0.0) if _frozen is None else _frozen.thaw()
    _frozen = None
    _tell(context, THAWED, {"held": held, "seconds": seconds, "hooks": hold.run_hook("post_snapshot", {})})


class _Frozen:
    """Filesystems by their mount points, and the process that thaws them if nobody else does."""

    def __init__(self, points: List[bytes], seconds: float) -> None:
        self._points = points
        self._descriptors = [os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for point in points]
        os.sync()  # so that the freeze itself has little left to write
        self._process, self._lines = children.start(
            lambda lines: _DeadMan(lines, self._descriptors, seconds).run(), self._descriptors
        )
        self._lines.receive()  # it is ready
        self._begun = time.monotonic()

    def freeze(self) -> Optional[str]:
        """Freeze them all; where one refuses, none is frozen, and why."""
        for point, descriptor in zip(self._points, self._descriptors):
            try:
                fcntl.ioctl(descriptor, _FIFREEZE, 0)
            except OSError as error:
                self.thaw()
                return "%s: %s" % (os.fsdecode(point), os.strerror(error.errno or 0))
        self._tell("frozen")
        return None

    def thaw(self) -> Tuple[bool, float]:
        """Thaw them all; whether every one of them was frozen until now, and for how many seconds."""
        held = _thaw(self._descriptors)
        seconds = time.monotonic() - self._begun
        self._tell("thawed")
        status = os.waitpid(self._process, 0)[1]
        self._lines.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        return held and status == 0, seconds

    def _tell(self, what: str) -> None:
        try:
            self._lines.send({"now": what})
        except OSError:
            pass  # it thawed them, and ended: the thaw will say so


class _DeadMan:
    """The process that thaws."""

    def __init__(self, lines: Lines, descriptors: List[int], seconds: float) -> None:
        self._lines = lines
        self._descriptors = descriptors
        self._seconds = seconds

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the end of a login session must not be its own
        threading.stack_size(_STACK_BYTES)  # what is locked in memory is not to be much
        try:
            ctypes.CDLL(None).mlockall(_LOCK_ALL)
        except (OSError, AttributeError):
            pass
        self._lines.receive(0.0)  # what it will run is in memory once it has run
        _thaw([-1])
        deadline = time.monotonic() + self._seconds
        self._lines.send({})
        frozen = False
        try:
            while True:
                left = deadline - time.monotonic()
                order = self._lines.receive(max(left, 0.0) if left > 0 or frozen else _AGAIN_SECONDS)
                if order is not None and order["now"] == "thawed":
                    os._exit(0 if left > 0 else 1)
                frozen = frozen or order is not None
                if deadline <= time.monotonic():
                    _thaw(self._descriptors)
                    if frozen:
                        os._exit(1)
                    # The agent is still waiting for its freeze: what comes of that is thawed in the next round.
        except EOFError:
            _thaw(self._descriptors)
            os._exit(1)


def _one_each(points: List[bytes]) -> List[bytes]:
    """One mount point of each filesystem, the deeper ones first: a writer below may wait for one above."""
    mounts = {os.fsencode(mount["mount_point"]): mount["number"] for mount in inventory_disks.mounts(b"/")}
    kept: Dict[str, bytes] = {}
    for point in sorted(points, reverse=True):
        kept.setdefault(mounts.get(point, repr(point)), point)
    return list(kept.values())


def _thaw(descriptors: List[int]) -> bool:
    """Thaw them; whether all had been frozen.

    All at once: a filesystem in a file, or on a volume that lies in one, writes as it thaws, and waits for the one
    below it, wherever that is in the list; a freeze under way keeps its own filesystem's thaw waiting, and no other.
    """
    thawed: List[int] = []

    def thaw(descriptor: int) -> None:
        try:
            fcntl.ioctl(descriptor, _FITHAW, 0)
            thawed.append(descriptor)
        except OSError:
            pass  # it was not frozen, or not any more

    threads = [threading.Thread(target=thaw, args=(descriptor,), daemon=True) for descriptor in descriptors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(thawed) == len(descriptors)


def _tell(context: Any, kind: int, answer: Dict[str, Any]) -> None:
    context.output.send(kind, json.dumps(answer, separators=(",", ":")).encode("ascii"))
