"""From a tree to a snapshot and back: everything arrives, once, and again only where it changed."""

from __future__ import annotations

import ast
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rehost.agent
from rehost.errors import SnapshotFileChanged, SourceUnreachable
from rehost.ids import new_id
from rehost.replication.backends.local import LocalFolder
from rehost.replication.bundles import Bundle
from rehost.replication.care import check
from rehost.replication.export import export_tree
from rehost.replication.manifest import CHUNK_BYTES
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.source.connect import PathConnection, open_session
from rehost.source.exclude import excluder
from rehost.source.session import FileContent, FileRequest, Session
from tests.support.trees import assert_same_tree, make_nasty_tree
from tests.support.wire import inventory, take, volume


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


def _connection(tree: Path) -> PathConnection:
    return PathConnection(root=str(tree))


def _rows(store: Store, snapshot: Snapshot) -> dict[bytes, dict[str, object]]:
    return {row["path"]: row for row in store.files(snapshot.id).to_pylist()}


def _read(
    session: Session, paths: Iterable[bytes], wanted: Callable[[Sequence[bytes]], Sequence[bool]] | None = None
) -> list[FileContent]:
    requests = [FileRequest(index, path, 1) for index, path in enumerate(paths)]
    return list(session.read(requests, wanted or (lambda names: [True] * len(names)), lambda bundle: None))


@pytest.mark.parametrize("level", [0, 3])
def test_a_nasty_tree_comes_back_equal(store: Store, tree: Path, tmp_path: Path, level: int) -> None:
    make_nasty_tree(tree)
    for name, seconds in (("before 1970", -86_400 * 365), ("past 2038", 5_000_000_000)):
        (tree / name).write_bytes(b"old and new")
        os.utime(tree / name, ns=(seconds * 10**9 + 1, seconds * 10**9 + 123_456_789))
    with open_session(_connection(tree), compress_level=level) as session:
        snapshot, report = take(session, store, tmp_path)
    if os.geteuid() == 0:
        assert report.unreadable == ()
        export_tree(Tree(store.files(snapshot.id), store), tmp_path / "back")
        assert_same_tree(tree, tmp_path / "back")
    assert report.vanished == report.unstable == ()
    with open_session(_connection(tree)) as session:
        _, second = take(session, store, tmp_path, parent=snapshot, checksum=True)
    assert second.bytes_new == 0
    assert second.bytes_on_wire < report.bytes_on_wire


def test_a_second_run_reads_and_sends_only_what_changed(store: Store, tree: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tree / f"{number:02}").write_bytes(os.urandom(200_000))
    with open_session(_connection(tree)) as session:
        first, report = take(session, store, tmp_path)
    assert report.files_changed == 40
    assert report.bytes_new == report.bytes_scanned == 8_000_000
    (tree / "07").write_bytes(os.urandom(200_000))
    (tree / "new").write_bytes(os.urandom(1_000))
    (tree / "08").unlink()
    with open_session(_connection(tree)) as session:
        second, again = take(session, store, tmp_path, parent=first)
    assert again.files_changed == 2
    assert again.bytes_new == again.bytes_scanned == 201_000
    assert 201_000 < again.bytes_on_wire < 215_000
    assert second.parent_id == first.id
    assert (second.files_total, second.bytes_total) == (41, 7_801_000)
    export_tree(Tree(store.files(second.id), store), tmp_path / "back")
    assert_same_tree(tree, tmp_path / "back")


def test_equal_content_is_sent_once(store: Store, tree: Path, tmp_path: Path) -> None:
    content = os.urandom(3 * CHUNK_BYTES)
    for number in range(8):
        (tree / f"{number}").write_bytes(content)
    os.link(tree / "0", tree / "link")
    with open_session(_connection(tree)) as session:
        snapshot, report = take(session, store, tmp_path)
    assert report.bytes_new == len(content)
    assert report.bytes_on_wire < 1.01 * len(content)
    assert report.files_changed == 8
    rows = _rows(store, snapshot)
    assert rows[b"0"]["link_group"] == rows[b"link"]["link_group"] is not None
    assert rows[b"1"]["link_group"] is None


