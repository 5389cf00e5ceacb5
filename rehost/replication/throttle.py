"""The bandwidth limit of a transfer that is under way, which may change with the hour or by hand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rehost.errors import RehostError
from rehost.source.session import Session

log = logging.getLogger(__name__)

Limits = Callable[[float], int]  # seconds since the epoch -> KB/s (1 KB = 1,000 bytes), 0 for no limit

_ASKED_EVERY_SECONDS = 2.0


@contextmanager
def limited(session: Session, limits: Limits | None) -> Iterator[None]:
    """Within the block `limits` is asked now and every two seconds, and the session follows when its answer changes.

    It is asked in a thread of its own, for a transfer under a low limit waits long for what comes next. An error of
    asking leaves the limit as it is.
    """
    if limits is None:
        yield
        return
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(session, limits, ended), name="bandwidth", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(session: Session, limits: Limits, ended: threading.Event) -> None:
    current: int | None = None
    while not ended.is_set():
        try:
            limit = limits(time.time())
            if limit != current:
                session.set_bandwidth_limit(limit)
                current = limit
        except RehostError as error:  # where the session broke, the transfer itself tells of it
            log.warning("the bandwidth limit stays as it is: %s", error)
        ended.wait(_ASKED_EVERY_SECONDS)
