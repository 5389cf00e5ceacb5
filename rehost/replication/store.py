"""The chunk store on the local disk: content by its SHA-256, and the snapshots made of it.

    config.json               {"format": "rehost-store", "version": 2}
    packs/ID.pack             sealed packs; ID.partial while one is written
    indexes/ID.parquet        the index of a pack, written after it
    snapshots/n-ID/           snapshot.json, and the tables of files and blocks

Several processes may use one store at once: what is published is never changed, each writer has a pack of its own,
and a lock that is free tells that its writer died. docs/formats.md has the bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from rehost.errors import StoreChunkCorrupt, StoreChunkMissing, StoreError, StoreUnreadable
from rehost.replication.bundles import BUNDLE_BYTES, RAW, ZSTD, BadBundle, Bundle, unpack
from rehost.replication.chunk_map import BundleCache, ChunkMap
from rehost.replication.compression import DEFAULT_LEVEL, compress
from rehost.replication.manifest import SHA256_BYTES
from rehost.replication.pack_index import BundleAt, Location, index_bytes, read_index
from rehost.replication.packs import (
    CHUNKS_MAX,
    RAW_BYTES_MAX,
    OpenFile,
    PackWriter,
    Record,
    publish,
    recover,
    storage_error,
    table_of,
)
from rehost.replication.snapshots import Snapshot, Snapshots, TableKind

log = logging.getLogger(__name__)

_CONFIG = {"format": "rehost-store", "version": 2}
_FOLDERS = ("packs", "indexes", "snapshots")
_OPEN_FILES = 64  # sealed packs kept open for reading
_UNSEALED_PACKS = 2  # full packs that may wait for the disk before a put waits too
_REFRESH_SECONDS = 5.0  # how long `has` may not know what another process sealed
_CACHE_BYTES = 64 << 20  # unpacked bundles kept for the next reader


class Store:
    """Chunks by name, and snapshots. A ChunkReader. Safe for threads; a context manager that flushes at its end."""

    def __init__(self, path: Path, compress_level: int) -> None:
        self.path = path
        self._level = compress_level or DEFAULT_LEVEL
        self._snapshots = Snapshots(path / "snapshots")
        self._lock = threading.RLock()  # around all below; never held while compressing, hashing or waiting for a disk
        self._chunks = ChunkMap()
        self._cache = BundleCache(_CACHE_BYTES)
        self._pack_ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._own: dict[int, PackWriter] = {}  # not yet sealed and indexed
        self._current: int | None = None
        self._sealer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal")
        self._sealing: deque[Future[None]] = deque()
        self._without_index: list[int] = []  # durable, but their index could not be written yet
        self._refreshed = 0.0

    @classmethod
    def open(cls, path: Path, *, compress_level: int = 3) -> Store:
        """The store in that folder, made where there is nothing; packs that dead writers left are put right.

        `compress_level` is for chunks that do not arrive compressed by zstd: 1 to 9 are its levels of these numbers;
        0, which a job says of what travels, is the default here.
        Raises StoreUnreadable, StoreNoSpace, StoreIOFailed.
        """
        if not 0 <= compress_level <= 9:
            raise ValueError("compress_level is 0 to 9")
        path = path.absolute()
        try:
            _prepare(path)
            store = cls(path, compress_level)
            store._snapshots.clean()
            store._refresh()
            store._recover()
        except OSError as error:
            raise storage_error(error, path) from error
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except StoreError:
            if kind is None:
                raise
            log.exception("the store could not be flushed after another error")

    def close(self) -> None:
        """Flush, and let everything go."""
        try:
            self.flush()
        finally:
            self._sealer.shutdown()
            with self._lock:
                self._own.clear()
                self._open.clear()
                self._current = None

    # --- looking up

    def has(self, names: Sequence[bytes]) -> list[bool]:
        """For each name whether its chunk is there. What another process just stored may not be known yet."""
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refresh()
        found: list[bool] = self._chunks.known(names).tolist() if names else []
        return found

    def _refresh(self) -> None:
        """Learn of the packs that were sealed since, by this process or another."""
        with self._lock:
            self._refreshed = time.monotonic()
            # Indexes first: a pack that is listed here and sealed in between has its pack in the second list.
            indexes = _ids(self.path / "indexes", ".parquet")
            packs = _ids(self.path / "packs", ".pack")
            gone = [number for pack, number in self._numbers.items() if pack not in packs and number not in self._own]
            new = {}
            for pack in sorted((indexes & packs) - self._numbers.keys()):
                table = self._load_index(pack)
                if table is not None:
                    new[self._number(pack)] = table
            if new:
                self._chunks.add_indexes(new)
            if gone:
                self._forget(gone)

    def _load_index(self, pack: str) -> pa.Table | None:
        path = self.path / "indexes" / f"{pack}.parquet"
        try:
            size = (self.path / "packs" / f"{pack}.pack").stat().st_size
            return read_index(path.read_bytes(), size)
        except FileNotFoundError:
            return None  # removed meanwhile
        except ValueError as error:
            # The pack tells it all again: without its index it is read and indexed anew at the next open.
            log.error("the index %s is damaged (%s) and was put aside", path, error)
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
            return None

    def _number(self, pack: str) -> int:
        number = self._numbers.setdefault(pack, len(self._pack_ids))
        if number == len(self._pack_ids):
            self._pack_ids.append(pack)
        return number

    def _forget(self, numbers: Sequence[int]) -> None:
        self._chunks.forget(numbers)
        for number in numbers:
            self._open.pop(number, None)
            self._numbers.pop(self._pack_ids[number], None)

    def _recover(self) -> None:
        recovered = False
        for path in sorted((self.path / "packs").iterdir()):
            if path.suffix == ".partial" or (path.suffix == ".pack" and not self._index_path(path.stem).exists()):
                recovered |= recover(path, lambda pack: self._index_path(pack).exists(), self._write_index)
        if recovered:
            self._refresh()

    def _index_path(self, pack: str) -> Path:
        return self.path / "indexes" / f"{pack}.parquet"

    def _write_index(self, pack: str, records: list[Record]) -> None:
        path = self._index_path(pack)
        publish(path, index_bytes(records), path.with_suffix(".tmp"))

    # --- reading

    def read_chunk(self, sha256: bytes) -> bytes:
        """The bytes of that name, compared with it.

        Raises StoreChunkMissing, StoreChunkCorrupt, StoreIOFailed.
        """
        at = self._chunks.find(sha256)
        if at is None:
            self._refresh()
            at = self._chunks.find(sha256)
        if at is None:
            raise StoreChunkMissing(sha256=sha256.hex())
        bundle = self._chunks.bundle(at.bundle)
        pack = self._pack_ids[bundle.pack]
        try:
            return self._chunk(at, bundle, sha256)
        except BadBundle as error:
            raise StoreChunkCorrupt(sha256=sha256.hex(), pack=pack, reason=str(error)) from error
        except FileNotFoundError as error:
            raise StoreChunkMissing(sha256=sha256.hex()) from error
        except OSError as error:
            raise storage_error(error, self.path / "packs" / pack) from error

    def _chunk(self, at: Location, bundle: BundleAt, sha256: bytes) -> bytes:
        content = self._cache.get(at.bundle)
        if content is None:
            stored = os.pread(self._file(bundle.pack).fd, bundle.stored_length, bundle.payload_at)
            content = unpack(bundle.codec, stored, bundle.raw_length)
            if at.length < bundle.raw_length:  # else nobody else wants it
                self._cache.put(at.bundle, content)
        chunk = content[at.place : at.place + at.length]
        if hashlib.sha256(chunk).digest() != sha256:
            raise BadBundle("its content is damaged")
        return chunk

    def _file(self, number: int) -> OpenFile:
        with self._lock:
            own = self._own.get(number)
            if own is not None:
                return own.file
            file = self._open.get(number)
            if file is None:
                path = self.path / "packs" / f"{self._pack_ids[number]}.pack"
                file = self._open[number] = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return file

    # --- writing

    def put(self, sha256: bytes, raw: bytes) -> bool:
        """Store a chunk by itself; False where it is there already. It is durable after `flush`.

        Raises ValueError where the bytes do not have that name or are longer than 16 MiB, StoreNoSpace (what was put
        before stays), StoreIOFailed.
        """
        return self._put(Bundle((sha256,), (len(raw),), RAW, raw))[0] > 0

    def put_bundle(self, bundle: Bundle) -> int:
        """Store what is new of a bundle, after comparing each chunk with its name; how many bytes of content were new.

        A payload of zstd is kept as it came where most of it is new; everything else is compressed here. It is
        durable after `flush`. Safe for threads; the work is done in the caller's. Raises BadBundle, StoreNoSpace
        (what was put before stays), StoreIOFailed.
        """
        return self._put(bundle)[1]

    def _put(self, bundle: Bundle) -> tuple[int, int]:
        """(chunks, bytes of content) that were new."""
        _check_shape(bundle)
        known = self._chunks.known(bundle.names)
        if known.all():
            return 0, 0
        bundle = self._packed(bundle, bundle.raw(), known)
        with self._lock:
            known = self._chunks.known(bundle.names)  # by now
            if known.all():
                return 0, 0
            rows = zip(bundle.names, bundle.lengths, known.tolist(), strict=True)
            new = {name: length for name, length, there in rows if not there}
            try:
                self._append(bundle)
            except OSError as error:
                raise storage_error(error, self.path) from error
        while len(self._sealing) > _UNSEALED_PACKS:
            self._await_oldest_seal()
        return len(new), sum(new.values())

    def _packed(self, bundle: Bundle, raw: bytes, known: np.ndarray) -> Bundle:
        """The bundle as it is stored. A chunk that is there may be stored again where leaving it out costs more."""
        lengths = np.array(bundle.lengths, np.int64)
        if bundle.codec == ZSTD and len(bundle.payload) < len(raw) and 2 * lengths[known].sum() < len(raw):
            return bundle
        if known.any():
            ends = np.cumsum(lengths)
            rows = zip(bundle.names, (ends - lengths).tolist(), ends.tolist(), known.tolist(), strict=True)
            fresh = {name: raw[start:end] for name, start, end, there in rows if not there}
            raw = b"".join(fresh.values())
            bundle = Bundle(tuple(fresh), tuple(len(chunk) for chunk in fresh.values()), RAW, raw)
        return Bundle(bundle.names, bundle.lengths, *compress(raw, self._level))

    def _append(self, bundle: Bundle) -> None:
        if self._current is None:
            writer = PackWriter(self.path / "packs")
            self._current = self._number(writer.id)
            self._own[self._current] = writer
        number = self._current
        writer = self._own[number]
        table = table_of(bundle.names, bundle.lengths)
        self._chunks.add_record(number, writer.append(table, bundle.codec, bundle.size, bundle.payload))
        if writer.full:
            self._hand_over()

    def _hand_over(self) -> None:
        """Give the current pack to the sealing thread; the lock is held."""
        if self._current is not None:
            self._sealing.append(self._sealer.submit(self._seal, self._current))
            self._current = None

    def _seal(self, number: int) -> None:
        writer = self._own[number]
        try:
            writer.make_durable()
        except BaseException:
            # After a failed fsync nobody knows what is on the disk: these chunks count as never stored.
            with self._lock:
                del self._own[number]
                self._forget([number])
            raise
        with self._lock:
            self._without_index.append(number)
        self._index(number)

    def _index(self, number: int) -> None:
        writer = self._own[number]
        self._write_index(writer.id, writer.records)
        writer.release()
        with self._lock:
            self._without_index.remove(number)
            del self._own[number]
            self._open[number] = writer.file

    def _await_oldest_seal(self) -> None:
        try:
            future = self._sealing.popleft()
        except IndexError:
            return
        try:
            future.result()
        except OSError as error:
            raise storage_error(error, self.path) from error

    def flush(self) -> None:
        """Return once everything that was put is durable and indexed.

        Raises StoreNoSpace, StoreIOFailed: then some chunks may not be stored, and `has` says which.
        """
        with self._lock:
            self._hand_over()
            late = list(self._without_index)
        failed: StoreError | None = None
        while self._sealing:
            try:
                self._await_oldest_seal()
            except StoreError as error:
                failed = error
        self._sealer.submit(int).result()  # whatever another thread's flush is waiting for is done too
        for number in late:
            if number in self._own and number in self._without_index:
                try:
                    self._sealer.submit(self._index, number).result()
                except OSError as error:
                    failed = storage_error(error, self.path)
        if failed is not None:
            raise failed

    # --- snapshots

    def save_snapshot(self, snapshot: Snapshot, files: Path | pa.Table | None, blocks: Path | None = None) -> None:
        """Publish a snapshot: a files table (or the Parquet file of one), the Parquet file of a blocks table, or both.

        They name only chunks of this store. Raises ManifestInvalid, StoreUnreadable where a file is no such table,
        StoreChunkMissing, StoreNoSpace, StoreIOFailed.
        """
        self.flush()
        self._snapshots.save(snapshot, files, blocks, self._require)

    def _require(self, names: np.ndarray) -> None:
        missing = names[~self._chunks.known(names)]
        if len(missing):
            self._refresh()
            missing = missing[~self._chunks.known(missing)]
        if len(missing):
            raise StoreChunkMissing(sha256=missing[:1].tobytes().hex())

    def snapshot(self, id: str) -> Snapshot:
        """What is said of a snapshot. Raises SnapshotNotFound, StoreUnreadable."""
        return self._snapshots.load(id)

    def files(self, id: str) -> pa.Table:
        """The files table of a snapshot, checked. Raises SnapshotNotFound, StoreUnreadable, ManifestInvalid."""
        return self._snapshots.files(id)

    def table_path(self, id: str, kind: TableKind) -> Path:
        """The Parquet file of a snapshot's files or blocks, checked when it was saved. Raises SnapshotNotFound."""
        return self._snapshots.table_path(id, kind)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return sorted((self.snapshot(id) for id in self._snapshots.ids()), key=lambda s: (s.created_at, s.id))

    def delete_snapshot(self, id: str) -> None:
        """Take a snapshot away; its chunks stay. Raises SnapshotNotFound."""
        self._snapshots.delete(id)