def test_what_arrived_before_a_break_is_not_sent_again(store: Store, tree: Path, tmp_path: Path) -> None:
    for number in range(60):
        (tree / f"{number:02}").write_bytes(os.urandom(500_000))
    with pytest.raises(SourceUnreachable), open_session(_connection(tree)) as session:
        put, count = store.put_bundle, 0

        def breaking(bundle: Bundle) -> int:
            nonlocal count
            count += len(bundle.names)
            if count >= 20:
                session._channel._process.end(0)  # type: ignore[attr-defined]
            return put(bundle)

        store.put_bundle = breaking  # type: ignore[method-assign]
        try:
            take(session, store, tmp_path)
        finally:
            del store.put_bundle
            first = session.bytes_on_wire()
    assert 10_000_000 <= first < 30_000_000
    with open_session(_connection(tree)) as session:
        _, report = take(session, store, tmp_path)
    # Chunks that were on their way when it broke may come twice.
    assert first + report.bytes_on_wire < 30_000_000 + 4 * CHUNK_BYTES
    assert report.bytes_on_wire < 22_000_000


def test_a_link_in_a_tree_leads_nowhere_outside(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tree / "directory").symlink_to(tmp_path / "outside")
    (tree / "file").symlink_to(tmp_path / "outside" / "secret")
    with open_session(_connection(tree)) as session:
        batches = session.scan([volume()], [])
        assert sorted(row["path"] for batch in batches for row in batch.to_pylist()) == [b"", b"directory", b"file"]
        paths = [b"file", b"directory/secret", b"directory", b"../outside/secret", b"/etc/passwd"]
        contents = _read(session, paths)
    assert all(content.error is not None and not content.chunks for content in contents)


def test_a_file_that_keeps_changing_is_unstable(tree: Path) -> None:
    path = tree / "log"
    path.write_bytes(bytes(range(256)) * 50_000)
    stop = threading.Event()

    def write() -> None:
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(b"one more line\n")
                file.flush()
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with open_session(_connection(tree)) as session:
            (content,) = _read(session, [b"log"])
    finally:
        stop.set()
        writer.join()
    assert content.unstable
    assert content.size == sum(chunk.length for chunk in content.chunks) >= 256 * 50_000


def test_what_vanished_or_became_something_else_is_told(store: Store, tree: Path, tmp_path: Path) -> None:
    for name in ("gone", "link", "stays", "twin"):
        (tree / name).write_text(name)
    os.link(tree / "twin", tree / "twin2")

    class Racing:
        """The tree changes between the scan and the reading."""

        def __init__(self, session: Session) -> None:
            self.host, self.session = session.host, session

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def read(self, *arguments: object) -> Iterator[FileContent]:
            for name in ("gone", "link", "twin"):
                (tree / name).unlink(missing_ok=True)
            if not (tree / "link").is_symlink():
                (tree / "link").symlink_to("stays")
            yield from self.session.read(*arguments)  # type: ignore[arg-type]

    with open_session(_connection(tree)) as session:
        snapshot, report = take(Racing(session), store, tmp_path)  # type: ignore[arg-type]
    assert report.vanished == ("/gone", "/link", "/twin")
    rows = _rows(store, snapshot)
    assert sorted(rows) == [b"", b"stays", b"twin2"]
    assert rows[b"twin2"]["link_group"] is None
    assert rows[b"twin2"]["chunks"] != []


def test_a_comparison_puts_a_wrong_content_right(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "file").write_bytes(b"first")
    (tree / "other").write_bytes(b"other")
    with open_session(_connection(tree)) as session:
        first, _ = take(session, store, tmp_path)
    (tree / "file").write_bytes(b"again")
    # A snapshot that claims to have seen the new status and has the old content.
    status = (tree / "file").stat()
    table = store.files(first.id)
    at = pc.equal(table["path"], b"file")
    wrong = table
    for name, time_ns in (("mtime_ns", status.st_mtime_ns), ("ctime_ns", status.st_ctime_ns)):
        column = pc.if_else(at, time_ns, table[name]).combine_chunks()
        wrong = wrong.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    lie = first.model_copy(update={"id": new_id("n"), "scan_began_ns": status.st_ctime_ns + 10**10})
    store.save_snapshot(lie, wrong)
    for checksum, content in ((False, b"first"), (True, b"again")):
        with open_session(_connection(tree)) as session:
            snapshot, report = take(session, store, tmp_path, parent=lie, checksum=checksum)
        assert Tree(store.files(snapshot.id), store).read(b"file") == content
        assert report.files_changed == 0


