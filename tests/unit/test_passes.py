"""A pass in file mode seen from the control side, against sources that are nowhere: what is read, and what is kept."""

from __future__ import annotations

import random
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rehost.errors import SourceProtocol, SourceUnreachable
from rehost.progress import silent
from rehost.replication import contents, throttle, transfer
from rehost.replication.bundles import RAW, Bundle
from rehost.replication.contents import Delivery
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from tests.support.made_up import MadeUpSession, Node, TreeSession
from tests.support.wire import inventory, take


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a few rows are worked on in several ranges, as tables of millions are."""
    for module in (transfer, contents):
        monkeypatch.setattr(module, "ROWS_A_GROUP", 4)


def random_tree(draw: random.Random) -> dict[bytes, Node]:
    """Directories, files, symbolic links and further names of some of them."""
    tree: dict[bytes, Node] = {}
    directories = [b""]
    for ino in range(10, 10 + draw.randrange(30)):
        above = draw.choice(directories)
        path = (above + b"/" if above else b"") + b"%c%d" % (draw.choice(b"a-z!"), draw.randrange(100))
        kind = draw.choice([stat.S_IFDIR, stat.S_IFREG, stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK])
        others = [node for node in tree.values() if node.kind != stat.S_IFDIR]
        if path in tree:
            continue
        if others and draw.random() < 0.3:
            node = draw.choice(others)
            node.nlink += 1
        else:
            node = Node(kind, ino, ctime_ns=draw.randrange(1, 1000))
            node.content = draw.randbytes(draw.randrange(12)) if kind == stat.S_IFREG else b""
            node.target = b"to" if kind == stat.S_IFLNK else None
        tree[path] = node
        if kind == stat.S_IFDIR and node.kind == kind:
            directories.append(path)
    return tree


def changed(draw: random.Random, tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """The tree with some files of other content and another time, some names gone and some new."""
    copies = {id(node): replace(node) for node in tree.values()}
    tree = {path: copies[id(node)] for path, node in tree.items()}
    for path in list(tree):
        node = tree[path]
        if node.kind == stat.S_IFREG and draw.random() < 0.2:
            node.content, node.ctime_ns = draw.randbytes(8), draw.randrange(1000, 2000)
        elif node.kind != stat.S_IFDIR and draw.random() < 0.1:
            del tree[path]
    if draw.random() < 0.5:
        tree[b"%c-new" % draw.choice(b"!az")] = Node(ino=draw.randrange(1000, 1 << 40), content=b"new")
    return tree


def assert_holds(store: Store, id: str, tree: dict[bytes, Node]) -> None:
    """The snapshot has these names, with what they hold, those of one inode in one group."""
    table = store.files(id)
    seen = Tree(table, store)
    rows = {row["path"]: row for row in table.to_pylist()}
    assert list(rows) == [b"", *sorted(tree)]
    groups: dict[int, set[object]] = {}
    for path, node in tree.items():
        assert (rows[path]["mode"] & 0o170000, rows[path]["target"]) == (node.kind, node.target)
        if node.kind == stat.S_IFREG:
            raw = node.content if node.now is None else node.now
            assert seen.read(path) == raw
            assert rows[path]["size"] == len(raw)
        if node.kind != stat.S_IFDIR:
            groups.setdefault(id_of(node), set()).add(rows[path]["link_group"])
    names = [id_of(node) for node in tree.values()]
    for inode, numbers in groups.items():
        assert len(numbers) == 1
        assert (numbers == {None}) == (names.count(inode) == 1)
    assert len({next(iter(numbers)) for numbers in groups.values()} - {None}) == sum(
        numbers != {None} for numbers in groups.values()
    )


def id_of(node: Node) -> int:
    return node.ino


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", range(12))
def test_random_trees_pass_after_pass(store: Store, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    tree, parent = random_tree(draw), None
    before: dict[bytes, Node] = {}
    for _ in range(4):
        session = TreeSession(tree, rows_a_batch=draw.randrange(1, 6))
        parent, report = take(session, store, tmp_path, parent=parent)
        assert_holds(store, parent.id, tree)
        firsts = {node.ino: path for path, node in sorted(tree.items(), reverse=True) if node.content}
        old = {path: (node.ino, node.ctime_ns) for path, node in before.items() if node.content}
        stale = {path for path in firsts.values() if old.get(path) != (tree[path].ino, tree[path].ctime_ns)}
        assert set(session.read_paths) >= stale
        # What was not the first name of its inode before, and is now, was compared with its own row too.
        assert len(session.read_paths) == report.files_changed == len(stale)
        assert parent.bytes_total == sum(len(tree[path].content) for path in firsts.values())
        before, tree = tree, changed(draw, tree)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("seed", range(8))
def test_names_that_go_while_they_are_read(store: Store, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    tree = random_tree(draw)
    for path in tree:
        tree[path] = replace(tree[path])  # each name has its own fate
        if tree[path].kind == stat.S_IFREG and tree[path].content and draw.random() < 0.4:
            tree[path].error = draw.choice(["vanished", "replaced", "unreadable: I/O error"])
    session = TreeSession(tree)
    snapshot, report = take(session, store, tmp_path)
    failed = {path for path in session.read_paths if tree[path].error}
    assert_holds(store, snapshot.id, {path: node for path, node in tree.items() if path not in failed})
    assert len(report.vanished) + len(report.unreadable) == len(failed)
    assert all(line.endswith(": I/O error") for line in report.unreadable)


@pytest.mark.usefixtures("small_groups")
def test_all_names_of_an_inode_have_what_was_read_of_one(store: Store, tmp_path: Path) -> None:
    node = Node(ino=5, content=b"longer than it is", nlink=3, now=b"shorter")
    later = replace(node, content=b"and longer when the scan comes by again")
    tree = {b"a": node, b"z": later, **{b"m%d" % number: Node(ino=100 + number) for number in range(20)}}
    snapshot, _ = take(TreeSession(tree), store, tmp_path)
    assert_holds(store, snapshot.id, tree)


def test_what_changed_a_moment_before_the_scan_is_read_again(store: Store, tmp_path: Path) -> None:
    began = 1_700_000_000_500_000_000
    times = {
        b"old": began - 20_000_001,
        b"young": began - 20_000_000,
        b"younger": began + 1,
        b"coarse": began - 1_500_000_000,  # a whole second
        b"coarse-old": began - 2_500_000_000,
    }
    tree = {path: Node(ino=at, content=b"x", ctime_ns=ctime) for at, (path, ctime) in enumerate(times.items())}
    parent, _ = take(TreeSession(tree, began_ns=began), store, tmp_path)
    assert parent.scan_began_ns == began
    again = TreeSession(tree, began_ns=began + 10**10)
    parent, _ = take(again, store, tmp_path, parent=parent)
    assert again.read_paths == [b"coarse", b"young", b"younger"]
    last = TreeSession(tree)
    take(last, store, tmp_path, parent=parent)
    assert last.read_paths == []


def test_a_chunk_that_the_store_lost_is_sent_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {b"%d" % number: Node(ino=number, content=b"%d" % number) for number in range(9)}
    session = TreeSession(tree)
    parent, _ = take(session, store, tmp_path)
    lost, has = session.sent[3], store.has
    monkeypatch.setattr(store, "has", lambda names: [n != lost and h for n, h in zip(names, has(names), strict=True)])
    again = TreeSession(tree)
    take(again, store, tmp_path, parent=parent)
    assert again.sent == [lost]
    assert again.read_paths == [b"3"]


def test_a_bundle_that_lies_ends_the_transfer(store: Store, tmp_path: Path) -> None:
    class Lying(TreeSession):
        def bundle(self, raw: bytes) -> Bundle:
            return replace(Bundle.of([raw]), payload=b"?" * len(raw))

    with pytest.raises(SourceProtocol, match="SHA-256"):
        take(Lying({b"a": Node(ino=1, content=b"true")}), store, tmp_path)


@pytest.mark.parametrize(
    "rows", [[b"", b"b", b"a"], [b"", b"a", b"a"], [b"a"], [b"", b"no/parent"], []], ids=lambda rows: repr(rows)
)
def test_rows_that_break_a_rule_end_the_scan(tmp_path: Path, rows: list[bytes]) -> None:
    class Listing(TreeSession):
        def scan(self, *_: object) -> Iterator[pa.RecordBatch]:
            table = pa.Table.from_batches(super().scan([], []))
            for path in rows:
                row = table.slice(0 if path == b"" else 1, 1)
                yield row.set_column(0, table.schema.field(0), pa.array([path], pa.binary())).to_batches()[0]

    with pytest.raises(SourceProtocol):
        transfer.scan(Listing({b"a": Node(ino=1)}), inventory(), [], tmp_path, silent)


def test_a_parent_that_is_gone_or_has_none_of_the_names(store: Store, tmp_path: Path) -> None:
    parent, _ = take(TreeSession({b"m": Node(ino=4, content=b"m")}), store, tmp_path)
    tree = {b"a": Node(ino=4, content=b"m"), b"z": Node(ino=5, content=b"z")}
    snapshot, _ = take(TreeSession(tree), store, tmp_path, parent=parent)
    assert snapshot.parent_id == parent.id
    assert_holds(store, snapshot.id, tree)
    store.delete_snapshot(parent.id)
    snapshot, _ = take(TreeSession(tree), store, tmp_path, parent=parent)
    assert snapshot.parent_id is None
    assert_holds(store, snapshot.id, tree)


# --- the way into the store -----------------------------------------------------------------------------------


class SlowStore:
    """A store whose writing waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.stored: set[bytes] = set()

    def has(self, names: Sequence[bytes]) -> list[bool]:
        return [name in self.stored for name in names]

    def put_bundle(self, bundle: Bundle) -> int:
        assert self.go.wait(30)
        self.stored.update(bundle.names)
        return bundle.size

    def flush(self) -> None: ...


