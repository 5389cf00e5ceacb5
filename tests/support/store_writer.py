"""A process that writes into a store until it is killed: argv is the store, a seed, how many chunks a flush, a spool.

The store is a folder, or an s3 URL; of the latter alone the spool is told.

It prints a line for each flush: the number of chunks that are durable then. Chunk n has the content `chunk(seed, n)`.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

from rehost.replication.backends.interface import Backend
from rehost.replication.backends.local import LocalFolder
from rehost.replication.backends.location import Bucket, location
from rehost.replication.store import Store


def chunk(seed: int, number: int) -> bytes:
    """Content that only this seed and number give; half of it shrinks."""
    draw = random.Random(f"{seed}/{number}")
    return draw.randbytes(draw.randrange(1, 60_000)) + bytes(draw.randrange(60_000))


def name(content: bytes) -> bytes:
    """The name of a chunk."""
    return hashlib.sha256(content).digest()


def _backend(place: Path | Bucket) -> Backend:
    if isinstance(place, Path):
        return LocalFolder(place.absolute())
    from rehost.replication.backends.s3 import ObjectStore

    return ObjectStore(place, Path(sys.argv[4]))


def main() -> None:
    place, seed, each = location(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with Store.at(lambda: _backend(place)) as store:
        number = 0
        while True:
            for _ in range(each):
                content = chunk(seed, number)
                store.put(name(content), content)
                number += 1
            store.flush()
            print(number, flush=True)


if __name__ == "__main__":
    main()
