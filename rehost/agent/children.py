"""Processes that outlive the agent by as long as it takes to put right what was changed on the source.

Each is a fork of the agent in a session of its own that holds nothing of the agent's but one end of a socket: neither
the ssh channel, which would stay open with it, nor files. When the agent dies, however it dies, the socket ends.
"""

import json
import os
import select
import signal
import socket
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

_LINE_BYTES = 1 << 20


class Lines:
    """JSON objects over a socket, one a line."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, value: Dict[str, Any]) -> None:
        """Raises OSError where nobody is at the other end."""
        self._socket.sendall(json.dumps(value).encode("ascii") + b"\n")

    def receive(self, seconds: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """The next object, or None after so many seconds. Raises EOFError when the other end is gone."""
        while b"\n" not in self._buffer:
            if not select.select([self._socket], [], [], seconds)[0]:
                return None
            try:
                piece = self._socket.recv(65536)
            except ConnectionError:
                piece = b""
            if not piece or len(self._buffer) > _LINE_BYTES:
                raise EOFError
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line.decode("ascii")))

    def close(self) -> None:
        self._socket.close()


def start(work: Callable[[Lines], None], keep: Iterable[int] = ()) -> Tuple[int, Lines]:
    """Fork a process that does `work` with its end of a socket; its number, and our end.

    Of our descriptors it has those of `keep`. Only the thread that calls this goes on in the child, so `work` must
    not use what other threads lock.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child:
        theirs.close()
        return child, Lines(ours)
    try:
        os.setsid()
        os.chdir("/")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
        _let_go({theirs.fileno()} | set(keep))
        work(Lines(theirs))
    finally:
        os._exit(0)
    raise AssertionError("a child never returns")


def _let_go(keep: "set[int]") -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        if standard not in keep:
            os.dup2(null, standard)
    try:
        opened = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        opened = list(range(3, 4096))
    for descriptor in opened:
        if descriptor > 2 and descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass


def identity(process: int) -> str:
    """Number, start time and boot of a process: no other one ever has the same three. Raises OSError if it is gone."""
    with open("/proc/%d/stat" % process, "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(process)
    with open("/proc/sys/kernel/random/boot_id") as stream:
        boot = stream.read().strip()
    return "%d.%d.%s" % (process, int(fields[19]), boot)


def alive(told: str) -> bool:
    """Whether the process of that identity lives."""
    try:
        return identity(int(told.split(".")[0])) == told
    except (OSError, ValueError):
        return False
