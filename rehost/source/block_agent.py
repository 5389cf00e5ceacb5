"""The control side of reading blocks from an agent: asks, answers, and believes nothing."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rehost.agent import block_kinds, protocol
from rehost.agent.used_rules import STATES
from rehost.replication.bundles import Bundle
from rehost.replication.tree import printable
from rehost.source.agent_session import AgentSession
from rehost.source.block_session import BLOCK_BYTES, Area, BlockBatch, DeviceState, Piece, UsedBlocks, runs_of
from rehost.source.channel import Channel

_RULES = ("ext4", "xfs", "btrfs", "swap", "lvm", "nonzero")
_TEXT = 300


class AgentBlocks:
    """A BlockSession whose other end is the agent."""

    def __init__(self, session: AgentSession) -> None:
        self.host = session.host
        self._session = session
        self._channel = session.channel
        self._mapped_bytes = 0  # of blocks in use, in all maps so far

    def hashes(self) -> Sequence[str]:
        """What blocks can be compared by, best first. What the source's Python lacks for it is handed over first."""
        with self._session.exclusive():
            self._session.equipment.complete(self._mapped_bytes, blocks=True)
        known = self._session.equipment.hashes
        return [block_kinds.XXH3, block_kinds.BLAKE2] if block_kinds.XXH3 in known else [block_kinds.BLAKE2]

    def bytes_on_wire(self) -> int:
        """All bytes received from the source so far."""
        return self._session.bytes_on_wire()

    def used_blocks(self, area: Area, state: DeviceState) -> UsedBlocks:
        """Which blocks are in use; see BlockSession."""
        if state not in STATES:
            raise ValueError(state)
        with self._session.exclusive() as channel:
            channel.send_json(block_kinds.USED_BLOCKS, {**_place(area), "state": state})
            return self._map(area)

    def _map(self, area: Area) -> UsedBlocks:
        parts: list[np.ndarray] = []
        end = 0
        while True:
            kind, body = self._channel.receive()
            if kind == block_kinds.USED:
                break
            if kind != block_kinds.RUNS:
                raise self._channel.violation(f"a frame of kind {kind} inside a map of blocks")
            part = self._runs(body, end, area)
            parts.append(part)
            end = int(part[-1].sum())
        match self._channel.json_object(body):
            case {
                "rule": str(rule),
                "used_bytes": int(used),
                "filesystem": str() | None as filesystem,
                "reason": str(reason),
            } if rule in _RULES and 0 <= used <= area.size_bytes + BLOCK_BYTES and len(reason) <= _TEXT:
                runs = np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
                self._mapped_bytes += int(runs[:, 1].sum()) * BLOCK_BYTES
                return UsedBlocks(rule, runs, used, _text(filesystem), _text(reason) or "")
        raise self._channel.violation("a map of blocks with a wrong end")

    def _runs(self, body: bytearray, end: int, area: Area) -> np.ndarray:
        raw = self._channel.unpack(body, block_kinds.RUNS_IN_FRAME * block_kinds.RUN.size)
        if not raw or len(raw) % block_kinds.RUN.size:
            raise self._channel.violation("a list of runs of a wrong length")
        runs = np.frombuffer(raw, "<u8").reshape(-1, 2).astype(np.uint64)
        # Each bound for itself first, so that sums do not wrap around.
        sound = bool((runs <= area.blocks).all()) and bool((runs[:, 1] > 0).all())
        if sound:
            ends = runs[:, 0] + runs[:, 1]
            before = np.concatenate([[np.uint64(end)], ends[:-1]])
            sound = int(ends[-1]) <= area.blocks and bool((runs[:, 0] >= before).all())
        if not sound:
            raise self._channel.violation("runs of blocks that are out of order or beyond the end")
        return runs

    def read_blocks(
        self,
        area: Area,
        hash_name: str,
        pieces: Iterable[Piece],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[BlockBatch]:
        """Read blocks and compare them; see BlockSession."""
        with self._session.exclusive() as channel:
            channel.send_json(block_kinds.READ_BLOCKS, {**_place(area), "hash": hash_name})
            yield from _Reading(channel, area, pieces, wanted, deliver).run()


class _Reading:
    """One reading of blocks. `run` is its only use."""

    def __init__(
        self,
        channel: Channel,
        area: Area,
        pieces: Iterable[Piece],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> None:
        self._channel = channel
        self._area = area
        self._pieces = iter(pieces)
        self._all_requested = False
        self._wanted = wanted
        self._deliver = deliver
        self._ahead: deque[Piece] = deque()  # asked for, and not told of yet
        self._outstanding = 0  # blocks in them
        self._numbers = itertools.count()
        self._told: deque[BlockBatch] = deque()  # their content is not all here yet
        self._awaited: deque[tuple[int, bytes, int]] = deque()  # (batch, SHA-256, length), in the order they will come
        self._awaited_names: set[bytes] = set()
        self._first = 0  # the number of the first batch in `_told`

    def run(self) -> Iterator[BlockBatch]:
        """The batches, in the order of the pieces."""
        while True:
            self._request()
            kind, body = self._channel.receive()
            if kind == block_kinds.FOUND:
                self._found(body)
            elif kind == block_kinds.CONTENT:
                self._content(body)
            elif kind == block_kinds.BLOCKS_READ:
                break
            else:
                raise self._channel.violation(f"a frame of kind {kind} inside a reading of blocks")
            waits = self._awaited[0][0] if self._awaited else self._first + len(self._told)
            while self._first < waits:
                self._first += 1
                yield self._told.popleft()
        if self._outstanding or self._awaited or not self._all_requested:
            raise self._channel.violation("a reading of blocks that ends before everything was answered")

    def _request(self) -> None:
        """Keep the agent in work: ask for more while it may have more."""
        while not self._all_requested and self._outstanding + block_kinds.PIECE_BLOCKS <= block_kinds.BLOCKS_AHEAD:
            piece = next(self._pieces, None)
            if piece is None:
                self._all_requested = True
                self._channel.send(block_kinds.PIECES_END)
                return
            if not len(piece.blocks):
                continue
            runs = runs_of(piece.blocks)
            head = block_kinds.PIECE_HEAD.pack(len(runs), len(piece.blocks))
            self._channel.send(block_kinds.PIECE, head, runs.astype("<u8").tobytes(), piece.known.tobytes())
            self._ahead.append(piece)
            self._outstanding += len(piece.blocks)

    def _found(self, body: bytearray) -> None:
        head = block_kinds.FOUND_HEAD
        if len(body) < head.size:
            raise self._channel.violation("a batch of blocks without a head")
        number, count, new = head.unpack_from(body)
        at = head.size
        length = at + count + new * (block_kinds.HASH_BYTES + 32)
        if number != self._first + len(self._told) or len(self._told) > block_kinds.BATCHES_AHEAD:
            raise self._channel.violation("a batch of blocks out of turn")
        if not 0 < count <= min(block_kinds.FOUND_BLOCKS, self._outstanding) or len(body) != length:
            raise self._channel.violation("a batch of blocks of a wrong length")
        states = np.frombuffer(body, np.uint8, count, at)
        hashes = np.frombuffer(body, np.uint8, new * block_kinds.HASH_BYTES, at + count).reshape(
            new, block_kinds.HASH_BYTES
        )
        names = np.frombuffer(body, np.uint8, new * 32, length - new * 32).reshape(new, 32)
        blocks, known = self._take(count)
        if int((states == block_kinds.NEW).sum()) != new or bool((states > block_kinds.NEW).any()):
            raise self._channel.violation("a batch of blocks with states that cannot be")
        if bool(((states == block_kinds.SAME) & ~known).any()):
            raise self._channel.violation("a block that is the same as one that is not known")
        self._told.append(BlockBatch(blocks, states, hashes, names))
        if new:
            self._answer(number, blocks[states == block_kinds.NEW], [row.tobytes() for row in names])

    def _take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next blocks that were asked for, and which of them are known."""
        self._outstanding -= count
        blocks, known = [], []
        while count:
            piece = self._ahead.popleft()
            part = min(count, len(piece.blocks))
            blocks.append(piece.blocks[:part])
            known.append(piece.known[:part].any(axis=1))
            count -= part
            if part < len(piece.blocks):
                self._ahead.appendleft(Piece(piece.blocks[part:], piece.known[part:]))
        return np.concatenate(blocks), np.concatenate(known)

    def _answer(self, number: int, blocks: np.ndarray, names: list[bytes]) -> None:
        # Once in a batch and once in flight is enough.
        new = list(dict.fromkeys(name for name in names if name not in self._awaited_names))
        answers = dict(zip(new, self._wanted(new), strict=True)) if new else {}
        flags = bytearray(len(names))
        for place, (block, name) in enumerate(zip(blocks.tolist(), names, strict=True)):
            if answers.pop(name, False):
                flags[place] = 1
                self._awaited.append((number, name, self._area.block_length(block)))
                self._awaited_names.add(name)
        self._channel.send(protocol.WANT, protocol.ASK_HEAD.pack(number), bytes(flags))

    def _content(self, body: bytearray) -> None:
        head = block_kinds.CONTENT_HEAD
        count = head.unpack_from(body)[0] if len(body) >= head.size + protocol.PACK.size else 0
        if not 0 < count <= min(len(self._awaited), block_kinds.CONTENT_BYTES // 512):
            raise self._channel.violation("content that was not asked for")
        chunks = [self._awaited.popleft() for _ in range(count)]
        lengths = tuple(length for _, _, length in chunks)
        codec, length = protocol.PACK.unpack_from(body, head.size)
        if length != sum(lengths) or length > block_kinds.CONTENT_BYTES or codec not in protocol.CODECS.values():
            raise self._channel.violation("content of another length than its blocks")
        names = tuple(name for _, name, _ in chunks)
        self._awaited_names.difference_update(names)
        payload = bytes(memoryview(body)[head.size + protocol.PACK.size :])
        self._deliver(Bundle(names, lengths, codec, payload))


def _place(area: Area) -> dict[str, object]:
    path = area.path.encode("utf-8", "surrogateescape").decode("latin-1")
    return {"path": path, "offset": area.offset, "size": area.size_bytes, "file": area.file}


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value.encode("utf-8", "replace"))[:_TEXT]
