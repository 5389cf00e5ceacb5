"""The chunk store: what was put is read back, whatever dies, is torn, flipped or full in between."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from rehost.errors import (
    StoreChunkCorrupt,
    StoreChunkMissing,
    StoreIOFailed,
    StoreNoSpace,
    StoreUnreadable,
)
from rehost.replication import chunk_map, packs, store as store_module
from rehost.replication.backends import local
from rehost.replication.bundles import RAW, ZLIB, ZSTD, BadBundle, Bundle, unpack
from rehost.replication.compression import compress
from rehost.replication.pack_index import read_index
from rehost.replication.store import Store
from tests.support.store_writer import chunk, name
from tests.support.stores import only, packed, put

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_was_put_is_read_back_at_once_after_a_flush_and_by_another_open(tmp_path: Path, level: int) -> None:
    contents = [b"", b"x", bytes(1 << 20), random.Random(1).randbytes(1 << 20), b"text " * 9999]
    with Store.open(tmp_path, compress_level=level) as store:
        names = put(store, *contents)
        assert [store.read_chunk(key) for key in names] == contents
        store.flush()
        assert [store.read_chunk(key) for key in names] == contents
    with Store.open(tmp_path) as store:
        assert [store.read_chunk(key) for key in names] == contents
        assert store.has([*names, name(b"other")]) == [True] * len(names) + [False]
        assert store.has([]) == []


def test_a_chunk_is_stored_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        assert store.put(name(b"a"), b"a")
        assert not store.put(name(b"a"), b"a")
        store.flush()
        assert not store.put(name(b"a"), b"a")
    with Store.open(tmp_path) as store:
        assert not store.put(name(b"a"), b"a")


def test_what_does_not_shrink_is_stored_as_it_is_and_what_does_is_not(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        put(store, random.Random(2).randbytes(100_000))
    overhead = len(packs.PACK_MAGIC) + packs.HEADER.size + packs.ROW_BYTES
    assert only(tmp_path, "packs/*.pack").stat().st_size == 100_000 + overhead
    with Store.open(tmp_path / "zeros") as store:
        put(store, bytes(100_000))
    assert only(tmp_path / "zeros", "packs/*.pack").stat().st_size < 1000


def test_bytes_that_do_not_have_the_name_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with pytest.raises(ValueError, match="SHA-256"):
            store.put(name(b"a"), b"b")
        assert store.has([name(b"a")]) == [False]
        with pytest.raises(ValueError, match="16 MiB"):
            store.put(name(b"a"), bytes((16 << 20) + 1))


def test_a_chunk_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with pytest.raises(StoreChunkMissing):
            store.read_chunk(name(b"a"))


def test_packs_are_sealed_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 100_000)
    contents = [random.Random(n).randbytes(30_000) for n in range(40)]
    with Store.open(tmp_path) as store:
        names = put(store, *contents)
        assert [store.read_chunk(key) for key in names] == contents
    assert len(list(tmp_path.glob("packs/*.pack"))) == len(list(tmp_path.glob("indexes/*.parquet"))) == 10
    assert not list(tmp_path.glob("packs/*.partial"))


def test_many_new_chunks_move_into_the_arrays_and_are_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 5_000)
    monkeypatch.setattr(chunk_map, "_RECENT_CHUNKS", 50)
    contents = [b"%d" % n for n in range(2_000)]
    with Store.open(tmp_path) as store:
        names = put(store, *contents)
        store.flush()
        assert len(store._chunks._recent) < 50  # it did happen
        assert len(store._chunks) == 2_000
        assert all(store.has(names))
        assert [store.read_chunk(key) for key in names] == contents


def test_two_stores_write_at_once_and_see_what_the_other_sealed(tmp_path: Path) -> None:
    with Store.open(tmp_path) as one, Store.open(tmp_path) as two:
        (a,) = put(one, b"of one")
        (b,) = put(two, b"of two")
        with pytest.raises(StoreChunkMissing):
            two.read_chunk(a)
        one.flush()
        two.flush()
        assert two.read_chunk(a) == b"of one"
        assert one.read_chunk(b) == b"of two"


def test_a_pack_under_way_is_left_alone_by_who_opens_the_store(tmp_path: Path) -> None:
    with Store.open(tmp_path) as one:
        (a,) = put(one, b"not sealed")
        Store.open(tmp_path).close()
        assert list(tmp_path.glob("packs/*.partial"))
        one.flush()
        assert one.read_chunk(a) == b"not sealed"


def test_threads_put_and_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 200_000)
    monkeypatch.setattr(local, "_OPEN_FILES", 2)
    contents = [chunk(7, n) for n in range(120)]

    def work(seed: int) -> None:
        order = random.Random(seed).sample(contents, len(contents))
        for content in order:
            store.put(name(content), content)
            assert store.read_chunk(name(content)) == content
        store.flush()
        assert all(store.has([name(content) for content in contents]))

    with Store.open(tmp_path) as store, ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(work, seed) for seed in range(6)]:
            future.result()
    total = sum(len(packs_of(path)) for path in tmp_path.glob("packs/*.pack"))
    assert total == len(contents)


def packs_of(path: Path) -> list[packs.Record]:
    with path.open("rb") as file:
        return list(packs.scan(file.fileno(), path.stat().st_size))


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    contents = [b"first " * 100, random.Random(3).randbytes(500)]
    with Store.open(tmp_path) as store:
        names = put(store, *contents)
    pack = only(tmp_path, "packs/*.pack")
    sound = pack.read_bytes()
    records = packs_of(pack)
    unnoticed = 0
    with Store.open(tmp_path) as store:
        for at in range(len(packs.PACK_MAGIC), len(sound)):
            torn = bytearray(sound)
            torn[at] ^= 1 << (at % 8)
            pack.write_bytes(torn)
            hurt = next(record for record in records if at < record.end)
            left = [record.offset for record in packs_of(pack)]
            unhurt = [record.offset for record in records if record is not hurt]
            unnoticed += left != unhurt
            assert set(unhurt) <= set(left)
            if at < hurt.payload_at:
                continue  # readers go by the index, and look at the payload alone
            read = 0
            for key, content in zip(names, contents, strict=True):
                try:
                    assert store.read_chunk(key) == content
                    read += 1
                except StoreChunkCorrupt:
                    pass
            assert read == 1 or len(left) == 2
    assert unnoticed <= 1  # zstd's frame header has a bit that means nothing


def test_a_pack_that_is_gone_is_missed_and_its_chunks_can_be_put_again(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        (a,) = put(store, b"a")
    only(tmp_path, "packs/*.pack").unlink()
    with Store.open(tmp_path) as store:
        assert store.has([a]) == [False]
        with pytest.raises(StoreChunkMissing):
            store.read_chunk(a)
        assert store.put(a, b"a")
        assert store.read_chunk(a) == b"a"


@pytest.mark.parametrize("damage", ["absent", "truncated", "foreign", "empty"])
def test_an_index_that_is_lost_or_damaged_is_made_again_from_its_pack(tmp_path: Path, damage: str) -> None:
    contents = [chunk(1, n) for n in range(20)]
    with Store.open(tmp_path) as store:
        names = put(store, *contents)
    index = only(tmp_path, "indexes/*.parquet")
    sound = index.read_bytes()
    if damage == "absent":
        index.unlink()
    else:
        index.write_bytes({"truncated": sound[:-9], "foreign": b"PAR1PAR1", "empty": b""}[damage])
    with Store.open(tmp_path) as store:
        assert [store.read_chunk(key) for key in names] == contents
    assert only(tmp_path, "indexes/*.parquet").read_bytes() == sound


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 4_000), garbage=st.binary(max_size=200), flip=st.none() | st.integers(0, 4_000))
def test_of_a_torn_pack_every_sound_chunk_is_kept_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes, flip: int | None
) -> None:
    path = tmp_path_factory.mktemp("torn")
    contents = [b"%d" % n * (n + 1) for n in range(30)]
    writer_of(path, contents)
    partial = only(path, "packs/*.partial")
    data = bytearray(partial.read_bytes())
    del data[max(0, len(data) - cut) :]
    if flip is not None and flip < len(data):
        data[flip] ^= 0xFF
    partial.write_bytes(bytes(data) + garbage)
    with Store.open(path) as store:
        found = store.has([name(content) for content in contents])
        for content, there in zip(contents, found, strict=True):
            if there:
                assert store.read_chunk(name(content)) == content
    intact = [bytes(data).find(record(content)) >= 0 for content in contents]
    assert found == intact
    assert not list(path.glob("packs/*.partial"))
    for pack in path.glob("packs/*.pack"):
        last = packs_of(pack)[-1]
        assert pack.stat().st_size == last.end


def record(content: bytes) -> bytes:
    codec, payload = compress(content, 3)
    table = packs.table_of([name(content)], [len(content)])
    return packs.header_of(codec, len(payload), len(content), table) + table + payload


def writer_of(path: Path, contents: list[bytes]) -> None:
    """A store with a partial pack whose writer is gone."""
    Store.open(path).close()
    writer = packs.PackWriter(path / "packs")
    for content in contents:
        codec, payload = compress(content, 3)
        writer.append(packs.table_of([name(content)], [len(content)]), codec, len(content), payload)
    writer.release()


def test_a_writer_killed_at_any_moment_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    draw = random.Random(5)
    survived = 0
    for seed in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_writer", str(tmp_path), str(seed), "20"],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None
            flushed = 0
            for _ in range(draw.randrange(1, 6)):
                flushed = int(process.stdout.readline())
            # A moment somewhere in the next flush; whichever it is, the promise holds.
            threading.Event().wait(draw.random() * 0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
        flushed = int((rest.split() or [b"%d" % flushed])[-1])
        with Store.open(tmp_path) as store:
            for number in range(flushed):
                content = chunk(seed, number)
                assert store.read_chunk(name(content)) == content
            survived += flushed
        assert not list(tmp_path.glob("packs/*.partial"))
    assert survived > 0


def test_two_processes_write_one_store(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_writer", str(tmp_path), str(seed), "15"],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for seed in (1, 1, 2)
    ]
    flushed = []
    try:
        for process in processes:
            assert process.stdout is not None
            flushed.append([int(process.stdout.readline()) for _ in range(4)][-1])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with Store.open(tmp_path) as store:
        for seed, count in zip((1, 1, 2), flushed, strict=True):
            for number in range(count):
                assert store.read_chunk(name(chunk(seed, number))) == chunk(seed, number)


def test_a_full_disk_loses_nothing_that_was_put_and_says_so(tmp_path: Path) -> None:
    contents = [random.Random(n).randbytes(50_000) for n in range(10)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store.open(tmp_path) as store:
        put(store, *contents[:4])
        resource.setrlimit(resource.RLIMIT_FSIZE, (220_000, hard))
        try:
            with pytest.raises(StoreNoSpace):
                put(store, *contents[4:])
            assert store.has([name(content) for content in contents[:5]]) == [True] * 4 + [False]
            store.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        put(store, *contents)
    with Store.open(tmp_path) as store:
        assert [store.read_chunk(name(content)) for content in contents] == contents


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny disk needs root")
def test_a_really_full_disk_keeps_what_was_put_before_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tiny", str(tmp_path)], check=True)
    try:
        contents = [random.Random(n).randbytes(50_000) for n in range(40)]
        stored = 0
        store = Store.open(tmp_path / "store")
        with pytest.raises(StoreNoSpace):
            for content in contents:
                put(store, content)
                stored += 1
        assert 10 < stored < 21
        with suppress(OSError), (tmp_path / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        with pytest.raises(StoreNoSpace):
            store.flush()  # no room for the index either
        assert [store.read_chunk(name(content)) for content in contents[:stored]] == contents[:stored]
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path)], check=True)
        put(store, *contents)
        store.close()
        with Store.open(tmp_path / "store") as store:
            assert [store.read_chunk(name(content)) for content in contents] == contents
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_only_a_store_or_an_empty_folder_is_opened(tmp_path: Path) -> None:
    (tmp_path / "stranger").write_text("x")
    with pytest.raises(StoreUnreadable, match="not empty"):
        Store.open(tmp_path)
    (tmp_path / "stranger").unlink()
    Store.open(tmp_path).close()
    (tmp_path / "config.json").write_text('{"format": "rehost-store", "version": 1}')
    with pytest.raises(StoreUnreadable, match="version"):
        Store.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StoreUnreadable, match="damaged"):
        Store.open(tmp_path)


def test_a_zstd_frame_that_promises_more_than_its_record_is_refused_before_memory_is_taken() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    forged = packs.Record(0, ZSTD, len(bomb), 1000, 1, packs.table_of([name(b"")], [1000]))
    assert not packs.check_content(forged, bomb).any()


# --- bundles


def test_a_bundle_of_zstd_is_stored_as_it_came_and_its_chunks_are_read_back(tmp_path: Path) -> None:
    contents = [b"%d " % n * 1000 for n in range(200)] + [b""]
    bundle = packed(contents)
    with Store.open(tmp_path) as store:
        assert store.put_bundle(bundle) == sum(map(len, contents))
        assert store.put_bundle(bundle) == 0
        assert [store.read_chunk(name(content)) for content in contents] == contents
    assert [record.chunks for record in packs_of(only(tmp_path, "packs/*.pack"))] == [201]
    assert bundle.payload in only(tmp_path, "packs/*.pack").read_bytes()
    with Store.open(tmp_path) as store:
        assert store.has(list(bundle.names)) == [True] * 201
        for number in random.Random(1).sample(range(201), 201):
            assert store.read_chunk(name(contents[number])) == contents[number]


@pytest.mark.parametrize("codec", [RAW, ZLIB])
def test_what_comes_by_another_codec_is_compressed_here(tmp_path: Path, codec: int) -> None:
    contents = [b"text %d " % n * 500 for n in range(100)]
    with Store.open(tmp_path, compress_level=0) as store:
        bundle = Bundle.of(contents)
        if codec == ZLIB:
            bundle = Bundle(bundle.names, bundle.lengths, ZLIB, zlib.compress(bundle.payload))
        store.put_bundle(bundle)
        assert [store.read_chunk(key) for key in bundle.names] == contents
    (record,) = packs_of(only(tmp_path, "packs/*.pack"))
    assert (record.codec, record.chunks) == (ZSTD, 100)
    assert record.stored_length < record.raw_length / 10


def test_incompressible_content_is_not_compressed_and_mixed_content_is(tmp_path: Path) -> None:
    noise = random.Random(4).randbytes(1 << 20)
    assert compress(noise, 9) == (RAW, noise)
    assert compress(noise[: 1 << 19] + bytes(1 << 19), 3)[0] == ZSTD


def test_of_a_bundle_that_is_mostly_known_only_the_rest_is_stored(tmp_path: Path) -> None:
    contents = [random.Random(n).randbytes(1000) for n in range(100)]
    with Store.open(tmp_path) as store:
        assert store.put_bundle(Bundle.of(contents[:90])) == 90_000
        assert store.put_bundle(packed([*contents, contents[99], b"compressible" * 99])) == 10_000 + 12 * 99
        assert [store.read_chunk(name(content)) for content in contents] == contents
    assert [record.chunks for record in packs_of(only(tmp_path, "packs/*.pack"))] == [90, 11]


BAD = {
    "no chunk": lambda b: Bundle((), (), RAW, b""),
    "a name of another length": lambda b: Bundle((b"short", b.names[1]), b.lengths, b.codec, b.payload),
    "a length too few": lambda b: Bundle(b.names, b.lengths[:1], b.codec, b.payload),
    "a length below zero": lambda b: Bundle(b.names, (-1, sum(b.lengths) + 1), b.codec, b.payload),
    "another name": lambda b: Bundle((b.names[0], name(b"x")), b.lengths, b.codec, b.payload),
    "names exchanged": lambda b: Bundle(b.names[::-1], b.lengths, b.codec, b.payload),
    "lengths shifted": lambda b: Bundle(b.names, (b.lengths[0] - 1, b.lengths[1] + 1), b.codec, b.payload),
    "an unknown codec": lambda b: Bundle(b.names, b.lengths, 9, b.payload),
    "a torn payload": lambda b: Bundle(b.names, b.lengths, b.codec, b.payload[:-1]),
    "more behind the payload": lambda b: Bundle(b.names, b.lengths, b.codec, b.payload + b"x"),
    "too long": lambda b: Bundle(b.names, (1 << 20, 1), b.codec, b.payload),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bundle_that_is_not_what_it_says_is_refused_and_nothing_of_it_kept(tmp_path: Path, kind: str) -> None:
    bundle = packed([b"one " * 99, b"two " * 88])
    with Store.open(tmp_path) as store:
        with pytest.raises(BadBundle):
            store.put_bundle(BAD[kind](bundle))
        assert store.has(list(bundle.names)) == [False, False]
    assert not list(tmp_path.glob("packs/*"))


def test_of_a_bundle_with_a_damaged_chunk_the_others_are_salvaged(tmp_path: Path) -> None:
    contents = [random.Random(n).randbytes(500) for n in range(5)]
    with Store.open(tmp_path) as store:
        store.put_bundle(Bundle.of(contents))
    pack = only(tmp_path, "packs/*.pack")
    pack.write_bytes(pack.read_bytes().replace(contents[2], bytes(500)))
    only(tmp_path, "indexes/*.parquet").unlink()
    with Store.open(tmp_path) as store:
        assert store.has([name(content) for content in contents]) == [True, True, False, True, True]
        assert store.read_chunk(name(contents[4])) == contents[4]


def test_random_readers_of_bundles_unpack_each_once_while_it_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [[b"%d %d " % (group, n) * 50 for n in range(100)] for group in range(8)]
    monkeypatch.setattr(store_module, "_CACHE_BYTES", 6 * 100 * 200)
    with Store.open(tmp_path) as store:
        for group in groups:
            store.put_bundle(packed(group))
        unpacked: list[int] = []

        def counting(codec: int, payload: bytes, length: int) -> bytes:
            unpacked.append(length)
            return unpack(codec, payload, length)

        monkeypatch.setattr(store_module, "unpack", counting)
        for _ in range(3):
            for contents in zip(*groups[:3], strict=True):
                assert [store.read_chunk(name(content)) for content in contents] == list(contents)
        assert len(unpacked) == 3
        for group in groups:
            store.read_chunk(name(group[0]))
        assert store._cache._bytes <= 6 * 100 * 200


# --- snapshots


def test_packs_whose_indexes_could_not_be_read_are_learnt_of_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store") as reader:
        for number in range(3):
            with Store.open(tmp_path / "store") as writer:
                put(writer, chunk(1, number))
        names = [name(chunk(1, number)) for number in range(3)]
        read, calls = read_index, iter([True, False])

        def broken(data: bytes, size: int) -> pa.Table:
            if not next(calls):
                raise OSError(errno.EIO, "Input/output error")
            return read(data, size)

        monkeypatch.setattr("rehost.replication.store.read_index", broken)
        monkeypatch.setattr(store_module, "_REFRESH_SECONDS", 0.0)
        with pytest.raises(StoreIOFailed):
            reader.has(names)
        monkeypatch.undo()
        assert reader.has(names) == [True] * 3