def test_a_comparison_that_never_agrees_is_an_error(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "file").write_bytes(b"first")

    class Flipping:
        """Each reading of the same file says something else, as a failing disk does."""

        def __init__(self, session: Session) -> None:
            self.host, self.session, self.passes = session.host, session, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def read(self, *arguments: object) -> Iterator[FileContent]:
            self.passes += 1
            for content in self.session.read(*arguments):  # type: ignore[arg-type]
                if self.passes == 2:
                    chunk = content.chunks[0]._replace(sha256=bytes(32))
                    content = FileContent(content.index, 5, content.mtime_ns, content.ctime_ns, (chunk,), False)
                yield content

    with open_session(_connection(tree)) as session, pytest.raises(SnapshotFileChanged, match="/file"):
        take(Flipping(session), store, tmp_path, checksum=True)  # type: ignore[arg-type]


def test_too_long_paths_are_reported_and_the_rest_is_taken(store: Store, tree: Path, tmp_path: Path) -> None:
    at = os.open(tree, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"d" * 200, dir_fd=at)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (tree / "e").mkdir()
    with open_session(_connection(tree)) as session:
        snapshot, report = take(session, store, tmp_path)
    assert snapshot.files_total == 22
    assert len(report.unreadable) == 1
    assert "too long" in report.unreadable[0]
    os.system(f"rm -rf '{tree}'")  # rmtree of older Pythons does not reach so deep


