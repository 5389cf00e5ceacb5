"""The store that this machine's settings name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rehost.replication.backends.location import location
from rehost.replication.store import Store
from rehost.settings import Settings


def open_store(configured: Settings, *, compress_level: int = 3) -> Store:
    """Open it, or make it where there is nothing; what dead writers of this machine left is put right.

    Raises StoreUnreadable, StoreNoSpace, StoreIOFailed.
    """
    url = configured.store_url
    place = configured.home / "store" if url is None else location(url)
    if isinstance(place, Path):
        return Store.open(place, compress_level=compress_level)
    from rehost.replication.backends.s3 import ObjectStore  # Arrow's part for S3 takes its time to load

    name = f"{place.name}/{place.prefix} {place.endpoint or ''}"
    spool = configured.home / "spool" / hashlib.sha256(name.encode()).hexdigest()[:16]
    return Store.at(lambda: ObjectStore(place, spool), compress_level=compress_level)
