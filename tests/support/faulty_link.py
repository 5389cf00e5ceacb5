"""A TCP link in front of a server that counts what the server says, and at a chosen byte calls for a fault."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_PIECE = 65_536


class FaultyLink:
    """Listens on `port` of 127.0.0.1 and forwards every connection to another port there."""

    def __init__(self, to: int) -> None:
        self.said = 0  # bytes from the server, of all connections since `arm`
        self._to = to
        self._lock = threading.Lock()
        self._fault: tuple[int, Callable[[], None]] | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, after: int | None, fault: Callable[[], None] = lambda: None) -> None:
        """Count from zero; call the fault once, when so many bytes were said. None: never."""
        with self._lock:
            self.said = 0
            self._fault = None if after is None else (after, fault)

    @property
    def happened(self) -> bool:
        """Whether no fault is waiting any more."""
        return self._fault is None

    def cut(self) -> None:
        """End every connection at once, whatever is on its way."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listen no more, and end every connection."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                if counted:
                    self._count(len(piece))
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source, target}

    def _count(self, size: int) -> None:
        with self._lock:
            self.said += size
            due = self._fault is not None and self.said >= self._fault[0]
            fault = self._fault[1] if due and self._fault is not None else None
            if due:
                self._fault = None
        if fault is not None:
            fault()
