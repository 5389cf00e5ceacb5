"""The control side of reading files from an agent: asks, answers, and believes nothing.

An agent reads and hashes ahead. It puts the names of chunks in batches (ASK), is told which it shall send (WANT),
sends them in that order, several joined (DATA), and then says which files were finished in the batch (DONE). What
DATA holds is handed on as it came: who stores it unpacks it and compares it with its names, in threads of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rehost.agent import protocol
from rehost.replication.bundles import RAW, Bundle
from rehost.replication.manifest import CHUNK_BYTES, Chunk
from rehost.replication.tree import printable
from rehost.source.channel import Channel
from rehost.source.session import FileContent, FileRequest

_REQUESTS_BATCH = 2048
_REQUESTS_BYTES = 1 << 20  # of paths, in one frame
_ATTEMPTS = 3
_LAST_BYTE = 2**63 - 1


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
        deliver: Callable[[Bundle], None],
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
        self._awaited: deque[tuple[bytes, int]] = deque()  # (SHA-256, length) in the order they will come
        self._awaited_names: set[bytes] = set()
        self._wanted_count = self._taken = 0  # chunks in this read
        self._ends: deque[int] = deque()  # of each batch that is not done: how many chunks must have come by then

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

    def _answer(self, body: bytearray) -> None:
        number, rows = self._number(body)
        if number != self._asked or self._asked - self._done > protocol.BATCHES_AHEAD:
            raise self._channel.violation("a question out of turn")
        if len(rows) % protocol.ASK_ROW.size or len(rows) > protocol.BATCH_NAMES * protocol.ASK_ROW.size:
            raise self._channel.violation("a question of a wrong length")
        self._asked += 1
        lengths = self._take_rows(rows)
        # Once in a batch and once in flight is enough.
        new = [name for name in lengths if name not in self._awaited_names]
        wanted = {name for name, want in zip(new, self._wanted(new), strict=True) if want} if new else set()
        self._awaited_names |= wanted
        flags = bytearray(len(rows) // protocol.ASK_ROW.size)
        if wanted:
            for place, row in enumerate(protocol.ASK_ROW.iter_unpack(rows)):
                if (name := row[4]) in wanted:
                    wanted.remove(name)
                    flags[place] = 1
                    self._awaited.append((name, row[3]))
        self._wanted_count += sum(flags)
        self._ends.append(self._wanted_count)
        self._channel.send(protocol.WANT, protocol.ASK_HEAD.pack(number), bytes(flags))

    def _take_rows(self, rows: memoryview) -> dict[bytes, int]:
        """Add the rows of a question to their files; the names of the chunks, in order, and how long they are."""
        lengths: dict[bytes, int] = {}
        current, partial, end = -1, _Partial(), 0
        for index, attempt, offset, length, sha256 in protocol.ASK_ROW.iter_unpack(rows):
            if index != current or attempt != partial.attempt:
                current, partial = index, self._of(index, attempt)
                end = partial.chunks[-1].offset + partial.chunks[-1].length if partial.chunks else 0
            if (
                not 0 < length <= CHUNK_BYTES
                or not end <= offset <= _LAST_BYTE - length
                or offset // CHUNK_BYTES != (offset + length - 1) // CHUNK_BYTES
            ):
                raise self._channel.violation("a chunk that no file can have")
            if lengths.setdefault(sha256, length) != length:
                raise self._channel.violation("two lengths of one chunk")
            partial.chunks.append(Chunk(offset, length, sha256))
            end = offset + length
        return lengths

    def _of(self, index: int, attempt: int) -> _Partial:
        """The file that rows of that reading belong to."""
        partial = self._partial.get(index)
        if partial is None:
            raise self._channel.violation("content of a file that was not asked for")
        if not partial.attempt <= attempt < _ATTEMPTS:
            raise self._channel.violation("a reading out of turn")
        if attempt > partial.attempt:
            partial.attempt, partial.chunks = attempt, []
        return partial

    def _take(self, body: bytearray) -> None:
        if len(body) < protocol.DATA_HEAD.size:
            raise self._channel.violation("a frame that is cut short")
        codec, count, length = protocol.DATA_HEAD.unpack_from(body)
        if not 0 < count <= len(self._awaited):
            raise self._channel.violation("content that was not asked for")
        chunks = [self._awaited.popleft() for _ in range(count)]
        names, lengths = zip(*chunks, strict=True)
        packed = len(body) - protocol.DATA_HEAD.size
        if sum(lengths) != length or (count > 1 and length > protocol.BUNDLE_BYTES):
            raise self._channel.violation("content of another length than was asked for")
        if codec not in protocol.CODECS.values() or packed > length or (codec == RAW and packed != length):
            raise self._channel.violation("content that cannot be packed so")
        self._taken += count
        self._awaited_names.difference_update(names)
        self._deliver(Bundle(names, lengths, codec, bytes(memoryview(body)[protocol.DATA_HEAD.size :])))

    def _finish(self, body: bytearray) -> Iterator[FileContent]:
        if len(body) < protocol.DONE_HEAD.size:
            raise self._channel.violation("a frame that is cut short")
        number, count = protocol.DONE_HEAD.unpack_from(body)
        if number != self._done or number >= self._asked:
            raise self._channel.violation("an end out of turn")
        if self._taken < self._ends.popleft():
            raise self._channel.violation("an end before its content")
        self._done += 1
        end = protocol.DONE_HEAD.size + count * protocol.DONE_ROW.size
        if count > protocol.BATCH_NAMES or len(body) < end:
            raise self._channel.violation("a wrong list of files")
        errors = self._errors(body[end:], count)
        rows = memoryview(body)[protocol.DONE_HEAD.size : end]
        for place, record in enumerate(protocol.DONE_ROW.iter_unpack(rows)):
            yield self._content(record, errors.get(place))

    def _errors(self, body: bytearray, count: int) -> dict[int, str]:
        """Why files could not be read, by their place among those that were finished."""
        told = self._channel.json(body)
        errors: dict[int, str] = {}
        for item in told if isinstance(told, list) else [None]:
            match item:
                case [int(place), str(reason)] if 0 <= place < count and place not in errors:
                    shown = printable(reason[:200].encode("utf-8", "replace"))
                    errors[place] = shown or "unreadable: no reason was given"
                case _:
                    raise self._channel.violation("a wrong list of errors")
        return errors

    def _content(self, record: tuple[int, int, int, int, int, int, int], error: str | None) -> FileContent:
        index, size, mtime_ns, ctime_ns, unstable, attempt, count = record
        if not self._outstanding or self._outstanding.popleft() != index:
            raise self._channel.violation("a file out of turn")
        partial = self._partial.pop(index)
        if error is not None:
            return FileContent(index, 0, 0, 0, (), False, error)
        # A reading without any chunk (the file is empty or one hole by now) leaves those of the one before behind.
        chunks = tuple(partial.chunks) if attempt == partial.attempt else ()
        end = chunks[-1].offset + chunks[-1].length if chunks else 0
        if len(chunks) != count or not partial.attempt <= attempt < _ATTEMPTS or not end <= size <= _LAST_BYTE:
            raise self._channel.violation("a file whose content does not fit together")
        if unstable > 1:
            raise self._channel.violation("a file without the facts that belong to it")
        return FileContent(index, size, mtime_ns, ctime_ns, chunks, bool(unstable))

    def _number(self, body: bytearray) -> tuple[int, memoryview]:
        if len(body) < protocol.ASK_HEAD.size:
            raise self._channel.violation("a frame that is cut short")
        (number,) = protocol.ASK_HEAD.unpack_from(body)
        return int(number), memoryview(body)[protocol.ASK_HEAD.size :]
