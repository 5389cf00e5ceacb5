"""Snapshots in the store: saved whole, read back as they were, and never naming what the store lacks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rehost.errors import (
    ManifestInvalid,
    SnapshotNotFound,
    StoreChunkMissing,
    StoreIOFailed,
    StoreUnreadable,
)
from rehost.replication import snapshot_tables
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.store import Store
from tests.support.store_writer import name
from tests.support.stores import REGIONS, blocks_file, put, snapshot

ROOT = Path(__file__).parents[2]


def files_of(*chunks: bytes) -> list[Entry]:
    content = [Chunk(0, len(data), name(data)) for data in chunks]
    return [
        Entry(b"", 0o040755),
        *(Entry(b"f%d" % n, 0o100644, size=c.length, chunks=(c,)) for n, c in enumerate(content)),
    ]


def test_a_snapshot_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    table = table_of(files_of(b"a", b"b"))
    older, newer = snapshot(), snapshot(created_at=datetime(2026, 1, 3, tzinfo=UTC), exclude=("/var/tmp",))
    with Store.open(tmp_path) as store:
        put(store, b"a", b"b")
        store.save_snapshot(newer, table)
        store.save_snapshot(older, table)
        with pytest.raises(StoreIOFailed):
            store.save_snapshot(older, table)
    with Store.open(tmp_path) as store:
        assert store.snapshots() == [older, newer]
        assert store.snapshot(newer.id) == newer
        assert store.files(newer.id).equals(table)
        store.delete_snapshot(older.id)
        assert store.snapshots() == [newer]
        for gone in (store.snapshot, store.files, store.delete_snapshot):
            with pytest.raises(SnapshotNotFound):
                gone(older.id)
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == [newer.id]


def test_a_snapshot_saved_from_a_parquet_file_is_the_same(tmp_path: Path) -> None:
    table = table_of(files_of(b"a"))
    pq.write_table(table, tmp_path / "scan.parquet")
    with Store.open(tmp_path / "store") as store:
        put(store, b"a")
        saved = snapshot()
        store.save_snapshot(saved, tmp_path / "scan.parquet")
        assert store.files(saved.id).equals(table)


def test_a_snapshot_never_names_a_chunk_that_the_store_lacks(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        put(store, b"a")
        with pytest.raises(StoreChunkMissing):
            store.save_snapshot(snapshot(), table_of(files_of(b"a", b"never put")))
        assert store.snapshots() == []


def test_a_manifest_that_breaks_a_rule_is_not_saved(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with pytest.raises(ManifestInvalid):
            store.save_snapshot(snapshot(), table_of([Entry(b"", 0o040755), Entry(b"../up", 0o100644)]))
        assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize(
    "id", ["../../etc", "n-", "", ".", "n-" + "a" * 19 + "/", "n-" + "A" * 20, "n-" + "a" * 20 + "\n"]
)
def test_an_id_is_never_a_path(tmp_path: Path, id: str) -> None:
    with Store.open(tmp_path) as store:
        for use in (store.snapshot, store.files, store.delete_snapshot):
            with pytest.raises(SnapshotNotFound):
                use(id)


def test_a_snapshot_half_written_by_a_dead_process_is_cleaned_away(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "snapshots" / ".n-half").mkdir()
    (tmp_path / "snapshots" / ".n-half" / "files.parquet").write_bytes(b"x")
    with Store.open(tmp_path) as store:
        assert store.snapshots() == []
    assert list((tmp_path / "snapshots").iterdir()) == []


# --- blocks


def test_a_snapshot_of_blocks_is_read_back_from_its_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        (a, b) = put(store, b"a", b"b")
        saved = snapshot(regions=REGIONS)
        blocks = blocks_file(tmp_path / "blocks", (0, 0, a), (0, 3, b), (1, 0, a))
        store.save_snapshot(saved, None, blocks)
        assert pq.read_table(store.table_path(saved.id, "blocks")).equals(pq.read_table(blocks))
        for without in (lambda: store.files(saved.id), lambda: store.table_path(saved.id, "files")):
            with pytest.raises(SnapshotNotFound):
                without()
        assert store.snapshot(saved.id) == saved


@pytest.mark.parametrize(
    "rows", [[(2, 0)], [(0, 4)], [(1, 1)], [(0, 1), (0, 0)], [(0, 1), (0, 1)], [(1, 0), (0, 0)]], ids=str
)
def test_blocks_that_break_a_rule_are_not_saved(
    tmp_path: Path, rows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store") as store:
        (a,) = put(store, b"a")
        blocks = blocks_file(tmp_path / "blocks", *((region, block, a) for region, block in rows))
        for rows_at_once in (1, 65_536):
            monkeypatch.setattr(snapshot_tables, "_ROWS_A_GROUP", rows_at_once)
            with pytest.raises(ManifestInvalid):
                store.save_snapshot(snapshot(regions=REGIONS), None, blocks)
        missing = blocks_file(tmp_path / "blocks", (0, 0, a), (0, 1, name(b"never put")))
        with pytest.raises(StoreChunkMissing):
            store.save_snapshot(snapshot(regions=REGIONS), None, missing)
        with pytest.raises(StoreUnreadable):
            store.save_snapshot(snapshot(regions=REGIONS), missing)
        assert store.snapshots() == []
