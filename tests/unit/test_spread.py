"""A session over several connections reads what one connection reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from rehost.agent import protocol
from rehost.errors import SourceUnreachable
from rehost.replication.bundles import Bundle
from rehost.replication.export import export_tree
from rehost.replication.store import Store
from rehost.replication.tree import Tree
from rehost.source import spread
from rehost.source.agent_session import AgentSession
from rehost.source.connect import PathConnection, open_session
from rehost.source.session import FileContent, FileRequest
from rehost.source.spread import SpreadSession
from tests.support.trees import assert_same_tree, make_nasty_tree
from tests.support.wire import take

FILES = 300


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of many sizes, each content in six of them, two in one window; read in several windows."""
    monkeypatch.setattr(spread, "_WINDOW_FILES", 100)
    draw = random.Random(7)
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = [draw.randbytes(draw.choice([1, 1000, 60_000])) for _ in range(FILES // 6)]
    for number in range(FILES):
        (tree / f"{number:03}").write_bytes(contents[number % len(contents)])
    return tree


def _requests() -> list[FileRequest]:
    return [FileRequest(number, b"%03d" % number, 30_000) for number in range(FILES)]


def _read(tree: Path, channels: int) -> tuple[list[FileContent], list[bytes], list[int]]:
    """The contents, the names that were delivered, and the bytes that came over each connection."""
    asked: list[bytes] = []
    delivered: list[bytes] = []
    contents: list[FileContent] = []

    def wanted(names: Sequence[bytes]) -> list[bool]:
        asked.extend(names)
        return [name not in delivered for name in names]

    def deliver(bundle: Bundle) -> None:
        assert bundle.raw()
        delivered.extend(bundle.names)

    with open_session(PathConnection(root=str(tree)), channels=channels) as session:
        for content in session.read(_requests(), wanted, deliver):
            assert all(chunk.sha256 in delivered for chunk in content.chunks)
            contents.append(content)
        lanes = session._lanes if isinstance(session, SpreadSession) else [session]
        received = [lane.bytes_on_wire() for lane in lanes]
        assert session.bytes_on_wire() == sum(received)
    return contents, delivered, received


def test_several_connections_read_what_one_reads_and_nothing_twice(tree: Path) -> None:
    one, delivered, _ = _read(tree, 1)
    several, together, received = _read(tree, 3)
    assert several == one
    assert sorted(together) == sorted(delivered)
    assert len(set(together)) == len(together)
    assert min(received) > 4_000  # the questions alone


def test_a_transfer_over_several_connections_is_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_nasty_tree(tree)
    with Store.open(tmp_path / "store") as store:
        with open_session(PathConnection(root=str(tree)), compress_level=1, channels=2) as session:
            snapshot, report = take(session, store, tmp_path)
        export_tree(Tree(store.files(snapshot.id), store), tmp_path / "back")
    assert report.unreadable == report.vanished == report.unstable == ()
    assert_same_tree(tree, tmp_path / "back")


def test_one_connection_that_breaks_ends_the_reading(tree: Path) -> None:
    with open_session(PathConnection(root=str(tree)), channels=2) as session, pytest.raises(SourceUnreachable):
        assert isinstance(session, SpreadSession)
        session._lanes[1].channel._process.end(0)
        list(session.read(_requests(), lambda names: [True] * len(names), lambda bundle: None))


def test_a_source_that_is_held_is_read_by_the_agent_that_holds_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: AgentSession, kind: int, value: object, answer: int) -> dict[str, object]:
        return {}

    with open_session(PathConnection(root=str(tree)), channels=2) as session:
        assert isinstance(session, SpreadSession)
        other = session._lanes[1].channel
        with monkeypatch.context() as patched:
            patched.setattr(AgentSession, "ask", ask)
            session.ask(protocol.HOLD, {}, protocol.HELD)
            before = other.received
            contents = list(session.read(_requests(), lambda names: [True] * len(names), lambda bundle: None))
            assert other.received == before
            session.ask(protocol.RELEASE, {}, protocol.RELEASED)
        assert contents == list(session.read(_requests(), lambda names: [False] * len(names), lambda bundle: None))
        assert other.received > before


def test_the_bandwidth_limit_is_that_of_all_connections(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    with open_session(PathConnection(root=str(tree)), channels=3, bandwidth_limit_kbps=1000) as session:
        assert isinstance(session, SpreadSession)
        for lane in session._lanes:
            monkeypatch.setattr(lane, "set_bandwidth_limit", limits.append)
        session.set_bandwidth_limit(1000)
        session.set_bandwidth_limit(1)
        session.set_bandwidth_limit(0)
        session._held = True
        session.set_bandwidth_limit(1000)
    assert sum(limits[:3]) == 1000
    assert limits[3:6] == [1, 1, 1]  # none at all would be no limit
    assert limits[6:9] == [0, 0, 0]
    assert limits[9:] == [1000]  # alone, the first has it all


def test_what_one_connection_sends_is_asked_of_no_other() -> None:
    asked: list[bytes] = []

    def wanted(names: Sequence[bytes]) -> list[bool]:
        asked.extend(names)
        return [name != b"stored" for name in names]

    window = spread._Window(wanted, lambda bundle: None)
    assert window._ask([b"a", b"stored", b"b"]) == [True, False, True]
    assert window._ask([b"b", b"c", b"a"]) == [False, True, False]
    assert asked == [b"a", b"stored", b"b", b"c"]