def test_what_is_on_its_way_is_not_wanted_again_and_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_QUEUED_BYTES", 1000)
    slow = SlowStore()
    delivered: list[int] = []
    bundles = [Bundle(((b"%d" % number) * 32,), (300,), RAW, bytes(300)) for number in range(9)]
    names = [bundle.names[0] for bundle in bundles]
    with Delivery(slow, "nowhere", delivered.append) as delivery:  # type: ignore[arg-type]
        sender = threading.Thread(target=lambda: deque(map(delivery.deliver, bundles), 0))
        sender.start()
        deadline = time.monotonic() + 30
        while len(delivered) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert delivery.wanted(names) == [False] * 3 + [True] * 6
        slow.go.set()
        sender.join()
        delivery.settle()
        assert delivery.wanted(names) == [False] * 9
    assert delivery.bytes_new == sum(delivered) == 9 * 300


def test_the_limit_follows_what_it_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "_ASKED_EVERY_SECONDS", 0.001)
    answers: list[object] = [5, 5, SourceUnreachable(host="h", reason="r"), 7, 7, 0]
    session = MadeUpSession(0)
    asked = threading.Event()

    def limits(now: float) -> int:
        assert abs(now - time.time()) < 60
        if len(answers) == 1:
            asked.set()
            return 0
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, int)
        return answer

    with throttle.limited(session, limits):
        assert asked.wait(30)
    assert session.limits[:2] == [5, 7]
    assert session.limits[2:] in ([], [0])


# --- many files -----------------------------------------------------------------------------------------------

_MANY = """
import sys
from pathlib import Path
from rehost.replication.store import Store
from tests.support.made_up import MadeUpSession
from tests.support.wire import take
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
directory, before = Path(sys.argv[1]), peak()
with Store.open(directory / "store") as store:
    parent, report = take(MadeUpSession(120_000, linked=int(sys.argv[2])), store, directory)
    assert report.files_changed == 120_000 // int(sys.argv[2]), report
    again = MadeUpSession(120_000, linked=int(sys.argv[2]), changed=frozenset([7, 50_000]))
    snapshot, report = take(again, store, directory, parent=parent)
    assert report.files_changed == again.read_files == 2, report
print(peak() - before)
"""


@pytest.mark.parametrize("linked", [1, 2])
def test_many_files_take_little_memory(tmp_path: Path, linked: int) -> None:
    argv = [sys.executable, "-c", _MANY, str(tmp_path), str(linked)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert int(done.stdout) < 160_000  # KiB; as objects of Python the rows alone would be more
    assert pq.read_metadata(tmp_path / "files.parquet").num_row_groups > 7
