"""What was written to a running server's disks since its last snapshot, as its tracker tells it.

A pass goes: `Tracking.start`, before anything is read; `begin`; `take`, read what it names (or all); again while the
server writes on; `prepare`, publish the snapshot, `commit`. Whatever is missing or in doubt is a `Full`, with its
reason for the run's report: then all blocks in use are read and compared, as without tracking.
docs/change-tracking.md tells what that rests upon.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rehost.agent import trace_kinds
from rehost.agent.tracing import BITMAPS_BYTES, BLOCK_BYTES, DISK_BYTES
from rehost.replication.tree import printable
from rehost.source.agent_session import AgentSession

_TEXT = 300
_DISKS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_!.:-]{0,63}")
_GENERATION = re.compile(r"[0-9a-f]{32}")
_MODULES = ("rehost.agent.trace_kinds", "rehost.agent.tracing", "rehost.agent.tracker")
# The modules import each other by their full names, on a machine that has none of them.
_LOADER = """
import sys
for name in ("rehost", "rehost.agent"):
    sys.modules[name] = type(sys)(name)
for name, text in MODULES:
    sys.modules[name] = type(sys)(name)
    exec(compile(text, "<%s>" % name, "exec"), sys.modules[name].__dict__)
del MODULES, text
sys.modules[name].main()
"""


@dataclass(frozen=True, slots=True)
class Full:
    """All blocks have to be read, as it is not known which were written."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tracked:
    """A tracker at work."""

    generation: str  # drawn at random by each tracker that starts
    base: str | None  # the snapshot since which it knows all changes
    block_bytes: int  # what one bit stands for
    disks: tuple[tuple[str, int], ...]  # names in /sys/block, and bytes, in the order of its bitmaps


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to the disks since it was last asked."""

    tracked: Tracked
    bitmaps: tuple[bytes, ...]  # one a disk, the lowest bit of the first byte first

    def blocks(self, disk: str, start: int, size_bytes: int, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
        """Which blocks of a stretch of a disk were written to: u64, ascending, counted from the stretch's start.

        `start` is in bytes from the start of the disk, at any sector. Where bits and blocks do not lie on each other
        every block is named that a set bit touches.
        """
        place = [name for name, _ in self.tracked.disks].index(disk)
        first = start // self.tracked.block_bytes
        end = -(-(start + size_bytes) // self.tracked.block_bytes)
        wide = np.frombuffer(self.bitmaps[place], np.uint8)[first // 8 : -(-end // 8)]
        bits = np.flatnonzero(np.unpackbits(wide, bitorder="little")) + first // 8 * 8
        at = bits * self.tracked.block_bytes - start
        lows = np.maximum(at, 0) // block_bytes
        highs = np.minimum(at + self.tracked.block_bytes, size_bytes)
        counts = np.maximum(-(-highs // block_bytes) - lows, 0)
        counts[highs <= 0] = 0
        shifts = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.unique(np.repeat(lows, counts) + shifts).astype(np.uint64)

    def runs(self, disk: str, start: int, size_bytes: int, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
        """The same as runs: u64, shape (n, 2): first block, number of blocks; ascending, apart from each other."""
        blocks = self.blocks(disk, start, size_bytes, block_bytes)
        firsts = np.flatnonzero(np.diff(blocks, prepend=np.uint64(2**63)) != 1)
        counts = np.diff(np.append(firsts, len(blocks)))
        return np.stack([blocks[firsts], counts.astype(np.uint64)], axis=1)


class Tracking:
    """The tracker of one session, or of a job that keeps it between sessions. One thing is asked at a time."""

    def __init__(self, session: AgentSession, job_id: str | None) -> None:
        self._session = session
        self._job = job_id
        self._tracked: Tracked | None = None

    def start(self, disks: Sequence[str]) -> Tracked | Full:
        """See that a tracker follows these disks (names in /sys/block, as `sda`); one that is there stays."""
        self._tracked = None
        told = self._ask({"ask": "start", "job": self._job, "disks": list(disks), "program": program()})
        if isinstance(told, Full):
            return told
        self._tracked = self._state(told, disks)
        return self._tracked

    def begin(self, parent: str | None) -> Full | None:
        """A pass begins: whether the takes tell all that was written since the snapshot `parent` was taken."""
        told = self._ask({"ask": "begin", "parent": parent})
        if isinstance(told, Full):
            return told
        match told.get("full", 0):
            case None:
                return None
            case str(reason):
                return Full(_text(reason))
            case _:
                raise self._violation("a tracker that does not tell whether it knows")

    def take(self) -> Written | Full:
        """What was written since the last take; a write that was acknowledged before is in it."""
        with self._session.exclusive() as channel:
            told = self._question({"ask": "take"})
            if isinstance(told, Full):
                return told
            tracked = self._tracked
            assert tracked is not None
            lengths = [_bitmap_length(size, tracked.block_bytes) for _, size in tracked.disks]
            if told.get("bits") != lengths:
                raise self._violation("bitmaps of another length than the disks")
            bitmaps = [channel.unpack(channel.expect(trace_kinds.TRACED_BITS), length) for length in lengths]
        if [len(bits) for bits in bitmaps] != lengths:
            raise self._violation("a bitmap of another length than it says")
        lost = told.get("lost", 0)
        if isinstance(lost, str):
            return Full(_text(lost))
        if lost is not None:
            raise self._violation("a tracker that does not tell whether it lost something")
        return Written(tracked, tuple(bitmaps))

    def prepare(self, snapshot: str) -> bool:
        """A snapshot of all that was taken is about to be published under this id. False: the tracker is gone."""
        return not isinstance(self._ask({"ask": "prepare", "snapshot": snapshot}), Full)

    def commit(self, snapshot: str) -> bool:
        """It was published; the next pass may have it as its parent. False: that pass will be a full one."""
        told = self._ask({"ask": "commit", "snapshot": snapshot})
        return not isinstance(told, Full) and told.get("done") is True

    def remove(self) -> Full | None:
        """Take the job's tracker off the server; why that failed, or None. Nothing happens where there is none."""
        told = self._ask({"ask": "remove", "job": self._job})
        return told if isinstance(told, Full) else None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | Full:
        with self._session.exclusive():
            return self._question(request)

    def _question(self, request: dict[str, Any]) -> dict[str, Any] | Full:
        channel = self._session.channel
        channel.send_json(trace_kinds.TRACE, request)
        told = channel.json_object(channel.expect(trace_kinds.TRACED))
        if "failed" in told:
            return Full(_text(str(told["failed"])))
        return told

    def _state(self, told: dict[str, Any], disks: Sequence[str]) -> Tracked:
        match told:
            case {
                "generation": str(generation),
                "base": None | str() as base,
                "block_bytes": int(unit),
                "disks": list(),
            }:
                pass
            case _:
                raise self._violation("a tracker without the facts that belong to it")
        found = []
        for item in told["disks"]:
            match item:
                case [str(name), int(size), str()] if _NAME.fullmatch(name) and 0 < size <= DISK_BYTES:
                    found.append((name, size))
                case _:
                    raise self._violation("a tracker of a disk that cannot be")
        if [name for name, _ in found] != list(disks) or len(found) > _DISKS:
            raise self._violation("a tracker of other disks than those asked for")
        if not _GENERATION.fullmatch(generation) or (base is not None and len(base) > _TEXT):
            raise self._violation("a tracker without a name")
        if unit < BLOCK_BYTES or unit & (unit - 1) or unit > DISK_BYTES:
            raise self._violation("a tracker of blocks that cannot be")
        if sum(_bitmap_length(size, unit) for _, size in found) > BITMAPS_BYTES + len(found):
            raise self._violation("a tracker of too many blocks")
        return Tracked(generation, base, unit, tuple(found))

    def _violation(self, reason: str) -> Exception:
        return self._session.channel.violation(reason)


def removal_command(job_id: str) -> str:
    """What a person types on the server to take a job's tracker away, where Rehost cannot reach it any more."""
    return f"systemctl stop {trace_kinds.UNIT}{job_id}"


@functools.cache
def program() -> str:
    """The text of the tracker's program."""
    texts = []
    for name in _MODULES:
        package, _, module = name.rpartition(".")
        texts.append((name, importlib.resources.files(package).joinpath(module + ".py").read_text("utf-8")))
    return f"MODULES = {texts!a}\n{_LOADER}"


def _bitmap_length(size_bytes: int, block_bytes: int) -> int:
    return (-(-size_bytes // block_bytes) + 7) // 8


def _text(told: str) -> str:
    return printable(told[:_TEXT].encode("utf-8", "replace"))
