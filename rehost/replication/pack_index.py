"""Which chunk is in which bundle: the immutable Parquet index of a pack, and all of them together in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rehost.replication.bundles import RAW, ZSTD
from rehost.replication.columns import column as room, copied, joined
from rehost.replication.manifest import SHA256_BYTES, single
from rehost.replication.packs import CHUNKS_MAX, HEADER, RAW_BYTES_MAX, ROW_BYTES, Record

INDEX_SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.binary(SHA256_BYTES), nullable=False),  # rows are in the order of the pack
        pa.field("offset", pa.uint32(), nullable=False),  # of the record's header, from the start of the pack
        pa.field("chunks", pa.uint32(), nullable=False),  # chunks in the record's table, damaged ones too
        pa.field("stored_length", pa.uint32(), nullable=False),  # bytes of the record's payload
        pa.field("raw_length", pa.uint32(), nullable=False),  # bytes of the payload unpacked
        pa.field("codec", pa.uint8(), nullable=False),
        pa.field("place", pa.uint32(), nullable=False),  # of the chunk, from the start of the unpacked payload
        pa.field("length", pa.uint32(), nullable=False),  # bytes of the chunk
    ],
    metadata={b"rehost.format": b"index/2"},
)
_OF_RECORDS = ("offset", "chunks", "stored_length", "raw_length", "codec")  # the same for all chunks of a record

# Names are compared as 32-byte strings. NumPy leaves off zero bytes at the end when it takes one out as Python bytes,
# but compares all of them: two names of 32 bytes are equal here only if they are.
NAME = np.dtype("S32")
_WORDS = SHA256_BYTES // 8
_WORD, _NUMBER = np.dtype(np.uint64), np.dtype(np.uint32)


class Location(NamedTuple):
    """Where a chunk is: the number of its bundle in this process, and its place in the bundle's content."""

    bundle: int
    place: int
    length: int


class BundleAt(NamedTuple):
    """Where a bundle is: the number of its pack in this process, and what its record says."""

    pack: int
    offset: int
    chunks: int
    stored_length: int
    raw_length: int
    codec: int

    @property
    def payload_at(self) -> int:
        """Bytes from the start of the pack to the payload."""
        return self.offset + HEADER.size + self.chunks * ROW_BYTES


def index_table(records: Sequence[Record]) -> pa.Table:
    """The index of a pack, from its records in order."""
    counts = np.array([record.chunks for record in records], np.int64)
    lengths = np.concatenate([record.lengths for record in records])
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    columns: dict[str, np.ndarray] = {
        name: np.repeat(np.array([getattr(record, name) for record in records], np.uint32), counts)
        for name in _OF_RECORDS
    }
    columns["place"] = starts - np.repeat(starts[np.cumsum(counts) - counts], counts)
    columns["length"] = lengths
    names = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(SHA256_BYTES), len(lengths), [None, pa.py_buffer(b"".join(record.names for record in records))]
    )
    arrays = [
        names,
        *(pa.array(columns[field.name].astype(field.type.to_pandas_dtype())) for field in list(INDEX_SCHEMA)[1:]),
    ]
    table = pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)
    if all(record.sound is None for record in records):
        return table
    sound = [np.ones(record.chunks, bool) if record.sound is None else record.sound for record in records]
    return table.filter(pa.array(np.concatenate(sound))).combine_chunks()


def index_bytes(records: Sequence[Record]) -> bytes:
    """The Parquet file of a pack's index."""
    sink = io.BytesIO()
    pq.write_table(
        index_table(records), sink, compression="zstd", use_dictionary=list(_OF_RECORDS), write_statistics=False
    )
    return sink.getvalue()


def read_index(data: bytes, pack_size: int) -> pa.Table:
    """The table of an index. Raises ValueError where it is not one, or points outside its pack."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    if not table.schema.equals(INDEX_SCHEMA) or any(column.null_count for column in table.columns):
        raise ValueError("it has other columns")
    column = {name: table[name].to_numpy().astype(np.int64) for name in INDEX_SCHEMA.names[1:]}
    end = column["offset"] + HEADER.size + column["chunks"] * ROW_BYTES + column["stored_length"]
    outside = (end > pack_size) | (column["place"] + column["length"] > column["raw_length"])
    outside |= np.maximum(column["stored_length"], column["raw_length"]) > RAW_BYTES_MAX
    outside |= (column["chunks"] > CHUNKS_MAX) | ~np.isin(column["codec"], (RAW, ZSTD))
    if outside.any():
        raise ValueError("it points outside its pack")
    return table


def names_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of SHA-256 without nulls as an array of names, not copied where it is in one piece."""
    array = single(column) if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty(0, NAME)
    return np.frombuffer(array.buffers()[1], NAME, len(array), array.offset * SHA256_BYTES)


