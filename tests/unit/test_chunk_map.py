"""The map of all chunks, beside a dict."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rehost.replication import chunk_map
from rehost.replication.chunk_map import ChunkMap
from rehost.replication.pack_index import NAME, index_table
from rehost.replication.packs import Record, table_of


def _name(rng: random.Random) -> bytes:
    """Of few words, so that many names agree in some; zero bytes at their ends too."""
    return b"".join(rng.choice((b"\0" * 8, b"a" * 8, b"a" * 7 + b"\0", b"b" * 8)) for _ in range(4))


def _record(rng: random.Random, offset: int, count: int) -> Record:
    names = [_name(rng) for _ in range(count)]
    lengths = [rng.randrange(1, 100) for _ in names]
    return Record(offset, 0, sum(lengths), sum(lengths), count, table_of(names, lengths))


@pytest.mark.parametrize("recent", [1, 8, 1 << 20])
def test_chunks_are_found_where_they_were_added_last_or_first(monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(chunk_map, "_RECENT_CHUNKS", recent)
    rng = random.Random(recent)
    chunks = ChunkMap()
    places: dict[bytes, set[tuple[int, int, int, int]]] = {}  # by name: pack, offset, place, length
    offset = 0

    def learn(pack: int, record: Record) -> None:
        at = 0
        for number, length in enumerate(record.lengths.tolist()):
            name = record.names[number * 32 : number * 32 + 32]
            places.setdefault(name, set()).add((pack, record.offset, at, length))
            at += length

    for pack in range(12):
        records = [_record(rng, offset := offset + 10_000, rng.randrange(1, 12)) for _ in range(3)]
        for record in records:
            learn(pack, record)
            if pack % 2:
                chunks.add_record(pack, record)
        if not pack % 2:
            chunks.add_indexes([(pack, index_table(records))])
    chunks.add_indexes([])
    assert len(chunks) >= len(places)

    def check() -> None:
        asked = [_name(rng) for _ in range(300)]
        for name, number in zip(asked, chunks.positions(asked).tolist(), strict=True):
            found = chunks.find(name)
            assert (number >= 0) == (found is not None) == (name in places)
            if found is not None:
                bundle = chunks.bundle(found.bundle)
                assert (bundle.pack, bundle.offset, found.place, found.length) in places[name]
                assert (chunks.bundle(number).pack, chunks.bundle(number).offset) in {p[:2] for p in places[name]}
        assert not len(chunks.known(np.empty(0, NAME)))

    check()
    chunks.forget([0, 4])
    places = {name: left for name, all in places.items() if (left := {at for at in all if at[0] not in (0, 4)})}
    check()
    chunks.forget(range(12))
    places = {}
    check()
    assert len(chunks) == 0
