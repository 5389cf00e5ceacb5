"""Snapshots in the store: what is said of one, and its files table, published together or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from rehost.errors import SnapshotNotFound, StoreIOFailed, StoreUnreadable
from rehost.replication.backends.interface import Backend
from rehost.replication.manifest import validate
from rehost.replication.packs import OpenFile, lock, publish, storage_error
from rehost.replication.snapshot_tables import check_blocks, read_files, required_chunks, write_blocks, write_files
from rehost.source.inventory import Inventory, Record, Volume

TableKind = Literal["files", "blocks"]

_ID = re.compile(r"n-[a-z0-9]{20}")
_DESCRIPTION = "snapshot.json"


class Region(Record):
    """A stretch of a disk that was taken block by block: a partition, a partition table, or a gap with boot code."""

    disk: int  # index of the inventory's disk
    start: int  # bytes from the start of that disk
    size_bytes: int
    device: str | None = None  # of the inventory's partition: "0_2"; None for tables and gaps
    filesystem: str | None = None
    used_by: str  # whose records told which blocks are in use: ext4, xfs, btrfs, swap, lvm; `nonzero`: all but zeros
    used_bytes: int  # of the blocks that were in use
    block_bytes: int = 65_536
    hash: str = "xxh3_128"  # of the column `hash`; or blake2b_128 where the source had no XXH3


class VolumeConsistency(Record):
    """How a volume was held still while it was copied."""

    mount_point: str
    method: str  # lvm, btrfs, freeze, live
    detail: str = ""  # why it was not a better one


class Snapshot(Record):
    """A server at one time: what was known of it, and what its files table is about."""

    id: str
    source_id: str
    parent_id: str | None = None  # the snapshot that this one was compared with
    created_at: datetime
    inventory: Inventory
    volumes: tuple[Volume, ...]  # the files table's `volume` column counts these
    regions: tuple[Region, ...] = ()  # the blocks table's `region` column counts these
    consistency: tuple[VolumeConsistency, ...] = ()
    files_total: int = 0  # rows of the files table
    bytes_total: int = (
        0  # the sum of their sizes, an inode with several names counted once; and the regions' used bytes
    )
    exclude: tuple[str, ...] = ()
    scan_began_ns: int | None = None  # since 1970 by the source's clock: what changed since then is read next time


class Snapshots:
    """The snapshots of a store: a folder of files each, that is there once its snapshot.json is."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._spool = backend.spool / "snapshots"

    def _name(self, snapshot_id: str) -> str:
        if not _ID.fullmatch(snapshot_id):
            raise SnapshotNotFound(id=snapshot_id)
        return f"snapshots/{snapshot_id}"

    def save(
        self,
        snapshot: Snapshot,
        files: Path | pa.Table | None,
        blocks: Path | None,
        require: Callable[[np.ndarray], None],
    ) -> None:
        """Publish a snapshot after checking its tables. One of the same id is not replaced: StoreIOFailed.

        `require` is called with the names of all chunks, some at a time, and raises for one that is not there.
        """
        name = self._name(snapshot.id)
        shown = f"{self._backend.shown}/{name}"
        temporary: Path | None = None
        try:
            # Held until the end of this function, so that `clean` leaves it alone.
            temporary, _held = self._folder_of_ours(snapshot.id)
            if files is not None:
                write_files(files, temporary / "files.parquet")
                required_chunks(temporary / "files.parquet", require)
            if blocks is not None:
                write_blocks(blocks, temporary / "blocks.parquet")
                check_blocks(temporary / "blocks.parquet", [(r.size_bytes, r.block_bytes) for r in snapshot.regions])
                required_chunks(temporary / "blocks.parquet", require)
            described = snapshot.model_dump_json(indent=1).encode()
            publish(temporary / _DESCRIPTION, described, temporary / f"{_DESCRIPTION}.tmp")
            self._backend.publish_folder(temporary, name, _DESCRIPTION)
        except FileExistsError as error:
            raise StoreIOFailed(path=shown, reason="there is a snapshot of this id already") from error
        except OSError as error:
            raise storage_error(error, shown) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def _folder_of_ours(self, snapshot_id: str) -> tuple[Path, OpenFile]:
        """A new folder in the spool, and its lock."""
        while True:
            folder = self._spool / f".{snapshot_id}-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            # Between the calls another's `clean` may have taken it for a dead process's, and removed it.
            with contextlib.suppress(FileNotFoundError):
                held = OpenFile(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                if lock(held.fd) and folder.exists():
                    return folder, held

    def load(self, snapshot_id: str) -> Snapshot:
        """What is said of a snapshot."""
        name = f"{self._name(snapshot_id)}/{_DESCRIPTION}"
        try:
            return Snapshot.model_validate_json(self._backend.read(name))
        except FileNotFoundError as error:
            raise SnapshotNotFound(id=snapshot_id) from error
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/{name}") from error
        except ValidationError as error:
            raise StoreUnreadable(path=f"{self._backend.shown}/{name}", reason=str(error)) from error

    def files(self, snapshot_id: str) -> pa.Table:
        """The files table of a snapshot, sorted by path, checked."""
        table = read_files(self.table_path(snapshot_id, "files"))
        validate(table)
        return table

    def table_path(self, snapshot_id: str, kind: TableKind) -> Path:
        """The Parquet file of a table of a snapshot; SnapshotNotFound where it has none of that kind."""
        name = f"{self._name(snapshot_id)}/{kind}.parquet"
        try:
            return self._backend.fetch(name)
        except FileNotFoundError as error:
            raise SnapshotNotFound(id=snapshot_id) from error
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/{name}") from error

    def kinds(self, snapshot_id: str) -> list[TableKind]:
        """The tables that a snapshot has."""
        name = self._name(snapshot_id)
        kinds: tuple[TableKind, ...] = ("files", "blocks")
        try:
            return [kind for kind in kinds if self._backend.size(f"{name}/{kind}.parquet") is not None]
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/{name}") from error

    def ids(self) -> list[str]:
        """The ids of all snapshots."""
        try:
            names = self._backend.list("snapshots")
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/snapshots") from error
        folders = (name.partition("/") for name in names)
        return sorted(folder for folder, _, file in folders if file == _DESCRIPTION and _ID.fullmatch(folder))

    def delete(self, snapshot_id: str) -> None:
        """Take a snapshot away; its chunks stay."""
        name = self._name(snapshot_id)
        try:
            self._backend.delete_folder(name, _DESCRIPTION)
        except FileNotFoundError as error:
            raise SnapshotNotFound(id=snapshot_id) from error
        except OSError as error:
            raise storage_error(error, f"{self._backend.shown}/{name}") from error

    def clean(self) -> None:
        """Remove what dead processes left half made, or half removed."""
        for path in self._spool.iterdir():
            if not path.name.startswith("."):
                continue
            with contextlib.suppress(OSError):
                held = OpenFile(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
                if lock(held.fd):
                    shutil.rmtree(path, ignore_errors=True)
