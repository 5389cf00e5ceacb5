"""Reads blocks of a device, compares them with what is known of them, and keeps what is new.

A few threads read two MiB each with O_DIRECT and hash it; results come in the order in which blocks were asked for.
Memory is bounded by the jobs that are under way, whatever the size of the device.
"""

import hashlib
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Deque, Iterable, Iterator, List, Tuple

from rehost.agent import protocol
from rehost.agent.block_device import BLOCK_BYTES, Area, Device
from rehost.agent.block_kinds import BLAKE2, HASH_BYTES, NEW, SAME, XXH3, ZERO

JOB_BLOCKS = 32  # that one thread reads at once
_JOBS_A_THREAD = 3  # under way: read ahead of what is handed on
_THREADS = 4  # more only heat a server that has other work

Digest = Callable[[Any], bytes]
Piece = Tuple[List[Tuple[int, int]], bytes]
"""Runs of blocks (first, number), and the hash by which each block of them is known, one after the other."""


class Found(object):
    """What a job found: the state of each of its blocks, and hash, SHA-256 and content of those that are new."""

    __slots__ = ("contents", "hashes", "names", "states")

    def __init__(self) -> None:
        self.states = bytearray()
        self.hashes: List[bytes] = []
        self.names: List[bytes] = []
        self.contents: List[bytes] = []


def digest_of(name: str) -> Digest:
    """The hash that finds what changed, 16 bytes. Raises ImportError, ValueError."""
    if name == XXH3:
        return protocol.xxh3_128()
    if name == BLAKE2:
        return lambda content: hashlib.blake2b(content, digest_size=HASH_BYTES).digest()
    raise ValueError("the hash %s is not known" % name)


def threads() -> int:
    """How many threads read and hash: one a core that this process may use, and two at least, so that both go on."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    return max(2, min(_THREADS, cores))


class BlockReader(object):
    """Reads blocks of one area."""

    def __init__(self, area: Area, hash_name: str) -> None:
        self._area = area
        self._digest = digest_of(hash_name)
        self._zeros = b"\0" * BLOCK_BYTES
        self._zero_digest = self._digest(self._zeros)
        self._local = threading.local()
        self._devices: List[Device] = []

    def read(self, pieces: Iterable[Piece]) -> Iterator[Found]:
        """What is found, in order. Raises OSError, ValueError for blocks that the area has not.

        `pieces` is asked for more in the caller's thread.
        """
        count = threads()
        under_way: "Deque[Future[Found]]" = deque()
        pool = ThreadPoolExecutor(count)
        try:
            for job in self._jobs(pieces):
                under_way.append(pool.submit(self._job, job))
                if len(under_way) >= count * _JOBS_A_THREAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
            pool.shutdown()
            for device in self._devices:
                device.close()

    def _jobs(self, pieces: Iterable[Piece]) -> "Iterator[List[Tuple[int, int, bytes]]]":
        """Runs with their hashes, cut and gathered to what one thread does at once."""
        for runs, known in pieces:
            job: List[Tuple[int, int, bytes]] = []
            held = at = 0
            for first, count in runs:
                if first + count > self._area.blocks:
                    raise ValueError("a block beyond the end")
                while count:
                    part = min(count, JOB_BLOCKS - held)
                    job.append((first, part, known[at * HASH_BYTES : (at + part) * HASH_BYTES]))
                    first, count, held, at = first + part, count - part, held + part, at + part
                    if held == JOB_BLOCKS:
                        yield job
                        job, held = [], 0
            if job:
                yield job

    def _job(self, job: List[Tuple[int, int, bytes]]) -> Found:
        device = getattr(self._local, "device", None)
        if device is None:
            device = self._local.device = Device(self._area, JOB_BLOCKS * BLOCK_BYTES)
            self._devices.append(device)
        found = Found()
        for first, count, known in job:
            start = first * BLOCK_BYTES
            view = device.view(start, min(count * BLOCK_BYTES, self._area.size - start))
            for place in range(count):
                content = view[place * BLOCK_BYTES : (place + 1) * BLOCK_BYTES]
                self._block(content, known[place * HASH_BYTES : (place + 1) * HASH_BYTES], found)
        return found

    def _block(self, content: memoryview, known: bytes, found: Found) -> None:
        digest = self._digest(content)
        if digest == known:
            found.states.append(SAME)
            return
        raw = bytes(content)
        if (digest == self._zero_digest or len(raw) < BLOCK_BYTES) and raw == self._zeros[: len(raw)]:
            found.states.append(ZERO)
            return
        found.states.append(NEW)
        found.hashes.append(digest)
        found.names.append(hashlib.sha256(raw).digest())
        found.contents.append(raw)
