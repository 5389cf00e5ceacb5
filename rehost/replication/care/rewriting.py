"""Packs written anew with a part of what is in others: what is needed of them, or what is sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from rehost.replication.backends.interface import Backend
from rehost.replication.bundles import unpack
from rehost.replication.compression import DEFAULT_LEVEL, compress
from rehost.replication.manifest import SHA256_BYTES
from rehost.replication.pack_index import index_bytes
from rehost.replication.packs import PackWriter, Record, scan, table_of

_PIECE = 65_536


class Rewriter:
    """Takes bundles and makes packs of them in the place; `packs` are those that are durable and indexed."""

    def __init__(self, place: Backend) -> None:
        self.packs: list[str] = []
        self.bytes_written = 0
        self._place = place
        self._writer: PackWriter | None = None

    def add(self, record: Record, payload: bytes, keep: np.ndarray) -> None:
        """Copy some chunks of a bundle, given its sound payload. A bundle that is kept whole is not packed again."""
        if not keep.any():
            return
        table, codec, raw_length = record.table, record.codec, record.raw_length
        if not keep.all():
            raw = unpack(codec, payload, raw_length)
            ends = np.cumsum(record.lengths, dtype=np.int64)
            rows = list(zip((ends - record.lengths).tolist(), ends.tolist(), keep.tolist(), strict=True))
            content = b"".join(raw[start:end] for start, end, kept in rows if kept)
            names = [record.names[n * SHA256_BYTES : (n + 1) * SHA256_BYTES] for n in np.flatnonzero(keep).tolist()]
            table, raw_length = table_of(names, record.lengths[keep].tolist()), len(content)
            codec, payload = compress(content, DEFAULT_LEVEL)
        if self._writer is None:
            self._writer = PackWriter(self._place.spool / "packs")
        self._writer.append(table, codec, raw_length, payload)
        if self._writer.full:
            self.finish()

    def finish(self) -> None:
        """Make what was added durable and known. Raises OSError."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.make_durable()
        self._place.adopt(writer.path, f"packs/{writer.id}.pack")
        self._place.write(f"indexes/{writer.id}.parquet", index_bytes(writer.records))
        writer.path.unlink(missing_ok=True)
        writer.release()
        self.packs.append(writer.id)
        self.bytes_written += writer.size


@contextmanager
def opened(place: Backend, pack: str) -> Iterator[tuple[int, int]]:
    """A pack in memory: (file descriptor, size). What the disk cannot read is zeros. Raises FileNotFoundError."""
    name = f"packs/{pack}.pack"
    fd = os.memfd_create("pack", os.MFD_CLOEXEC)
    try:
        try:
            content = place.read(name)
        except FileNotFoundError:
            raise
        except OSError:
            content = _readable(place, name)
        os.ftruncate(fd, len(content))
        at = 0
        while at < len(content):
            at += os.pwrite(fd, memoryview(content)[at:], at)
        size = len(content)
        del content
        yield fd, size
    finally:
        os.close(fd)


def _readable(place: Backend, name: str) -> bytes:
    size = place.size(name)
    if size is None:
        raise FileNotFoundError(name)
    pieces = []
    for at in range(0, size, _PIECE):
        length = min(_PIECE, size - at)
        try:
            piece = place.read(name, at, length)
        except OSError:
            piece = b""
        pieces.append(piece.ljust(length, b"\0"))
    return b"".join(pieces)


def records_of(fd: int, size: int) -> list[Record]:
    """The records of a pack that hold a sound chunk; every byte of them was compared with its name."""
    return list(scan(fd, size))


def copy_records(rewriter: Rewriter, fd: int, records: list[Record], keep: Callable[[Record], np.ndarray]) -> None:
    """Copy what is kept of a pack's records; only sound chunks may be."""
    for record in records:
        kept = keep(record)
        if kept.any():
            rewriter.add(record, os.pread(fd, record.stored_length, record.payload_at), kept)
