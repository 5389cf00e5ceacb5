"""What the agent writes: frames, no faster than the bandwidth limit."""

import fcntl
import os
import threading
import time

from rehost.agent.protocol import ALIVE, ALIVE_SECONDS, HEADER

_SLICE = 16_384  # bytes written at once under a limit, at most
_CREDIT_SECONDS = 0.25  # what a late slice may catch up; over ten seconds this is 2.5 %

_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, which the module fcntl names from Python 3.10 on
_PIPE_BYTES = 1 << 20


def with_large_pipe(fd: int) -> None:
    """Fewer switches between the agent and who carries its words, where it is a pipe that may grow."""
    try:
        fcntl.fcntl(fd, _SET_PIPE_SIZE, _PIPE_BYTES)
    except OSError:
        pass


class Output:
    """Writes whole frames to a descriptor; any thread may send."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sending = threading.Lock()
        self._pace = threading.Condition()
        self._rate = 0.0  # bytes a second; 0: no limit
        self._due = 0.0  # when the next slice may go, by the monotonic clock
        self._last = time.monotonic()

    def limit(self, bytes_per_second: float) -> None:
        """Set the limit; whoever waits for the old one goes on by the new one at once."""
        with self._pace:
            self._rate = bytes_per_second
            self._due = time.monotonic()
            self._pace.notify_all()

    def send(self, kind: int, *pieces: bytes) -> None:
        """Send one frame."""
        with self._sending:
            self._frame(kind, pieces)

    def keep_alive(self) -> None:
        """Say something every few seconds, for ever, so that silence means that the connection is dead."""
        while True:
            time.sleep(ALIVE_SECONDS / 2)
            if time.monotonic() - self._last > ALIVE_SECONDS / 2 and self._sending.acquire(False):
                try:
                    self._frame(ALIVE, ())
                finally:
                    self._sending.release()

    def raw(self, content: bytes) -> None:
        """Write bytes that are no frame."""
        with self._sending:
            self._write(content)

    def _frame(self, kind: int, pieces: "tuple[bytes, ...]") -> None:
        length = sum(len(piece) for piece in pieces)
        head = HEADER.pack(kind, length)
        if length < _SLICE:
            self._write(b"".join((head,) + tuple(pieces)))
            return
        self._write(head)
        for piece in pieces:
            self._write(piece)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.write(self._fd, view[: self._allowance()])
            view = view[written:]
            self._last = time.monotonic()
            with self._pace:
                if self._rate:
                    self._due += written / self._rate

    def _allowance(self) -> int:
        """Wait until bytes may be written; how many."""
        with self._pace:
            while self._rate:
                now = time.monotonic()
                self._due = max(self._due, now - _CREDIT_SECONDS)
                if self._due <= now:
                    return max(1, min(_SLICE, int(self._rate / 20)))
                self._pace.wait(self._due - now)
            return 1 << 20
