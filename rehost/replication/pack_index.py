"""Which chunk is in which pack: the immutable Parquet index of a pack, and all of them together in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rehost.replication.manifest import SHA256_BYTES
from rehost.replication.packs import HEADER, RAW_BYTES_MAX, Record

INDEX_SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.binary(SHA256_BYTES), nullable=False),  # sorted by it
        pa.field("offset", pa.uint32(), nullable=False),  # of the record's header, from the start of the pack
        pa.field("stored_length", pa.uint32(), nullable=False),  # bytes after the header
        pa.field("raw_length", pa.uint32(), nullable=False),
        pa.field("encoding", pa.uint8(), nullable=False),
    ],
    metadata={b"rehost.format": b"index/1"},
)

# Names are compared as 32-byte strings. NumPy leaves off zero bytes at the end when it takes one out as Python bytes,
# but compares all of them: two names of 32 bytes are equal here only if they are.
_NAME = np.dtype("S32")


class Location(NamedTuple):
    """Where a chunk is: the number of its pack in this process, and its place there."""

    pack: int
    offset: int
    stored_length: int

    @property
    def length(self) -> int:
        """Bytes of the whole record, header and payload."""
        return HEADER.size + self.stored_length


def index_bytes(records: Sequence[Record]) -> bytes:
    """The Parquet file of a pack's index."""
    ordered = sorted(records)
    columns = zip(*ordered, strict=True)
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)], schema=INDEX_SCHEMA
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False)
    return sink.getvalue()


def read_index(data: bytes, pack_size: int) -> pa.Table:
    """The table of an index. Raises ValueError where it is not one, or points outside its pack."""
    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise ValueError("it has other columns")
    end = table["offset"].to_numpy().astype(np.int64) + HEADER.size + table["stored_length"].to_numpy()
    if len(end) and (end.max() > pack_size or table["stored_length"].to_numpy().max() > RAW_BYTES_MAX):
        raise ValueError("it points outside its pack")
    return table


class ChunkTable:
    """Sorted arrays, never changed: 44 bytes a chunk."""

    def __init__(self, names: np.ndarray, packs: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        self._names, self._packs, self._offsets, self._lengths = names, packs, offsets, lengths

    @classmethod
    def empty(cls) -> ChunkTable:
        none = np.empty(0, np.uint32)
        return cls(np.empty(0, _NAME), none, none, none)

    def __len__(self) -> int:
        return len(self._names)

    def with_indexes(self, indexes: Mapping[int, pa.Table]) -> ChunkTable:
        """These chunks and those of the indexes, given by pack number."""
        names, packs = [self._names], [self._packs]
        offsets, lengths = [self._offsets], [self._lengths]
        for number, table in indexes.items():
            column = table["sha256"].combine_chunks()
            array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            names.append(np.frombuffer(array.buffers()[1], _NAME, len(array), array.offset * SHA256_BYTES))
            packs.append(np.full(len(array), number, np.uint32))
            offsets.append(table["offset"].to_numpy())
            lengths.append(table["stored_length"].to_numpy())
        return _sorted(names, packs, offsets, lengths)

    def with_locations(self, locations: Mapping[bytes, Location]) -> ChunkTable:
        """These chunks and some more."""
        numbers = np.array(list(locations.values()), np.uint32).reshape(-1, 3)
        return _sorted(
            [self._names, np.frombuffer(b"".join(locations), _NAME)],
            [self._packs, numbers[:, 0]],
            [self._offsets, numbers[:, 1]],
            [self._lengths, numbers[:, 2]],
        )

    def without_packs(self, numbers: Sequence[int]) -> ChunkTable:
        """These chunks without those of some packs."""
        keep = ~np.isin(self._packs, np.array(numbers, np.uint32))
        return ChunkTable(self._names[keep], self._packs[keep], self._offsets[keep], self._lengths[keep])

    def find(self, name: bytes) -> Location | None:
        """Where the chunk of that name is."""
        wanted = np.frombuffer(name, _NAME)
        at = int(self._names.searchsorted(wanted)[0])
        if at < len(self._names) and self._names[at] == wanted[0]:
            return Location(int(self._packs[at]), int(self._offsets[at]), int(self._lengths[at]))
        return None

    def contains(self, names: Sequence[bytes]) -> np.ndarray:
        """A boolean for each of these names, all at once."""
        if not len(self._names):
            return np.zeros(len(names), bool)
        wanted = np.frombuffer(b"".join(names), _NAME)
        at = np.minimum(self._names.searchsorted(wanted), len(self._names) - 1)
        return np.asarray(self._names[at] == wanted)


def _sorted(
    names: list[np.ndarray], packs: list[np.ndarray], offsets: list[np.ndarray], lengths: list[np.ndarray]
) -> ChunkTable:
    all_names = np.concatenate(names)
    order = np.argsort(all_names, kind="stable")
    return ChunkTable(
        all_names[order],
        np.concatenate(packs)[order].astype(np.uint32, copy=False),
        np.concatenate(offsets)[order].astype(np.uint32, copy=False),
        np.concatenate(lengths)[order].astype(np.uint32, copy=False),
    )
