"""A process that makes and deletes snapshots until it is told to stop: argv is the store's folder, a seed, how many.

Each pass asks which of some chunks are there, puts those that are not, publishes a snapshot, and reads it back. Every
chunk of a snapshot is one of the 60 that `chunk` gives for the seed 0, so that passes need what others stored.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from pathlib import Path

from rehost.ids import new_id
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.source.inventory import Inventory
from tests.support.store_writer import chunk, name

CHUNKS = 60


def entries(contents: list[bytes]) -> list[Entry]:
    """The rows of a table with a file for each of these."""
    root = Entry(path=b"", mode=0o40755)
    return [root] + [
        Entry(
            path=b"file%04d" % number,
            mode=0o100644,
            size=len(content),
            chunks=(Chunk(0, len(content), name(content)),) if content else (),
        )
        for number, content in enumerate(contents)
    ]


def main() -> None:
    draw = random.Random(sys.argv[2])
    everything = [chunk(0, number) for number in range(CHUNKS)]
    mine: list[str] = []
    for _ in range(int(sys.argv[3])):
        wanted = draw.sample(everything, draw.randrange(1, 12))
        with Store.open(Path(sys.argv[1])) as store:
            had = store.has([name(content) for content in wanted])
            for content, there in zip(wanted, had, strict=True):
                if not there:
                    store.put(name(content), content)
                    if draw.random() < 0.3:
                        store.flush()
            snapshot = Snapshot(
                id=new_id("n"),
                source_id=f"s-{sys.argv[2]:0>20}",
                created_at=datetime.now(UTC),
                inventory=Inventory(hostname="h", os_id="debian", architecture="x86_64"),
                volumes=(),
            )
            store.save_snapshot(snapshot, table_of(entries(wanted)))
            mine.append(snapshot.id)
        with Store.open(Path(sys.argv[1])) as store:
            assert [store.read_chunk(name(content)) for content in wanted] == wanted
            while len(mine) > 3 or (mine and draw.random() < 0.4):
                store.delete_snapshot(mine.pop(draw.randrange(len(mine))))
        print("pass", flush=True)


if __name__ == "__main__":
    main()
