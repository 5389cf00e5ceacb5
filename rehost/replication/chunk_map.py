"""All chunks that a store is known to hold, by name: small in memory, and looked up without a lock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from rehost.replication.manifest import SHA256_BYTES
from rehost.replication.pack_index import (
    NAME,
    BundleAt,
    Bundles,
    ChunkTable,
    Location,
    columns_of_index,
    columns_of_locations,
    columns_of_record,
)
from rehost.replication.packs import Record

_RECENT_CHUNKS = 1024  # new chunks kept in a dict before they move into sorted arrays; more at once go there directly
_SHARE = 4  # a table is merged with the one before it unless it is smaller by this: few tables, each merged seldom


class ChunkMap:
    """Chunks by name. Its owner locks what changes it; what looks into it needs no lock."""

    def __init__(self) -> None:
        self._bundles = Bundles()
        self._tables: tuple[ChunkTable, ...] = ()  # the larger first
        self._recent: dict[bytes, Location] = {}

    def __len__(self) -> int:
        """How many chunks, one that is stored twice counted twice."""
        return sum(len(table) for table in self._tables) + len(self._recent)

    def find(self, name: bytes) -> Location | None:
        """Where the chunk of that name is."""
        found = self._recent.get(name)  # before the tables: chunks move from the dict to them
        if found is not None:
            return found
        for table in self._tables:
            found = table.find(name)
            if found is not None:
                return found
        return None

    def bundle(self, number: int) -> BundleAt:
        """Where the bundle of that number is."""
        return self._bundles.at(number)

    def positions(self, names: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """For each of these names the number of the bundle that holds its chunk, or -1."""
        recent = self._recent  # before the tables
        array = names if isinstance(names, np.ndarray) else np.frombuffer(b"".join(names), NAME)
        found = np.full(len(array), -1, np.int64)
        for table in self._tables:
            missing = np.flatnonzero(found < 0)
            if not len(missing):
                return found
            found[missing] = table.positions(array[missing])
        if recent:
            for at in np.flatnonzero(found < 0).tolist():
                location = recent.get(array[at : at + 1].tobytes())
                if location is not None:
                    found[at] = location.bundle
        return found

    def known(self, names: Sequence[bytes] | np.ndarray) -> np.ndarray:
        """A boolean for each of these names: its chunk is there."""
        return self.positions(names) >= 0

    def add_indexes(self, indexes: Iterable[tuple[int, pa.Table]]) -> None:
        """Take in the indexes of packs, each with the pack's number; none is held while the next one is made."""
        parts = [columns_of_index(table, pack, self._bundles) for pack, table in indexes]
        if parts:
            self._add(ChunkTable(parts))

    def add_record(self, pack: int, record: Record) -> None:
        """Take in the record that was just written to a pack."""
        row = [pack, record.offset, record.chunks, record.stored_length, record.raw_length, record.codec]
        bundle = self._bundles.add(np.array([row], np.uint32))
        if record.chunks >= _RECENT_CHUNKS:
            self._add(ChunkTable([columns_of_record(record, bundle)]))
            return
        names, at = record.names, 0
        for number, length in enumerate(record.lengths.tolist()):
            name = names[number * SHA256_BYTES : (number + 1) * SHA256_BYTES]
            self._recent[name] = Location(bundle, at, length)
            at += length
        if len(self._recent) >= _RECENT_CHUNKS:
            self._add(ChunkTable([columns_of_locations(self._recent)]))
            self._recent = {}

    def _add(self, table: ChunkTable) -> None:
        tables = [*self._tables, table]
        while len(tables) > 1 and len(tables[-1]) * _SHARE > len(tables[-2]):
            tables[-2:] = [ChunkTable.merged(tables[-2:])]
        self._tables = tuple(tables)

    def forget(self, packs: Sequence[int]) -> None:
        """These packs are gone, and what only they held."""
        gone = self._bundles.in_packs(packs)
        lost = set(gone.tolist())
        self._recent = {name: at for name, at in self._recent.items() if at.bundle not in lost}
        self._tables = tuple(table.without_bundles(gone) for table in self._tables)


class BundleCache:
    """The contents of the bundles used last, by where they are, within a bound in bytes. Safe for threads."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._contents: OrderedDict[BundleAt, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, bundle: BundleAt) -> bytes | None:
        """The content of that bundle, if it is at hand."""
        with self._lock:
            content = self._contents.get(bundle)
            if content is not None:
                self._contents.move_to_end(bundle)
            return content

    def put(self, bundle: BundleAt, content: bytes) -> None:
        """Keep a content, and let those go that were not used for longest."""
        with self._lock:
            if bundle not in self._contents:
                self._contents[bundle] = content
                self._bytes += len(content)
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._contents.popitem(last=False)[1])
