"""The control side of reading files from an agent: asks, answers, and believes nothing.

An agent reads and hashes ahead. It puts the names of chunks in batches (ASK), is told which it shall send (WANT),
sends them in that order (DATA), and then says which files were finished in the batch (DONE).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rehost.agent import protocol
from rehost.replication.manifest import CHUNK_BYTES, Chunk
from rehost.replication.tree import printable
from rehost.source.channel import Channel
from rehost.source.session import FileContent, FileRequest

_REQUESTS_BATCH = 256
_REQUESTS_BYTES = 1 << 20  # of paths, in one frame
_ATTEMPTS = 3
_LAST_BYTE = 2**63 - 1
_TIMES = 1 << 63


@dataclass
class _Partial:
    """What was heard of a file that is not finished yet."""

    attempt: int = 0
    chunks: list[Chunk] = field(default_factory=list)


class AgentReading:
    """One read. `run` is its only use."""

    def __init__(
        self,
        channel: Channel,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[bytes, bytes], None],
    ) -> None:
        self._channel = channel
        self._requests = iter(requests)
        self._all_requested = False
        self._wanted = wanted
        self._deliver = deliver
        self._outstanding: deque[int] = deque()  # requests not finished, in order
        self._partial: dict[int, _Partial] = {}
        self._asked = 0
        self._done = 0
        self._awaited: deque[tuple[int, bytes, int]] = deque()  # (batch, SHA-256, length) in the order they will come
        self._awaited_names: set[bytes] = set()

    def run(self) -> Iterator[FileContent]:
        """The files, in the order of the requests."""
        self._channel.send(protocol.READ)
        while True:
            self._request()
            kind, body = self._channel.receive()
            if kind == protocol.ASK:
                self._answer(body)
            elif kind == protocol.DATA:
                self._take(body)
            elif kind == protocol.DONE:
                yield from self._finish(body)
            elif kind == protocol.RESULT:
                break
            else:
                raise self._channel.violation(f"a frame of kind {kind} inside a read")
        if self._outstanding or self._awaited or not self._all_requested:
            raise self._channel.violation("a read that ends before everything was answered")

    def _request(self) -> None:
        """Keep the agent in work: ask for more files while it may have more."""
        while not self._all_requested and len(self._outstanding) + _REQUESTS_BATCH <= protocol.REQUESTS_AHEAD:
            batch: list[tuple[int, str]] = []
            size = 0
            while len(batch) < _REQUESTS_BATCH and size < _REQUESTS_BYTES:
                request = next(self._requests, None)
                if request is None:
                    self._all_requested = True
                    break
                batch.append((request.index, request.path.decode("latin-1")))
                size += len(request.path)
                self._outstanding.append(request.index)
                self._partial[request.index] = _Partial()
            if batch:
                self._channel.send_json(protocol.REQUEST, batch)
            if self._all_requested:
                self._channel.send(protocol.REQUESTED)

    def _answer(self, body: bytes) -> None:
        number, rows = self._number(body)
        if number != self._asked or self._asked - self._done > protocol.BATCHES_AHEAD:
            raise self._channel.violation("a question out of turn")
        if len(rows) % protocol.ASK_ROW.size or len(rows) > protocol.BATCH_NAMES * protocol.ASK_ROW.size:
            raise self._channel.violation("a question of a wrong length")
        self._asked += 1
        chunks = [self._chunk(*row) for row in protocol.ASK_ROW.iter_unpack(rows)]
        # Once in a batch and once in flight is enough.
        new = list(dict.fromkeys(c.sha256 for c in chunks if c.sha256 not in self._awaited_names))
        answers = dict(zip(new, self._wanted(new), strict=True)) if new else {}
        flags = bytearray(len(chunks))
        for place, chunk in enumerate(chunks):
            if answers.pop(chunk.sha256, False):
                flags[place] = 1
                self._awaited.append((number, chunk.sha256, chunk.length))
                self._awaited_names.add(chunk.sha256)
        self._channel.send(protocol.WANT, protocol.ASK_HEAD.pack(number), bytes(flags))

    def _chunk(self, index: int, attempt: int, offset: int, length: int, sha256: bytes) -> Chunk:
        """One row of a question, added to its file."""
        partial = self._partial.get(index)
        if partial is None:
            raise self._channel.violation("content of a file that was not asked for")
        if not partial.attempt <= attempt < _ATTEMPTS:
            raise self._channel.violation("a reading out of turn")
        if attempt > partial.attempt:
            partial.attempt, partial.chunks = attempt, []
        end = partial.chunks[-1].offset + partial.chunks[-1].length if partial.chunks else 0
        if (
            not 0 < length <= CHUNK_BYTES
            or not end <= offset <= _LAST_BYTE - length
            or offset // CHUNK_BYTES != (offset + length - 1) // CHUNK_BYTES
        ):
            raise self._channel.violation("a chunk that no file can have")
        chunk = Chunk(offset, length, sha256)
        partial.chunks.append(chunk)
        return chunk

    def _take(self, body: bytes) -> None:
        if not self._awaited:
            raise self._channel.violation("content that was not asked for")
        _, sha256, length = self._awaited.popleft()
        raw = self._channel.unpack(body, length)
        if len(raw) != length or hashlib.sha256(raw).digest() != sha256:
            raise self._channel.violation("content that does not match its SHA-256")
        self._awaited_names.discard(sha256)
        self._deliver(sha256, raw)

    def _finish(self, body: bytes) -> Iterator[FileContent]:
        number, told = self._number(body)
        if number != self._done or number >= self._asked:
            raise self._channel.violation("an end out of turn")
        if self._awaited and self._awaited[0][0] <= number:
            raise self._channel.violation("an end before all content had come")
        self._done += 1
        files = self._channel.json(told)
        if not isinstance(files, list) or len(files) > protocol.BATCH_NAMES:
            raise self._channel.violation("a wrong list of files")
        for record in files:
            yield self._content(record)

    def _content(self, record: object) -> FileContent:
        match record:
            case [
                int(index),
                int(size),
                int(mtime_ns),
                int(ctime_ns),
                bool(unstable),
                str() | None as error,
                int(attempt),
                int(count),
            ]:
                pass
            case _:
                raise self._channel.violation("a file without the facts that belong to it")
        if not self._outstanding or self._outstanding.popleft() != index:
            raise self._channel.violation("a file out of turn")
        partial = self._partial.pop(index)
        if error is not None:
            reason = printable(error[:200].encode("utf-8", "replace"))
            return FileContent(index, 0, 0, 0, (), False, reason or "unreadable: no reason was given")
        # A reading without any chunk (the file is empty or one hole by now) leaves those of the one before behind.
        chunks = tuple(partial.chunks) if attempt == partial.attempt else ()
        end = chunks[-1].offset + chunks[-1].length if chunks else 0
        if len(chunks) != count or not partial.attempt <= attempt < _ATTEMPTS or not end <= size <= _LAST_BYTE:
            raise self._channel.violation("a file whose content does not fit together")
        if not -_TIMES <= mtime_ns < _TIMES or not -_TIMES <= ctime_ns < _TIMES:
            raise self._channel.violation("a time that no file can have")
        return FileContent(index, size, mtime_ns, ctime_ns, chunks, unstable)

    def _number(self, body: bytes) -> tuple[int, bytes]:
        if len(body) < protocol.ASK_HEAD.size:
            raise self._channel.violation("a frame that is cut short")
        (number,) = protocol.ASK_HEAD.unpack_from(body)
        return int(number), body[protocol.ASK_HEAD.size :]
