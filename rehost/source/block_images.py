"""Blocks of disk images on this machine: the agent's own readers, without an agent."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rehost.agent import block_kinds
from rehost.agent.block_device import Area as DeviceArea, Device
from rehost.agent.blocks import BlockReader, Found
from rehost.agent.used import copied_blocks
from rehost.errors import SourceImageDamaged
from rehost.replication.bundles import RAW, Bundle
from rehost.source.block_session import Area, BlockBatch, DeviceState, Piece, UsedBlocks, runs_of

_BUNDLE_CHUNKS = block_kinds.CONTENT_BYTES // 65_536


class ImageBlocks:
    """A BlockSession over raw images; `raw` tells of a disk's path where its raw bytes lie."""

    def __init__(self, host: str, raw: Callable[[str], os.PathLike[str]], handed: Callable[[int], None]) -> None:
        self.host = host
        self._raw = raw
        self._handed = handed  # told of the bytes of content that were handed over; may wait
        self._delivered = 0

    def hashes(self) -> Sequence[str]:
        """What blocks can be compared by, best first."""
        return [block_kinds.XXH3, block_kinds.BLAKE2]

    def bytes_on_wire(self) -> int:
        """The bytes of content that were handed over; an image on this machine has no wire."""
        return self._delivered

    def used_blocks(self, area: Area, state: DeviceState) -> UsedBlocks:
        """Which blocks are in use; see BlockSession."""
        try:
            with Device(self._area(area)) as device:
                used = copied_blocks(device, state, lambda: None)
        except OSError as error:
            raise self._unreadable(error) from error
        runs = np.array(used.runs, np.uint64).reshape(-1, 2)
        return UsedBlocks(used.rule, runs, used.used_bytes, used.filesystem, used.reason)

    def read_blocks(
        self,
        area: Area,
        hash_name: str,
        pieces: Iterable[Piece],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[BlockBatch]:
        """Read blocks and compare them; see BlockSession."""
        asked: deque[np.ndarray] = deque()

        def requests() -> Iterator[tuple[list[tuple[int, int]], bytes]]:
            for piece in pieces:
                if len(piece.blocks):
                    asked.append(piece.blocks)
                    runs = [(int(first), int(count)) for first, count in runs_of(piece.blocks)]
                    yield runs, piece.known.tobytes()

        try:
            for found in BlockReader(self._area(area), hash_name).read(requests()):
                self._hand_over(found, wanted, deliver)
                yield BlockBatch(
                    _take(asked, len(found.states)),
                    np.frombuffer(bytes(found.states), np.uint8),
                    np.frombuffer(b"".join(found.hashes), np.uint8).reshape(-1, block_kinds.HASH_BYTES),
                    np.frombuffer(b"".join(found.names), np.uint8).reshape(-1, 32),
                )
        except OSError as error:
            raise self._unreadable(error) from error

    def _hand_over(
        self,
        found: Found,
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> None:
        contents = dict(zip(found.names, found.contents, strict=True))
        names = list(contents)
        if not names:
            return
        chosen = list(itertools.compress(names, wanted(names)))
        for at in range(0, len(chosen), _BUNDLE_CHUNKS):
            part = tuple(chosen[at : at + _BUNDLE_CHUNKS])
            payload = b"".join(contents[name] for name in part)
            deliver(Bundle(part, tuple(len(contents[name]) for name in part), RAW, payload))
            self._delivered += len(payload)
            self._handed(len(payload))

    def _area(self, area: Area) -> DeviceArea:
        return DeviceArea(os.fsencode(self._raw(area.path)), area.offset, area.size_bytes, True)

    def _unreadable(self, error: OSError) -> SourceImageDamaged:
        return SourceImageDamaged(source=self.host, reason=f"it cannot be read: {error.strerror or error}")


def _take(asked: deque[np.ndarray], count: int) -> np.ndarray:
    taken = []
    while count:
        blocks = asked.popleft()
        taken.append(blocks[:count])
        if len(blocks) > count:
            asked.appendleft(blocks[count:])
        count -= len(taken[-1])
    return np.concatenate(taken) if taken else np.empty(0, np.uint64)
