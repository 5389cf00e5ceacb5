"""Old snapshots go, and what only they needed: after each pass, and in housekeeping."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from rehost.errors import RehostError, SnapshotNotFound
from rehost.replication.care import gc
from rehost.replication.open_store import open_place
from rehost.replication.snapshots import Snapshots
from rehost.settings import settings
from tasks.run_pass import catalog

log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0
_AFTERWARDS_SECONDS = gc.GRACE_SECONDS + _EVERY_SECONDS  # what is too young to go now is old enough then


def forget_old_snapshots() -> list[str]:
    """Take away the snapshots that nothing needs by the rules of their jobs; their ids.

    Where that fails the log says why, and the next call tries again.
    """
    gone = []
    try:
        with catalog() as opened, open_place(settings()) as place:
            for id in opened.unneeded_snapshots():
                _wanted().touch()
                with contextlib.suppress(SnapshotNotFound):  # gone at the last try, which got no further
                    Snapshots(place).delete(id)
                opened.forget_snapshot(id)
                gone.append(id)
    except (RehostError, OSError) as error:
        log.warning("old snapshots stay for now: %s", error)
    return gone


def tidy_store() -> gc.Collected | None:
    """Old snapshots go; then the store is collected, once an hour at most, while there may be something to collect."""
    forget_old_snapshots()
    now = time.time()
    if _age(_wanted(), now) > _AFTERWARDS_SECONDS or _age(_collected(), now) < _EVERY_SECONDS:
        return None
    try:
        with open_place(settings()) as place:
            _collected().touch()
            done = gc.collect(place)
        if done.packs_waiting:
            _wanted().touch()
    except (RehostError, OSError) as error:
        log.warning("the store was not collected: %s", error)
        return None
    if not done.idle:
        log.info(
            "%d packs were condemned, %d deleted, %d wait", done.packs_condemned, done.packs_deleted, done.packs_waiting
        )
    return done


def _wanted() -> Path:
    """Touched when snapshots went."""
    return settings().home / ".collect-wanted"


def _collected() -> Path:
    """Touched when the store was collected."""
    return settings().home / ".collected"


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
