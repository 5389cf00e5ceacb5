"""The store that this machine's settings name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rehost.replication.backends.interface import Backend
from rehost.replication.backends.local import LocalFolder
from rehost.replication.backends.location import location
from rehost.replication.packs import storage_error
from rehost.replication.store import Store, prepare
from rehost.settings import Settings


def open_store(configured: Settings, *, compress_level: int = 3) -> Store:
    """Open it, or make it where there is nothing; what dead writers of this machine left is put right.

    Raises StoreUnreadable, StoreNoSpace, StoreIOFailed.
    """
    return Store.at(lambda: _place(configured), compress_level=compress_level)


@contextmanager
def open_place(configured: Settings) -> Iterator[Backend]:
    """Its place alone, for those who take care of it: nothing in it is read or put right.

    Raises StoreUnreadable, StoreNoSpace, StoreIOFailed.
    """
    shown: Path | str = "the store"
    try:
        place = _place(configured)
        shown = place.shown
        prepare(place)
    except OSError as error:
        raise storage_error(error, shown) from error
    try:
        yield place
    finally:
        place.close()


def _place(configured: Settings) -> Backend:
    url = configured.store_url
    place = configured.home / "store" if url is None else location(url)
    if isinstance(place, Path):
        return LocalFolder(place.absolute())
    from rehost.replication.backends.s3 import ObjectStore  # Arrow's part for S3 takes its time to load

    name = f"{place.name}/{place.prefix} {place.endpoint or ''}"
    return ObjectStore(place, configured.home / "spool" / hashlib.sha256(name.encode()).hexdigest()[:16])
