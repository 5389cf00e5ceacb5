"""One at a time: who takes care of a store is alone with it, beside any number of transfers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rehost.replication.backends.interface import Backend
from rehost.replication.backends.leases import Lease
from rehost.replication.care.errors import StoreBusy, StoreLeaseLost

_KIND = "care"


@contextmanager
def alone(place: Backend) -> Iterator[Lease]:
    """Hold the store's care for a block. Raises StoreBusy, OSError.

    Both of two that begin at once may be refused, and never none: each writes before it looks.
    """
    lease = place.lease(_KIND)
    try:
        if any(name.startswith(f"{_KIND}-") and name != lease.name for name in place.leases()):
            raise StoreBusy(path=place.shown)
        yield lease
    finally:
        lease.release()


def users(place: Backend) -> set[str]:
    """The leases of those who read or write the store now."""
    return {name for name in place.leases() if not name.startswith(f"{_KIND}-")}


def still_held(place: Backend, lease: Lease) -> None:
    """Raise StoreLeaseLost where somebody else may have begun meanwhile."""
    if not lease.holds():
        raise StoreLeaseLost(path=place.shown)
