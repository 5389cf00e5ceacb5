"""A process that writes into a store until it is killed: argv is the store, a seed, and how many chunks a flush.

It prints a line for each flush: the number of chunks that are durable then. Chunk n has the content `chunk(seed, n)`.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path

from rehost.replication.store import Store


def chunk(seed: int, number: int) -> bytes:
    """Content that only this seed and number give; half of it shrinks."""
    draw = random.Random(f"{seed}/{number}")
    return draw.randbytes(draw.randrange(1, 60_000)) + bytes(draw.randrange(60_000))


def name(content: bytes) -> bytes:
    """The name of a chunk."""
    return hashlib.sha256(content).digest()


def main() -> None:
    path, seed, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with Store.open(path) as store:
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