def _check_shape(bundle: Bundle) -> None:
    """Refuse what no record can hold, before any of it is unpacked. Raises BadBundle."""
    names, lengths = bundle.names, bundle.lengths
    if len(names) != len(lengths) or not 1 <= len(names) <= CHUNKS_MAX:
        raise BadBundle("a bundle without chunks, or with other lengths than names")
    if set(map(len, names)) != {SHA256_BYTES} or min(lengths) < 0:
        raise BadBundle("a name or a length that is none")
    if bundle.size > (RAW_BYTES_MAX if len(names) == 1 else BUNDLE_BYTES):
        raise BadBundle(f"a chunk of more than {RAW_BYTES_MAX >> 20} MiB, or chunks of more than one together")


def _ids(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix == suffix}


def _prepare(path: Path) -> None:
    """Make the folders of a new store, or compare the version of one that is there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = path / "config.json"
    try:
        found = json.loads(config.read_bytes())
    except FileNotFoundError:
        strangers = [p for p in path.iterdir() if p.name not in _FOLDERS and not p.name.startswith(".config")]
        if strangers:
            raise StoreUnreadable(path=path, reason=f"it is not empty and has no {config.name}") from None
        for folder in _FOLDERS:
            (path / folder).mkdir(mode=0o700, exist_ok=True)
        publish(config, json.dumps(_CONFIG).encode() + b"\n", path / f".config-{os.getpid()}")
        return
    except ValueError as error:
        raise StoreUnreadable(path=path, reason=f"{config.name} is damaged: {error}") from error
    if found != _CONFIG:
        raise StoreUnreadable(path=path, reason=f"{config.name} says {json.dumps(found)[:200]}")
