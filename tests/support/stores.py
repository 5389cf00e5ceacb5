"""What tests of the store put into it, and find in its folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from rehost.ids import new_id
from rehost.replication.bundles import ZSTD, Bundle
from rehost.replication.manifest import BLOCKS_SCHEMA
from rehost.replication.snapshots import Region, Snapshot
from rehost.replication.store import Store
from rehost.source.inventory import Inventory
from tests.support.store_writer import name


def put(store: Store, *contents: bytes) -> list[bytes]:
    names = [name(content) for content in contents]
    for key, content in zip(names, contents, strict=True):
        store.put(key, content)
    return names


def only(path: Path, pattern: str) -> Path:
    (found,) = path.glob(pattern)
    return found


def snapshot(**fields: object) -> Snapshot:
    values: dict[str, object] = {
        "id": new_id("n"),
        "source_id": new_id("s"),
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "inventory": Inventory(hostname="h", os_id="debian", architecture="x86_64"),
        "volumes": (),
    }
    return Snapshot.model_validate({**values, **fields})


REGIONS = (
    Region(disk=0, start=0, size_bytes=65_536 * 3 + 1, used_by="nonzero", used_bytes=0),
    Region(disk=0, start=1 << 20, size_bytes=65_536, used_by="ext4", used_bytes=0),
)


def blocks_file(path: Path, *rows: tuple[int, int, bytes]) -> Path:
    columns = [[row[0] for row in rows], [row[1] for row in rows], [bytes(16)] * len(rows), [row[2] for row in rows]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, BLOCKS_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=BLOCKS_SCHEMA), path)
    return path


def packed(contents: list[bytes]) -> Bundle:
    bundle = Bundle.of(contents)
    return Bundle(bundle.names, bundle.lengths, ZSTD, zstandard.ZstdCompressor().compress(bundle.payload))
