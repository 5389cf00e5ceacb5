"""Change tracking for one pass over blocks: which runs of which stretch of a disk have to be read, or why all.

A stretch is whatever has `disk` (index of the inventory's disk), `start` and `size_bytes`, as the areas that are copied
block by block have. Runs are u64, shape (n, 2): first block, number of blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from rehost.errors import SourceError
from rehost.source.agent_session import AgentSession, open_agent
from rehost.source.connect import PathConnection, SshConnection
from rehost.source.inventory import Disk
from rehost.source.tracking import Full, Tracking, Written, removal_command


class Stretch(Hashable, Protocol):
    """A part of a disk."""

    @property
    def disk(self) -> int:
        """The index of the inventory's disk."""
        ...

    @property
    def start(self) -> int:
        """Bytes from the start of that disk."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...


A = TypeVar("A", bound=Stretch)


class TrackedPass:
    """The tracker as one pass uses it. Nothing here raises for want of a tracker: then everything is read.

    Make it before the first block is read, also for a pass that has no parent: what is written while that pass reads
    is then known, and so is everything after it, if `job_id` is given. Without it the tracker ends with the session.
    """

    def __init__(self, session: AgentSession, job_id: str | None, disks: Sequence[Disk], parent: str | None) -> None:
        self._names = {disk.index: disk.path.removeprefix("/dev/").replace("/", "!") for disk in disks}
        self._tracking = Tracking(session, job_id)
        self.reasons: list[str] = []  # why everything was, or will be, read; for the report
        self._lost = False  # nothing is known any more, of this pass and of the next
        started = self._tracking.start([self._names[disk.index] for disk in disks])
        if isinstance(started, Full):
            self._lose(started)
            return
        self._full = self._tracking.begin(parent)
        if self._full is not None and parent is not None:
            self.reasons.append(self._full.reason)

    def since_parent(self, stretches: Sequence[A]) -> Mapping[A, np.ndarray | None]:
        """What was written since the parent; None for all. To be asked once, before anything is read."""
        told = self._take()  # also where all is read: what follows is then counted from here
        if told is None or self._full is not None:
            return dict.fromkeys(stretches)
        return dict(self._runs(told, stretches))

    def since_last(self, stretches: Sequence[A]) -> Mapping[A, np.ndarray] | None:
        """What was written since either was asked last; None where that is not known."""
        told = self._take()
        return None if told is None else self._runs(told, stretches)

    @property
    def works(self) -> bool:
        """Whether there is a tracker, so that asking it again is worth while."""
        return not self._lost

    def prepare(self, snapshot: str) -> None:
        """The snapshot is about to be published under this id, of all that was told."""
        if not self._lost and not self._tracking.prepare(snapshot):
            self._lose(Full("the tracker went away during the pass"))

    def commit(self, snapshot: str) -> None:
        """It was published. That this cannot be told is no failure: the next pass tells it by its parent."""
        with contextlib.suppress(SourceError, RuntimeError):
            if not self._lost and not self._tracking.commit(snapshot):
                self._lose(Full("the tracker went away during the pass"))

    def _take(self) -> Written | None:
        if self._lost:
            return None
        told = self._tracking.take()
        if isinstance(told, Full):
            self.reasons.append(told.reason)
            return None
        return told

    def _runs(self, told: Written, stretches: Sequence[A]) -> dict[A, np.ndarray]:
        return {each: told.runs(self._names[each.disk], each.start, each.size_bytes) for each in stretches}

    def _lose(self, full: Full) -> None:
        self._lost = True
        self.reasons.append(full.reason)


def remove_tracker(connection: SshConnection | PathConnection, job_id: str) -> str | None:
    """Take a job's tracker off its server; None, or what to tell people where that could not be done."""
    try:
        with open_agent(connection) as session:
            failed = Tracking(session, job_id).remove()
    except SourceError as error:
        failed = Full(error.message)
    if failed is None:
        return None
    return (
        f"The change tracker of {job_id} could not be taken off the server ({failed.reason.rstrip('.')}). It ends at "
        f"the next reboot, or after 40 days; to end it now, run on the server: {removal_command(job_id)}"
    )
