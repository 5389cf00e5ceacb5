"""A session over several connections to one server: what is read is spread over them.

One connection's cipher takes one core at each end. Where that is the limit, and cores and link have more to give, a
second connection carries as much again. All else (inventory, scan, holding the source still) goes over the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rehost.agent import protocol
from rehost.replication.bundles import Bundle
from rehost.source.agent_session import AgentSession
from rehost.source.session import FileContent, FileRequest

_WINDOW_FILES = 8192  # requests that are divided among the connections at once,
_WINDOW_BYTES = 1 << 30  # or of so many bytes
_FILE_BYTES = 16_384  # what opening a file costs beside its content, as if it were content


class _Stopped(Exception):
    """Another connection failed."""


class SpreadSession(AgentSession):
    """The first of these sessions, with the others to help it read."""

    def __init__(self, first: AgentSession, others: Sequence[AgentSession]) -> None:
        super().__init__(first.channel, first.hello, first.equipment)
        self._lanes = [first, *others]
        self._kbps = 0
        self._held = False

    def bytes_on_wire(self) -> int:
        """All bytes received from the source so far, over all connections."""
        return sum(lane.channel.received for lane in self._lanes)

    def set_bandwidth_limit(self, kbps: int) -> None:
        """Bound what the source sends over all connections, in KB/s (1 KB = 1,000 bytes); 0 for no bound."""
        self._kbps = kbps
        used = self._used()
        for at, lane in enumerate(used):
            share = kbps * (at + 1) // len(used) - kbps * at // len(used)
            lane.set_bandwidth_limit(max(1, share) if kbps else 0)

    def notes(self) -> Sequence[str]:
        """What people should know of how this session went."""
        return tuple(dict.fromkeys(note for lane in self._lanes for note in lane.equipment.notes))

    def ask(self, kind: int, value: Any, answer: int) -> dict[str, Any]:
        """See AgentSession. While a source is held still, only the first agent knows where its files are read."""
        told = super().ask(kind, value, answer)
        if kind in (protocol.HOLD, protocol.RELEASE):
            self._held = kind == protocol.HOLD
            self.set_bandwidth_limit(self._kbps)
        return told

    def _used(self) -> list[AgentSession]:
        return self._lanes[:1] if self._held else self._lanes

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        """The content of these files; see Session. All that was wanted of a window comes before its first file."""
        if self._held:
            yield from super().read(requests, wanted, deliver)
            return
        self._begin()
        with ThreadPoolExecutor(len(self._lanes), thread_name_prefix="lane") as pool:
            for window in _windows(requests):
                for part in _Window(wanted, deliver).read(pool, self._lanes, window):
                    yield from part
        self._busy = False


class _Window:
    """Requests under way over several connections; what one was told to send is asked of no other."""

    def __init__(self, wanted: Callable[[Sequence[bytes]], Sequence[bool]], deliver: Callable[[Bundle], None]) -> None:
        self._wanted = wanted
        self._deliver = deliver
        self._lock = threading.Lock()
        self._coming: set[bytes] = set()
        self._error: BaseException | None = None

    def read(
        self, pool: ThreadPoolExecutor, lanes: Sequence[AgentSession], requests: Sequence[FileRequest]
    ) -> list[list[FileContent]]:
        """The contents in the order of the requests, part by part. Raises the first error of any connection."""
        parts = _parts(requests, len(lanes))
        read = [pool.submit(self._lane, lane, part) for lane, part in zip(lanes, parts, strict=True)]
        contents = [future.result() for future in read]
        if self._error is not None:
            raise self._error
        return contents

    def _lane(self, lane: AgentSession, requests: Sequence[FileRequest]) -> list[FileContent]:
        try:
            return list(lane.read(requests, self._ask, self._take)) if requests else []
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
            return []

    def _ask(self, names: Sequence[bytes]) -> list[bool]:
        with self._lock:
            self._go_on()
            new = [name for name in names if name not in self._coming]
            wanted = {name for name, want in zip(new, self._wanted(new), strict=True) if want} if new else set()
            self._coming |= wanted
        return [name in wanted for name in names]

    def _take(self, bundle: Bundle) -> None:
        with self._lock:
            self._go_on()
            self._deliver(bundle)

    def _go_on(self) -> None:
        if self._error is not None:
            raise _Stopped


def _windows(requests: Iterable[FileRequest]) -> Iterator[list[FileRequest]]:
    window: list[FileRequest] = []
    size = 0
    for request in requests:
        window.append(request)
        size += request.size
        if len(window) >= _WINDOW_FILES or size >= _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _parts(requests: Sequence[FileRequest], count: int) -> list[list[FileRequest]]:
    """The requests cut into so many runs of about the same work."""
    total = sum(request.size + _FILE_BYTES for request in requests)
    parts: list[list[FileRequest]] = [[] for _ in range(count)]
    before = 0
    for request in requests:
        parts[min(count - 1, before * count // total)].append(request)
        before += request.size + _FILE_BYTES
    return parts