def test_a_deep_tree_does_not_run_out_of_descriptors(tree: Path) -> None:
    deep = tree.joinpath(*["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"down here")
    (tree / "d" / "high").write_bytes(b"up here")
    with open_session(_connection(tree)) as session:
        assert sum(batch.num_rows for batch in session.scan([volume()], [])) == 403
        low = b"d/" * 400 + b"file"
        contents = _read(session, [low, b"d/high", low, b"d/" * 200 + b"x"])
    assert [content.error for content in contents] == [None, None, None, "vanished"]


def test_a_large_directory_is_scanned(tree: Path) -> None:
    for number in range(10_000):
        os.mknod(tree / f"{number}", stat.S_IFREG | 0o600)
    with open_session(_connection(tree)) as session:
        table = pa.Table.from_batches(list(session.scan([volume()], [])))
    assert table.num_rows == 10_001
    assert len(set(table["path"].to_pylist())) == 10_001


def test_excluded_names_and_what_is_below_them_stay_out(store: Store, tree: Path, tmp_path: Path) -> None:
    for name in ("var/cache/apt/a.deb", "var/lib/x.pyc", "srv/var/cache/y", "home/core", "tmp/z"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    with open_session(_connection(tree)) as session:
        exclude = ["/var/cache/*", "*.pyc", "core/", "/tmp"]
        snapshot, _ = take(session, store, tmp_path, exclude=exclude)
    files = [name.decode() for name, row in _rows(store, snapshot).items() if row["size"]]
    assert files == ["home/core", "srv/var/cache/y"]
    assert b"var/cache" in _rows(store, snapshot)


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("/a", ["/a", "/a/"], ["/b/a", "/ab"]),
        ("a", ["/a", "/x/y/a/"], ["/ab", "/a b"]),
        ("a/b", ["/a/b", "/x/a/b"], ["/a/x/b", "/xa/b"]),
        ("/a/*", ["/a/b", "/a/.b"], ["/a", "/a/b/c"]),
        ("/a/**", ["/a/b", "/a/b/c"], ["/a/", "/a"]),
        ("/**/b", ["/b", "/a/c/b"], ["/ab"]),
        ("*.log", ["/x.log", "/a/.log"], ["/x.log.1", "/x.log/y"]),
        ("/a?c", ["/abc", "/aüc"], ["/ac", "/a/c"]),
        ("/[a-c]", ["/b"], ["/d", "/-"]),
        ("/[!a]", ["/b"], ["/a"]),
        ("/[]x]", ["/]", "/x"], ["/y"]),
        ("/[a", ["/[a"], ["/a"]),
        ("/\\*", ["/*"], ["/x"]),
        ("dir/", ["/dir/", "/a/dir/"], ["/dir"]),
        ("/a\nb", ["/a\nb"], ["/a"]),
        ("/(x|y)", ["/(x|y)"], ["/x"]),
    ],
)
def test_patterns_mean_what_the_docs_say(pattern: str, matches: list[str], others: list[str]) -> None:
    excluded = excluder([pattern])
    for path in matches:
        assert excluded(path.strip("/").encode(), path.endswith("/")), path
    for path in others:
        assert not excluded(path.strip("/").encode(), path.endswith("/")), path


def test_no_pattern_takes_the_root_away() -> None:
    assert not any(excluder(["/", "//", ""])(path, True) for path in (b"", b"a"))


def test_volumes_are_told_apart(store: Store, tree: Path, tmp_path: Path) -> None:
    (tree / "home" / "user").mkdir(parents=True)
    (tree / "etc").mkdir()
    with open_session(_connection(tree)) as session:
        snapshot, _ = take(session, store, tmp_path, facts=inventory("/", "/home"))
    volumes = {path: row["volume"] for path, row in _rows(store, snapshot).items()}
    assert volumes == {b"": 0, b"etc": 0, b"home": 1, b"home/user": 1}


def test_the_bandwidth_limit_holds(tree: Path) -> None:
    (tree / "file").write_bytes(os.urandom(60_000_000))
    marks: list[tuple[float, int]] = []
    with open_session(_connection(tree), bandwidth_limit_kbps=2000) as session:

        def deliver(bundle: Bundle) -> None:
            marks.append((time.monotonic(), session.bytes_on_wire()))
            if marks[-1][0] - marks[0][0] > 10:
                session.set_bandwidth_limit(0)  # the rest comes at once, though the agent waits for its turn

        for _ in session.read([FileRequest(0, b"file", 1)], lambda names: [True] * len(names), deliver):
            pass
    last = next(mark for mark in marks if mark[0] - marks[0][0] > 10)
    rate = (last[1] - marks[0][1]) / (last[0] - marks[0][0])
    assert 1_900_000 < rate < 2_100_000
    assert marks[-1][1] - last[1] > 25_000_000
    assert (marks[-1][1] - last[1]) / (marks[-1][0] - last[0]) > 3 * rate


# --- the agent's own text -------------------------------------------------------------------------------------

AGENT = sorted(Path(rehost.agent.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", AGENT, ids=lambda path: path.name)
def test_the_agent_is_python_3_6_and_stands_alone(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 6))
    modules: set[str] = set()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.NamedExpr), "3.8"
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "3.7"
            modules.add(node.module or ".")
    for module in modules:
        ours = module == "rehost.agent" or module.startswith("rehost.agent.")
        optional = path.name == "protocol.py" and module in ("zstandard", "xxhash")
        assert ours or optional or module.split(".")[0] in sys.stdlib_module_names, module


def test_a_damaged_chunk_is_sent_again_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    for number in range(20):
        (tree / f"file{number:02}").write_bytes(os.urandom(60_000))
    hurt = (tree / "file07").read_bytes()
    with Store.open(tmp_path / "store") as store, open_session(_connection(tree)) as session:
        first, _ = take(session, store, tmp_path)
    (pack,) = (tmp_path / "store" / "packs").glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[content.index(hurt[:64]) + 30_000] ^= 0x40
    pack.write_bytes(content)
    place = LocalFolder(tmp_path / "store")
    told = check.check(place, read_data=True)
    assert [(finding.kind, finding.chunks) for finding in told.findings] == [("pack_damaged", 1)]
    assert [(touched.snapshot_id, touched.paths) for touched in told.touched] == [(first.id, ("/file07",))]
    with Store.open(tmp_path / "store") as store, open_session(_connection(tree)) as session:
        _, report = take(session, store, tmp_path, parent=first)
        assert (report.files_changed, report.bytes_scanned, report.bytes_new) == (1, 60_000, 60_000)
        export_tree(Tree(store.files(first.id), store), tmp_path / "back")
    assert_same_tree(tree, tmp_path / "back")
    healed = check.check(place, read_data=True)
    assert healed.sound and not healed.findings
