"""The parts of the wire by themselves: the order of a scan, statuses, bundles, work in order."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from rehost.agent import protocol, scan, status
from rehost.agent.pipeline import Ordered
from rehost.agent.walk import Walker
from rehost.replication.bundles import BUNDLE_BYTES, RAW, ZLIB, ZSTD, Bundle
from rehost.replication.manifest import SCAN_SCHEMA
from rehost.source.connect import PathConnection, open_session
from rehost.source.exclude import exclude_expression
from rehost.source.scan_rows import ScanRows
from rehost.source.session import FileRequest
from tests.support.trees import make_nasty_tree

CODES = {"zlib": ZLIB, "zstd": ZSTD}


class _Here:
    """What a scan needs of the agent, in this process."""

    def __init__(self, walker: Walker) -> None:
        self.walker = walker
        self.output = self
        self.frames: list[tuple[int, bytes]] = []
        self.failed: list[BaseException] = []

    def codec(self, level: int) -> protocol.Codec:
        return protocol.Codec("none", level)

    def send(self, kind: int, *pieces: bytes) -> None:
        self.frames.append((kind, b"".join(pieces)))

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)


def _violation(reason: str) -> Exception:
    return ValueError(reason)


def _scanned(walker: Walker, volumes: Sequence[str] = ("",), exclude: Sequence[str] = ()) -> tuple[pa.Table, list[str]]:
    """The rows of a scan in this process, and the reasons of what was skipped."""
    here = _Here(walker)
    request = {"volumes": list(volumes), "exclude": exclude_expression(exclude)}
    scan.serve(here, json.dumps(request).encode())
    assert not here.failed
    rows = ScanRows(len(volumes), _violation)
    batches = [rows.batch(body[protocol.PACK.size :]) for kind, body in here.frames if kind == protocol.ROWS]
    told = json.loads(here.frames[-1][1])
    table = pa.Table.from_batches(batches, SCAN_SCHEMA)
    assert told["rows"] == table.num_rows
    return table, [reason for _, reason in told["skipped"]]


def _paths(root: Path) -> list[bytes]:
    top = os.fsencode(root)
    found = [b""]
    for directory, directories, files in os.walk(top):
        found += [os.path.relpath(os.path.join(directory, name), top) for name in directories + files]
    return sorted(found)


@pytest.fixture
def without_statx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_by_statx", lambda: None)


NAMES = [b"a", b"a-b", b"a0", b"a.", b"a b", b"a\xff", b"A", b"~", b"\x01", b"a!", "ä".encode()]


def _make_random(directory: bytes, draw: random.Random, depth: int) -> None:
    for name in draw.sample(NAMES, draw.randint(0, len(NAMES))):
        path = os.path.join(directory, name)
        if depth and draw.random() < 0.5:
            os.mkdir(path)
            _make_random(path, draw, depth - 1)
        else:
            os.mknod(path)


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_in_the_order_of_their_paths(tmp_path: Path, seed: int) -> None:
    _make_random(os.fsencode(tmp_path), random.Random(seed), 4)
    table, skipped = _scanned(Walker(os.fsencode(tmp_path)))
    assert table["path"].to_pylist() == _paths(tmp_path)
    assert not skipped


def test_a_nasty_tree_is_the_same_by_statx_and_by_lstat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_nasty_tree(tmp_path)
    by_statx, _ = _scanned(Walker(os.fsencode(tmp_path)))
    assert by_statx["path"].to_pylist() == _paths(tmp_path)
    monkeypatch.setattr(status, "_by_statx", lambda: None)
    by_lstat, _ = _scanned(Walker(os.fsencode(tmp_path)))
    assert by_statx.drop(["atime_ns"]).equals(by_lstat.drop(["atime_ns"]))
    for row in by_lstat.to_pylist():
        found = os.lstat(os.path.join(os.fsencode(tmp_path), row["path"]) if row["path"] else tmp_path)
        assert (row["dev"], row["ino"], row["nlink"]) == (found.st_dev, found.st_ino, found.st_nlink)
        assert (row["mtime_ns"], row["ctime_ns"]) == (found.st_mtime_ns, found.st_ctime_ns)


def test_this_machine_has_the_quick_way() -> None:
    assert status._by_statx() is not None
    with pytest.raises(FileNotFoundError):
        status.looker()(b"there is no such name")


def test_a_time_before_the_epoch_is_kept(tmp_path: Path, without_statx: None) -> None:
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", ns=(-1, -1_500_000_001))
    table, _ = _scanned(Walker(os.fsencode(tmp_path)))
    row = table.to_pylist()[1]
    assert (row["atime_ns"], row["mtime_ns"]) == (-1, -1_500_000_001)


def test_a_volume_that_is_read_elsewhere_keeps_its_place_among_the_others(tmp_path: Path) -> None:
    tree, snapshot = tmp_path / "tree", tmp_path / "snapshot"
    for path in (tree / "a/live", tree / "a/in/kept", tree / "b", snapshot / "in/hidden", snapshot / "old"):
        path.mkdir(parents=True)
    (tree / "a-b").touch()
    walker = Walker(os.fsencode(tree))
    walker.elsewhere[b"a"] = os.fsencode(snapshot)
    walker.elsewhere[b"a/in"] = os.fsencode(tree / "a/in")
    walker.devices[os.stat(snapshot).st_dev] = os.makedev(0x12345, 0x54321)
    table, skipped = _scanned(walker, ["", "a", "a/in"])
    rows = {row["path"]: row["volume"] for row in table.to_pylist()}
    assert rows == {b"": 0, b"a": 1, b"a-b": 0, b"a/in": 2, b"a/in/kept": 2, b"a/old": 1, b"b": 0}
    assert list(rows) == sorted(rows)
    assert set(table["dev"].to_pylist()) == {os.makedev(0x12345, 0x54321)}
    assert not skipped
    walker.forget()
    table, _ = _scanned(walker, ["", "a", "a/in"])
    assert table["path"].to_pylist() == [b"", b"a", b"a-b", b"a/in", b"a/in/kept", b"a/live", b"b"]


def test_a_volume_to_which_nothing_leads_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    table, skipped = _scanned(Walker(os.fsencode(tmp_path)), ["", "gone/away", "here"])
    assert table["path"].to_pylist() == [b"", b"here"]
    assert len(skipped) == 2
    table, _ = _scanned(Walker(os.fsencode(tmp_path)), ["", "here"], ["/here"])
    assert table["path"].to_pylist() == [b""]


def test_a_deep_path_to_a_volume_that_is_no_mount_has_its_attributes(tmp_path: Path) -> None:
    (tmp_path / "srv/data").mkdir(parents=True)
    os.chmod(tmp_path / "srv", 0o711)
    table, _ = _scanned(Walker(os.fsencode(tmp_path)), ["", "srv/data"])
    assert [(row["path"], row["volume"]) for row in table.to_pylist()] == [(b"", 0), (b"srv", 0), (b"srv/data", 1)]
    assert table["mode"].to_pylist()[1] == 0o40711


# --- bundles --------------------------------------------------------------------------------------------------


def _bundles(tree: Path, level: int = 0) -> tuple[list[Bundle], int]:
    """What a reading of all files delivers, and how many files were read."""
    bundles: list[Bundle] = []
    names = sorted(os.listdir(os.fsencode(tree)))
    requests = [FileRequest(number, name, 0) for number, name in enumerate(names)]
    with open_session(PathConnection(root=str(tree)), compress_level=level) as session:
        contents = list(session.read(requests, lambda names: [True] * len(names), bundles.append))
    assert [content.index for content in contents] == list(range(len(names)))
    named = {chunk.sha256 for content in contents for chunk in content.chunks}
    assert sorted(name for bundle in bundles for name in bundle.names) == sorted(named)
    return bundles, len(contents)


def test_small_files_travel_in_few_bundles(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"{number}").write_bytes(b"%d\n" % number * 50)
    bundles, files = _bundles(tmp_path, 3)
    assert files == 5000
    assert len(bundles) <= 4
    assert all(bundle.codec != RAW and bundle.raw() for bundle in bundles)
    assert sum(len(bundle.payload) for bundle in bundles) < 200_000


def test_bundles_are_bounded_and_large_chunks_go_alone(tmp_path: Path) -> None:
    draw = random.Random(1)
    for number in range(60):
        (tmp_path / f"{number:02}").write_bytes(draw.randbytes(draw.choice([1, 100_000, 600_000, 1 << 20])))
    bundles, _ = _bundles(tmp_path, 6)
    assert all(bundle.size <= BUNDLE_BYTES for bundle in bundles)
    assert all(bundle.codec == RAW and bundle.raw() for bundle in bundles)  # what does not shrink goes as it is
    following = itertools.pairwise(bundles)
    assert sum(one.size + other.lengths[0] <= BUNDLE_BYTES for one, other in following) <= 5  # ends of batches


@pytest.mark.parametrize("name", ["zlib", "zstd"])
@pytest.mark.parametrize("level", range(10))
def test_every_level_packs_what_shrinks_and_leaves_what_does_not(name: str, level: int) -> None:
    draw = random.Random(level)
    codec = protocol.Codec(name, level)
    text = b" ".join(b"%d" % draw.randrange(1000) for _ in range(60_000))
    noise = draw.randbytes(300_000)
    for raw, shrinks in ((text, level > 0), (noise, False), (b"", False), (text[:2000], level > 0)):
        code, payload = codec.compress(raw)
        assert code == (CODES[name] if shrinks else RAW)
        assert len(payload) < len(raw) if shrinks else payload == raw
        bundle = Bundle.of([raw])
        assert Bundle(bundle.names, bundle.lengths, code, payload).raw() == raw


# --- work in order --------------------------------------------------------------------------------------------


def test_work_is_handed_on_in_order_whoever_is_done_first() -> None:
    emitted: list[int] = []
    together = threading.Barrier(3, timeout=60)

    def prepare() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item < 3:
                together.wait()  # three at a time, or never
                time.sleep(0.01 * (3 - item))
            return item * 10

        return work

    failed: list[BaseException] = []
    ordered = Ordered(prepare, emitted.append, 3, 8, failed.append)
    for item in range(100):
        ordered.submit(item)
    ordered.finish()
    assert emitted == [item * 10 for item in range(100)]
    assert not failed


def test_an_error_of_a_worker_is_told_of() -> None:
    failed: list[BaseException] = []
    told = threading.Event()

    def fail(error: BaseException) -> None:
        failed.append(error)
        told.set()

    Ordered(lambda: lambda item: 1 // item, lambda result: None, 1, 2, fail).submit(0)
    assert told.wait(60)
    assert isinstance(failed[0], ZeroDivisionError)
