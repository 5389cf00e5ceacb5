"""The open session of a pass, whose source is held still from the first name to the last chunk.

Volumes whose files are copied are held for the whole pass; those that are copied by blocks for its last moments.

The snapshot stage opens it and the transfer stage uses it. Where it broke in between, the next try opens another and
holds the source anew.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

from prefect.logging import get_run_logger

from rehost.catalog.rules import chosen
from rehost.errors import SourceError
from rehost.replication.pass_plan import plan_pass
from rehost.replication.snapshots import VolumeConsistency
from rehost.source.hold import Held, Hooks, hold
from rehost.source.inventory import Inventory
from rehost.source.session import Session
from tasks.run_pass import Pass, add_notes, source_session

_HELD = ("lvm", "btrfs")  # methods whose names and contents are of one moment


class Holding:
    """A session and the hold on its source, from `open` to `close`; then it may be opened again."""

    def __init__(self, this: Pass, inventory: Inventory) -> None:
        self.inventory = inventory
        self.plan = plan_pass(inventory, chosen(this.job))
        self.consistency: tuple[VolumeConsistency, ...] = ()  # how each volume is held, or was
        self._this = this
        self._stack = ExitStack()
        self._open: tuple[Session, Held] | None = None
        self._held_since = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is a session; it may have broken since."""
        return self._open is not None

    @property
    def session(self) -> Session:
        """The session; its scans and reads are of what is held."""
        assert self._open is not None
        return self._open[0]

    @property
    def hooks(self) -> Hooks:
        """What the job has run on the source."""
        asked = self._this.job.hooks
        return Hooks(asked.pre_snapshot, asked.post_snapshot, asked.timeout_seconds)

    @property
    def of_one_moment(self) -> bool:
        """Whether names that were seen under another hold are worth nothing under this one."""
        return any(volume.method in _HELD for volume in self.consistency)

    def open(self) -> None:
        """Connect and hold. Raises HookFailed and every SourceError."""
        method = self._this.job.consistency.method
        with ExitStack() as stack:
            session = stack.enter_context(source_session(self._this))
            held = stack.enter_context(hold(session, self.plan.volumes, method=method, hooks=self.hooks))
            self.consistency = held.consistency
            self._held_since = time.monotonic()
            self._open = session, held
            self._stack = stack.pop_all()
        log = get_run_logger()
        for volume in self.consistency:
            log.info("%s is copied by the method %s. %s", volume.mount_point, volume.method, volume.detail)
        for found in held.told:
            log.warning("%s", found)

    def release(self) -> None:
        """Let go of the source. Raises SnapshotOverflow where what was read is worth nothing."""
        assert self._open is not None
        self._open[1].release()
        if self.of_one_moment:
            held = time.monotonic() - self._held_since
            add_notes(
                self._this, [f"Snapshots held the source still for {held:.1f} s; its programs went on meanwhile."]
            )

    def close(self) -> None:
        """End the session, whatever became of it; what is still held is let go of."""
        self._open = None
        # A session that broke, or was left in the middle of something, cannot say goodbye: its guardian hears it.
        with suppress(SourceError, RuntimeError):
            self._stack.close()
