"""The care of a store: what is hurt is found and put right, and only what nobody needs goes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from rehost.cli import main as cli
from rehost.errors import StoreChunkMissing, StoreUnreadable
from rehost.replication.backends.local import LocalFolder
from rehost.replication.care import check, condemned, gc, stat
from rehost.replication.care.alone import alone
from rehost.replication.care.errors import StoreBusy
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.settings import settings
from tests.support.store_writer import name
from tests.support.stores import only, put, snapshot


def chunks(seed: int, count: int, size: int = 50_000) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(size) for _ in range(count)]


def table(contents: list[bytes]) -> pa.Table:
    entries = [
        Entry(
            volume=0,
            path=b"file%04d" % number,
            mode=0o100644,
            uid=0,
            gid=0,
            size=len(content),
            mtime_ns=0,
            chunks=(Chunk(0, len(content), name(content)),),
        )
        for number, content in enumerate(contents)
    ]
    return table_of([Entry(path=b"", mode=0o40755), *entries])


def save(store: Store, contents: list[bytes], **fields: object) -> Snapshot:
    put(store, *contents)
    made = snapshot(**fields)
    store.save_snapshot(made, table(contents))
    return made


@pytest.fixture
def place(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path)


def packs_of(path: Path) -> int:
    return len(list(path.glob("packs/*.pack")))


def test_what_no_snapshot_needs_goes_and_what_one_needs_stays(tmp_path: Path, place: LocalFolder) -> None:
    kept, gone = chunks(1, 20), chunks(2, 20)
    with Store.open(tmp_path) as store:
        save(store, kept)
        put(store, *gone)
    told = gc.collect(place, grace_seconds=0, dry_run=True)
    assert (told.packs_condemned, told.packs_deleted, packs_of(tmp_path)) == (1, 0, 2)
    told = gc.collect(place, grace_seconds=3600)
    assert told.idle
    told = gc.collect(place, grace_seconds=0)
    assert (told.packs_condemned, told.packs_deleted, told.packs_waiting) == (1, 1, 0)
    assert condemned.read(place) == []
    with Store.open(tmp_path) as store:
        assert store.has([name(content) for content in kept + gone]) == [True] * 20 + [False] * 20
    assert gc.collect(place, grace_seconds=0).idle


def test_what_an_open_store_was_told_stays_until_it_is_closed(tmp_path: Path, place: LocalFolder) -> None:
    old = chunks(3, 10)
    with Store.open(tmp_path) as store:
        put(store, *old)
    names = [name(content) for content in old]
    with Store.open(tmp_path) as early:
        assert all(early.has(names))
        told = gc.collect(place, grace_seconds=0)
        assert (told.packs_condemned, told.packs_deleted, told.packs_waiting) == (1, 0, 1)
        with Store.open(tmp_path) as late:
            assert not any(late.has(names))
            with pytest.raises(StoreChunkMissing):
                late.save_snapshot(snapshot(), table(old))
        assert gc.collect(place, grace_seconds=0).packs_deleted == 0
        made = snapshot()
        early.save_snapshot(made, table(old))
        with Store.open(tmp_path) as late:
            assert [late.read_chunk(key) for key in names] == old
    told = gc.collect(place, grace_seconds=0)
    assert (told.packs_rescued, told.packs_deleted) == (1, 0)
    with Store.open(tmp_path) as store:
        assert all(store.has(names))
        store.delete_snapshot(made.id)
    assert gc.collect(place, grace_seconds=0).packs_deleted == 1
    assert packs_of(tmp_path) == 0


def test_packs_that_are_needed_in_part_and_small_ones_are_written_anew(tmp_path: Path, place: LocalFolder) -> None:
    contents = chunks(4, 30)
    texts = [b"%d " % number * 9999 for number in range(9)]
    with Store.open(tmp_path) as store:
        put(store, *contents)
        store.flush()
        save(store, contents[:5])
        for text in texts:
            save(store, [text])
    assert packs_of(tmp_path) == 10
    told = gc.collect(place, grace_seconds=0)
    assert (told.packs_rewritten, told.packs_deleted, packs_of(tmp_path)) == (10, 10, 1)
    with Store.open(tmp_path) as store:
        assert [store.read_chunk(name(content)) for content in contents[:5] + texts] == contents[:5] + texts
        assert not any(store.has([name(content) for content in contents[5:]]))
    assert check.check(place, read_data=True).findings == ()
    assert gc.collect(place, grace_seconds=0).idle


def test_a_damaged_chunk_is_found_and_does_not_count_as_had(tmp_path: Path, place: LocalFolder) -> None:
    contents = chunks(5, 10)
    with Store.open(tmp_path) as store:
        made = save(store, contents)
    pack = only(tmp_path, "packs/*.pack")
    damaged = bytearray(pack.read_bytes())
    at = damaged.index(contents[3][:64])
    damaged[at + 1000] ^= 1
    pack.write_bytes(damaged)
    assert check.check(place).sound
    told = check.check(place, read_data=True, report_only=True)
    assert [(f.kind, f.chunks, f.healed) for f in told.findings] == [("pack_damaged", 1, False)]
    assert [(t.snapshot_id, t.chunks, t.paths) for t in told.touched] == [(made.id, 1, ("/file0003",))]
    healed = check.check(place, read_data=True)
    assert [(f.name, f.healed) for f in healed.findings] == [(pack.stem, True)] and not healed.sound
    assert healed.touched == told.touched
    assert packs_of(tmp_path) == 1 and not pack.exists()
    assert check.check(place, read_data=True).findings == ()
    with Store.open(tmp_path) as store:
        assert store.has([name(content) for content in contents]) == [n != 3 for n in range(10)]
        put(store, contents[3])
    assert check.check(place, read_data=True).sound


@pytest.mark.parametrize("hurt", ["missing", "torn", "no index"])
def test_an_index_is_made_anew_from_its_pack(tmp_path: Path, place: LocalFolder, hurt: str) -> None:
    contents = chunks(6, 10)
    with Store.open(tmp_path) as store:
        save(store, contents)
    index = only(tmp_path, "indexes/*.parquet")
    if hurt == "torn":
        index.write_bytes(index.read_bytes()[:-50])
    else:
        index.unlink()
    if hurt == "missing":
        assert check.check(place, report_only=True).findings == ()  # it may be published now
    told = check.check(place, patience_seconds=-1)
    assert [f.kind for f in told.findings] == ["index_damaged" if hurt == "torn" else "index_missing"] and told.sound
    with Store.open(tmp_path) as store:
        assert [store.read_chunk(name(content)) for content in contents] == contents


def test_a_lost_pack_and_a_damaged_snapshot_are_told(tmp_path: Path, place: LocalFolder) -> None:
    with Store.open(tmp_path) as store:
        one, two = save(store, chunks(7, 5)), save(store, chunks(8, 15))
    max(tmp_path.glob("packs/*.pack"), key=lambda path: path.stat().st_size).unlink()
    (tmp_path / "snapshots" / one.id / "files.parquet").write_bytes(b"none")
    told = check.check(place)
    assert sorted((f.kind, f.healed) for f in told.findings) == [("pack_missing", True), ("snapshot_damaged", False)]
    ((touched),) = told.touched
    assert (touched.snapshot_id, touched.chunks, len(touched.paths)) == (two.id, 15, 10)
    with pytest.raises(StoreUnreadable):
        gc.collect(place, grace_seconds=0)


def test_two_do_not_care_for_a_store_at_once(place: LocalFolder, tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with alone(place), pytest.raises(StoreBusy):
        gc.collect(place)
    gc.collect(place)
    assert not any((tmp_path / "leases").iterdir())


def test_what_a_store_holds_is_counted(tmp_path: Path, place: LocalFolder) -> None:
    both, own, other = chunks(9, 4), chunks(10, 3), chunks(11, 2)
    with Store.open(tmp_path) as store:
        save(store, both + own, source_id="s-" + "a" * 20)
        save(store, both + own, source_id="s-" + "a" * 20)
        save(store, both + other, source_id="s-" + "b" * 20)
        put(store, *chunks(12, 6))
    told = stat.stat(place)
    assert (told.snapshots, told.sources, told.packs, told.chunks, told.missing_chunks) == (3, 2, 3, 15, 0)
    assert (told.raw_bytes, told.content_bytes) == (15 * 50_000, (7 + 7 + 6) * 50_000)
    assert told.live_bytes == 9 * 50_000
    assert told.live_share is not None and 0.55 < told.live_share < 0.6
    assert told.dedup_ratio == round(20 / 9, 3)
    shares = [(s.snapshots, s.bytes_own, s.bytes_shared) for s in told.by_source]
    assert shares == [(2, 150_000, 200_000), (1, 100_000, 200_000)]


def test_the_command_line_tells_it_and_ends_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    settings.cache_clear()
    try:
        with Store.open(tmp_path / "store") as store:
            made = save(store, chunks(13, 4))
            put(store, *chunks(14, 4))

        def rehost(*words: str) -> tuple[int, str]:
            code = cli.main(["store", *words])
            return code, capsys.readouterr().out

        for command in ("stat", "check", "gc"):
            code, text = rehost(command, "--json")
            assert code == 0 and json.loads(text)
            assert rehost(command)[0] == 0
        code, text = rehost("gc", "--grace-hours", "0", "--json")
        assert (code, json.loads(text)["packs_deleted"]) == (0, 1)
        (pack,) = (tmp_path / "store" / "packs").iterdir()
        content = bytearray(pack.read_bytes())
        content[-5] ^= 1
        pack.write_bytes(content)
        code, text = rehost("check", "--read-data")
        assert code == 3 and pack.stem in text and made.id in text and "/file0003" in text
        code, text = rehost("check", "--json")
        assert code == 3 and json.loads(text)["touched"][0]["paths"] == ["/file0003"]
        with alone(LocalFolder(tmp_path / "store")):
            assert rehost("gc")[0] == 11
        assert rehost("forget", made.id) == (0, "")
        assert rehost("forget", made.id)[0] == 1
        code, text = rehost("check", "--read-data")
        assert code == 0 and "Sound: 1 packs, 3 chunks, 0 snapshots" in text
    finally:
        monkeypatch.undo()
        settings.cache_clear()
