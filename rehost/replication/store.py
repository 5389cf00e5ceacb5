"""The chunk store: content by its SHA-256, and the snapshots made of it.

    config.json               {"format": "rehost-store", "version": 2}
    packs/ID.pack             sealed packs; ID.partial while one is written
    indexes/ID.parquet        the index of a pack, written after it
    snapshots/n-ID/           snapshot.json, and the tables of files and blocks
    leases/store-ID           somebody has the store open
    condemned/ID.json         packs that are about to go (see care/condemned.py)

It lies in a folder or in a bucket (see backends). Several processes may use one store at once: what is published is
never changed, each writer has a pack of its own, and a lock that is free tells that its writer died.
docs/formats.md has the bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from rehost.errors import StoreChunkCorrupt, StoreChunkMissing, StoreError, StoreUnreadable
from rehost.replication.backends.interface import Backend
from rehost.replication.backends.leases import Lease
from rehost.replication.backends.local import LocalFolder
from rehost.replication.bundles import BUNDLE_BYTES, RAW, ZSTD, BadBundle, Bundle, unpack
from rehost.replication.care import condemned
from rehost.replication.care.alone import still_held
from rehost.replication.chunk_map import BundleCache, ChunkMap
from rehost.replication.compression import DEFAULT_LEVEL, compress
from rehost.replication.manifest import SHA256_BYTES
from rehost.replication.pack_index import BundleAt, Location, index_bytes, read_index
from rehost.replication.packs import (
    CHUNKS_MAX,
    RAW_BYTES_MAX,
    PackWriter,
    Record,
    recover,
    storage_error,
    table_of,
)
from rehost.replication.snapshots import Snapshot, Snapshots, TableKind

log = logging.getLogger(__name__)

_CONFIG = {"format": "rehost-store", "version": 2}
_UNSEALED_PACKS = 2  # full packs that may wait for the disk before a put waits too
_REFRESH_SECONDS = 5.0  # how long `has` may not know what another process sealed
_UNPACKING = 64
_CACHE_BYTES = 64 << 20  # unpacked bundles kept for the next reader


class Store:
    """Chunks by name, and snapshots. A ChunkReader. Safe for threads; a context manager that flushes at its end."""

    def __init__(self, backend: Backend, compress_level: int, lease: Lease, condemned: Collection[str]) -> None:
        self._backend = backend
        self._lease = lease
        self._condemned = condemned
        self._going: ChunkMap | None = None  # what only they hold, once somebody reads it
        self._level = compress_level or DEFAULT_LEVEL
        self._snapshots = Snapshots(backend)
        self._lock = threading.RLock()  # around all below; never held while compressing, hashing or waiting for a disk
        self._chunks = ChunkMap()
        self._cache = BundleCache(_CACHE_BYTES)
        self._unpacking = [threading.Lock() for _ in range(_UNPACKING)]  # each for some of the bundles
        self._pack_ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._own: dict[int, PackWriter] = {}  # not yet sealed and indexed
        self._current: int | None = None
        self._sealer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal")
        self._sealing: deque[Future[None]] = deque()
        self._late: list[int] = []  # durable in the spool, but neither they nor their index could be published yet
        self._refreshed = 0.0

    @classmethod
    def open(cls, path: Path, *, compress_level: int = 3) -> Store:
        """The store in that folder; see `at`."""
        return cls.at(lambda: LocalFolder(path.absolute()), compress_level=compress_level)

    @classmethod
    def at(cls, backend: Callable[[], Backend], *, compress_level: int = 3) -> Store:
        """The store in that place, made where there is nothing; packs that dead writers left are put right.

        `compress_level` is for chunks that do not arrive compressed by zstd: 1 to 9 are its levels of these numbers;
        0, which a job says of what travels, is the default here. Raises StoreUnreadable, StoreNoSpace, StoreIOFailed.
        """
        if not 0 <= compress_level <= 9:
            raise ValueError("compress_level is 0 to 9")
        shown = "the store"
        lease: Lease | None = None
        try:
            place = backend()
            shown = place.shown
            prepare(place)
            # In this order: what is condemned after the lease was taken stays as long as it is held.
            lease = place.lease("store")
            store = cls(place, compress_level, lease, condemned.packs(place))
            store._snapshots.clean()
            store._refresh()
            store._recover()
        except BaseException as error:
            if lease is not None:
                lease.release()
            if isinstance(error, OSError):
                raise storage_error(error, shown) from error
            raise
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
                for writer in self._own.values():
                    writer.release()  # what could not be published is for the next store of this machine
                self._own.clear()
                self._current = None
            self._lease.release()
            self._backend.close()

    # --- looking up

    def has(self, names: Sequence[bytes]) -> list[bool]:
        """For each name whether its chunk is there. What another process just stored may not be known yet."""
        if time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refresh()
        found: list[bool] = self._chunks.known(names).tolist() if names else []
        return found

    def _refresh(self) -> None:
        """Learn of the packs that were sealed since, by this process or another. Raises StoreIOFailed."""
        try:
            self._look()
        except OSError as error:
            self._refreshed = 0.0  # who asks next looks again
            raise storage_error(error, self._backend.shown) from error

    def _look(self) -> None:
        with self._lock:
            self._refreshed = time.monotonic()
            # Indexes first: a pack that is listed here and sealed in between has its pack in the second list.
            indexes = _of_kind(self._backend.list("indexes"), ".parquet")
            packs = _of_kind(self._backend.list("packs"), ".pack")
            gone = [number for pack, number in self._numbers.items() if pack not in packs and number not in self._own]
            new = sorted((indexes.keys() & packs.keys()) - self._numbers.keys() - set(self._condemned))
            if new:
                tables = ((pack, self._load_index(pack, packs[pack])) for pack in new)
                numbered = len(self._pack_ids)
                try:
                    self._chunks.add_indexes((self._number(pack), table) for pack, table in tables if table is not None)
                except OSError:
                    # None of them was taken in: they are as unknown as before, and are read at the next look.
                    for pack in self._pack_ids[numbered:]:
                        self._numbers.pop(pack, None)
                    raise
                pa.default_memory_pool().release_unused()
            if gone:
                self._forget(gone)

    def _load_index(self, pack: str, pack_size: int) -> pa.Table | None:
        name = f"indexes/{pack}.parquet"
        try:
            return read_index(self._backend.fetch(name).read_bytes(), pack_size)
        except FileNotFoundError:
            return None  # removed meanwhile
        except ValueError as error:
            # The pack tells it all again: in a folder it is read and indexed anew at the next open.
            log.error("the index %s/%s is damaged (%s) and was put aside", self._backend.shown, name, error)
            self._backend.put_aside(name)
            return None

    def _number(self, pack: str) -> int:
        number = self._numbers.setdefault(pack, len(self._pack_ids))
        if number == len(self._pack_ids):
            self._pack_ids.append(pack)
        return number

    def _forget(self, numbers: Sequence[int]) -> None:
        self._chunks.forget(numbers)
        for number in numbers:
            self._numbers.pop(self._pack_ids[number], None)

    def _recover(self) -> None:
        recovered = False
        for path in sorted((self._backend.spool / "packs").iterdir()):
            if path.suffix == ".partial" or (path.suffix == ".pack" and not self._has_index(path.stem)):
                recovered |= recover(path, self._has_index, self._publish)
        if recovered:
            self._refresh()

    def _has_index(self, pack: str) -> bool:
        return self._backend.size(f"indexes/{pack}.parquet") is not None

    def _publish(self, path: Path, records: list[Record]) -> None:
        """Bring a durable pack from the spool to its place, and make it known by its index."""
        if path.suffix == ".partial":
            self._backend.adopt(path, f"packs/{path.stem}.pack")
        self._backend.write(f"indexes/{path.stem}.parquet", index_bytes(records))
        if path.suffix == ".partial":
            path.unlink(missing_ok=True)  # only now: until then a dead writer's pack is found here

    # --- reading

    def read_chunk(self, sha256: bytes) -> bytes:
        """The bytes of that name, compared with it.

        Raises StoreChunkMissing, StoreChunkCorrupt, StoreIOFailed.
        """
        at = self._chunks.find(sha256)
        if at is None:
            self._refresh()
            at = self._chunks.find(sha256)
        chunks = self._chunks
        if at is None:
            # Of a snapshot that was published after its packs were condemned: the next collection sets them free.
            chunks = self._condemned_chunks()
            at = chunks.find(sha256)
        if at is None:
            raise StoreChunkMissing(sha256=sha256.hex())
        bundle = chunks.bundle(at.bundle)
        pack = self._pack_ids[bundle.pack]
        try:
            return self._chunk(at, bundle, sha256)
        except BadBundle as error:
            raise StoreChunkCorrupt(sha256=sha256.hex(), pack=pack, reason=str(error)) from error
        except FileNotFoundError as error:
            raise StoreChunkMissing(sha256=sha256.hex()) from error
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/packs/{pack}") from error

    def _condemned_chunks(self) -> ChunkMap:
        with self._lock:
            if self._going is None:
                going = ChunkMap()
                packs = _of_kind(self._backend.list("packs"), ".pack") if self._condemned else {}
                for pack in sorted(packs.keys() & set(self._condemned)):
                    table = self._load_index(pack, packs[pack])
                    if table is not None:
                        self._pack_ids.append(pack)
                        going.add_indexes([(len(self._pack_ids) - 1, table)])
                self._going = going
            return self._going

    def _chunk(self, at: Location, bundle: BundleAt, sha256: bytes) -> bytes:
        if at.length == bundle.raw_length:  # nobody else wants it
            content = unpack(bundle.codec, self._payload(bundle), bundle.raw_length)
        else:
            content = self._cache.get(bundle) or self._unpacked(bundle)
        chunk = content[at.place : at.place + at.length]
        if hashlib.sha256(chunk).digest() != sha256:
            raise BadBundle("its content is damaged")
        return chunk

    def _unpacked(self, bundle: BundleAt) -> bytes:
        with self._unpacking[
            hash(bundle) % len(self._unpacking)
        ]:  # who wants the same bundle meanwhile waits for this one
            content = self._cache.get(bundle)
            if content is None:
                content = unpack(bundle.codec, self._payload(bundle), bundle.raw_length)
                self._cache.put(bundle, content)
            return content

    def _payload(self, bundle: BundleAt) -> bytes:
        with self._lock:
            own = self._own.get(bundle.pack)
        if own is not None:
            return os.pread(own.file.fd, bundle.stored_length, bundle.payload_at)
        name = f"packs/{self._pack_ids[bundle.pack]}.pack"
        return self._backend.read(name, bundle.payload_at, bundle.stored_length)

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
                raise storage_error(error, self._backend.shown) from error
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
            writer = PackWriter(self._backend.spool / "packs")
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
            self._late.append(number)
        self._settle(number)

    def _settle(self, number: int) -> None:
        """Publish a pack of ours that is durable in the spool."""
        writer = self._own[number]
        self._publish(writer.path, writer.records)
        writer.release()
        with self._lock:
            self._late.remove(number)
            del self._own[number]

    def _await_oldest_seal(self) -> None:
        try:
            future = self._sealing.popleft()
        except IndexError:
            return
        try:
            future.result()
        except OSError as error:
            raise storage_error(error, self._backend.shown) from error

    def flush(self) -> None:
        """Return once everything that was put is durable and indexed.

        Raises StoreNoSpace, StoreIOFailed: then some chunks may not be stored, and `has` says which.
        """
        with self._lock:
            self._hand_over()
            late = list(self._late)
        failed: StoreError | None = None
        while self._sealing:
            try:
                self._await_oldest_seal()
            except StoreError as error:
                failed = error
        self._sealer.submit(int).result()  # whatever another thread's flush is waiting for is done too
        for number in late:
            if number in self._own and number in self._late:
                try:
                    self._sealer.submit(self._settle, number).result()
                except OSError as error:
                    failed = storage_error(error, self._backend.shown)
        if failed is not None:
            raise failed

    # --- snapshots

    def save_snapshot(self, snapshot: Snapshot, files: Path | pa.Table | None, blocks: Path | None = None) -> None:
        """Publish a snapshot: a files table (or the Parquet file of one), the Parquet file of a blocks table, or both.

        They name only chunks of this store. Raises ManifestInvalid, StoreUnreadable where a file is no such table,
        StoreChunkMissing, StoreNoSpace, StoreIOFailed, StoreLeaseLost.
        """
        self.flush()
        self._snapshots.save(snapshot, files, blocks, self._require)
        try:
            still_held(self._backend, self._lease)
        except StoreError:
            self._snapshots.delete(snapshot.id)  # what it needs may have been taken for nobody's
            raise

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


def _of_kind(names: dict[str, int], suffix: str) -> dict[str, int]:
    return {name.removesuffix(suffix): size for name, size in names.items() if name.endswith(suffix)}


def prepare(place: Backend) -> None:
    """Make a place ready, compare the version of its store, or begin one where nothing is.

    Raises StoreUnreadable, OSError.
    """
    place.prepare()
    try:
        found = json.loads(place.read("config.json"))
    except FileNotFoundError:
        if place.is_foreign():
            raise StoreUnreadable(path=place.shown, reason="it is not empty and has no config.json") from None
        place.write("config.json", json.dumps(_CONFIG).encode() + b"\n")
        return
    except ValueError as error:
        raise StoreUnreadable(path=place.shown, reason=f"config.json is damaged: {error}") from error
    if found != _CONFIG:
        reason = f"config.json says {json.dumps(found)[:200]}, and this version reads {json.dumps(_CONFIG)}"
        raise StoreUnreadable(path=place.shown, reason=reason)
