"""Frames between the control side and an agent, over the standard input and output of a program.

Whatever comes is hostile: its length is bounded before it is read, and so is the time that it may stay away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from rehost.agent import protocol
from rehost.errors import ProgramTimeout, SourceAgentFailed, SourceError, SourceProtocol, SourceUnreachable
from rehost.replication.bundles import BadBundle, unpack
from rehost.replication.tree import printable
from rehost.run import Process

HELLO_SECONDS = 90.0  # a slow login, a slow Python
SILENCE_SECONDS = 120.0  # the agent says something every ten seconds
_PING_SECONDS = 30.0
_NOISE_BYTES = 65_536  # what login shells may print before the agent speaks
_PIPE_BYTES = 1 << 20
_SPARE_BYTES = 1 << 18
_CLOSE_SECONDS = 5.0

Explain = Callable[[int | None, str, bool], SourceError]
"""(exit status, standard error, whether the agent had spoken) -> what that means."""


class Channel:
    """One agent under way. Any thread may send; one receives."""

    def __init__(self, process: Process, host: str, explain: Explain) -> None:
        self.host = host
        self.received = 0  # bytes
        self._process = process
        self._explain = explain
        self._greeted = False
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._fd = process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN | select.POLLHUP | select.POLLERR)
        self._spare = bytearray(_SPARE_BYTES)  # what came behind what was read for
        self._at = self._end = 0  # where in it the bytes are that were not taken yet
        # The program fits into the pipe, so that sending it never waits for a login that hangs; and fewer switches
        # between ssh and us. Not every user may have so large a pipe.
        for fd in (self._fd, process.stdin.fileno()):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def greet(self, program: bytes, token: str) -> bytearray:
        """Send the agent, wait for its hello and return that frame's body."""
        self._write(program)
        marker = protocol.MARKER + token.encode("ascii")
        deadline = time.monotonic() + HELLO_SECONDS
        while (found := self._spare.find(marker, 0, self._end)) < 0:
            if self._end > _NOISE_BYTES:
                raise self.violation(f"its login prints more than {_NOISE_BYTES} bytes before the agent can speak")
            self._end += self._read([memoryview(self._spare)[self._end :]], deadline - time.monotonic())
        self._at = found + len(marker)
        self._greeted = True
        kind, body = self.receive()
        if kind != protocol.HELLO:
            raise self.violation("its first frame is no hello")
        threading.Thread(target=self._ping, daemon=True).start()
        return body

    def send(self, kind: int, *pieces: bytes) -> None:
        """Send one frame."""
        body = b"".join(pieces)
        self._write(protocol.HEADER.pack(kind, len(body)) + body)

    def send_json(self, kind: int, value: Any) -> None:
        """Send one frame with a JSON body."""
        self.send(kind, json.dumps(value, separators=(",", ":")).encode("ascii"))

    def receive(self) -> tuple[int, bytearray]:
        """The next frame. Raises SourceUnreachable, SourceProtocol, SourceAgentFailed."""
        while True:
            kind, length = protocol.HEADER.unpack(self._exactly(protocol.HEADER.size))
            if length > protocol.FRAME_BYTES:
                raise self.violation(f"a frame of {length} bytes")
            body = self._exactly(length)
            if kind == protocol.FAILED:
                told = self.json_object(body)
                message = f"{str(told.get('type'))[:50]}: {str(told.get('message'))[:300]}"
                raise SourceAgentFailed(host=self.host, reason=printable(message.encode("utf-8", "replace")))
            if kind != protocol.ALIVE:
                return kind, body

    def expect(self, kind: int) -> bytearray:
        """The body of the next frame, which must be of that kind."""
        got, body = self.receive()
        if got != kind:
            raise self.violation(f"a frame of kind {got} where {kind} belongs")
        return body

    def violation(self, reason: str) -> SourceProtocol:
        """The error for something that an agent may not say."""
        return SourceProtocol(host=self.host, reason=reason)

    def json_object(self, body: bytes | bytearray) -> dict[str, Any]:
        """A JSON object."""
        value = self.json(body)
        if not isinstance(value, dict):
            raise self.violation("JSON that is no object")
        return value

    def json(self, body: bytes | bytearray) -> Any:
        """A JSON value."""
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self.violation("text that is no JSON") from error

    def unpack(self, body: bytes | bytearray, limit: int) -> bytes:
        """Packed content, of at most `limit` bytes; no more is ever made than its head says."""
        if len(body) < protocol.PACK.size:
            raise self.violation("packed content without a head")
        codec, length = protocol.PACK.unpack_from(body)
        packed = memoryview(body)[protocol.PACK.size :]
        if length > limit:
            raise self.violation(f"packed content of {length} bytes where {limit} are allowed")
        try:
            return unpack(codec, packed, length)
        except BadBundle as error:
            raise self.violation(str(error)) from error

    def close(self) -> None:
        """End the conversation; the agent ends when its standard input does."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        # What the agent still wants to say would keep it, and ssh, waiting.
        with contextlib.suppress(OSError):
            self._process.stdout.close()
        with contextlib.suppress(ProgramTimeout):
            self._process.wait(_CLOSE_SECONDS)

    def _ping(self) -> None:
        while not self._closed.wait(_PING_SECONDS):
            with contextlib.suppress(OSError, ValueError, SourceError):
                self.send(protocol.PING)

    def _write(self, content: bytes) -> None:
        try:
            with self._sending:
                self._process.stdin.write(content)
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._ended() from error

    def _exactly(self, count: int) -> bytearray:
        """That many bytes: those that came already, and the rest straight into their place."""
        taken = bytearray(count)
        view = memoryview(taken)
        have = min(count, self._end - self._at)
        view[:have] = memoryview(self._spare)[self._at : self._at + have]
        self._at += have
        while have < count:
            got = self._read([view[have:], self._spare], SILENCE_SECONDS)
            rest = max(0, got - (count - have))
            have += got - rest
            self._at, self._end = 0, rest
        return taken

    def _read(self, views: list[Any], seconds: float) -> int:
        if not self._poll.poll(max(0, int(seconds * 1000))):
            raise SourceUnreachable(host=self.host, reason="nothing was heard for too long")
        got = os.readv(self._fd, views)
        if not got:
            raise self._ended()
        self.received += got
        return got

    def _ended(self) -> SourceError:
        status: int | None = None
        with contextlib.suppress(ProgramTimeout):
            status = self._process.wait(_CLOSE_SECONDS)
        return self._explain(status, self._process.stderr(), self._greeted)


def new_token() -> str:
    """What announces the agent's first byte, drawn at random so that no login message can hold it."""
    return os.urandom(16).hex()