class Bundles:
    """Where all known bundles are, by number: 24 bytes each. Its owner locks `add`; `at` needs no lock."""

    def __init__(self) -> None:
        self._rows = np.empty((1024, len(BundleAt._fields)), np.uint32)
        self._count = 0

    def add(self, rows: np.ndarray) -> int:
        """Take in some more, a row each as BundleAt; the number of the first."""
        first = self._count
        if first + len(rows) > len(self._rows):
            grown = np.empty((max(2 * len(self._rows), first + len(rows)), self._rows.shape[1]), np.uint32)
            grown[:first] = self._rows[:first]
            self._rows = grown
        self._rows[first : first + len(rows)] = rows
        self._count += len(rows)
        return first

    def at(self, number: int) -> BundleAt:
        """The bundle of that number."""
        return BundleAt(*self._rows[number].tolist())

    def packs(self, numbers: np.ndarray) -> np.ndarray:
        """The pack numbers of these bundles."""
        return np.asarray(self._rows[numbers, 0])

    def in_packs(self, packs: Sequence[int]) -> np.ndarray:
        """The numbers of all bundles in these packs, ascending."""
        return np.flatnonzero(np.isin(self._rows[: self._count, 0], np.array(packs, np.uint32)))


Columns = list[np.ndarray]
"""What is known of chunks, in no order: four columns of the words of their names, then bundles, places, lengths."""


def columns_of_index(index: pa.Table, pack: int, bundles: Bundles) -> Columns:
    """The chunks of a pack's index, in memory of their own; its bundles are added to the others."""
    offsets = index["offset"].to_numpy()
    _, first, number = np.unique(offsets, return_index=True, return_inverse=True)
    rows = np.stack([index[name].to_numpy()[first].astype(np.uint32) for name in _OF_RECORDS], axis=1)
    begin = bundles.add(np.concatenate([np.full((len(rows), 1), pack, np.uint32), rows], axis=1))
    numbers = ((begin + number), index["place"].to_numpy(), index["length"].to_numpy())
    return [*_words(names_of(index["sha256"])), *(copied(column, _NUMBER) for column in numbers)]


def columns_of_record(record: Record, bundle: int) -> Columns:
    """The chunks of a record, whose bundle has that number."""
    ends = np.cumsum(record.lengths, dtype=np.int64)
    numbers = (np.full(record.chunks, bundle), ends - record.lengths, record.lengths)
    names = np.frombuffer(record.table, NAME, record.chunks)
    return [*_words(names), *(copied(column, _NUMBER) for column in numbers)]


def columns_of_locations(locations: Mapping[bytes, Location]) -> Columns:
    """These chunks."""
    numbers = np.array(list(locations.values()), np.uint32).reshape(-1, len(Location._fields))
    return [*_words(np.frombuffer(b"".join(locations), NAME)), *(copied(column, _NUMBER) for column in numbers.T)]


def _words(names: np.ndarray) -> Columns:
    """The names as four columns of 64 bits."""
    return [copied(column, _WORD) for column in names.view(np.uint64).reshape(-1, _WORDS).T]


class ChunkTable:
    """Chunks sorted by the first word of their names, never changed: 44 bytes a chunk.

    A word is as good as the whole name for finding a place among names that are digests; the rest is compared then.
    Columns stand by themselves, so that putting tables together needs room for one column more and not for all.
    """

    def __init__(self, parts: Sequence[Columns]) -> None:
        """Of all these columns, which are taken out of their lists one after the other."""
        order = np.argsort(joined([part[0] for part in parts]), kind="stable")
        self._columns: Columns = []
        for _ in range(_WORDS + len(Location._fields)):
            values = joined([part.pop(0) for part in parts])
            column = room(len(values), values.dtype)
            np.take(values, order, out=column, mode="clip")  # clip: in place; there is nothing to clip
            self._columns.append(column)

    @classmethod
    def merged(cls, tables: Sequence[ChunkTable]) -> ChunkTable:
        """The chunks of all of them."""
        return cls([list(table._columns) for table in tables])

    def __len__(self) -> int:
        return len(self._columns[0])

    def without_bundles(self, bundles: np.ndarray) -> ChunkTable:
        """These chunks without those of some bundles."""
        left = ~np.isin(self._columns[_WORDS], bundles)
        return ChunkTable([[column[left] for column in self._columns]])

    def find(self, name: bytes) -> Location | None:
        """Where the chunk of that name is."""
        at = int(self._places(np.frombuffer(name, NAME))[0])
        return None if at < 0 else Location(*(int(column[at]) for column in self._columns[_WORDS:]))

    def positions(self, names: np.ndarray) -> np.ndarray:
        """For each of these names the number of its bundle, or -1, all at once."""
        at = self._places(names)
        found = np.full(len(names), -1, np.int64)
        there = at >= 0
        found[there] = self._columns[_WORDS][at[there]]
        return found

    def _places(self, names: np.ndarray) -> np.ndarray:
        """For each of these names its row, or -1."""
        wanted = names.view(np.uint64).reshape(-1, _WORDS)
        found = np.full(len(names), -1, np.int64)
        at = self._columns[0].searchsorted(wanted[:, 0])
        open_ = np.arange(len(names))
        while len(open_):  # once; again only for names whose first word is another name's too
            open_ = open_[at[open_] < len(self)]
            open_ = open_[self._columns[0][at[open_]] == wanted[open_, 0]]
            same = np.ones(len(open_), bool)
            for number in range(1, _WORDS):
                same &= self._columns[number][at[open_]] == wanted[open_, number]
            found[open_[same]] = at[open_[same]]
            open_ = open_[~same]
            at[open_] += 1
        return found
